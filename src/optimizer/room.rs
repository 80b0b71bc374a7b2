//! Pinned memory for records: computed from the parameters, made when it is first needed, and made
//! anew where parameters were added that need more.

use super::arena::{Arena, ArenaPlan, Demand, plan};
use super::core::Core;
use super::optimizer_swapper::Optimizer;
use super::record::{Record, Residency};
use crate::base::config::OptimizerOptions;
use crate::base::error::{Error, Result};
use crate::base::sync::MutexGuard;

impl Optimizer {
    /// Makes the arena for all parameters that there are, or a larger one.
    ///
    /// # Errors
    /// `Budget`; `NoMemory`, `Memlock`; `Busy` where views are out.
    pub(super) fn ensure_arena<'a>(
        &'a self,
        core: MutexGuard<'a, Core>,
    ) -> Result<MutexGuard<'a, Core>> {
        if core.arena.is_some() && !core.arena_is_stale {
            return Ok(core);
        }
        let plan = self.plan_arena(&core)?;
        let mut core = self.make_arena(core, &plan)?;
        core.arena_is_stale = false;
        Ok(core)
    }

    /// Makes an arena for calls that move one parameter after the other. The budget is for
    /// updates: where it is too small for them, room for one parameter is enough here.
    ///
    /// # Errors
    /// `NoMemory`, `Memlock`; `Busy` where views are out.
    pub(super) fn ensure_room_for_one<'a>(
        &'a self,
        core: MutexGuard<'a, Core>,
    ) -> Result<MutexGuard<'a, Core>> {
        if core.arena.is_some() && !core.arena_is_stale {
            return Ok(core);
        }
        if self.plan_arena(&core).is_ok() {
            return self.ensure_arena(core);
        }
        let one = Demand {
            views_max: 1,
            pinned_bytes: None,
            pipelined_count: 0,
            cache_bytes: 0,
        };
        let plan = plan(&record_sizes(&core), one)?;
        self.make_arena(core, &plan)
    }

    fn make_arena<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        plan: &ArenaPlan,
    ) -> Result<MutexGuard<'a, Core>> {
        if core.arena.as_ref().is_some_and(|arena| arena.suits(plan)) {
            return Ok(core);
        }
        if !core.changed.is_empty() {
            core.check_alive()?;
        }
        if !core.outs.is_empty() {
            return Err(Error::Busy(
                "parameters were added; give back those that are swapped in first".to_owned(),
            ));
        }
        core = self.write_everything(core);
        for index in core.indices() {
            core.forget(index);
        }
        core.arena = None;
        core.buffer = None;
        if plan.total_bytes() > 0 {
            let buffer = self.shared.engine.allocate_buffer(plan.total_bytes())?;
            core.buffer = Some(buffer);
        }
        core.clean.clear();
        core.arena = Some(Arena::new(plan));
        core.computed_bytes = plan.total_bytes();
        Ok(core)
    }

    fn plan_arena(&self, core: &Core) -> Result<ArenaPlan> {
        plan(&record_sizes(core), demand_of(&self.shared.options))
    }

    /// Writes all that is in memory only, and waits until nothing moves.
    pub(super) fn write_everything<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
    ) -> MutexGuard<'a, Core> {
        let dirty: Vec<u32> = core.changed.clone();
        for index in dirty {
            let record = core.record_mut(index);
            if record.dirty && record.residency == Residency::Warm && !record.in_commit {
                core.write_queue.push_back(index);
            }
        }
        core = self.shared.pump(core);
        while core.is_moving() || !core.commit.is_idle() || !core.write_queue.is_empty() {
            core = self.shared.wait_for(core, false);
        }
        core
    }
}

/// What the options demand of the arena.
pub(super) fn demand_of(options: &OptimizerOptions) -> Demand {
    let ahead = |pipelined: bool, count: Option<u32>| match (pipelined, count) {
        (false, _) => 0,
        (true, count) => u64::from(count.unwrap_or(1)),
    };
    Demand {
        views_max: options.views_max,
        pinned_bytes: options.pinned_bytes,
        pipelined_count: ahead(options.pipeline_read, options.read_ahead)
            + ahead(options.pipeline_write, options.write_behind),
        cache_bytes: options.cache_bytes,
    }
}

/// Bytes of each record in memory; none for those that this process did not add.
fn record_sizes(core: &Core) -> Vec<u64> {
    let size = |record: &Record| match record.attached {
        true => core.layout.record_bytes(record.numel),
        false => 0,
    };
    core.records.iter().map(size).collect()
}
