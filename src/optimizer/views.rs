//! Records on their way into a caller's hands and back.
//!
//! Both ways the work on the data, verifying, converting and computing checksums, is done by the
//! caller's own thread, outside of the lock.

use std::sync::Arc;
use std::time::Instant;

use super::core::{Core, OutView};
use super::gradients::Lent;
use super::image::{Image, RoundingKey};
use super::optimizer_swapper::Optimizer;
use super::record::{Residency, StepPart};
use super::view::{ParameterView, StateView};
use crate::base::config::ChecksumMode;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::nanos;
use crate::store::Version;

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
        if core.note_irreversible(!was_clean) {
            self.shared.changed.notify_all();
        }
        let layout = Arc::clone(&core.layout);
        let numel = core.record(index).numel;
        core = self.shared.pump(core);
        drop(core);
        let started = Instant::now();
        let prepared = memory.and_then(|memory| {
            let image = Image {
                layout: &layout,
                numel,
                memory,
            };
            if let Some(version) = version.filter(|_| !verified) {
                self.verify(&image, &version, index)?;
            }
            // First what can fail: the record is still in image form then.
            let (gradient, lent) = self.gradient_of(&image, index, with_gradient)?;
            let states =
                image.expand(version.map_or(layout.all_states(), |version| version.zero_states))?;
            Ok((states, gradient, lent))
        });
        self.shared.timeline.worked("prepare", id, started);
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
                let error = error.striking(&format!("parameter {id}"));
                if let Some(step) = core.step.as_mut() {
                    step.error.get_or_insert_with(|| error.clone());
                }
                core.take_back_unseen(index, was_clean);
                drop(self.shared.pump(core));
                self.shared.changed.notify_all();
                Err((id, error))
            }
        }
    }

    /// The record's gradient, in the type of its master.
    fn gradient_of(
        &self,
        image: &Image<'_>,
        index: u32,
        is_wanted: bool,
    ) -> Result<(Option<StateView>, Option<Lent>)> {
        let (true, Some(master)) = (is_wanted, image.layout.states.first()) else {
            return Ok((None, None));
        };
        let lent = {
            // A norm that is being computed has the gradient for a moment.
            let _turn = lock(&self.gradient_turn);
            self.gradients.lend(index)?
        };
        let Some(mut lent) = lent else {
            return Ok((None, None));
        };
        match lent.view(master.dtype) {
            Ok(memory) => {
                let view = StateView {
                    memory,
                    numel: image.numel,
                    dtype: master.dtype,
                };
                Ok((Some(view), Some(lent)))
            }
            Err(error) => {
                self.gradients.give_back(lent, true);
                Err(error)
            }
        }
    }

    /// Whether what was read is what was written.
    ///
    /// # Errors
    /// `Checksum`.
    pub(super) fn verify(&self, image: &Image<'_>, version: &Version, index: u32) -> Result<()> {
        if self.shared.options.checksum != ChecksumMode::Verify {
            return Ok(());
        }
        let Some(state) = image.first_wrong(version)? else {
            return Ok(());
        };
        self.shared.figures.checksum_errors.add(1);
        let core = lock(&self.shared.core);
        let record = core.record(index);
        let (area, slot) = core.layout.slot(record.offset, version.slot, record.numel);
        let address = slot + image.layout.image(state, image.numel).start;
        let (path, offset) = self.shared.store.find_address(area, address);
        Err(Error::Checksum(Box::new(IoFailure {
            operation: "swap_in",
            path: path.to_string_lossy().into_owned(),
            offset_bytes: Some(offset),
            errno: 0,
            detail: format!(
                "state {} is not what was written (generation {})",
                image.layout.states[state].name, version.generation
            ),
        })))
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
        let since = out.since;
        let update = since.elapsed();
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
        let layout = Arc::clone(&core.layout);
        let memory = self.shared.memory_of(&core, index);
        let in_step = core.step.is_some();
        drop(core);
        self.shared.figures.update_ns.add(nanos(update));
        self.shared.timeline.updated(id, since);
        let started = Instant::now();
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
        self.shared.timeline.worked("put back", id, started);
        let mut core = lock(&self.shared.core);
        let ended = match version {
            Ok(version) => {
                core.end_view(index, version, how == GiveBack::ChangedWriteNow);
                Ok(())
            }
            Err(error) => {
                core.outs.retain(|out| out.record != index);
                core.note_lost(index, error.clone());
                Err(error)
            }
        };
        drop(self.shared.pump(core));
        self.shared.changed.notify_all();
        ended
    }
}

impl Core {
    /// Why a record cannot be given out, or taken back.
    pub(super) fn not_out(&self, index: u32) -> Error {
        let record = self.record(index);
        let doing = match record.residency {
            Residency::Out if self.is_returning(index) => "is being given out or back",
            _ => record.doing(),
        };
        Error::Busy(format!("parameter {} {doing}", record.id))
    }

    /// Whether no caller holds the record's view.
    pub(super) fn check_not_out(&self, index: u32) -> Result<()> {
        match self.outs.iter().any(|out| out.record == index) {
            true => Err(self.not_out(index)),
            false => Ok(()),
        }
    }

    /// Whether a caller holds the record's view.
    pub(super) fn check_out(&self, index: u32) -> Result<()> {
        match self.check_not_out(index) {
            Ok(()) => Err(self.not_out(index)),
            Err(_) => Ok(()),
        }
    }

    /// Whether no view is out.
    pub(super) fn check_none_out(&self) -> Result<()> {
        match self.outs.first() {
            Some(out) => self.check_not_out(out.record),
            None => Ok(()),
        }
    }

    /// Whether there is room for one more view.
    pub(super) fn check_views(&self) -> Result<()> {
        let views_max = self.policy.views_max;
        if self.outs.len() < views_max {
            return Ok(());
        }
        Err(Error::NoBuffers(format!(
            "{views_max} views are out (views_max); give one back first"
        )))
    }

    /// Notes that a step gave out a record of which there is no other copy: what the caller makes
    /// of it cannot be undone. Whether it was the last record of the step.
    fn note_irreversible(&mut self, is_only_copy: bool) -> bool {
        let Some(step) = self.step.as_mut() else {
            return false;
        };
        step.is_irreversible |= is_only_copy;
        step.todo_count == 0
    }

    fn is_returning(&self, index: u32) -> bool {
        let mut outs = self.outs.iter();
        outs.any(|out| out.record == index && out.is_returning)
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
    pub(super) fn end_view(&mut self, index: u32, version: Option<Version>, write_now: bool) {
        let Some(position) = self.outs.iter().position(|out| out.record == index) else {
            return;
        };
        let out = self.outs.swap_remove(position);
        let before = self.record(index).working;
        let is_dropped =
            self.failed.is_some() || self.step.as_ref().is_some_and(|step| step.is_aborting);
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

    /// Takes back a record that nobody got to see.
    fn take_back_unseen(&mut self, index: u32, was_clean: bool) {
        if was_clean {
            return self.drop_view(index);
        }
        self.outs.retain(|out| out.record != index);
        self.record_mut(index).residency = Residency::Warm;
        self.queue_write(index);
    }

    /// Gives up a view, and what is in memory of its record.
    pub(super) fn drop_view(&mut self, index: u32) {
        self.outs.retain(|out| out.record != index);
        self.forget(index);
    }
}
