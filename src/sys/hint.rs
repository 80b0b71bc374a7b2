//! Hints to storage about what is written.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, checked};

/// KERNEL: `linux/fcntl.h`, since 4.13; not in the libc crate.
const F_SET_RW_HINT: libc::c_int = 1024 + 12;

/// How long what is written to a file is going to live, beside what others write: drives that can
/// keep apart what dies together then copy less of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum WriteLife {
    /// `RWH_WRITE_LIFE_SHORT`
    Short = 2,
    /// `RWH_WRITE_LIFE_MEDIUM`
    Medium = 3,
    /// `RWH_WRITE_LIFE_LONG`
    Long = 4,
    /// `RWH_WRITE_LIFE_EXTREME`
    Extreme = 5,
}

/// Tells how long what is written to this file, by anybody, is going to live. A hint: nothing that
/// a caller sees depends on it, so a failure is no reason to stop.
///
/// # Errors
/// As `fcntl(2)` with `F_SET_RW_HINT`: `EINVAL` before Linux 4.13, `EPERM` for a file of another
/// user.
pub fn set_write_life(file: BorrowedFd<'_>, life: WriteLife) -> Result<(), Errno> {
    let hint = life as u64;
    // SAFETY: the descriptor is open for the call; the kernel reads one number of 64 bits, which
    // outlives the call.
    checked(|| unsafe { libc::fcntl(file.as_raw_fd(), F_SET_RW_HINT, &raw const hint) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// KERNEL: `linux/fcntl.h`.
    const F_GET_RW_HINT: libc::c_int = 1024 + 11;

    #[test]
    fn the_kernel_remembers_the_hint() {
        let file = tempfile::tempfile().unwrap();
        let lives = [
            WriteLife::Short,
            WriteLife::Medium,
            WriteLife::Long,
            WriteLife::Extreme,
        ];
        for (life, expected) in lives.into_iter().zip(2_u64..) {
            set_write_life(file.as_fd(), life).unwrap();
            let mut hint = 0_u64;
            // SAFETY: the descriptor is open; the kernel writes one number of 64 bits.
            let got = unsafe { libc::fcntl(file.as_raw_fd(), F_GET_RW_HINT, &raw mut hint) };
            assert_eq!((got, hint), (0, expected));
        }
    }
}
