//! Event descriptors: a counter that can be polled.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Errno, checked};

/// Makes an event descriptor at zero: non-blocking, closed on `exec`.
///
/// # Errors
/// As `eventfd(2)`.
pub fn event_new() -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is involved.
    let fd = checked(|| unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the descriptor readable, by adding one to its counter. A counter that is full is
/// readable already, so that is success.
///
/// # Errors
/// As `write(2)`.
pub fn event_signal(event: BorrowedFd<'_>) -> Result<(), Errno> {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the kernel reads the eight bytes of `one`, which outlives the call.
    let done =
        checked(|| unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) });
    match done {
        Ok(_) | Err(libc::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes the descriptor unreadable; returns what its counter was, 0 where it was unreadable.
///
/// # Errors
/// As `read(2)`.
pub fn event_drain(event: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut count = [0_u8; 8];
    // SAFETY: the kernel writes at most the eight bytes of `count`, which outlives the call.
    let done = checked(|| unsafe {
        libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len())
    });
    match done {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(libc::EAGAIN) => Ok(0),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn signals_add_up_and_draining_empties() {
        let event = event_new().unwrap();
        assert_eq!(event_drain(event.as_fd()), Ok(0));
        for _ in 0..3 {
            event_signal(event.as_fd()).unwrap();
        }
        assert_eq!(event_drain(event.as_fd()), Ok(3));
        assert_eq!(event_drain(event.as_fd()), Ok(0));
    }

    #[test]
    fn a_full_counter_takes_a_signal_without_blocking() {
        let event = event_new().unwrap();
        let full = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: the kernel reads the eight bytes of `full`.
        let written = unsafe { libc::write(event.as_raw_fd(), full.as_ptr().cast(), 8) };
        assert_eq!(written, 8);
        event_signal(event.as_fd()).unwrap();
        assert_eq!(event_drain(event.as_fd()), Ok(u64::MAX - 1));
    }
}
