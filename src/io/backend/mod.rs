//! Backends: the four ways bytes move between memory and files, behind one trait.
//!
//! A backend is owned by the driver thread and called by it alone. It never decides anything: it
//! takes transfers, and reports for each the number of bytes moved or the errno, exactly once. The
//! driver checks, resubmits and accounts.

pub(crate) mod fault;
pub(crate) mod memory;
pub(crate) mod threads;
pub(crate) mod uring;

use std::sync::Arc;

use super::request::Direction;
use super::storage::{Errno, FileHandle};
use crate::memory::MemoryRange;

/// One system call's worth of data movement.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) direction: Direction,
    /// Index of the device that the file lies on, counted from 0.
    pub(crate) device: usize,
    pub(crate) file: Arc<FileHandle>,
    /// Valid until the completion of this transfer has been reaped.
    pub(crate) memory: MemoryRange,
    pub(crate) file_offset: u64,
    /// Index of the registered buffer around `memory`, where there is one.
    pub(crate) ring_slot: Option<u16>,
}

/// The end of a transfer: its key, and bytes moved or the errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) key: u64,
    pub(crate) result: Result<usize, Errno>,
}

/// Wakes the driver out of [`Backend::drive`]. Called by any thread.
pub(crate) trait Wake: Send + Sync + std::fmt::Debug {
    /// Makes the current or the next waiting `drive` return.
    fn wake(&self);
}

/// Moves bytes.
pub(crate) trait Backend {
    /// Accepts a transfer. The driver never has more than the queue depth outstanding on one
    /// device, and tells at most `DEVICES_MAX` devices apart.
    fn submit(&mut self, key: u64, transfer: Transfer);

    /// Starts what was submitted and collects what has ended. With `wait`, blocks until at least
    /// one transfer ended or somebody called [`Wake::wake`].
    ///
    /// # Errors
    /// The errno with which the backend itself broke; nothing can be moved through it any more.
    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno>;

    /// The way to wake [`Backend::drive`].
    fn waker(&self) -> Arc<dyn Wake>;

    /// Registers memory under `slot` so that transfers need not map it each time.
    ///
    /// # Errors
    /// The errno of the kernel's refusal; transfers then go unregistered.
    fn register(&mut self, _slot: u16, _memory: MemoryRange) -> Result<(), Errno> {
        Err(libc::EOPNOTSUPP)
    }

    /// Takes a registration back. No transfer may be using the slot.
    fn unregister(&mut self, _slot: u16) {}
}
