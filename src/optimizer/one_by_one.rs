//! Parameters one by one, as DeepSpeed's swappers do: swapped in, updated, swapped out.
//!
//! With `pipeline_read` the parameter that comes next is read while this one is updated; with
//! `pipeline_write` a swap-out that may be asynchronous returns before its write is done. Without
//! either this is DeepSpeed's PartitionedOptimizerSwapper, with both its PipelinedOptimizerSwapper.

use std::time::Instant;

use super::core::Core;
use super::optimizer_swapper::Optimizer;
use super::record::{Residency, StepPart};
use super::view::ParameterView;
use super::views::GiveBack;
use crate::base::error::{Error, Result};
use crate::base::sync::{MutexGuard, lock};

impl Optimizer {
    /// Brings a parameter into memory for an update, and starts reading the one that comes next.
    ///
    /// # Errors
    /// `UnknownParameter`; `InvalidArgument` for a parameter that comes after itself; `Busy` for
    /// one that is in already, where another one was named as the next, or in an open step;
    /// `NoBuffers` with `views_max` views out; `Budget`, `NoMemory`; what kept it from being read;
    /// the failure of an earlier write of it, once.
    pub fn swap_in_state(&self, id: u64, next: Option<u64>) -> Result<ParameterView> {
        let _desk = self.enter()?;
        let started = Instant::now();
        let mut core = self.settled_between_steps()?;
        let index = core.find(id)?;
        let next = next.map(|next| core.find(next)).transpose()?;
        if next == Some(index) {
            return Err(Error::invalid(format!("parameter {id} follows itself")));
        }
        for wanted in [Some(index), next].into_iter().flatten() {
            core.check_not_out(wanted)?;
        }
        if let Some(expected) = core.expected.filter(|expected| *expected != index) {
            return Err(Error::Busy(format!(
                "parameter {} was named as the next one; swap it in, or release it",
                core.record(expected).id
            )));
        }
        core.check_views()?;
        core.check_alive()?;
        core = self.ensure_arena(core)?;
        let was_expected = core.expected.take() == Some(index);
        let waits = core.record(index).residency != Residency::Warm;
        let waited_from = Instant::now();
        core = self.bring_in(core, index)?;
        if was_expected {
            let waited = waited_from.elapsed();
            self.shared.figures.async_swap_in_state.record(waited);
        }
        let counter = if waits {
            &self.shared.figures.cache_misses
        } else {
            &self.shared.figures.cache_hits
        };
        counter.add(1);
        if let Some(next) = next.filter(|_| core.policy.pipeline_read) {
            // The first one must not be dropped to make room for the second one.
            core.record_mut(index).part = StepPart::Todo;
            if core.record(next).residency == Residency::Cold {
                core.start_read(next);
            }
            core.record_mut(index).part = StepPart::None;
            core.expected = Some(next);
        }
        let view = self
            .give_out(core, index, true)
            .map_err(|(_, error)| error)?;
        self.shared.figures.swap_in_state.record(started.elapsed());
        Ok(view)
    }

    /// Waits until a record is in memory and may be given out.
    ///
    /// # Errors
    /// What kept it from being read.
    pub(super) fn bring_in<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        index: u32,
    ) -> Result<MutexGuard<'a, Core>> {
        loop {
            core.tell_lost(index)?;
            if let Some(error) = core.unreadable.remove(&index) {
                return Err(error);
            }
            if core.record(index).can_be_given() {
                return Ok(core);
            }
            if core.record(index).residency == Residency::Cold {
                core = self.find_room(core, |core| core.start_read(index))?;
                core = self.shared.pump(core);
                continue;
            }
            core = self.shared.wait_for(core, true);
        }
    }

    /// Tries `take` until it finds room in the arena, writing back what keeps it.
    ///
    /// # Errors
    /// `NoBuffers` where nothing that is under way could ever make room; what made a commit fail.
    pub(super) fn find_room<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        take: impl Fn(&mut Core) -> bool,
    ) -> Result<MutexGuard<'a, Core>> {
        while !take(&mut core) {
            core.tell_failed()?;
            core.check_alive()?;
            let mut lazy = std::mem::take(&mut core.lazy_queue);
            core.write_queue.append(&mut lazy);
            core = self.shared.pump(core);
            if !core.is_moving() && core.commit.is_idle() && core.write_queue.is_empty() {
                // What moved just now may have made the room.
                if take(&mut core) {
                    break;
                }
                return Err(Error::NoBuffers(
                    "the views that are out leave no room for this parameter".to_owned(),
                ));
            }
            core = self.shared.wait_for(core, false);
        }
        Ok(core)
    }

    /// Takes an updated parameter back and writes it. Its gradient is over.
    ///
    /// # Errors
    /// `UnknownParameter`; `Busy` where it is not in, or in an open step; the failure of its write
    /// where that is waited for.
    pub fn swap_out_state(&self, id: u64, asynchronous: bool) -> Result<()> {
        let _desk = self.enter()?;
        let started = Instant::now();
        let mut core = lock(&self.shared.core);
        let index = core.find(id)?;
        core.check_no_step()?;
        core.check_out(index)?;
        core.swapped_out = true;
        let is_dropped = core.failed.is_some();
        self.take_back(core, index, GiveBack::ChangedWriteNow)?;
        self.gradients.discard(index);
        if is_dropped {
            return self.settled_between_steps().map(drop);
        }
        let is_pipelined = asynchronous && lock(&self.shared.core).policy.pipeline_write;
        let written = match is_pipelined {
            true => Ok(()),
            false => self.wait_written(index),
        };
        self.shared.figures.swap_out_state.record(started.elapsed());
        if is_pipelined {
            let timer = &self.shared.figures.async_swap_out_state;
            timer.record(started.elapsed());
        }
        written
    }

    /// Takes a parameter back that was not changed, or one that was only named as the next one.
    /// Nothing is written, and its gradient stays.
    ///
    /// # Errors
    /// `UnknownParameter`; `Busy` where it is neither, or in an open step.
    pub fn release_state(&self, id: u64) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = lock(&self.shared.core);
        let index = core.find(id)?;
        core.check_no_step()?;
        if core.expected == Some(index) {
            core.expected = None;
            core.unreadable.remove(&index);
            return Ok(());
        }
        core.check_out(index)?;
        self.take_back(core, index, GiveBack::Unchanged)
    }
}
