//! The optimizer swapper as callers see it: making one, registering parameters, figures.
//!
//! The calls that move records are in the files next to this one: `stepping`, `one_by_one`,
//! `initialize`, `state_access`, `gradient_calls`.

use std::sync::{Arc, TryLockError, Weak};
use std::thread::JoinHandle;

use super::commit;
use super::core::{Core, Policy};
use super::figures::Figures;
use super::gradients::Gradients;
use super::record::Record;
use super::shared::Shared;
use super::timeline::Timeline;
use crate::base::config::{Config, OptimizerOptions};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::io::{Engine, Metrics};
use crate::memory::numbers::is_convertible;
use crate::store::{NAME_BYTES_MAX, STATES_MAX, StateSpec, Store, push_tightly};
use crate::sys;

/// No parameter has this id.
pub const NO_PARAMETER: u64 = u64::MAX;

/// Keeps the optimizer state of parameters on storage, and brings it into pinned memory for each
/// update.
///
/// All methods take `&self`. Any thread may call [`step_next`](Optimizer::step_next),
/// [`step_done`](Optimizer::step_done) and the methods that only read figures; one thread at a
/// time the others, a second one gets `Busy`. What was not committed when it is dropped is lost.
#[derive(Debug)]
pub struct Optimizer {
    // DROP ORDER: the gradients first, whose files lie in the store's directory; then others may
    // have the store.
    pub(super) gradients: Gradients,
    unlock: StoreUnlock,
    pub(super) shared: Arc<Shared>,
    /// Held while one thread computes a norm, so that no other one misses the gradient.
    pub(super) gradient_turn: Mutex<()>,
    desk: std::sync::Mutex<()>,
    committer: Option<JoinHandle<()>>,
    /// The thread of the last snapshot.
    pub(super) snapshot_thread: Mutex<Option<JoinHandle<()>>>,
}

impl Optimizer {
    /// Opens the store under the configured path, or makes one.
    ///
    /// # Errors
    /// `Config` without a path; `Locked` where another object or process uses the store;
    /// `Io` with `NOT_FOUND` where it must exist and does not; `Corrupt`; `Unsupported`.
    pub fn new(engine: &Engine, config: &Config) -> Result<Optimizer> {
        engine.check_open()?;
        let options = OptimizerOptions::from_config(config)?;
        let store = Store::open(engine, &options)?;
        let gradients = Gradients::new(engine, &options, store.scratch_directory());
        let mut core = Core::new(policy_of(&options), store.layout(), store.step());
        core.records.reserve_exact(store.records_len());
        for index in 0_u32.. {
            let Some(stored) = store.record(index) else {
                break;
            };
            core.records.push(Record {
                id: stored.id,
                numel: stored.numel,
                offset: stored.offset,
                base: stored.durable,
                ..Record::default()
            });
        }
        core.reversed = store.step() % 2 == 1;
        let shared = Arc::new(Shared {
            engine: engine.clone(),
            options,
            store,
            figures: Figures::default(),
            timeline: Timeline::new(engine),
            core: Mutex::new(core),
            changed: Condvar::new(),
        });
        lock(&shared.core).this = Arc::downgrade(&shared);
        engine.add_metrics(Arc::downgrade(&shared) as Weak<dyn Metrics>);
        let committer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("tsw-commit".to_owned())
                .spawn(move || {
                    sys::block_signals();
                    commit::run(&shared);
                })
        };
        let committer = committer.map_err(|error| Error::Unsupported {
            message: format!("the commit thread could not be started: {error}"),
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        Ok(Optimizer {
            gradients,
            unlock: StoreUnlock {
                shared: Arc::clone(&shared),
                is_due: false,
            },
            shared,
            gradient_turn: Mutex::new(()),
            desk: std::sync::Mutex::new(()),
            committer: Some(committer),
            snapshot_thread: Mutex::default(),
        })
    }

    /// The engine below.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Keeps other callers out for the length of a call.
    pub(super) fn enter(&self) -> Result<std::sync::MutexGuard<'_, ()>> {
        self.shared.engine.check()?;
        match self.desk.try_lock() {
            Ok(desk) => Ok(desk),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Busy("another thread uses this optimizer".to_owned()))
            }
            Err(TryLockError::Poisoned(_)) => Err(Error::Poisoned),
        }
    }

    /// Declares a further state that every parameter has; state 0 is the master parameter. In an
    /// opened store it must be the one that is recorded.
    ///
    /// # Errors
    /// `InvalidArgument` after the first parameter, for a name in use or unfit, or for one state
    /// too many; `Unsupported` for types that cannot be converted; `StoreMismatch`.
    pub fn add_state(&self, name: &str, dtype: Dtype, disk_dtype: Dtype) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = lock(&self.shared.core);
        if core.records.iter().any(|record| record.attached) {
            return Err(Error::invalid("states come before the first parameter"));
        }
        check_name(name)?;
        let position = core.states_added;
        if position == STATES_MAX {
            return Err(Error::invalid(format!(
                "a parameter has at most {STATES_MAX} states"
            )));
        }
        check_types(position, dtype, disk_dtype)?;
        let state = StateSpec {
            name: name.to_owned(),
            dtype,
            disk_dtype,
        };
        let is_named = |known: &StateSpec| known.name == name;
        if core.layout.states.iter().take(position).any(is_named) {
            return Err(Error::invalid(format!("there is a state {name} already")));
        }
        match core.layout.states.get(position) {
            Some(recorded) if *recorded == state => {}
            Some(recorded) => {
                return Err(Error::StoreMismatch(format!(
                    "state {position} is {} in the store, and {} was added",
                    describe_state(recorded),
                    describe_state(&state),
                )));
            }
            None if !core.records.is_empty() => {
                return Err(Error::StoreMismatch(format!(
                    "the store records {} states, and {} was added",
                    core.layout.states.len(),
                    describe_state(&state),
                )));
            }
            None => {
                self.shared.store.add_state(state.clone())?;
                core.layout = Arc::new(self.shared.store.layout());
            }
        }
        core.states_added += 1;
        Ok(())
    }

    /// Registers a parameter and reserves its place in the store. In an opened store it is
    /// attached to what is recorded under its id.
    ///
    /// # Errors
    /// `InvalidArgument` for an id in use or not allowed, no states, no elements, too many
    /// elements, or a name that is too long; `StoreMismatch` where the store records something
    /// else; `Io` with `NO_SPACE`; `Busy` in an open step.
    pub fn add_parameter(&self, id: u64, name: Option<&str>, numel: u64) -> Result<()> {
        let _desk = self.enter()?;
        let mut core = self.settled_between_steps()?;
        if id == NO_PARAMETER {
            return Err(Error::invalid("this id means no parameter"));
        }
        name.map(check_name).transpose()?;
        core.layout.check_numel(numel)?;
        if core.states_added == 0 {
            return Err(Error::invalid("there are no states; add them first"));
        }
        if core.states_added < core.layout.states.len() {
            return Err(Error::StoreMismatch(format!(
                "the store records {} states, and {} were added",
                core.layout.states.len(),
                core.states_added,
            )));
        }
        match self.shared.store.find(id) {
            Some(index) if core.record(index).attached => {
                return Err(Error::invalid(format!("parameter {id} is there already")));
            }
            Some(index) => {
                let recorded = self.shared.store.record(index);
                let record = core.record_mut(index);
                if record.numel != numel {
                    return Err(Error::StoreMismatch(format!(
                        "parameter {id} has {} elements in the store, and {numel} were given",
                        record.numel
                    )));
                }
                if let (Some(given), Some(known)) = (name, recorded.and_then(|known| known.name))
                    && *given != *known
                {
                    return Err(Error::StoreMismatch(format!(
                        "parameter {id} is named {known} in the store, and {given} was given"
                    )));
                }
                record.attached = true;
            }
            None => {
                self.shared.store.follow_drives(&self.shared.engine)?;
                let index = self.shared.store.add_record(id, name, numel)?;
                let stored = self.shared.store.record(index);
                let offset = stored.map(|stored| stored.offset).ok_or_else(|| {
                    Error::Internal("the store lost a record it just made".to_owned())
                })?;
                let record = Record {
                    id,
                    numel,
                    offset,
                    attached: true,
                    ..Record::default()
                };
                push_tightly(&mut core.records, record);
            }
        }
        core.arena_is_stale = true;
        Ok(())
    }

    /// The state between steps, with no commit failed behind the caller's back.
    ///
    /// # Errors
    /// `Busy` in an open step; what made a commit fail, once: everything is then as it was at the
    /// last durable step.
    pub(super) fn settled_between_steps(&self) -> Result<MutexGuard<'_, Core>> {
        let mut core = lock(&self.shared.core);
        core.check_no_step()?;
        if core.failed.is_none() {
            return Ok(core);
        }
        if let Some(out) = core.outs.first() {
            let id = core.record(out.record).id;
            return Err(Error::Busy(format!(
                "a commit failed; give parameter {id} back first"
            )));
        }
        while core.is_moving() {
            core = self.shared.wait(core);
        }
        let error = core.failed.take();
        core.roll_back();
        self.gradients.discard_all();
        Err(error.unwrap_or(Error::Poisoned))
    }

    /// How many parameters the store records, those of earlier runs included.
    #[must_use]
    pub fn parameters_len(&self) -> usize {
        lock(&self.shared.core).records.len()
    }

    /// Id and elements of a parameter, in the order in which they were first registered.
    #[must_use]
    pub fn parameter_at(&self, index: usize) -> Option<(u64, u64)> {
        let core = lock(&self.shared.core);
        let record = core.records.get(index)?;
        Some((record.id, record.numel))
    }

    /// Steps done, counting from the store's beginning.
    #[must_use]
    pub fn step_number(&self) -> u64 {
        lock(&self.shared.core).step_number
    }
}

fn policy_of(options: &OptimizerOptions) -> Policy {
    let bound = |count: Option<u32>| count.map_or(usize::MAX, |count| count as usize);
    Policy {
        sync: options.sync,
        views_max: options.views_max as usize,
        read_ahead: bound(options.read_ahead),
        write_behind: bound(options.write_behind).max(1),
        pipeline_read: options.pipeline_read,
        pipeline_write: options.pipeline_write,
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a name has 1 to {NAME_BYTES_MAX} bytes, this one has {}",
            name.len()
        )));
    }
    Ok(())
}

pub(super) fn check_types(position: usize, dtype: Dtype, disk_dtype: Dtype) -> Result<()> {
    if dtype != disk_dtype && !(is_convertible(dtype) && is_convertible(disk_dtype)) {
        return Err(Error::Unsupported {
            message: format!(
                "{} cannot be kept as {}: only f32, f16 and bf16 are converted",
                dtype.name(),
                disk_dtype.name()
            ),
            errno: 0,
        });
    }
    if position == 0 && !is_convertible(dtype) {
        return Err(Error::Unsupported {
            message: format!(
                "the master parameter is f32, f16 or bf16, and not {}",
                dtype.name()
            ),
            errno: 0,
        });
    }
    Ok(())
}

fn describe_state(state: &StateSpec) -> String {
    format!(
        "{} ({}, {} on storage)",
        state.name,
        state.dtype.name(),
        state.disk_dtype.name()
    )
}

impl Drop for Optimizer {
    fn drop(&mut self) {
        let Some(committer) = self.committer.take() else {
            return;
        };
        if matches!(self.shared.engine.check(), Err(Error::Forked)) {
            // The threads are the parent's, and so is everything under way.
            std::mem::forget(committer);
            std::mem::forget(lock(&self.snapshot_thread).take());
            std::mem::forget(Arc::clone(&self.shared));
            return;
        }
        let mut core = lock(&self.shared.core);
        core.closing = true;
        self.shared.changed.notify_all();
        while core.is_moving() || !core.commit.is_idle() || core.has_snapshot {
            core = self.shared.wait(core);
        }
        let failed = core.failed.take();
        drop(core);
        let snapshot = lock(&self.snapshot_thread).take();
        // What became of it is told by its ticket.
        drop(snapshot.map(JoinHandle::join));
        if let Err(_panic) = committer.join() {
            events::commit_failed("the commit thread ended with a defect");
        }
        if let Some(error) = failed {
            events::write_error_unseen(&error.to_string());
        }
        for file in self.shared.store.file_identities() {
            self.shared.engine.close_file(file);
        }
        // Views that are still out have gradients lent.
        lock(&self.shared.core).outs.clear();
        self.unlock.is_due = true;
    }
}

/// Lets others have the store when it is dropped. The driver may hold the rest for a moment more,
/// after telling the last completion.
#[derive(Debug)]
struct StoreUnlock {
    shared: Arc<Shared>,
    /// Not in a forked child, whose parent has the store.
    is_due: bool,
}

impl Drop for StoreUnlock {
    fn drop(&mut self) {
        if self.is_due {
            self.shared.store.close();
        }
    }
}
