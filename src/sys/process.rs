//! What the kernel tells about itself and this process: limits, release, forks.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Errno, checked};

/// Size of a base page, and the granularity of mappings.
#[must_use]
pub fn page_size_bytes() -> u64 {
    // SAFETY: no memory is involved.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Linux always knows it.
    u64::try_from(size).unwrap_or(4096)
}

/// How much memory this process may lock (`RLIMIT_MEMLOCK`, soft); `u64::MAX` is no limit.
///
/// # Errors
/// As `getrlimit(2)`.
pub fn memlock_limit_bytes() -> Result<u64, Errno> {
    // SAFETY: `soft_limit` passes room for one `struct rlimit`.
    soft_limit(|limit| unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, limit) })
}

/// How many descriptors this process may have open (`RLIMIT_NOFILE`, soft); `u64::MAX` is no
/// limit.
///
/// # Errors
/// As `getrlimit(2)`.
pub fn file_limit() -> Result<u64, Errno> {
    // SAFETY: `soft_limit` passes room for one `struct rlimit`.
    soft_limit(|limit| unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit) })
}

/// The longest file that this process may make (`RLIMIT_FSIZE`, soft); `u64::MAX` is no limit.
/// Who writes or extends beyond it is sent `SIGXFSZ`, which ends the process.
///
/// # Errors
/// As `getrlimit(2)`.
pub fn file_size_limit_bytes() -> Result<u64, Errno> {
    // SAFETY: `soft_limit` passes room for one `struct rlimit`.
    soft_limit(|limit| unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, limit) })
}

/// The resource's number has a type of its own in every libc, so the call is made by the caller.
fn soft_limit(get: impl Fn(*mut libc::rlimit) -> libc::c_int) -> Result<u64, Errno> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    checked(|| get(&raw mut limit))?;
    Ok(match limit.rlim_cur {
        libc::RLIM_INFINITY => u64::MAX,
        current => current,
    })
}

/// Fills up to 256 bytes with numbers that nobody can guess.
///
/// # Errors
/// As `getrandom(2)`; `EINVAL` for more.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), Errno> {
    // KERNEL: getrandom(2): up to 256 bytes come whole.
    if bytes.len() > 256 {
        return Err(libc::EINVAL);
    }
    // SAFETY: the slice is exclusive and outlives the call, which writes at most its length.
    checked(|| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) }).map(drop)
}

/// The release of the running kernel, as `6.18.44-generic`.
#[must_use]
pub fn kernel_release() -> String {
    let mut names = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `names` has room for one `struct utsname`.
    if checked(|| unsafe { libc::uname(names.as_mut_ptr()) }).is_err() {
        return String::from("unknown");
    }
    // SAFETY: filled by the kernel; zeroes are valid as well.
    let names = unsafe { names.assume_init() };
    // SAFETY: every member of `struct utsname` ends in NUL within its array.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    release.to_string_lossy().into_owned()
}

/// Signals that a thread of the library still takes: those that its own instructions raise, and
/// that of profilers.
const SIGNALS_KEPT: [libc::c_int; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGPROF,
];

/// Blocks signals on the calling thread, which is the library's: handlers of the host never run
/// on it, and a file that reaches `RLIMIT_FSIZE` is an error, not a `SIGXFSZ` that ends the
/// process.
pub fn block_signals() {
    let mut signals = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `signals` has room for one set, which the first call initializes; the numbers are
    // signals; the old mask is not asked for. None of the calls can fail with these arguments.
    unsafe {
        libc::sigfillset(signals.as_mut_ptr());
        for signal in SIGNALS_KEPT {
            libc::sigdelset(signals.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, signals.as_ptr(), std::ptr::null_mut());
    }
}

/// How many forks lie between the process that loaded the library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCH_FORKS: Once = Once::new();

// The libc crate does not declare it; every libc for Linux defines it.
unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> libc::c_int;
}

/// Runs in the child, between `fork` and its return: only an atomic may be touched here.
extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The generation of this process, for [`forked_since`]. From the first call on, every `fork`
/// begins a new one in the child; `vfork`, `posix_spawn` and a raw `clone` do not.
#[must_use]
pub fn fork_generation() -> u32 {
    WATCH_FORKS.call_once(|| {
        // SAFETY: the handler is a function of this library that touches one atomic; libc drops
        // it when the library is unloaded. A failure (ENOMEM) leaves forks uncounted, which loses
        // a diagnosis and nothing else.
        let _ = unsafe { pthread_atfork(None, None, Some(count_fork)) };
    });
    FORKS.load(Ordering::Relaxed)
}

/// Whether this process is a fork of the one in which `generation` was taken. One relaxed load.
#[must_use]
pub fn forked_since(generation: u32) -> bool {
    FORKS.load(Ordering::Relaxed) != generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_noticed_by_the_child_alone() {
        let generation = fork_generation();
        assert!(!forked_since(generation));
        // SAFETY: the child loads atomics and leaves by `_exit`: nothing that another thread of
        // the parent might have held.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let code = if forked_since(generation) && forked_since(fork_generation() - 1) {
                42
            } else {
                1
            };
            // SAFETY: ends the child at once, without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `status` has room for the int; the child is ours and not reaped yet.
        checked(|| unsafe { libc::waitpid(child, &raw mut status, 0) }).unwrap();
        assert!(libc::WIFEXITED(status));
        assert_eq!(libc::WEXITSTATUS(status), 42);
        assert!(!forked_since(generation));
    }

    #[test]
    fn limits_and_release_are_told() {
        assert!(page_size_bytes().is_power_of_two());
        assert!(file_limit().unwrap() > 0);
        assert!(memlock_limit_bytes().is_ok());
        assert!(file_size_limit_bytes().unwrap() > 0);
        let (mut one, mut other) = ([0; 16], [0; 16]);
        fill_random(&mut one).unwrap();
        fill_random(&mut other).unwrap();
        assert_ne!(one, other);
        let release = kernel_release();
        assert!(
            release.starts_with(|first: char| first.is_ascii_digit()),
            "{release}"
        );
    }
}
