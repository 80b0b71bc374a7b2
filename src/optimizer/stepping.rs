//! A whole step: the optimizer chooses the order and keeps the pipeline full.

use std::time::Instant;

use super::core::{Core, OutView};
use super::image::{Image, RoundingKey};
use super::optimizer::Optimizer;
use super::record::{Residency, StepPart};
use super::shared::of_parameter;
use super::step::Step;
use super::view::ParameterView;
use crate::base::config::{ChecksumMode, SyncMode};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::nanos;

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

/// What becomes of a record that a caller gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GiveBack {
    /// It was updated; written when the policy says so.
    Changed,
    /// It was updated; written at the next opportunity.
    ChangedWriteNow,
    /// It is as it was given out.
    Unchanged,
}

impl Optimizer {
    /// Opens a step over these parameters, or over all that were added.
    ///
    /// # Errors
    /// `Busy` with a step open or parameters swapped in; `UnknownParameter`; `InvalidArgument` for
    /// an id given twice; `Budget`, `NoMemory`; the failure of an earlier write of one of them, or
    /// of the commit of an earlier step.
    pub fn step_begin(&self, ids: Option<&[u64]>) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = self.settled_between_steps()?;
        if let Some(out) = core.outs.first() {
            let id = core.record(out.record).id;
            return Err(Error::Busy(format!("parameter {id} is swapped in")));
        }
        let mut order = match ids {
            Some(ids) => self.indices_of(&core, ids)?,
            None => (0_u32..)
                .zip(&core.records)
                .filter(|(_, record)| record.attached)
                .map(|(index, _)| index)
                .collect(),
        };
        for index in &order {
            core.tell_lost(*index)?;
        }
        core = self.ensure_arena(core)?;
        if core.reversed {
            order.reverse();
        }
        core.expected = None;
        core.unreadable.clear();
        core.open_step(order);
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
        let mut core = lock(&self.shared.core);
        let mut waited = false;
        let index = loop {
            if let Some(error) = &core.failed {
                return Err(error.clone().into());
            }
            let out_count = core.outs.len();
            let views_max = core.policy.views_max;
            let Some(step) = core.step.as_mut() else {
                return Err(Error::Busy("no step is open".to_owned()).into());
            };
            if step.is_aborting {
                return Err(Error::Cancelled("the step is being aborted".to_owned()).into());
            }
            if step.todo_count == 0 {
                step.told_end = true;
                return Ok(None);
            }
            if let Some((index, error)) = step.take_unreadable() {
                let id = core.record(index).id;
                drop(self.shared.pump(core));
                return Err(StepError {
                    id: Some(id),
                    error,
                });
            }
            if out_count >= views_max {
                return Err(Error::NoBuffers(format!(
                    "{views_max} views are out (views_max); give one back first"
                ))
                .into());
            }
            if let Some(index) = core.take_ready() {
                break index;
            }
            waited = true;
            core.waiting_count += 1;
            core = self.shared.pump(core);
            if !core.has_news() {
                core = self.shared.wait_for(core, true);
            }
            core.waiting_count -= 1;
        };
        let counter = if waited || !core.record(index).verified {
            &self.shared.figures.cache_misses
        } else {
            &self.shared.figures.cache_hits
        };
        counter.add(1);
        let given = self.give_out(core, index, true);
        given.map(Some).map_err(|(id, error)| {
            let mut core = lock(&self.shared.core);
            if let Some(step) = core.step.as_mut() {
                step.error.get_or_insert_with(|| error.clone());
            }
            drop(self.shared.pump(core));
            self.shared.changed.notify_all();
            StepError {
                id: Some(id),
                error,
            }
        })
    }

    /// Takes a record that is in memory for a caller, and brings it into the form for updates.
    ///
    /// On an error the record is no longer in memory.
    pub(super) fn give_out<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        index: u32,
        with_gradient: bool,
    ) -> Result<ParameterView, (u64, Error)> {
        let id = core.record(index).id;
        let was_clean = !core.record(index).dirty;
        let verified = core.record(index).verified;
        let version = core.record(index).newest();
        let memory = self.shared.memory_of(&core, index);
        core.note_taken(index);
        core.record_mut(index).part = match core.record(index).part {
            StepPart::Todo => StepPart::Done,
            part => part,
        };
        core.outs.push(OutView {
            record: index,
            gradient: None,
            since: Instant::now(),
            was_clean,
            // Not to be taken back before it was given out.
            is_returning: true,
        });
        if let Some(step) = core.step.as_mut() {
            // What the caller makes of it cannot be undone where this is the only copy.
            step.is_irreversible |= !was_clean;
            if step.todo_count == 0 {
                self.shared.changed.notify_all();
            }
        }
        let layout = std::sync::Arc::clone(&core.layout);
        let numel = core.record(index).numel;
        core = self.shared.pump(core);
        drop(core);
        let prepared = memory.and_then(|memory| {
            let image = Image {
                layout: &layout,
                numel,
                memory,
            };
            if let Some(version) = version.filter(|_| !verified) {
                self.verify(&image, &version, index, id)?;
            }
            let zero_states = version.map_or(u8::MAX, |version| version.zero_states);
            let states = image.expand(zero_states)?;
            let mut lent = match with_gradient {
                true => self.gradients.lend(index)?,
                false => None,
            };
            let dtype = layout.states.first().map(|state| state.dtype);
            let gradient = match (lent.as_mut(), dtype) {
                (Some(lent), Some(dtype)) => Some(super::view::StateView {
                    memory: lent.view(dtype)?,
                    numel,
                    dtype,
                }),
                _ => None,
            };
            Ok((states, gradient, lent))
        });
        let mut core = lock(&self.shared.core);
        match prepared {
            Ok((states, gradient, lent)) => {
                if let Some(out) = core.outs.iter_mut().find(|out| out.record == index) {
                    out.gradient = lent;
                    out.since = Instant::now();
                    out.is_returning = false;
                }
                core.note_clocks();
                Ok(ParameterView {
                    id,
                    numel,
                    gradient,
                    states,
                    states_len: layout.states.len(),
                })
            }
            Err(error) => {
                core.drop_view(index);
                core.note_clocks();
                Err((id, of_parameter(error, id)))
            }
        }
    }

    fn verify(
        &self,
        image: &Image<'_>,
        version: &crate::store::Version,
        index: u32,
        id: u64,
    ) -> Result<()> {
        if self.shared.options.checksum != ChecksumMode::Verify {
            return Ok(());
        }
        let Some(state) = image.first_wrong(version)? else {
            return Ok(());
        };
        self.shared.figures.checksum_errors.add(1);
        let core = lock(&self.shared.core);
        let extent = core.extent_bytes(index);
        let offset = core.record(index).offset + u64::from(version.slot) * extent;
        let path = self.shared.store.data_path().to_string_lossy().into_owned();
        Err(Error::Checksum(Box::new(IoFailure {
            operation: "swap_in",
            path,
            offset_bytes: Some(offset + image.layout.image(state, image.numel).start),
            errno: 0,
            detail: format!(
                "state {} of parameter {id} is not what was written (generation {})",
                image.layout.states[state].name, version.generation
            ),
        })))
    }

    /// Takes a parameter back; `changed` says whether it was updated. Its view is gone then.
    ///
    /// # Errors
    /// `UnknownParameter`; `Busy` with no step open, or for a parameter that is not out. Without
    /// `pipeline_write`, the failure of its write.
    pub fn step_done(&self, id: u64, changed: bool) -> Result<()> {
        self.shared.engine.check()?;
        let core = lock(&self.shared.core);
        let index = core.find(id)?;
        if core.step.is_none() {
            return Err(Error::Busy("no step is open".to_owned()));
        }
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

    /// Takes a view back from a caller.
    ///
    /// # Errors
    /// `Busy` where it is not out.
    pub(super) fn take_back<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        index: u32,
        how: GiveBack,
    ) -> Result<()> {
        let id = core.record(index).id;
        let is_out = |out: &&mut OutView| out.record == index && !out.is_returning;
        let Some(out) = core.outs.iter_mut().find(is_out) else {
            return Err(core.not_out(index));
        };
        out.is_returning = true;
        let update = out.since.elapsed();
        let lent = out.gradient.take();
        let record = core.record(index);
        let before = record.newest();
        let key = RoundingKey {
            rounding: self.shared.options.rounding,
            seed: self.shared.options.seed,
            id,
            step: core.step_number + 1,
        };
        let numel = record.numel;
        let layout = std::sync::Arc::clone(&core.layout);
        let memory = self.shared.memory_of(&core, index);
        let in_step = core.step.is_some();
        drop(core);
        self.shared.figures.update_ns.add(nanos(update));
        let checked = self.shared.options.checksum != ChecksumMode::Off;
        let version = memory.and_then(|memory| {
            let image = Image {
                layout: &layout,
                numel,
                memory,
            };
            image.shrink(key)?;
            match how {
                GiveBack::Unchanged => Ok(None),
                _ => image.describe(before, 0, checked).map(Some),
            }
        });
        if let Some(lent) = lent {
            // In a step, gradients end with the step; one by one, with a swap-out.
            self.gradients
                .give_back(lent, in_step || how == GiveBack::Unchanged);
        }
        let mut core = lock(&self.shared.core);
        let ended = match version {
            Ok(version) => {
                core.end_view(index, version, how == GiveBack::ChangedWriteNow);
                Ok(())
            }
            Err(error) => {
                core.drop_view(index);
                Err(error)
            }
        };
        drop(self.shared.pump(core));
        self.shared.changed.notify_all();
        ended
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
            if !pending {
                return Ok(());
            }
            if let Some(error) = &core.failed {
                return Err(error.clone());
            }
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
        core.check_step_can_end()?;
        while !core.commit.is_idle() {
            core = self.shared.wait_for(core, false);
        }
        core.check_step_can_end()?;
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
    /// was before is no more.
    pub fn step_abort(&self) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = lock(&self.shared.core);
        let has_failed = core.failed.is_some();
        let Some(step) = core.step.as_mut() else {
            return Err(Error::Busy("no step is open".to_owned()));
        };
        if step.is_irreversible && !has_failed {
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
        if core.failed.is_some() {
            core.roll_back();
        } else {
            core.undo_step();
        }
        self.gradients.discard_all();
        drop(self.shared.pump(core));
        Ok(())
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

    fn open_step(&mut self, order: Vec<u32>) {
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
        self.step = Some(Step::new(order.clone(), unread_bytes));
        self.requeue_dirty();
        for index in order {
            self.offer(index);
        }
    }

    /// Why a record cannot be taken back.
    pub(super) fn not_out(&self, index: u32) -> Error {
        let record = self.record(index);
        let doing = match record.residency {
            Residency::Out => "is being given back by another thread",
            _ => record.doing(),
        };
        Error::Busy(format!("parameter {} {doing}", record.id))
    }

    /// Tells the loss of a record's write, once.
    pub(super) fn tell_lost(&mut self, index: u32) -> Result<()> {
        let record = self.record_mut(index);
        match &record.lost {
            Some(error) if !record.told => {
                let error = (**error).clone();
                record.told = true;
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Ends a view: with a new version, or unchanged.
    fn end_view(&mut self, index: u32, version: Option<crate::store::Version>, write_now: bool) {
        let Some(position) = self.outs.iter().position(|out| out.record == index) else {
            return;
        };
        let out = self.outs.swap_remove(position);
        let before = self.record(index).working;
        let is_dropped = self.failed.is_some()
            || self.step.as_ref().is_some_and(|step| step.is_aborting);
        match version {
            // The step is taken back: what the caller made of it counts for nothing.
            _ if is_dropped && out.was_clean => self.drop_view(index),
            Some(version) => {
                if let Some(step) = self.step.as_mut() {
                    step.undo.entry(index).or_insert(before);
                }
                self.note_changed(index, version, write_now);
            }
            // The caller vouches for the bytes; storage is surer.
            None if out.was_clean => self.drop_view(index),
            None => {
                self.record_mut(index).residency = Residency::Warm;
                self.queue_write(index);
            }
        }
    }

    /// Gives up a view, and what is in memory of its record.
    fn drop_view(&mut self, index: u32) {
        self.outs.retain(|out| out.record != index);
        self.record_mut(index).residency = Residency::Warm;
        self.record_mut(index).dirty = true;
        self.forget(index);
    }

    fn check_step_can_end(&self) -> Result<()> {
        let Some(step) = self.step.as_ref() else {
            return Err(Error::Busy("no step is open".to_owned()));
        };
        if let Some(out) = self.outs.first() {
            return Err(Error::Busy(format!(
                "parameter {} is still out, and {} in all",
                self.record(out.record).id,
                self.outs.len()
            )));
        }
        if step.is_aborting {
            return Err(Error::Busy("the step is being aborted".to_owned()));
        }
        if !step.told_end {
            return Err(Error::Busy(format!(
                "step_next has not said that all were given out ({} are left)",
                step.todo_count
            )));
        }
        if let Some(error) = self.failed.as_ref().or(step.error.as_ref()) {
            return Err(error.clone());
        }
        Ok(())
    }

    fn close_step(&mut self, count_it: bool) -> Option<Step> {
        let step = self.step.take()?;
        for index in step.order() {
            self.record_mut(*index).part = StepPart::None;
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
