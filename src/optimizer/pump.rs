//! What is to be read and written next. Pure.
//!
//! Reads go in the order of the step, as far ahead as there is room. Records that come back changed
//! are written at once, behind the reads; with `sync=none` only as far as room is needed, and
//! residents not before a commit. While a commit is under way only what it waits for is written,
//! since everything else would go over versions that are still the durable ones.

use super::core::{Core, Job};
use super::record::{Residency, StepPart};
use crate::store::{DATA_SLOTS, SLOTS};

impl Core {
    /// Starts reading a record into memory; false where there is no room now.
    ///
    /// A record that is all zeros needs no read: it is there at once.
    pub(super) fn start_read(&mut self, index: u32) -> bool {
        if !self.make_room(index) {
            return false;
        }
        let all = self.layout.all_states();
        let record = self.record_mut(index);
        match record
            .newest()
            .filter(|newest| newest.zero_states & all != all)
        {
            Some(version) => {
                record.residency = Residency::Reading;
                record.verified = false;
                let job = Job {
                    record: index,
                    writes: false,
                    version,
                    numel: record.numel,
                    offset: record.offset,
                    place: record.place,
                };
                self.jobs.push(job);
                self.reading_count += 1;
            }
            None => {
                record.verified = true;
                self.note_clean(index);
            }
        }
        true
    }

    /// Whether what memory has of a record may go, now that its content does not matter any more.
    pub(super) fn is_replaceable(&self, index: u32) -> bool {
        let record = self.record(index);
        let is_moving = matches!(record.residency, Residency::Reading | Residency::Writing);
        // What only memory has must not get lost if the new values cannot be had.
        let is_only_here = record.dirty && record.residency == Residency::Warm;
        !(is_moving || is_only_here || record.in_commit)
    }

    /// Takes room for a record that is about to be made anew; false where that is to be waited for.
    pub(super) fn take_blank(&mut self, index: u32) -> bool {
        if !self.is_replaceable(index) {
            return false;
        }
        self.forget(index);
        self.unreadable.remove(&index);
        let taken = self.make_room(index);
        if taken {
            self.record_mut(index).residency = Residency::Out;
        }
        taken
    }

    /// The slot that may be written: not that of the base, nor one that a snapshot is made of.
    /// Without a base, the one that the open step can do without.
    pub(super) fn free_slot(&self, index: u32) -> u8 {
        let record = self.record(index);
        let before = self.step.as_ref().and_then(|step| step.before(index));
        let kept = record.base.or(before).map(|version| version.slot);
        let slots = match self.has_third_slots {
            true => SLOTS,
            false => DATA_SLOTS,
        };
        let mut free = (0..slots).filter(|slot| Some(*slot) != kept);
        // The third one is taken only where both of the others must be kept.
        free.clone()
            .find(|slot| Some(*slot) != record.pinned)
            .or_else(|| free.next())
            .unwrap_or(0)
    }

    /// Whether a record must not be written yet, because a snapshot of its slot is being made.
    fn is_held(&self, index: u32) -> bool {
        let record = self.record(index);
        let slot = match record.base.filter(|_| record.in_commit) {
            Some(version) => version.slot,
            None => self.free_slot(index),
        };
        record.pinned == Some(slot)
    }

    fn start_write(&mut self, index: u32) {
        let slot = self.free_slot(index);
        let extent_bytes = self.extent_bytes(index);
        let overwrites = self
            .step
            .as_ref()
            .is_some_and(|step| step.undoes_into(index, slot));
        if overwrites && let Some(step) = self.step.as_mut() {
            step.is_irreversible = true;
        }
        let in_commit = self.record(index).in_commit;
        let record = self.record_mut(index);
        let version = if in_commit {
            record.base
        } else {
            if let Some(working) = record.working.as_mut() {
                working.slot = slot;
            }
            record.working
        };
        let Some(version) = version else {
            return;
        };
        record.residency = Residency::Writing;
        let job = Job {
            record: index,
            writes: true,
            version,
            numel: record.numel,
            offset: record.offset,
            place: record.place,
        };
        self.jobs.push(job);
        self.writing_count += 1;
        self.writing_bytes += extent_bytes;
    }

    /// Decides what is to be moved now; the jobs are in `jobs`.
    pub(super) fn pump(&mut self) {
        self.pump_writes();
        self.pump_reads();
    }

    fn pump_writes(&mut self) {
        if self.dead.is_some() {
            return;
        }
        while self.writing_count < self.policy.write_behind {
            let index = if let Some(index) = self.commit_queue.pop_front() {
                if !self.record(index).in_commit {
                    continue;
                }
                index
            } else if !self.commit.is_idle() || self.is_aborting() {
                // Nothing may be written over what an abort goes back to.
                return;
            } else if let Some(index) = self.write_queue.pop_front() {
                index
            } else if self.needs_room() {
                match self.lazy_queue.pop_front() {
                    // About to be updated again; it is queued anew after that.
                    Some(index) if self.record(index).part == StepPart::Todo => continue,
                    Some(index) => index,
                    None => return,
                }
            } else {
                return;
            };
            let record = self.record(index);
            if record.residency == Residency::Warm && record.dirty {
                if self.is_held(index) {
                    self.held.push(index);
                } else {
                    self.start_write(index);
                }
            }
        }
    }

    /// Whether the open step is being taken back.
    pub(super) fn is_aborting(&self) -> bool {
        self.step.as_ref().is_some_and(|step| step.is_aborting)
    }

    /// Whether records that are still to be read will not find room without writing some back.
    fn needs_room(&self) -> bool {
        let Some(step) = self.step.as_ref() else {
            return false;
        };
        let Some(arena) = self.arena.as_ref() else {
            return false;
        };
        let free = arena.lanes_bytes().saturating_sub(arena.used_bytes());
        let soon_free = free + self.clean_bytes + self.writing_bytes;
        step.is_starved || step.unread_bytes > soon_free
    }

    fn pump_reads(&mut self) {
        loop {
            let bound = if self.policy.pipeline_read {
                self.policy.read_ahead
            } else {
                self.waiting_count
            };
            let Some(step) = self.step.as_mut() else {
                return;
            };
            if step.is_over()
                || step.ahead_count() + self.reading_count >= bound.max(self.waiting_count)
            {
                return;
            }
            let Some(index) = step.next_unread() else {
                return;
            };
            let record = self.record(index);
            if record.residency != Residency::Cold || record.part != StepPart::Todo {
                // Already in memory: it is offered as soon as it can be given.
                if let Some(step) = self.step.as_mut() {
                    step.was_read(0);
                }
                continue;
            }
            let started = self.start_read(index);
            if let Some(step) = self.step.as_mut() {
                step.is_starved = !started;
            }
            if !started {
                if self.writing_count == 0 && !self.lazy_queue.is_empty() {
                    self.pump_writes();
                }
                return;
            }
            let bytes = if self.is_resident(index) {
                0
            } else {
                self.record_bytes(index)
            };
            if let Some(step) = self.step.as_mut() {
                step.was_read(bytes);
            }
        }
    }
}
