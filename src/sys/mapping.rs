//! Anonymous memory straight from the kernel, with control over its pages.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ptr;

use super::{Errno, checked, errno, page_size_bytes};

/// Advice about the pages of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Use transparent huge pages here. `EINVAL` where the kernel has none.
    HugePages,
    /// Gather the pages into huge ones now. KERNEL: 6.1.
    Collapse,
    /// Give every page its memory now, writable; fails instead of killing the process where that
    /// would raise a signal. KERNEL: 5.14; `EINVAL` before.
    PopulateWrite,
    /// Give the memory of the pages back; they read as zeroes then.
    DontNeed,
}

/// Private zeroed memory that is unmapped when this is dropped.
///
/// INVARIANT: `address..address + len` lies within `reserved_address..+ reserved_len`, which is
/// one reservation of this value alone. Where the two differ, at least one page that cannot be
/// accessed lies on either side: an overrun faults, and the kernel never merges the mapping with
/// a neighbour, so that `/proc/self/smaps` tells about it alone.
#[derive(Debug)]
pub struct Mapping {
    reserved_address: usize,
    reserved_len: usize,
    address: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of base pages at a multiple of `align`, between two guard pages.
    ///
    /// `len` and `align` are multiples of the page size, `align` is a power of two.
    ///
    /// # Errors
    /// As `mmap(2)`; `ENOMEM` for lengths that cannot be, `EINVAL` for zero or unaligned ones.
    pub fn anonymous(len: usize, align: usize) -> Result<Mapping, Errno> {
        let page = usize::try_from(page_size_bytes()).map_err(|_| libc::EINVAL)?;
        if len == 0 || !len.is_multiple_of(page) || !align.is_power_of_two() || align < page {
            return Err(libc::EINVAL);
        }
        // The aligned start lies at most `align` into the reservation; a guard page follows.
        let reserved_len = align
            .checked_add(page)
            .and_then(|slack| slack.checked_add(len))
            .filter(|reserved| *reserved <= isize::MAX.unsigned_abs())
            .ok_or(libc::ENOMEM)?;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let reserved_address = map(0, reserved_len, libc::PROT_NONE, reserve)?;
        let mut mapping = Mapping {
            reserved_address,
            reserved_len,
            address: (reserved_address + page).next_multiple_of(align),
            len,
        };
        mapping.trim(page);
        // From here on an error drops `mapping`, which gives the reservation back.
        let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        map(mapping.address, len, access, fixed)?;
        Ok(mapping)
    }

    /// Maps `len` bytes of reserved 2 MiB pages (hugetlbfs). Fails at once where too few are
    /// reserved (`/proc/sys/vm/nr_hugepages`).
    ///
    /// # Errors
    /// As `mmap(2)` with `MAP_HUGETLB`: `ENOMEM` where the pool is too small, `EINVAL` where the
    /// length is no multiple of 2 MiB or the kernel has no such pages.
    pub fn huge_tlb(len: usize) -> Result<Mapping, Errno> {
        if len == 0 || len > isize::MAX.unsigned_abs() || !len.is_multiple_of(2 << 20) {
            return Err(libc::EINVAL);
        }
        let flags =
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        let address = map(0, len, libc::PROT_READ | libc::PROT_WRITE, flags)?;
        Ok(Mapping {
            reserved_address: address,
            reserved_len: len,
            address,
            len,
        })
    }

    /// Gives the reservation back, up to one guard page on either side. Best effort: what the
    /// kernel does not take back now (it may need a new mapping entry for that) goes at drop.
    fn trim(&mut self, page: usize) {
        let before = self.address - page - self.reserved_address;
        if before > 0 && unmap(self.reserved_address, before).is_ok() {
            self.reserved_address += before;
            self.reserved_len -= before;
        }
        let guarded = self.address + self.len + page - self.reserved_address;
        let after = self.reserved_len - guarded;
        if after > 0 && unmap(self.reserved_address + guarded, after).is_ok() {
            self.reserved_len = guarded;
        }
    }

    /// Where the memory begins.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address)
    }

    /// The address at which the memory begins.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length of the memory, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes; it always has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Advises the kernel about the whole mapping.
    ///
    /// # Errors
    /// As `madvise(2)`.
    pub fn advise(&self, advice: Advice) -> Result<(), Errno> {
        let number = match advice {
            Advice::HugePages => libc::MADV_HUGEPAGE,
            Advice::Collapse => MADV_COLLAPSE,
            Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
            Advice::DontNeed => libc::MADV_DONTNEED,
        };
        // SAFETY: the range is ours. Of the advices only `DontNeed` changes what is read, to
        // zeroes, which are valid bytes.
        checked(|| unsafe { libc::madvise(self.as_mut_ptr().cast(), self.len, number) }).map(drop)
    }

    /// Gives every page its memory by writing to it: what `PopulateWrite` does, on kernels that
    /// lack it, and with their risk of a signal. Only for memory that nobody uses yet.
    pub fn touch(&mut self) {
        let page = usize::try_from(page_size_bytes()).unwrap_or(4096);
        for offset in (0..self.len).step_by(page) {
            // SAFETY: the byte lies in our mapping, and `&mut` says that nobody else is at it.
            unsafe { self.as_mut_ptr().add(offset).write_volatile(0) };
        }
    }

    /// Locks the pages in memory.
    ///
    /// # Errors
    /// As `mlock(2)`: `ENOMEM` beyond `RLIMIT_MEMLOCK`, `EPERM` where that is 0.
    pub fn lock(&self) -> Result<(), Errno> {
        // SAFETY: the range is ours; locking does not change it.
        checked(|| unsafe { libc::mlock(self.as_mut_ptr().cast_const().cast(), self.len) })
            .map(drop)
    }

    /// Unlocks the pages.
    ///
    /// # Errors
    /// As `munlock(2)`.
    pub fn unlock(&self) -> Result<(), Errno> {
        // SAFETY: the range is ours; unlocking does not change it.
        checked(|| unsafe { libc::munlock(self.as_mut_ptr().cast_const().cast(), self.len) })
            .map(drop)
    }

    /// How many bytes of an [`anonymous`](Mapping::anonymous) mapping lie in transparent huge
    /// pages right now. Reads `/proc/self/smaps`: milliseconds in a process with much memory.
    ///
    /// # Errors
    /// The errno of reading it: `EACCES` in a process that may not be inspected, `ENOENT` without
    /// `/proc`.
    pub fn transparent_huge_bytes(&self) -> Result<u64, Errno> {
        let told = File::open("/proc/self/smaps").and_then(|smaps| {
            let lines = BufReader::with_capacity(64 << 10, smaps);
            huge_bytes_within(lines, self.address, self.address + self.len)
        });
        told.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if unmap(self.reserved_address, self.reserved_len).is_err() {
            // Only at the limit of mappings (`vm.max_map_count`), where unmapping would have to
            // split one: the addresses stay taken, the memory is given back.
            let _ = self.unlock();
            let _ = self.advise(Advice::DontNeed);
        }
    }
}

/// Not in every libc that the crate supports; part of the kernel's ABI on every architecture.
const MADV_COLLAPSE: libc::c_int = 25;

/// `mmap` of anonymous memory; with `MAP_FIXED` only ever over the caller's own reservation.
fn map(
    address: usize,
    len: usize,
    access: libc::c_int,
    flags: libc::c_int,
) -> Result<usize, Errno> {
    let hint = ptr::with_exposed_provenance_mut(address);
    // SAFETY: without `MAP_FIXED` the kernel picks unused addresses; with it, the two callers
    // above pass addresses inside a reservation that they own and that nobody accesses yet.
    let mapped = unsafe { libc::mmap(hint, len, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(errno());
    }
    Ok(mapped.expose_provenance())
}

/// `munmap` of the caller's own reservation, or a part of it.
fn unmap(address: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the callers, `trim` and `drop` of `Mapping`, pass parts of their own reservation to
    // which no pointer is in use: guards, or all of it at the end of its life.
    checked(|| unsafe { libc::munmap(ptr::with_exposed_provenance_mut(address), len) }).map(drop)
}

/// Sums `AnonHugePages` over the mappings that lie wholly within `start..end`.
fn huge_bytes_within(mut smaps: impl BufRead, start: usize, end: usize) -> io::Result<u64> {
    let mut line = String::new();
    let mut inside = false;
    let mut total_kib = 0_u64;
    while smaps.read_line(&mut line)? > 0 {
        if let Some((from, to)) = mapping_of(&line) {
            if from >= end {
                break;
            }
            inside = from >= start && to <= end;
        } else if let Some(rest) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            let kib = rest.trim().trim_end_matches("kB").trim_end();
            total_kib += kib.parse::<u64>().unwrap_or(0);
        }
        line.clear();
    }
    Ok(total_kib * 1024)
}

/// The addresses in a line that begins a mapping, as `7f00a000-7f00c000 rw-p …`.
fn mapping_of(line: &str) -> Option<(usize, usize)> {
    let (from, rest) = line.split_once('-')?;
    let (to, _) = rest.split_once(' ')?;
    let from = usize::from_str_radix(from, 16).ok()?;
    let to = usize::from_str_radix(to, 16).ok()?;
    Some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_aligned_zeroed_and_alone_between_its_guards() {
        for align in [4096, 2 << 20] {
            let page = usize::try_from(page_size_bytes()).unwrap();
            let mapping = Mapping::anonymous(3 * page, align.max(page)).unwrap();
            assert_eq!(mapping.address() % align, 0);
            assert_eq!(mapping.reserved_len, mapping.len() + 2 * page);
            assert_eq!(mapping.reserved_address + page, mapping.address());
            // SAFETY: the mapping lives, and only this test uses it.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(mapping.as_mut_ptr(), mapping.len()) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(7);
            mapping.advise(Advice::DontNeed).unwrap();
        }
    }

    #[test]
    fn absurd_lengths_are_errors() {
        assert_eq!(Mapping::anonymous(0, 4096).err(), Some(libc::EINVAL));
        assert_eq!(Mapping::anonymous(1, 4096).err(), Some(libc::EINVAL));
        let huge = isize::MAX.unsigned_abs() & !0xfff;
        assert_eq!(Mapping::anonymous(huge, 4096).err(), Some(libc::ENOMEM));
        assert_eq!(Mapping::anonymous(1 << 60, 4096).err(), Some(libc::ENOMEM));
        assert!(Mapping::huge_tlb(1 << 60).is_err());
        assert_eq!(Mapping::huge_tlb(4096).err(), Some(libc::EINVAL));
    }

    #[test]
    fn only_the_mappings_within_are_summed() {
        let smaps = "\
            1000-3000 rw-p 00000000 00:00 0 [heap]\nAnonHugePages:      64 kB\nVmFlags: rd wr\n\
            200000-600000 rw-p 00000000 00:00 0\nRss: 4096 kB\nAnonHugePages:    4096 kB\n\
            600000-800000 rw-p 00000000 00:00 0\nAnonHugePages:    2048 kB\n";
        let within = |start, end| huge_bytes_within(smaps.as_bytes(), start, end).unwrap();
        assert_eq!(within(0x200000, 0x600000), 4096 << 10);
        assert_eq!(within(0x200000, 0x800000), 6144 << 10);
        assert_eq!(
            within(0x400000, 0x600000),
            0,
            "a part of a mapping proves nothing"
        );
        assert_eq!(within(0x9000000, 0xa000000), 0);
    }
}
