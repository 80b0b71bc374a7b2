//! Commits: from working versions to durable ones. Pure, but for the thread's loop at the end.
//!
//! A commit takes all working versions at once and makes them the base, on which the next step
//! already works. Then, in the background: the records among them that are in memory only are
//! written; once all are, the store syncs its data, appends its log entry and syncs the log. Only
//! after that may anything be written over the versions from before.
//!
//! A commit that was asked for by a caller, who waits for it, leaves everything as it was when it
//! fails: it can be asked for again. One that runs behind the caller's back cannot, because the
//! next step has begun on what it did not make durable; then everything goes back to the last
//! durable step, and the next call says so.

use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
use super::record::Residency;
use super::shared::Shared;
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::sync::lock;
use crate::store::Version;

/// Where a commit is.
#[derive(Debug)]
pub(super) enum CommitState {
    /// None is under way.
    Idle,
    /// Records are being written.
    Cleaning(Commit),
    /// The store is at work.
    Syncing,
}

impl CommitState {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, CommitState::Idle)
    }
}

/// What becomes durable together.
#[derive(Debug)]
pub(super) struct Commit {
    step: u64,
    changes: Vec<(u32, Version)>,
    /// The bases from before, in the order of `changes`.
    previous: Vec<Option<Version>>,
    user_data: Option<Arc<[u8]>>,
    unwritten_count: usize,
    error: Option<Error>,
    /// A caller waits for it.
    is_awaited: bool,
}

impl Core {
    /// Starts a commit of all that is done; `is_awaited` where a caller waits for its end.
    pub(super) fn begin_commit(&mut self, is_awaited: bool) {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let mut commit = Commit {
            step: self.step_number,
            changes: Vec::with_capacity(changed.len()),
            previous: Vec::with_capacity(changed.len()),
            user_data: self.user_data.clone().filter(|_| self.user_data_is_new),
            unwritten_count: 0,
            error: None,
            is_awaited,
        };
        self.write_queue.clear();
        self.lazy_queue.clear();
        for index in changed {
            let slot = self.free_slot(index);
            let record = self.record_mut(index);
            let Some(mut version) = record.working.take() else {
                continue;
            };
            let is_unwritten = record.dirty && record.residency == Residency::Warm;
            if is_unwritten {
                version.slot = slot;
            }
            commit.changes.push((index, version));
            commit.previous.push(record.base.replace(version));
            if is_unwritten || record.residency == Residency::Writing {
                record.in_commit = true;
                commit.unwritten_count += 1;
            }
            if is_unwritten {
                self.commit_queue.push_back(index);
            }
        }
        if self.reversed {
            // What the next step takes first is written first.
            self.commit_queue.make_contiguous().reverse();
        }
        self.swapped_out = false;
        self.user_data_is_new = false;
        self.commit = CommitState::Cleaning(commit);
    }

    /// Notes that a record which the commit waits for was written, or lost.
    pub(super) fn note_committed_write(&mut self, index: u32, error: Option<&Error>) {
        let record = self.record_mut(index);
        if !std::mem::take(&mut record.in_commit) {
            return;
        }
        if let CommitState::Cleaning(commit) = &mut self.commit {
            commit.unwritten_count -= 1;
            if let (None, Some(error)) = (&commit.error, error) {
                commit.error = Some(error.clone());
            }
        }
    }

    /// The commit, once everything in it was written.
    fn take_written_commit(&mut self) -> Option<Commit> {
        match std::mem::replace(&mut self.commit, CommitState::Syncing) {
            CommitState::Cleaning(commit) if commit.unwritten_count == 0 => Some(commit),
            state => {
                self.commit = state;
                None
            }
        }
    }

    /// Ends a commit.
    fn end_commit(&mut self, commit: Commit, done: Result<()>) -> Result<()> {
        self.commit = CommitState::Idle;
        let Err(error) = done else {
            self.durable_step = commit.step;
            return Ok(());
        };
        for ((index, version), previous) in commit.changes.into_iter().zip(commit.previous) {
            let record = self.record_mut(index);
            record.base = previous;
            // What was lost on its way has no version to go back to but the one before.
            if record.lost.is_none() && record.working.is_none() {
                record.working = Some(version);
                self.changed.push(index);
            }
        }
        self.user_data_is_new |= commit.user_data.is_some();
        if !commit.is_awaited {
            self.failed = Some(error.clone());
        }
        Err(error)
    }

    /// Goes back to what is durable. Nothing is moving, and no view is out.
    pub(super) fn roll_back(&mut self) {
        self.failed = None;
        self.failed_is_told = false;
        self.step = None;
        self.write_queue.clear();
        self.lazy_queue.clear();
        self.commit_queue.clear();
        self.held.clear();
        self.changed.clear();
        self.user_data = None;
        self.user_data_is_new = false;
        self.swapped_out = false;
        self.expected = None;
        self.step_number = self.durable_step;
        for index in self.indices() {
            self.forget(index);
            let record = self.record_mut(index);
            record.working = None;
            record.lost = None;
            record.in_commit = false;
            record.part = super::record::StepPart::None;
        }
    }
}

/// The thread that commits; ends when the optimizer is closing and no commit is under way.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut core = lock(&shared.core);
    loop {
        let Some(commit) = core.take_written_commit() else {
            if core.closing && core.commit.is_idle() {
                return;
            }
            core = shared.wait(core);
            continue;
        };
        drop(core);
        let started = Instant::now();
        let done = match &commit.error {
            Some(error) => Err(error.clone()),
            None => shared
                .store
                .commit(commit.step, &commit.changes, commit.user_data.as_deref()),
        };
        // Now, because no snapshot begins while a commit is under way.
        if done.is_ok() && shared.store.has_spare() && !lock(&shared.core).uses_spare() {
            for file in shared.store.remove_spare() {
                shared.engine.close_file(file);
            }
        }
        shared.figures.note_commit(started, done.is_ok());
        shared.engine.trace_call("commit", started);
        core = lock(&shared.core);
        if done.is_err() {
            core.dead = shared.store.failure();
        }
        let awaited = commit.is_awaited;
        let ended = core.end_commit(commit, done);
        if awaited {
            core.commit_outcome = Some(ended);
        } else if let Err(error) = ended {
            events::commit_failed(&error.to_string());
        }
        core = shared.pump(core);
        shared.changed.notify_all();
    }
}
