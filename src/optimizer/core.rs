//! What the optimizer knows of its records. Pure.
//!
//! Everything here happens under one lock, and nothing here waits, converts, copies or makes a
//! system call: callers and completions change the state, and [`Core::pump`] turns it into
//! [`Job`]s, which whoever holds the lock submits after letting go of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use super::arena::Arena;
use super::commit::CommitState;
use super::figures::{Clock, StepFigures};
use super::gradients::Lent;
use super::record::{Record, Residency, StepPart};
use super::shared::Shared;
use super::step::Step;
use crate::base::config::SyncMode;
use crate::base::error::{Error, Result};
use crate::memory::Buffer;
use crate::store::{Layout, Version};

/// One record to be moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) record: u32,
    pub(super) writes: bool,
    /// Its version: where it lies on storage.
    pub(super) version: Version,
    pub(super) numel: u64,
    /// Address of slot 0 in the store.
    pub(super) offset: u64,
    /// Offset of the record in the arena.
    pub(super) place: u64,
}

/// A view that a caller holds.
#[derive(Debug)]
pub(super) struct OutView {
    pub(super) record: u32,
    pub(super) gradient: Option<Lent>,
    pub(super) since: std::time::Instant,
    /// The version in memory was on storage too when it was given out.
    pub(super) was_clean: bool,
    /// A thread is giving it back.
    pub(super) is_returning: bool,
}

/// Bounds of the pipeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) sync: SyncMode,
    pub(super) views_max: usize,
    pub(super) read_ahead: usize,
    pub(super) write_behind: usize,
    pub(super) pipeline_read: bool,
    pub(super) pipeline_write: bool,
}

/// The state of an optimizer.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) policy: Policy,
    pub(super) layout: Arc<Layout>,
    /// States that this process added; the layout of an opened store may have more.
    pub(super) states_added: usize,
    pub(super) records: Vec<Record>,
    pub(super) arena: Option<Arena>,
    /// The arena's memory.
    pub(super) buffer: Option<Buffer>,
    /// Parameters were added since the arena was made.
    pub(super) arena_is_stale: bool,
    pub(super) step: Option<Step>,
    pub(super) outs: Vec<OutView>,
    /// Bytes of pinned memory that the plan of the arena came to.
    pub(super) computed_bytes: u64,
    /// Steps done.
    pub(super) step_number: u64,
    /// The last step that a commit made durable.
    pub(super) durable_step: u64,
    /// A parameter was swapped out since the last commit.
    pub(super) swapped_out: bool,
    /// The next step goes through the records from the last to the first.
    pub(super) reversed: bool,
    /// Read ahead by `swap_in_state`, and to be asked for next.
    pub(super) expected: Option<u32>,
    pub(super) reading_count: usize,
    pub(super) writing_count: usize,
    pub(super) writing_bytes: u64,
    /// Callers that wait in `step_next`.
    pub(super) waiting_count: usize,
    /// Dirty records to be written unless a commit is under way.
    pub(super) write_queue: VecDeque<u32>,
    /// Dirty records to be written when room is needed.
    pub(super) lazy_queue: VecDeque<u32>,
    /// A snapshot is being made.
    pub(super) has_snapshot: bool,
    /// Every record has a third slot, for as long as the snapshot is being made.
    pub(super) has_third_slots: bool,
    /// Records that are to be written once the snapshot is done with their slot.
    pub(super) held: Vec<u32>,
    /// Dirty records that the commit under way waits for.
    pub(super) commit_queue: VecDeque<u32>,
    /// Records that may be dropped from memory, the first one first. Entries may be out of date.
    pub(super) clean: VecDeque<u32>,
    pub(super) clean_bytes: u64,
    /// Records with a working version.
    pub(super) changed: Vec<u32>,
    pub(super) commit: CommitState,
    /// A commit in the background failed; everything since the last durable step is to be dropped.
    pub(super) failed: Option<Error>,
    /// Some call said so.
    pub(super) failed_is_told: bool,
    /// A sync failed: nothing can be changed any more.
    pub(super) dead: Option<Error>,
    /// Counts the steps that were opened.
    pub(super) step_serial: u64,
    /// How the commit that a caller waits for ended.
    pub(super) commit_outcome: Option<Result<()>>,
    /// Records of which a write was lost. Entries may be out of date.
    pub(super) lost: Vec<u32>,
    /// Records that could not be read ahead, until they are asked for.
    pub(super) unreadable: HashMap<u32, Error>,
    /// The caller's, if it was set since the start.
    pub(super) user_data: Option<Arc<[u8]>>,
    /// It was not committed yet.
    pub(super) user_data_is_new: bool,
    pub(super) jobs: Vec<Job>,
    pub(super) closing: bool,
    pub(super) this: Weak<Shared>,
    /// Runs while records are moving.
    pub(super) io_clock: Clock,
    /// Runs while a view is out.
    pub(super) compute_clock: Clock,
    pub(super) step_figures: StepFigures,
}

impl Core {
    pub(super) fn new(policy: Policy, layout: Layout, step_number: u64) -> Core {
        Core {
            policy,
            layout: Arc::new(layout),
            states_added: 0,
            records: Vec::new(),
            arena: None,
            buffer: None,
            arena_is_stale: false,
            step: None,
            outs: Vec::new(),
            computed_bytes: 0,
            step_number,
            durable_step: step_number,
            swapped_out: false,
            reversed: false,
            expected: None,
            reading_count: 0,
            writing_count: 0,
            writing_bytes: 0,
            waiting_count: 0,
            write_queue: VecDeque::new(),
            lazy_queue: VecDeque::new(),
            has_snapshot: false,
            has_third_slots: false,
            held: Vec::new(),
            commit_queue: VecDeque::new(),
            clean: VecDeque::new(),
            clean_bytes: 0,
            changed: Vec::new(),
            commit: CommitState::Idle,
            failed: None,
            failed_is_told: false,
            dead: None,
            step_serial: 0,
            commit_outcome: None,
            lost: Vec::new(),
            unreadable: HashMap::new(),
            user_data: None,
            user_data_is_new: false,
            jobs: Vec::new(),
            closing: false,
            this: Weak::new(),
            io_clock: Clock::default(),
            compute_clock: Clock::default(),
            step_figures: StepFigures::default(),
        }
    }

    /// The record of a parameter of this run.
    ///
    /// # Errors
    /// `UnknownParameter`.
    pub(super) fn find(&self, id: u64) -> Result<u32> {
        // LOCK ORDER: the core before the table of the store, which has the ids.
        self.this
            .upgrade()
            .and_then(|shared| shared.store.find(id))
            .filter(|index| self.record(*index).attached)
            .ok_or(Error::UnknownParameter(id))
    }

    /// All records.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        (0..).take(self.records.len())
    }

    /// The open step.
    ///
    /// # Errors
    /// `Busy` without one.
    pub(super) fn open_step(&mut self) -> Result<&mut Step> {
        let none = || Error::Busy("no step is open".to_owned());
        self.step.as_mut().ok_or_else(none)
    }

    /// Whether no step is open.
    pub(super) fn check_no_step(&self) -> Result<()> {
        match self.step {
            Some(_) => Err(Error::Busy("a step is open; end or abort it".to_owned())),
            None => Ok(()),
        }
    }

    /// A record by an index that this object made.
    pub(super) fn record(&self, index: u32) -> &Record {
        &self.records[index as usize]
    }

    pub(super) fn record_mut(&mut self, index: u32) -> &mut Record {
        &mut self.records[index as usize]
    }

    pub(super) fn record_bytes(&self, index: u32) -> u64 {
        self.layout.record_bytes(self.record(index).numel)
    }

    pub(super) fn extent_bytes(&self, index: u32) -> u64 {
        self.layout.extent_bytes(self.record(index).numel)
    }

    pub(super) fn is_resident(&self, index: u32) -> bool {
        self.arena
            .as_ref()
            .is_some_and(|arena| arena.is_resident(index))
    }

    /// Whether anything is being read or written.
    pub(super) fn is_moving(&self) -> bool {
        self.reading_count + self.writing_count > 0
    }

    /// Finds room for a record, dropping clean ones if need be; false where there is none now.
    pub(super) fn make_room(&mut self, index: u32) -> bool {
        let len_bytes = self.record_bytes(index);
        loop {
            let Some(arena) = self.arena.as_mut() else {
                return false;
            };
            if let Some(place) = arena.take(index, len_bytes) {
                self.record_mut(index).place = place.start;
                return true;
            }
            if !self.drop_oldest_clean() {
                return false;
            }
        }
    }

    /// Drops one record that storage has too.
    fn drop_oldest_clean(&mut self) -> bool {
        while let Some(index) = self.clean.pop_front() {
            if self.is_droppable(index) {
                self.forget(index);
                return true;
            }
        }
        false
    }

    pub(super) fn is_droppable(&self, index: u32) -> bool {
        let record = self.record(index);
        record.residency == Residency::Warm
            && !record.dirty
            && record.part != StepPart::Todo
            && !self.is_resident(index)
    }

    /// Drops a record from memory, whatever is in it.
    pub(super) fn forget(&mut self, index: u32) {
        let len_bytes = self.record_bytes(index);
        let record = self.record_mut(index);
        if record.residency == Residency::Cold {
            return;
        }
        let was_clean = record.residency == Residency::Warm && !record.dirty;
        let place = record.place..record.place + len_bytes;
        record.residency = Residency::Cold;
        record.dirty = false;
        record.verified = false;
        record.write_now = false;
        if was_clean {
            self.clean_bytes -= len_bytes;
        }
        if let Some(arena) = self.arena.as_mut() {
            arena.free(index, place);
        }
    }

    /// Notes that a record's images are in memory and on storage.
    pub(super) fn note_clean(&mut self, index: u32) {
        let len_bytes = self.record_bytes(index);
        let record = self.record_mut(index);
        record.residency = Residency::Warm;
        record.dirty = false;
        record.write_now = false;
        self.clean_bytes += len_bytes;
        self.clean.push_back(index);
        // BOUND: entries that are out of date are thinned out.
        if self.clean.len() > 2 * self.records.len() + 16 {
            let mut clean = std::mem::take(&mut self.clean);
            let mut seen = std::collections::HashSet::new();
            clean.retain(|index| self.is_droppable(*index) && seen.insert(*index));
            self.clean = clean;
        }
        self.offer(index);
    }

    /// Takes a record out of memory's clean ones: it is about to be given out or changed.
    pub(super) fn note_taken(&mut self, index: u32) {
        let len_bytes = self.record_bytes(index);
        let record = self.record_mut(index);
        let was_clean = !record.dirty;
        record.residency = Residency::Out;
        if was_clean {
            self.clean_bytes -= len_bytes;
        }
    }

    /// Notes a new version of a record, whose images are in memory only.
    pub(super) fn note_changed(&mut self, index: u32, version: Version, write_now: bool) {
        let record = self.record_mut(index);
        let first = record.working.replace(version).is_none();
        record.residency = Residency::Warm;
        record.dirty = true;
        record.verified = true;
        record.lost = None;
        record.told = false;
        record.write_now = write_now;
        if first {
            self.changed.push(index);
        }
        self.queue_write(index);
    }

    /// Puts a dirty record where it will be written from.
    pub(super) fn queue_write(&mut self, index: u32) {
        if self.record(index).write_now {
            self.write_queue.push_back(index);
        } else if self.is_resident(index) {
            // Written by the next commit.
        } else if self.policy.sync == SyncMode::None {
            self.lazy_queue.push_back(index);
        } else {
            self.write_queue.push_back(index);
        }
    }

    /// Queues all dirty records anew, after steps have skipped some of them.
    pub(super) fn requeue_dirty(&mut self) {
        self.write_queue.clear();
        self.lazy_queue.clear();
        for index in self.changed.clone() {
            let record = self.record(index);
            if record.dirty && record.residency == Residency::Warm && !record.in_commit {
                self.queue_write(index);
            }
        }
    }

    /// Offers a record that became ready to the step.
    pub(super) fn offer(&mut self, index: u32) {
        let resident = self.is_resident(index);
        if self.is_ready(index)
            && let Some(step) = self.step.as_mut()
        {
            step.offer(index, resident);
        }
    }

    /// Whether the step may give a record out now.
    fn is_ready(&self, index: u32) -> bool {
        let record = self.record(index);
        // With `sync=commit` a step can always be taken back: only what storage has is given out.
        let has_copy = !record.dirty || self.policy.sync == SyncMode::None;
        record.part == StepPart::Todo && record.can_be_given() && has_copy
    }

    /// Takes the next record for a caller of the step.
    pub(super) fn take_ready(&mut self) -> Option<u32> {
        loop {
            let index = self.step.as_mut()?.pop_ready()?;
            if self.is_ready(index) {
                if let Some(step) = self.step.as_mut() {
                    step.todo_count -= 1;
                }
                return Some(index);
            }
        }
    }
}
