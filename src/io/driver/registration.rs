//! Buffers registered with the ring: which slots are theirs.
//!
//! A buffer takes one slot for each GiB, side by side. Slots are given back only after the ring
//! has let go of the memory; then the memory itself is released.

use super::scheduler::Scheduler;
use crate::io::backend::Backend;
use crate::io::backend::uring::RING_SLOTS;
use crate::io::storage::Errno;
use crate::memory::{Buffer, Reclaimed};

/// Which slots are taken.
#[derive(Debug)]
pub(super) struct RingSlots {
    taken: Vec<bool>,
}

impl RingSlots {
    pub(super) fn new() -> RingSlots {
        RingSlots {
            taken: vec![false; usize::from(RING_SLOTS)],
        }
    }

    /// Takes `count` free slots side by side; returns the first.
    fn take(&mut self, count: usize) -> Option<usize> {
        let first = self
            .taken
            .windows(count)
            .position(|run| run.iter().all(|taken| !taken))?;
        self.taken[first..first + count].fill(true);
        Some(first)
    }

    fn give_back(&mut self, first: usize, count: usize) {
        self.taken[first..first + count].fill(false);
    }
}

impl Scheduler {
    /// Registers a buffer, all of it or nothing.
    pub(super) fn register(
        &mut self,
        buffer: &Buffer,
        backend: &mut dyn Backend,
    ) -> Result<(), Errno> {
        let count = buffer.ring_piece_count();
        let first = usize::try_from(count)
            .ok()
            .filter(|count| *count > 0)
            .and_then(|count| self.ring_slots.take(count))
            .ok_or(libc::ENOBUFS)?;
        let slot_of = |piece: u32| u16::try_from(first + piece as usize).unwrap_or(u16::MAX);
        for piece in 0..count {
            let registered = buffer
                .ring_piece_range(piece)
                .ok_or(libc::EINVAL)
                .and_then(|memory| backend.register(slot_of(piece), memory));
            if let Err(errno) = registered {
                (0..piece).for_each(|done| backend.unregister(slot_of(done)));
                self.ring_slots.give_back(first, count as usize);
                return Err(errno);
            }
        }
        buffer.set_ring_slot(u32::from(slot_of(0)));
        Ok(())
    }

    /// Unregisters what is left of a buffer, then releases its memory.
    pub(super) fn reclaim(&mut self, parts: Reclaimed, backend: &mut dyn Backend) {
        if let Some(first) = parts.ring_slot() {
            let count = parts.ring_piece_count();
            for slot in first..first + count {
                backend.unregister(u16::try_from(slot).unwrap_or(u16::MAX));
            }
            self.ring_slots.give_back(first as usize, count as usize);
        }
        drop(parts);
    }
}
