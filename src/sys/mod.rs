//! The system calls of the library, apart from those of the ring.
//!
//! Owns thin wrappers: one function per call, as its man page says it, with types that make the
//! wrong call hard to write. Failures are the raw errno; who knows the path and the offset makes
//! an [`Error`](crate::base::error::Error) of it. What the kernel only tells through `/proc` and
//! `/sys` is read here as well.
//!
//! Never logs, never decides, never starts a thread, keeps no state but the count of forks, and in
//! tests the [recordings](Recording) of what it did to storage.
//! Every function runs on the thread of its caller, and may be called from any.
//!
//! INVARIANT: a call that a signal interrupted before it did anything is repeated here, a bounded
//! number of times, so callers meet `EINTR` only under a storm of signals.

#![allow(unsafe_code)]

mod available;
mod directory;
mod durability;
mod event;
mod file;
mod hint;
mod mapping;
mod power_cut;
mod process;
mod recording;

pub use available::memory_available_bytes;
pub use directory::{
    create_at, exchange_at, make_directory_at, move_at, names_in, open_at, open_directory,
    open_directory_at, open_to_read_at, remove_directory_at, rename_at, unlink_at,
};
pub use durability::{
    forget_cached, free_bytes, is_open_for_writing, lock_exclusive, sync, sync_data, unlock,
};
pub use event::{event_drain, event_new, event_signal};
pub use file::{
    DioAlignment, FileIdentity, FileKind, FileStatus, OpenFlags, allocate, allocate_keeping_len,
    clear_direct, clone_range, fstat, open, pread, pwrite, read_at, set_len, stat_at,
    stat_identity, statx_dio, write_at,
};
pub use hint::{WriteLife, set_write_life};
pub use mapping::{Advice, Mapping};
pub use process::{
    block_signals, file_limit, file_size_limit_bytes, fill_random, fork_generation, forked_since,
    kernel_release, memlock_limit_bytes, page_size_bytes,
};
pub(crate) use recording::written;
pub use recording::{Event, Name, Recording};

/// The number by which the kernel names a failure.
pub type Errno = i32;

/// BOUND: how often a call that a signal interrupted is repeated. Each repetition needs a signal
/// of its own, so reaching the bound means a timer that fires faster than the call completes.
const INTERRUPTIONS_MAX: u32 = 1000;

/// The errno that the last failed call of this thread left.
fn errno() -> Errno {
    // `last_os_error` is always made of an errno; EIO stands in for what cannot happen.
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Runs a call that returns a negative number on failure, again where a signal interrupted it.
fn checked<T: PartialOrd + Default>(mut call: impl FnMut() -> T) -> Result<T, Errno> {
    let mut interruptions = 0;
    loop {
        let value = call();
        if value >= T::default() {
            return Ok(value);
        }
        match errno() {
            libc::EINTR if interruptions < INTERRUPTIONS_MAX => interruptions += 1,
            errno => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_call_is_repeated_but_not_for_ever() {
        // SAFETY: the errno of this thread is an int that lives as long as the thread.
        let set = |value| unsafe { *libc::__errno_location() = value };
        let mut calls = 0;
        let repeated = checked(|| {
            calls += 1;
            set(libc::EINTR);
            if calls < 4 { -1 } else { 7 }
        });
        assert_eq!((repeated, calls), (Ok(7), 4));
        let stormy = checked(|| {
            set(libc::EINTR);
            -1
        });
        assert_eq!(stormy, Err(libc::EINTR));
        let failed = checked(|| {
            set(libc::ENOSPC);
            -1
        });
        assert_eq!(failed, Err(libc::ENOSPC));
    }
}
