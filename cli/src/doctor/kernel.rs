//! The kernel, and whether it permits io_uring.

use io_uring::{IoUring, Probe, opcode};
use procfs::FromRead;
use procfs::process::Status;

use super::finding::Finding;

/// KERNEL: registered buffers as the engine uses them.
const VERSION_MIN: (u32, u32) = (5, 19);
/// KERNEL: `STATX_DIOALIGN`.
const VERSION_TELLING_ALIGNMENT: (u32, u32) = (6, 1);

/// What stands in the way of io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `kernel.io_uring_disabled` is 2.
    DisabledForAll,
    /// `kernel.io_uring_disabled` is 1, and this process is not privileged.
    DisabledForMost,
    /// A seccomp filter.
    Seccomp,
    /// The kernel has none.
    Missing,
    /// Not enough memory may be locked (old kernels charge rings against the limit).
    LockedMemory,
    /// Something else.
    Other(i32),
}

/// Tells from what the kernel answered to `io_uring_setup`, from `kernel.io_uring_disabled`, and
/// from the mode of seccomp of this process.
pub(super) fn refusal_of(errno: i32, disabled: Option<u32>, seccomp: Option<u32>) -> Refusal {
    let is_filtered = seccomp == Some(2);
    match (errno, disabled) {
        (libc::EPERM, Some(2)) => Refusal::DisabledForAll,
        (libc::EPERM, Some(1)) if !is_filtered => Refusal::DisabledForMost,
        (libc::EPERM | libc::ENOSYS | libc::EACCES, _) if is_filtered => Refusal::Seccomp,
        (libc::EPERM, Some(1)) => Refusal::DisabledForMost,
        (libc::ENOSYS, _) => Refusal::Missing,
        (libc::ENOMEM, _) => Refusal::LockedMemory,
        (errno, _) => Refusal::Other(errno),
    }
}

pub(super) fn findings() -> Vec<Finding> {
    vec![kernel(), ring()]
}

/// Major and minor number of a release as `uname -r` prints it.
pub(super) fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel() -> Finding {
    let release = tensorswap::sys::kernel_release();
    let seen = format!("Linux {release}");
    match version_of(&release) {
        Some(version) if version < VERSION_MIN => Finding::remark("kernel", seen).meaning(
            "older than 5.19: io_uring lacks what the engine needs, and a pool of threads does \
             the work at three times the CPU or more",
        ),
        Some(version) if version < VERSION_TELLING_ALIGNMENT => Finding::good(
            "kernel",
            seen + ", which does not tell the alignment of direct I/O (6.1 does); it is tried",
        ),
        _ => Finding::good("kernel", seen),
    }
}

fn ring() -> Finding {
    match IoUring::new(8) {
        Ok(ring) => usable(&ring),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            refused(refusal_of(errno, disabled(), seccomp()))
        }
    }
}

/// A ring that was made still may lack operations.
fn usable(ring: &IoUring) -> Finding {
    let mut probe = Probe::new();
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("read_fixed", opcode::ReadFixed::CODE),
        ("write_fixed", opcode::WriteFixed::CODE),
    ];
    if ring.submitter().register_probe(&mut probe).is_err() {
        return Finding::remark(
            "io_uring",
            "allowed, but its operations cannot be asked for",
        )
        .meaning("io_uring_register is refused: allow it with io_uring_setup and io_uring_enter");
    }
    let missing = needed.iter().filter(|(_, code)| !probe.is_supported(*code));
    let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
    match missing.as_slice() {
        [] => Finding::good("io_uring", "allowed"),
        missing => Finding::remark("io_uring", format!("lacks {}", missing.join(", ")))
            .meaning("a pool of threads does the work, at three times the CPU or more"),
    }
}

fn refused(refusal: Refusal) -> Finding {
    let meaning = "a pool of threads does the work instead, at three times the CPU or more";
    match refusal {
        Refusal::DisabledForAll => {
            Finding::remark("io_uring", "refused by kernel.io_uring_disabled=2")
                .meaning(meaning)
                .mend("sudo sysctl -w kernel.io_uring_disabled=0")
        }
        Refusal::DisabledForMost => {
            Finding::remark("io_uring", "refused by kernel.io_uring_disabled=1")
                .meaning(format!("only privileged processes may use it; {meaning}"))
                .mend("sudo sysctl -w kernel.io_uring_disabled=0")
        }
        Refusal::Seccomp => Finding::remark("io_uring", "refused by a seccomp profile")
            .meaning(format!("as in Docker and Podman by default; {meaning}"))
            .mend("docker run --security-opt seccomp=unconfined ...")
            .mend(
                "or a profile that allows io_uring_setup, io_uring_enter and io_uring_register: \
                 docker run --security-opt seccomp=PROFILE.json ...",
            ),
        Refusal::Missing => {
            Finding::remark("io_uring", "not in this kernel (CONFIG_IO_URING)").meaning(meaning)
        }
        Refusal::LockedMemory => {
            Finding::remark("io_uring", "refused: the limit of locked memory is used up")
                .meaning(meaning)
                .mend("sudo prlimit --pid $$ --memlock=unlimited:unlimited")
        }
        Refusal::Other(errno) => {
            let error = std::io::Error::from_raw_os_error(errno);
            let reason = crate::failure::words_of(&error);
            Finding::remark("io_uring", format!("refused: {reason}")).meaning(meaning)
        }
    }
}

fn disabled() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

fn seccomp() -> Option<u32> {
    Status::from_file("/proc/self/status").ok()?.seccomp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refuses_is_told_apart() {
        use Refusal::*;
        for (errno, disabled, seccomp, refusal) in [
            (libc::EPERM, Some(2), Some(0), DisabledForAll),
            (libc::EPERM, Some(2), Some(2), DisabledForAll),
            (libc::EPERM, Some(1), Some(0), DisabledForMost),
            (libc::EPERM, Some(0), Some(2), Seccomp),
            (libc::ENOSYS, None, Some(2), Seccomp),
            (libc::ENOSYS, None, Some(0), Missing),
            (libc::ENOMEM, Some(0), Some(0), LockedMemory),
            (libc::EPERM, Some(0), Some(0), Other(libc::EPERM)),
        ] {
            assert_eq!(
                refusal_of(errno, disabled, seccomp),
                refusal,
                "{errno} {disabled:?}"
            );
        }
        // Each of them is told in words, and what can be mended comes with a command.
        for refusal in [DisabledForAll, DisabledForMost, Seccomp, LockedMemory] {
            assert!(!refused(refusal).mend.is_empty());
        }
    }

    #[test]
    fn releases_are_read_as_uname_prints_them() {
        assert_eq!(version_of("6.18.44"), Some((6, 18)));
        assert_eq!(version_of("5.15.0-113-generic"), Some((5, 15)));
        assert_eq!(version_of("6.1-rc1"), Some((6, 1)));
        assert_eq!(version_of("unknown"), None);
    }
}
