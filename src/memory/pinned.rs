//! Pages for I/O: large, locked, zeroed, and honest about what they are.
//!
//! The size of the pages is what matters most: direct I/O describes a buffer to the drive page by
//! page, and 2 MiB pages instead of 4 KiB pages bring half to twice the bandwidth again, at a
//! fifth of the processor time. In order of preference: reserved huge pages, which cost nothing to
//! try; transparent ones, asked for, populated and gathered at once; base pages.

use crate::base::config::Policy;
use crate::base::error::{Error, Result, errno_name};
use crate::base::units::{MIB, round_up, to_u64, to_usize};
use crate::sys::{self, Advice, Errno, Mapping};

use super::events;

/// Size of a huge page.
const HUGE_PAGE_BYTES: u64 = 2 * MIB;

/// From this length on a buffer is worth huge pages (and at most half of it is padding).
const HUGE_FROM_BYTES: u64 = MIB;

/// What pages some memory lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved huge pages of hugetlbfs.
    HugeTlb,
    /// Transparent huge pages, all of it.
    Transparent,
    /// Base pages, or not all of it in huge ones.
    Base,
}

impl PageKind {
    /// The name, as descriptions and messages spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            PageKind::HugeTlb => "hugetlb",
            PageKind::Transparent => "transparent",
            PageKind::Base => "base",
        }
    }
}

/// Zeroed memory of the library's own, populated, and locked where that was asked for and
/// granted. Unmapped when dropped.
#[derive(Debug)]
pub struct PinnedMemory {
    mapping: Mapping,
    len_bytes: u64,
    pages: PageKind,
    huge_bytes: u64,
    is_locked: bool,
}

impl PinnedMemory {
    /// Allocates at least `len_bytes`, rounded up to whole pages.
    ///
    /// Huge pages are tried from 1 MiB on, and at any length where `huge` requires them. Every
    /// page has its memory when this returns, so that no transfer waits for a fault; a length
    /// that the machine or the control group of the process cannot give is refused before
    /// anything is populated, since the kernel would kill a process for it.
    ///
    /// # Errors
    /// `InvalidArgument` for a length of zero, `NoMemory` where there is not as much,
    /// `Unsupported` where huge pages are required and not to be had, `Memlock` where locking is
    /// required and refused.
    pub fn allocate(len_bytes: u64, pin: Policy, huge: Policy) -> Result<PinnedMemory> {
        if len_bytes == 0 {
            return Err(Error::invalid("a buffer must have at least one byte"));
        }
        let try_huge = match huge {
            Policy::Require => true,
            Policy::Prefer => len_bytes >= HUGE_FROM_BYTES,
            Policy::Off => false,
        };
        let mut memory = if try_huge {
            PinnedMemory::in_huge_pages(len_bytes, huge)?
        } else {
            PinnedMemory::in_base_pages(len_bytes)?
        };
        memory.lock(pin)?;
        Ok(memory)
    }

    fn in_huge_pages(len_bytes: u64, huge: Policy) -> Result<PinnedMemory> {
        let mapped_bytes = round_up(len_bytes, HUGE_PAGE_BYTES);
        let len = to_usize(mapped_bytes).map_err(|_| no_memory(len_bytes, libc::ENOMEM))?;
        // Reserving succeeds or fails as a whole; populating can still fail, for a control group
        // or a memory policy that reserving does not ask.
        if let Ok(mapping) = Mapping::huge_tlb(len)
            && matches!(
                mapping.advise(Advice::PopulateWrite),
                Ok(()) | Err(libc::EINVAL)
            )
        {
            return Ok(PinnedMemory {
                mapping,
                len_bytes,
                pages: PageKind::HugeTlb,
                huge_bytes: mapped_bytes,
                is_locked: false,
            });
        }

        let align = to_usize(HUGE_PAGE_BYTES.max(sys::page_size_bytes()))?;
        let mut mapping =
            Mapping::anonymous(len, align).map_err(|errno| no_memory(len_bytes, errno))?;
        let advised = mapping.advise(Advice::HugePages);
        populate(&mut mapping)?;
        let mut huge_bytes = huge_bytes_of(&mapping);
        if huge_bytes < mapped_bytes && mapping.advise(Advice::Collapse).is_ok() {
            huge_bytes = huge_bytes_of(&mapping);
        }
        let pages = match huge_bytes < mapped_bytes {
            true => PageKind::Base,
            false => PageKind::Transparent,
        };
        if pages == PageKind::Base && huge == Policy::Require {
            return Err(Error::Unsupported {
                message: format!(
                    "huge_pages=require: only {huge_bytes} of {mapped_bytes} bytes came in huge \
                     pages; reserve some (vm.nr_hugepages), enable transparent ones \
                     (/sys/kernel/mm/transparent_hugepage/enabled), or set huge_pages=prefer"
                ),
                errno: advised.err().unwrap_or(0),
            });
        }
        if pages == PageKind::Base {
            events::huge_pages_refused(mapped_bytes, huge_bytes);
        }
        Ok(PinnedMemory {
            mapping,
            len_bytes,
            pages,
            huge_bytes,
            is_locked: false,
        })
    }

    fn in_base_pages(len_bytes: u64) -> Result<PinnedMemory> {
        let page_bytes = sys::page_size_bytes();
        let len = to_usize(round_up(len_bytes, page_bytes))
            .map_err(|_| no_memory(len_bytes, libc::ENOMEM))?;
        let mut mapping = Mapping::anonymous(len, to_usize(page_bytes)?)
            .map_err(|errno| no_memory(len_bytes, errno))?;
        populate(&mut mapping)?;
        Ok(PinnedMemory {
            mapping,
            len_bytes,
            pages: PageKind::Base,
            huge_bytes: 0,
            is_locked: false,
        })
    }

    fn lock(&mut self, pin: Policy) -> Result<()> {
        if pin == Policy::Off {
            return Ok(());
        }
        // The kernel never swaps these; `mlock` would only charge them against the limit.
        if self.pages == PageKind::HugeTlb {
            self.is_locked = true;
            return Ok(());
        }
        let Err(errno) = self.mapping.lock() else {
            self.is_locked = true;
            return Ok(());
        };
        let limit_bytes = sys::memlock_limit_bytes().ok();
        if pin == Policy::Require {
            return Err(Error::Memlock {
                message: lock_message(self.mapped_bytes(), errno, limit_bytes),
                errno,
            });
        }
        events::lock_refused(self.mapped_bytes(), errno, limit_bytes);
        Ok(())
    }

    /// Where the memory begins: at a multiple of the page size.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_mut_ptr()
    }

    /// The length that was asked for.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The length of the whole pages, all of which can be used.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        to_u64(self.mapping.len())
    }

    /// What pages the memory lies in, as the kernel told after they were populated.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// How much of the mapped length lies in huge pages.
    #[must_use]
    pub fn huge_bytes(&self) -> u64 {
        self.huge_bytes
    }

    /// Whether the kernel keeps the pages in memory.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }
}

/// Gives every page of a fresh mapping its memory.
fn populate(mapping: &mut Mapping) -> Result<()> {
    let len_bytes = to_u64(mapping.len());
    // Small ones are not worth reading files for: they fail last.
    if len_bytes >= HUGE_FROM_BYTES
        && let Some(available_bytes) = sys::memory_available_bytes()
        && available_bytes < len_bytes
    {
        return Err(Error::NoMemory(format!(
            "a buffer of {len_bytes} bytes: only {available_bytes} are available"
        )));
    }
    match mapping.advise(Advice::PopulateWrite) {
        Ok(()) => Ok(()),
        // KERNEL: before 5.14.
        Err(libc::EINVAL) => {
            mapping.touch();
            Ok(())
        }
        Err(errno) => Err(no_memory(len_bytes, errno)),
    }
}

/// Where the kernel does not tell, none: nothing is claimed that was not seen.
fn huge_bytes_of(mapping: &Mapping) -> u64 {
    mapping.transparent_huge_bytes().unwrap_or(0)
}

fn no_memory(len_bytes: u64, errno: Errno) -> Error {
    Error::NoMemory(format!(
        "a buffer of {len_bytes} bytes: {}",
        errno_name(errno)
    ))
}

fn lock_message(len_bytes: u64, errno: Errno, limit_bytes: Option<u64>) -> String {
    let limit = match limit_bytes {
        None => String::from("unknown"),
        Some(u64::MAX) => String::from("unlimited"),
        Some(bytes) => format!("{bytes} bytes"),
    };
    format!(
        "mlock of {len_bytes} bytes: {} (RLIMIT_MEMLOCK is {limit}: raise it with `ulimit -l` or \
         LimitMEMLOCK=, or set pin=prefer)",
        errno_name(errno)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Status;

    fn bytes_of(memory: &mut PinnedMemory) -> &mut [u8] {
        let len = usize::try_from(memory.mapped_bytes()).unwrap();
        // SAFETY: the pages live as long as the borrow, which is exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), len) }
    }

    #[test]
    fn lengths_are_rounded_to_pages_and_the_bytes_are_zero_and_writable() {
        for (len, mapped) in [(1, 4096), (4096, 4096), (4097, 8192), (MIB - 1, MIB)] {
            let mut memory = PinnedMemory::allocate(len, Policy::Off, Policy::Prefer).unwrap();
            assert_eq!(memory.len_bytes(), len);
            assert_eq!(
                memory.mapped_bytes(),
                round_up(mapped, sys::page_size_bytes())
            );
            assert_eq!(memory.pages(), PageKind::Base);
            assert!(!memory.is_locked());
            let bytes = bytes_of(&mut memory);
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(1);
        }
    }

    #[test]
    fn large_memory_is_aligned_and_says_truly_what_it_is() {
        let mut memory =
            PinnedMemory::allocate(5 * MIB + 1, Policy::Prefer, Policy::Prefer).unwrap();
        assert_eq!(memory.mapped_bytes(), 6 * MIB);
        assert_eq!(memory.as_ptr().addr() % (2 << 20), 0);
        assert!(bytes_of(&mut memory).iter().all(|byte| *byte == 0));
        assert_eq!(
            memory.huge_bytes() == memory.mapped_bytes(),
            memory.pages() != PageKind::Base
        );
        if memory.pages() == PageKind::Transparent {
            let now = memory.mapping.transparent_huge_bytes().unwrap();
            assert_eq!(now, 6 * MIB);
        }
    }

    #[test]
    fn without_huge_pages_there_are_none() {
        let memory = PinnedMemory::allocate(4 * MIB, Policy::Off, Policy::Off).unwrap();
        assert_eq!((memory.pages(), memory.huge_bytes()), (PageKind::Base, 0));
        assert_eq!(memory.mapped_bytes(), 4 * MIB);
    }

    #[test]
    fn absurd_lengths_are_errors_and_nothing_is_killed() {
        let beyond_memory = sys::memory_available_bytes().unwrap() + 64 * MIB;
        for huge in [Policy::Prefer, Policy::Off, Policy::Require] {
            for len in [
                u64::MAX,
                u64::MAX - 4096,
                1 << 63,
                1 << 60,
                1 << 46,
                1 << 44,
                beyond_memory,
            ] {
                let error = PinnedMemory::allocate(len, Policy::Prefer, huge).unwrap_err();
                assert_eq!(error.status(), Status::NoMemory, "{len}: {error}");
            }
            let zero = PinnedMemory::allocate(0, Policy::Off, huge).unwrap_err();
            assert_eq!(zero.status(), Status::InvalidArgument);
        }
    }

    /// The variable that tells a child's test that it may change its process.
    const CHILD: &str = "TSW_TEST_CHILD";

    /// Runs one test of this file in a process of its own, where limits can be changed.
    fn in_child(test: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("memory::pinned::tests::{test}")])
            .args(["--ignored", "--nocapture"])
            .env(CHILD, test)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("1 passed"), "{text}");
    }

    /// Takes the right to exceed `RLIMIT_MEMLOCK` from this thread, and sets the limit.
    fn limit_memlock(limit_bytes: u64) {
        // Version 3 of the header, this thread; no capability in any of the three sets of two
        // words each.
        let header = [0x2008_0522_u32, 0];
        let none = [0_u32; 6];
        // SAFETY: both arrays are laid out as capset(2) reads them and outlive the call.
        let dropped = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(dropped, 0);
        let limit = libc::rlimit {
            rlim_cur: limit_bytes,
            rlim_max: limit_bytes,
        };
        // SAFETY: one `struct rlimit`, which outlives the call.
        assert_eq!(0, unsafe {
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit)
        });
    }

    #[test]
    fn a_refused_lock_is_an_error_or_a_warning_as_asked() {
        in_child("child_without_the_right_to_lock");
        in_child("child_that_may_lock_little");
    }

    #[test]
    #[ignore = "changes limits: run by a_refused_lock_is_an_error_or_a_warning_as_asked"]
    fn child_without_the_right_to_lock() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        limit_memlock(0);
        for len in [100, 3 * MIB] {
            let memory = PinnedMemory::allocate(len, Policy::Prefer, Policy::Off).unwrap();
            assert!(!memory.is_locked());
            let error = PinnedMemory::allocate(len, Policy::Require, Policy::Off).unwrap_err();
            assert_eq!(error.status(), Status::Memlock);
            assert_eq!(error.os_error(), libc::EPERM);
            assert!(
                error.to_string().contains("RLIMIT_MEMLOCK is 0 bytes"),
                "{error}"
            );
        }
    }

    #[test]
    #[ignore = "changes limits: run by a_refused_lock_is_an_error_or_a_warning_as_asked"]
    fn child_that_may_lock_little() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        limit_memlock(256 << 10);
        let memory = PinnedMemory::allocate(65536, Policy::Require, Policy::Prefer).unwrap();
        assert!(memory.is_locked());
        let error = PinnedMemory::allocate(300 << 10, Policy::Require, Policy::Off).unwrap_err();
        assert_eq!(error.os_error(), libc::ENOMEM);
        assert!(error.to_string().contains("262144 bytes"), "{error}");
    }

    #[test]
    fn required_huge_pages_that_are_forbidden_are_an_error() {
        in_child("child_without_transparent_huge_pages");
    }

    #[test]
    #[ignore = "changes the process: run by required_huge_pages_that_are_forbidden_are_an_error"]
    fn child_without_transparent_huge_pages() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        // SAFETY: no memory is involved.
        assert_eq!(0, unsafe {
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0)
        });
        match PinnedMemory::allocate(4 * MIB, Policy::Off, Policy::Require) {
            Ok(memory) => assert_eq!(memory.pages(), PageKind::HugeTlb),
            Err(error) => assert_eq!(error.status(), Status::Unsupported, "{error}"),
        }
        let memory = PinnedMemory::allocate(4 * MIB, Policy::Off, Policy::Prefer).unwrap();
        assert!(memory.pages() != PageKind::Transparent);
    }
}
