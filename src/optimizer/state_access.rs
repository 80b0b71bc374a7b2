//! Between steps: reading and writing single states, forgetting moments, committing, user data.

use super::core::Core;
use super::image::convert_range;
use super::optimizer_swapper::Optimizer;
use super::views::GiveBack;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::to_u64;
use crate::io::Tensor;
use crate::memory::MemoryRange;
use crate::memory::numbers::is_convertible;
use crate::store::{StateSpec, USER_DATA_BYTES_MAX};

impl Optimizer {
    /// Copies one state of a parameter to the caller, converted to the destination's type.
    ///
    /// # Errors
    /// `UnknownParameter`; `InvalidArgument` for an unknown state or another number of elements;
    /// `DtypeMismatch` for types that cannot be converted; `Busy` in an open step or while the
    /// parameter is swapped in; what kept it from being read; the failure of an earlier write of
    /// it, once.
    pub fn read_state(&self, id: u64, state: &str, destination: &Tensor) -> Result<()> {
        self.access(
            id,
            state,
            destination,
            GiveBack::Unchanged,
            |values, dtype| convert_range(values, dtype, destination.memory, destination.dtype),
        )
    }

    /// Gives one state of a parameter new values, converted from the source's type. Pending until
    /// the next commit.
    ///
    /// # Errors
    /// As [`read_state`](Optimizer::read_state), and the failure of the write.
    pub fn write_state(&self, id: u64, state: &str, source: &Tensor) -> Result<()> {
        self.access(
            id,
            state,
            source,
            GiveBack::ChangedWriteNow,
            |values, dtype| convert_range(source.memory, source.dtype, values, dtype),
        )
    }

    /// Brings a parameter in, lets `work` have the values of one state, and takes it back.
    fn access(
        &self,
        id: u64,
        state: &str,
        tensor: &Tensor,
        how: GiveBack,
        work: impl FnOnce(MemoryRange, Dtype) -> Result<()>,
    ) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = self.settled_between_steps()?;
        let index = core.find(id)?;
        let position = core.find_state(state)?;
        check_tensor(&core, index, &core.layout.states[position], tensor)?;
        core.check_not_out(index)?;
        if how != GiveBack::Unchanged {
            core.check_alive()?;
        }
        core.check_views()?;
        core = self.ensure_room_for_one(core)?;
        core = self.bring_in(core, index)?;
        let view = self
            .give_out(core, index, false)
            .map_err(|(_, error)| error)?;
        let worked = match view.state(position) {
            Some(values) => work(values.memory, values.dtype),
            None => Err(Error::Internal("a view lacks a state".to_owned())),
        };
        let how = match worked {
            Ok(()) => how,
            Err(_) => GiveBack::Unchanged,
        };
        let core = lock(&self.shared.core);
        self.take_back(core, index, how)?;
        worked?;
        match how {
            GiveBack::Unchanged => Ok(()),
            _ => self.wait_written(index),
        }
    }

    /// Makes every state but the master zero, for all parameters. Nothing is written: zeros are
    /// known to be zeros. Pending until the next commit.
    ///
    /// # Errors
    /// `Busy` in an open step or with parameters swapped in.
    pub fn purge_state(&self) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = self.settled_between_steps()?;
        core.check_none_out()?;
        core.check_alive()?;
        while core.is_moving() || !core.commit.is_idle() {
            core = self.shared.wait_for(core, false);
        }
        let zero_states = core.layout.zero_but_master();
        for index in core.indices() {
            let record = core.record_mut(index);
            let Some(mut version) = record.newest().filter(|_| record.attached) else {
                continue;
            };
            version.zero_states |= zero_states;
            if record.working.replace(version).is_none() {
                core.changed.push(index);
            }
        }
        Ok(())
    }

    /// Makes all that is done durable, and waits for it. Counts a step if parameters were swapped
    /// out one by one since the last commit.
    ///
    /// # Errors
    /// `Busy` in an open step or with parameters swapped in; the failure of a write or a sync:
    /// nothing is committed then, and, unless a sync failed, it can be tried again.
    pub fn commit(&self) -> Result<()> {
        let _desk = self.enter()?;
        let core = self.settled_between_steps()?;
        core.check_none_out()?;
        self.commit_now(core).map(drop)
    }

    /// Commits all that is done, between steps and with no view out.
    ///
    /// # Errors
    /// As [`commit`](Optimizer::commit).
    pub(super) fn commit_now<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
    ) -> Result<MutexGuard<'a, Core>> {
        while !core.commit.is_idle() {
            core = self.shared.wait_for(core, false);
        }
        if core.failed.is_some() {
            drop(core);
            return self.settled_between_steps();
        }
        core.check_nothing_lost()?;
        let counts = core.swapped_out;
        core.step_number += u64::from(counts);
        core.begin_commit(true);
        core = self.shared.pump(core);
        self.shared.changed.notify_all();
        let outcome = loop {
            if let Some(outcome) = core.commit_outcome.take() {
                break outcome;
            }
            core = self.shared.wait_for(core, false);
        };
        if outcome.is_err() {
            core.step_number -= u64::from(counts);
            core.swapped_out = counts;
        }
        outcome.map(|()| core)
    }

    /// Keeps bytes of the caller's with the next commit: learning rate, random state, position in
    /// the data.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 1 MiB, `NoMemory`.
    pub fn set_user_data(&self, data: &[u8]) -> Result<()> {
        let _desk = self.enter()?;
        if to_u64(data.len()) > USER_DATA_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{} bytes of user data are more than {USER_DATA_BYTES_MAX}",
                data.len()
            )));
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(data.len())
            .map_err(|_| Error::NoMemory(format!("no room for {} bytes", data.len())))?;
        copy.extend_from_slice(data);
        let mut core = lock(&self.shared.core);
        core.user_data = Some(copy.into());
        core.user_data_is_new = true;
        Ok(())
    }

    /// The user data set last, committed or not; after a start, that of the last commit.
    #[must_use]
    pub fn user_data(&self) -> Vec<u8> {
        let core = lock(&self.shared.core);
        match &core.user_data {
            Some(data) => data.to_vec(),
            None => self.shared.store.user_data(),
        }
    }
}

impl Core {
    fn find_state(&self, name: &str) -> Result<usize> {
        self.layout.find(name).ok_or_else(|| {
            let known: Vec<&str> = self
                .layout
                .states
                .iter()
                .map(|state| state.name.as_str())
                .collect();
            Error::invalid(format!(
                "there is no state {name}; there are {}",
                known.join(", ")
            ))
        })
    }

    /// A lost write keeps everything from being committed, until the parameter is rewritten.
    fn check_nothing_lost(&mut self) -> Result<()> {
        let lost = std::mem::take(&mut self.lost);
        self.lost = lost
            .into_iter()
            .filter(|index| self.record(*index).lost.is_some())
            .collect();
        let Some(index) = self.lost.first().copied() else {
            return Ok(());
        };
        let record = self.record_mut(index);
        record.told = true;
        match &record.lost {
            Some(error) => Err((**error).clone()),
            None => Ok(()),
        }
    }
}

/// Whether a tensor can take, or give, all values of a state.
fn check_tensor(core: &Core, index: u32, state: &StateSpec, tensor: &Tensor) -> Result<()> {
    let numel = core.record(index).numel;
    let (given, kept) = (tensor.dtype, state.dtype);
    if given != kept && !(is_convertible(given) && is_convertible(kept)) {
        return Err(Error::DtypeMismatch(format!(
            "state {} is {}, the tensor is {}",
            state.name,
            kept.name(),
            given.name()
        )));
    }
    if tensor.numel != numel {
        return Err(Error::invalid(format!(
            "the state has {numel} elements, the tensor has {}",
            tensor.numel
        )));
    }
    Ok(())
}
