//! What this module logs: the names of its events and fields, in one place.

use crate::base::error::errno_name;
use crate::sys::Errno;

const TARGET: &str = "tensorswap::memory";

/// A buffer that should lie in huge pages does not, or does in part.
pub(super) fn huge_pages_refused(len_bytes: u64, huge_bytes: u64) {
    tracing::warn!(
        target: TARGET,
        len_bytes,
        huge_bytes,
        "huge_pages_refused: I/O on this buffer costs more CPU and bandwidth"
    );
}

/// A buffer that should be locked is not.
pub(super) fn lock_refused(len_bytes: u64, errno: Errno, limit_bytes: Option<u64>) {
    tracing::warn!(
        target: TARGET,
        len_bytes,
        limit_bytes,
        errno = errno_name(errno).as_ref(),
        "lock_refused: the buffer may be swapped out by the kernel (raise RLIMIT_MEMLOCK)"
    );
}

/// A release hook panicked; its buffer counts as released.
pub(super) fn release_hook_panicked(address: usize, len_bytes: u64) {
    tracing::error!(target: TARGET, address, len_bytes, "release_hook_panicked");
}
