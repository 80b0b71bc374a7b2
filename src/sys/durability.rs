//! What makes files durable, whole and one's own: syncing, free space, locks.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, checked, recording};

/// Waits until a file or directory is on storage, with all that is known about it.
///
/// After a failure nothing is known about what reached storage, and a second call may succeed
/// without anything being written (fsync(2)): do not try again.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync(file: BorrowedFd<'_>) -> Result<(), Errno> {
    recording::syncing(file);
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::fsync(file.as_raw_fd()) }).map(drop)
}

/// Waits until the bytes of a file are on storage, with what is needed to read them back: its
/// length and where its blocks lie. See [`sync`] about failures.
///
/// # Errors
/// As `fdatasync(2)`.
pub fn sync_data(file: BorrowedFd<'_>) -> Result<(), Errno> {
    recording::syncing(file);
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::fdatasync(file.as_raw_fd()) }).map(drop)
}

/// Locks an open file against every other opening of it, in this process or another, without
/// waiting. The lock goes with [`unlock`], or with the last duplicate of the descriptor, those of
/// child processes included.
///
/// # Errors
/// As `flock(2)`: `EWOULDBLOCK` where somebody else has it.
pub fn lock_exclusive(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let operation = libc::LOCK_EX | libc::LOCK_NB;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

/// Takes back [`lock_exclusive`], whoever has duplicates of the descriptor.
///
/// # Errors
/// As `flock(2)`.
pub fn unlock(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}

/// Whether anybody has a file open for writing: a process, or a write that a killed process left
/// behind in the kernel. `file` itself is open for reading only.
///
/// KERNEL: a read lease is granted exactly where nobody can write (fcntl(2), `F_SETLEASE`).
///
/// # Errors
/// As `fcntl(2)`: `EINVAL` on file systems without leases, `EACCES` for a file of another user.
pub fn is_open_for_writing(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let set = |kind: libc::c_int| {
        // SAFETY: the descriptor is open for the call; no memory is involved.
        checked(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
    };
    match set(libc::F_RDLCK) {
        Ok(()) => set(libc::F_UNLCK).map(|()| false),
        Err(libc::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Asks the kernel to drop what it keeps of a range of a file in memory, so that the next read is
/// one of storage. What was not written back yet stays; 0 bytes reach to the end of the file.
///
/// # Errors
/// As `posix_fadvise(2)`.
pub fn forget_cached(file: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> Result<(), Errno> {
    let offset = libc::off_t::try_from(offset_bytes).map_err(|_| libc::EFBIG)?;
    let len = libc::off_t::try_from(len_bytes).map_err(|_| libc::EFBIG)?;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(errno),
    }
}

/// Bytes that a process without privileges may still write to the file system of `file`.
///
/// # Errors
/// As `fstatvfs(2)`.
pub fn free_bytes(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut status = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the descriptor is open for the call; `status` has room for one `struct statvfs`.
    checked(|| unsafe { libc::fstatvfs(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the structure was filled (zeroes are valid as well).
    let status = unsafe { status.assume_init() };
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_open_for_writing_until_the_last_writer_closed_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("data");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        match is_open_for_writing(reader.as_fd()) {
            Ok(is_open) => assert!(is_open),
            // No leases here, which callers put up with.
            Err(errno) => return assert_eq!(errno, libc::EINVAL),
        }
        drop(writer);
        assert_eq!(is_open_for_writing(reader.as_fd()), Ok(false));
        // The lease is given back: others may write.
        drop(File::options().write(true).open(&path).unwrap());
    }

    #[test]
    fn a_lock_keeps_other_openings_out_until_it_is_closed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        let first = File::create(&path).unwrap();
        let second = File::open(&path).unwrap();
        lock_exclusive(first.as_fd()).unwrap();
        assert_eq!(lock_exclusive(second.as_fd()), Err(libc::EWOULDBLOCK));
        drop(first);
        assert_eq!(lock_exclusive(second.as_fd()), Ok(()));
    }

    #[test]
    fn files_and_directories_are_synced_and_have_space() {
        let place = tempfile::tempdir().unwrap();
        let file = File::create(place.path().join("a")).unwrap();
        assert_eq!(sync(file.as_fd()), Ok(()));
        assert_eq!(sync_data(file.as_fd()), Ok(()));
        assert!(free_bytes(file.as_fd()).unwrap() > 0);
        assert_eq!(forget_cached(file.as_fd(), 0, 0), Ok(()));
        assert_eq!(forget_cached(file.as_fd(), u64::MAX, 1), Err(libc::EFBIG));
        let directory = File::open(place.path()).unwrap();
        assert_eq!(sync(directory.as_fd()), Ok(()));
    }
}
