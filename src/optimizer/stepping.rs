//! A whole step: the optimizer chooses the order and keeps the pipeline full.

use super::core::Core;
use super::optimizer_swapper::Optimizer;
use super::record::{Residency, StepPart};
use super::step::Step;
use super::view::ParameterView;
use super::views::GiveBack;
use crate::base::config::SyncMode;
use crate::base::error::{Error, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::nanos;
use crate::store::Version;

/// A record that could not be given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    /// The parameter, where the error is one parameter's: it counts as given back.
    pub id: Option<u64>,
    /// What went wrong.
    pub error: Error,
}

impl From<Error> for StepError {
    fn from(error: Error) -> StepError {
        StepError { id: None, error }
    }
}

impl Optimizer {
    /// Opens a step over these parameters, or over all that were added. With `sync=commit`, changes
    /// of parameters since the last commit are committed first, as by
    /// [`commit`](Optimizer::commit), where the step could not be taken back otherwise.
    ///
    /// # Errors
    /// `Busy` with a step open or parameters swapped in; `UnknownParameter`; `InvalidArgument` for
    /// an id given twice; `Budget`, `NoMemory`; the failure of an earlier write of one of them, or
    /// of the commit of an earlier step.
    pub fn step_begin(&self, ids: Option<&[u64]>) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = self.settled_between_steps()?;
        core.check_none_out()?;
        let mut order = match ids {
            Some(ids) => self.indices_of(&core, ids)?,
            None => core
                .indices()
                .filter(|index| core.record(*index).attached)
                .collect(),
        };
        core.check_alive()?;
        core = self.ensure_arena(core)?;
        if core.has_only_one_slot_left() {
            core = self.commit_now(core)?;
        }
        for index in &order {
            core.tell_lost(*index)?;
        }
        if core.reversed {
            order.reverse();
        }
        core.expected = None;
        core.unreadable.clear();
        core.begin_step(order);
        core.step_figures.read_bytes_before = self.shared.figures.read_bytes.get();
        core.step_figures.written_bytes_before = self.shared.figures.written_bytes.get();
        core.step_figures.io_ns_before = core.io_clock.total_ns();
        core.step_figures.compute_ns_before = core.compute_clock.total_ns();
        drop(self.shared.pump(core));
        Ok(())
    }

    /// The records of a list of ids, each once.
    pub(super) fn indices_of(&self, core: &Core, ids: &[u64]) -> Result<Vec<u32>> {
        let mut indices = Vec::new();
        indices
            .try_reserve(ids.len())
            .map_err(|_| Error::NoMemory(format!("no room for {} ids", ids.len())))?;
        for id in ids {
            indices.push(core.find(*id)?);
        }
        let mut sorted = indices.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let id = core.record(pair[0]).id;
            return Err(Error::invalid(format!("parameter {id} is given twice")));
        }
        Ok(indices)
    }

    /// Gives out the next parameter that is in memory, waiting for one if need be; `None` when all
    /// were given out. Several threads may call.
    ///
    /// # Errors
    /// With the parameter's id: it could not be read (`Io`, `Checksum`, …), and counts as given
    /// back. Without: `Busy` with no step open, `NoBuffers` with `views_max` views out,
    /// `Cancelled` when the step is being aborted, the failure of the commit before.
    pub fn step_next(&self) -> Result<Option<ParameterView>, StepError> {
        self.shared.engine.check()?;
        let Some((core, index)) = self.await_ready()? else {
            return Ok(None);
        };
        let given = self.give_out(core, index, true);
        given.map(Some).map_err(|(id, error)| StepError {
            id: Some(id),
            error,
        })
    }

    /// Waits until a record can be given out, and takes it from the step; `None` at its end.
    fn await_ready(&self) -> Result<Option<(MutexGuard<'_, Core>, u32)>, StepError> {
        let mut core = lock(&self.shared.core);
        let serial = core.step_serial;
        let mut waited = false;
        loop {
            core.tell_failed()?;
            if waited && (core.step.is_none() || core.step_serial != serial) {
                return Err(Error::Cancelled("the step was aborted".to_owned()).into());
            }
            let step = core.open_step()?;
            if step.is_aborting {
                return Err(Error::Cancelled("the step is being aborted".to_owned()).into());
            }
            if step.todo_count == 0 {
                step.told_end = true;
                return Ok(None);
            }
            if let Some((index, error)) = step.take_unreadable() {
                let id = Some(core.record(index).id);
                drop(self.shared.pump(core));
                return Err(StepError { id, error });
            }
            core.check_views()?;
            if let Some(index) = core.take_ready() {
                let counter = match waited || !core.record(index).verified {
                    true => &self.shared.figures.cache_misses,
                    false => &self.shared.figures.cache_hits,
                };
                counter.add(1);
                return Ok(Some((core, index)));
            }
            waited = true;
            core.waiting_count += 1;
            core = self.shared.pump(core);
            if !core.has_news() {
                core = self.shared.wait_for(core, true);
            }
            core.waiting_count -= 1;
        }
    }

    /// Takes a parameter back; `changed` says whether it was updated. Its view is gone then.
    ///
    /// # Errors
    /// `UnknownParameter`; `Busy` with no step open, or for a parameter that is not out. Without
    /// `pipeline_write`, the failure of its write.
    pub fn step_done(&self, id: u64, changed: bool) -> Result<()> {
        self.shared.engine.check()?;
        let mut core = lock(&self.shared.core);
        let index = core.find(id)?;
        core.open_step()?;
        let how = match (changed, core.policy.pipeline_write) {
            (false, _) => GiveBack::Unchanged,
            (true, true) => GiveBack::Changed,
            (true, false) => GiveBack::ChangedWriteNow,
        };
        self.take_back(core, index, how)?;
        if how == GiveBack::ChangedWriteNow {
            return self.wait_written(index);
        }
        Ok(())
    }

    /// Waits until a record is written.
    ///
    /// # Errors
    /// The failure of the write; it is told by this.
    pub(super) fn wait_written(&self, index: u32) -> Result<()> {
        let mut core = lock(&self.shared.core);
        loop {
            core.tell_lost(index)?;
            let record = core.record(index);
            let pending = record.residency == Residency::Writing
                || record.residency == Residency::Warm && record.dirty && record.write_now;
            // What an aborted step made is not written any more.
            if !pending || core.is_aborting() && record.residency != Residency::Writing {
                return Ok(());
            }
            core.tell_failed()?;
            core.check_alive()?;
            core = self.shared.wait_for(core, false);
        }
    }

    /// Ends the step and commits it: with `sync=commit` in the background.
    ///
    /// # Errors
    /// `Busy` with no step open, views out, or before `step_next` said that all were given out;
    /// the failure of a read or write of the step, or of the commit before: the step stays open
    /// then, and [`step_abort`](Optimizer::step_abort) takes it back.
    pub fn step_end(&self) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = lock(&self.shared.core);
        core.check_step_is_over()?;
        while !core.commit.is_idle() {
            core = self.shared.wait_for(core, false);
        }
        core.check_step_is_over()?;
        if let Some(error) = core.step.as_ref().and_then(|step| step.error.clone()) {
            return Err(error);
        }
        core.close_step(true);
        let figures = &mut core.step_figures;
        let (io_before, compute_before) = (figures.io_ns_before, figures.compute_ns_before);
        core.step_figures.io_floor_ns = core.io_clock.total_ns() - io_before;
        core.step_figures.compute_floor_ns = core.compute_clock.total_ns() - compute_before;
        self.gradients.discard_all();
        core.step_number += 1;
        core.reversed = !core.reversed;
        if core.policy.sync == SyncMode::Commit {
            core.begin_commit(false);
        }
        drop(self.shared.pump(core));
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Takes the step back: every record is as it was before, and the gradients are gone.
    ///
    /// # Errors
    /// `Busy` with no step open, or with views out: from then on `step_next` says `Cancelled`, and
    /// this is to be called again when all are back. `Unsupported` where, with `sync=none`, what
    /// was before is no more; but for a step that failed everything goes back to the last commit
    /// then, which [`step_number`](Optimizer::step_number) tells. What made the commit of the step
    /// before fail, if no call has said so yet: everything is as it was at the last durable step.
    pub fn step_abort(&self) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = lock(&self.shared.core);
        let has_failed = core.failed.is_some();
        let step = core.open_step()?;
        if step.is_irreversible && step.error.is_none() && !has_failed {
            return Err(Error::Unsupported {
                message: "with sync=none, what was before this step was written over already"
                    .to_owned(),
                errno: 0,
            });
        }
        step.is_aborting = true;
        self.shared.changed.notify_all();
        if !core.outs.is_empty() {
            return Err(Error::Busy(format!(
                "{} views are out; give them back, and abort again",
                core.outs.len()
            )));
        }
        core.write_queue.clear();
        while core.is_moving() || !core.commit.is_idle() {
            core = self.shared.wait_for(core, false);
        }
        let untold = core.failed.clone().filter(|_| !core.failed_is_told);
        let is_irreversible = core.step.as_ref().is_some_and(|step| step.is_irreversible);
        if core.failed.is_some() || is_irreversible {
            core.roll_back();
        } else {
            core.undo_step();
        }
        self.gradients.discard_all();
        drop(self.shared.pump(core));
        self.shared.changed.notify_all();
        untold.map_or(Ok(()), Err)
    }
}

impl Core {
    /// Whether a caller that waits for a record should look again before it sleeps.
    fn has_news(&self) -> bool {
        self.failed.is_some()
            || self.step.as_ref().is_none_or(|step| {
                step.has_ready()
                    || !step.unreadable.is_empty()
                    || step.is_aborting
                    || step.todo_count == 0
            })
    }

    /// Whether some record was changed since the last commit, and has a durable version besides:
    /// a step that can be taken back has no slot for what it makes of that record.
    fn has_only_one_slot_left(&self) -> bool {
        let is_full = |index: &u32| {
            let record = self.record(*index);
            let is_elsewhere = |base: Version, working: Version| {
                record.dirty || record.residency == Residency::Writing || working.slot != base.slot
            };
            matches!((record.base, record.working), (Some(base), Some(working))
                if is_elsewhere(base, working))
        };
        self.policy.sync == SyncMode::Commit && self.changed.iter().any(is_full)
    }

    fn begin_step(&mut self, order: Vec<u32>) {
        let unread_bytes = order
            .iter()
            .filter(|index| {
                self.record(**index).residency == Residency::Cold && !self.is_resident(**index)
            })
            .map(|index| self.record_bytes(*index))
            .sum();
        for index in &order {
            self.record_mut(*index).part = StepPart::Todo;
        }
        self.step_serial += 1;
        self.step = Some(Step::new(order.clone(), unread_bytes));
        self.requeue_dirty();
        for index in order {
            self.offer(index);
        }
    }

    /// Tells what made a commit in the background fail.
    pub(super) fn tell_failed(&mut self) -> Result<()> {
        self.failed_is_told |= self.failed.is_some();
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Whether anything may be changed: not after a failed sync, when nothing can become durable
    /// any more, and writing might go over what storage takes for committed.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.dead.clone().map_or(Ok(()), Err)
    }

    fn check_step_is_over(&mut self) -> Result<()> {
        let step = self.open_step()?;
        let (is_aborting, told_end, todo_count) =
            (step.is_aborting, step.told_end, step.todo_count);
        self.check_none_out()?;
        self.tell_failed()?;
        if is_aborting {
            return Err(Error::Busy("the step is being aborted".to_owned()));
        }
        if !told_end {
            return Err(Error::Busy(format!(
                "step_next has not said that all were given out ({todo_count} are left)"
            )));
        }
        Ok(())
    }

    fn close_step(&mut self, count_it: bool) -> Option<Step> {
        let step = self.step.take()?;
        for index in step.order() {
            self.record_mut(*index).part = StepPart::None;
            if self.is_droppable(*index) {
                self.clean.push_back(*index);
            }
        }
        if count_it {
            self.step_figures.step_ns = nanos(step.started.elapsed());
        }
        Some(step)
    }

    /// Brings every record back to what it was before the step. Nothing is moving.
    fn undo_step(&mut self) {
        let Some(step) = self.close_step(false) else {
            return;
        };
        for (index, before) in step.undo {
            self.forget(index);
            let record = self.record_mut(index);
            record.working = before;
            record.lost = None;
        }
        self.requeue_dirty();
    }
}
