//! The synchronization primitives of the library, in one place so that `--cfg loom` can replace
//! them by loom's, which explores every interleaving of the ticket table.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// Locks a mutex whose data stays meaningful after a panic of another holder.
///
/// INVARIANT: every structure guarded through this function is changed by code that either
/// completes or leaves the structure unchanged, so the poison flag carries no information.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
