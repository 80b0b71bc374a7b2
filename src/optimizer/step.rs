//! One optimizer step: which records are still to be given out, and which are ready. Pure.
//!
//! The order of a step is the reverse of the one before, so that the records that were updated
//! last, and are still in memory, are the first ones of the next step (the zigzag of MLP-Offload,
//! arXiv 2509.02480). Records that stay in memory for good fill the time in which no other one is
//! ready: they keep the updates going while storage is at work.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::base::error::Error;
use crate::store::Version;

/// The state of the open step.
#[derive(Debug)]
pub(super) struct Step {
    order: Vec<u32>,
    /// Position in `order` of the first record that was not looked at for reading.
    next_unread: usize,
    /// Bytes of records in `order` that lanes must still take in.
    pub(super) unread_bytes: u64,
    /// Records not yet given out.
    pub(super) todo_count: usize,
    ready: VecDeque<u32>,
    ready_residents: VecDeque<u32>,
    /// Records that could not be read, to be told.
    pub(super) unreadable: VecDeque<(u32, Error)>,
    /// The working versions from before the step, of the records that it changed.
    pub(super) undo: HashMap<u32, Option<Version>>,
    /// What was before the step is no more in all places.
    pub(super) is_irreversible: bool,
    /// The next record to be read found no room.
    pub(super) is_starved: bool,
    pub(super) is_aborting: bool,
    /// A caller was told that all were given out.
    pub(super) told_end: bool,
    /// The first failure; nothing is committed with it.
    pub(super) error: Option<Error>,
    pub(super) started: Instant,
}

impl Step {
    pub(super) fn new(order: Vec<u32>, unread_bytes: u64) -> Step {
        Step {
            todo_count: order.len(),
            order,
            next_unread: 0,
            unread_bytes,
            ready: VecDeque::new(),
            ready_residents: VecDeque::new(),
            unreadable: VecDeque::new(),
            undo: HashMap::new(),
            is_irreversible: false,
            is_starved: false,
            is_aborting: false,
            told_end: false,
            error: None,
            started: Instant::now(),
        }
    }

    /// The records of the step.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Takes note of a record that can be given out.
    pub(super) fn offer(&mut self, record: u32, resident: bool) {
        if resident {
            self.ready_residents.push_back(record);
        } else {
            self.ready.push_back(record);
        }
    }

    /// Whether a record can be given out.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.ready_residents.is_empty()
    }

    /// The next record that was offered. It may be offered twice, or no longer be what it was.
    pub(super) fn pop_ready(&mut self) -> Option<u32> {
        let popped = self.ready.pop_front();
        popped.or_else(|| self.ready_residents.pop_front())
    }

    /// Takes a record that could not be read.
    pub(super) fn take_unreadable(&mut self) -> Option<(u32, Error)> {
        let taken = self.unreadable.pop_front()?;
        self.todo_count -= 1;
        self.error.get_or_insert_with(|| taken.1.clone());
        Some(taken)
    }

    /// Records read and not asked for yet, those that stay in memory for good aside.
    pub(super) fn ahead_count(&self) -> usize {
        self.ready.len()
    }

    /// Whether nothing more is to be read.
    pub(super) fn is_over(&self) -> bool {
        self.is_aborting || self.next_unread == self.order.len()
    }

    /// The next record to be looked at for reading.
    pub(super) fn next_unread(&self) -> Option<u32> {
        self.order.get(self.next_unread).copied()
    }

    /// Moves on behind it; `unread_bytes` are those that it was counted with.
    pub(super) fn was_read(&mut self, unread_bytes: u64) {
        self.next_unread += 1;
        self.unread_bytes = self.unread_bytes.saturating_sub(unread_bytes);
    }

    /// The working version of a record that the step changed, from before the step.
    pub(super) fn before(&self, record: u32) -> Option<Version> {
        self.undo.get(&record).copied().flatten()
    }

    /// Whether a write into this slot goes over the version from before the step.
    pub(super) fn undoes_into(&self, record: u32, slot: u8) -> bool {
        self.before(record)
            .is_some_and(|before| before.slot == slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residents_fill_the_gaps() {
        let mut step = Step::new(vec![3, 2, 1, 0], 0);
        step.offer(0, true);
        step.offer(3, false);
        assert_eq!(step.ahead_count(), 1);
        assert_eq!(step.pop_ready(), Some(3));
        assert_eq!(step.pop_ready(), Some(0));
        assert_eq!(step.pop_ready(), None);
    }

    #[test]
    fn an_unreadable_record_is_the_error_of_the_step() {
        let mut step = Step::new(vec![0, 1], 0);
        let error = Error::invalid("gone");
        step.unreadable.push_back((1, error.clone()));
        assert_eq!(step.take_unreadable(), Some((1, error.clone())));
        assert_eq!((step.todo_count, step.error), (1, Some(error)));
    }
}
