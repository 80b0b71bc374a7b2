//! The swapper as callers see it.

use std::ffi::CStr;
use std::sync::{Arc, TryLockError, Weak};
use std::time::{Duration, Instant};

use super::pool::Pool;
use super::sink::{BUFFERS_MAX, Finished, Shared};
use super::staged::Staged;
use super::stats::SwapperStats;
use crate::base::config::Config;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::{TimerSnapshot, events};
use crate::base::units::{MIB, to_u64};
use crate::io::{Direction, Engine, Metrics, Tensor, Waiting, sort_list};
use crate::memory::Buffer;

/// Staged bytes at which a write begins while others are in flight.
pub(super) const SUBMIT_BYTES: u64 = 4 * MIB;

/// Stages tensors through pinned buffers and writes them in the background.
///
/// All methods take `&self`; one thread at a time may use those that move tensors or buffers, a
/// second one gets `Busy`. Figures may be read by any thread at any time.
#[derive(Debug)]
pub struct Swapper {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    /// Where the thread at the desk waits for what it reads.
    reading: Arc<Waiting>,
    desk: std::sync::Mutex<Desk>,
}

/// What the thread that uses the swapper works on.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) buffers: Vec<Buffer>,
    pub(super) dtype: Dtype,
    pub(super) pool: Pool,
    /// What was copied into the current buffer and not yet submitted.
    pub(super) staged: Staged,
    pub(super) writes_in_flight: usize,
    /// The first failure of a write since the last flush.
    pub(super) first_error: Option<Error>,
    pub(super) finished: Vec<Finished>,
    pub(super) order: Vec<u32>,
}

impl Swapper {
    /// Makes a swapper over an engine. It has no options of its own at present; `config` is taken
    /// for those to come.
    ///
    /// # Errors
    /// `Forked`, `Poisoned` for an engine that cannot be used.
    pub fn new(engine: &Engine, _config: Option<&Config>) -> Result<Swapper> {
        engine.check()?;
        let shared: Arc<Shared> = Arc::default();
        engine.add_metrics(Arc::downgrade(&shared) as Weak<dyn Metrics>);
        Ok(Swapper {
            engine: engine.clone(),
            shared,
            reading: Arc::default(),
            desk: std::sync::Mutex::new(Desk {
                buffers: Vec::new(),
                dtype: Dtype::Bytes,
                pool: Pool::default(),
                staged: Staged::default(),
                writes_in_flight: 0,
                first_error: None,
                finished: Vec::new(),
                order: Vec::new(),
            }),
        })
    }

    /// The engine below.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn desk(&self) -> Result<std::sync::MutexGuard<'_, Desk>> {
        self.engine.check()?;
        self.lock_desk()
    }

    fn lock_desk(&self) -> Result<std::sync::MutexGuard<'_, Desk>> {
        match self.desk.try_lock() {
            Ok(desk) => Ok(desk),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Busy("another thread uses this swapper".to_owned()))
            }
            // A panic in here is a defect; what the desk holds may be half done.
            Err(TryLockError::Poisoned(_)) => Err(Error::Poisoned),
        }
    }

    /// Gives the swapper its staging buffers. Tensors of another type than `dtype` are refused,
    /// unless it is `Bytes`.
    ///
    /// # Errors
    /// `Busy` with buffers held already; `InvalidArgument` for an empty list, a buffer given
    /// twice, or one of another engine.
    pub fn add_buffers(&self, buffers: &[Buffer], dtype: Dtype) -> Result<()> {
        let mut desk = self.desk()?;
        if !desk.buffers.is_empty() {
            return Err(Error::Busy(
                "the swapper holds buffers; release them first".to_owned(),
            ));
        }
        if buffers.is_empty() || buffers.len() > BUFFERS_MAX {
            return Err(Error::invalid(format!(
                "{} buffers are too few or many",
                buffers.len()
            )));
        }
        for (index, buffer) in buffers.iter().enumerate() {
            let range = buffer.range();
            if !self.engine.owns(buffer) {
                return Err(Error::invalid(format!(
                    "buffer {index} is another engine's"
                )));
            }
            if buffers[..index]
                .iter()
                .any(|other| other.range().overlaps(range))
            {
                return Err(Error::invalid(format!(
                    "buffer {index} overlaps one before it"
                )));
            }
        }
        desk.pool = Pool::new(
            buffers
                .iter()
                .map(|buffer| (to_u64(buffer.address()), to_u64(buffer.whole_range().len()))),
        );
        desk.buffers = buffers.to_vec();
        desk.dtype = dtype;
        self.shared.figures.buffers.add(to_u64(buffers.len()));
        self.note_states(&desk);
        Ok(())
    }

    /// Whether the swapper holds buffers.
    #[must_use]
    pub fn has_buffers(&self) -> bool {
        self.shared.figures.buffers.get() > 0
    }

    /// Copies tensors into the staging buffers and lets them be written. Their memory may be
    /// reused at once. Waits only while every buffer is in flight, and then for one.
    ///
    /// # Errors
    /// Of the list, before anything is staged: `InvalidArgument`, `DtypeMismatch`, `NoBuffers`.
    /// `ShutDown`, `Poisoned`, `Busy`, `Forked`. Failures of writes come with `flush` and with
    /// later reads of the same path.
    pub fn swap_out(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<()> {
        let mut desk = self.desk()?;
        let started = Instant::now();
        desk.check_list(tensors)?;
        let mut order = std::mem::take(&mut desk.order);
        let done = sort_list(Direction::Out, tensors, paths, &mut order)
            .and_then(|()| self.stage_list(&mut desk, tensors, paths, &order));
        desk.order = order;
        done?;
        desk.collect(&self.shared, false, None);
        if desk.writes_in_flight == 0 || desk.staged.len_bytes() >= SUBMIT_BYTES {
            self.submit_staged(&mut desk)?;
        }
        self.note_states(&desk);
        let figures = &self.shared.figures;
        figures.out_tensors.add(to_u64(tensors.len()));
        figures
            .out_elements
            .add(tensors.iter().map(|tensor| tensor.numel).sum());
        figures
            .out_bytes
            .add(tensors.iter().map(Tensor::len_bytes).sum());
        figures.swap_out.record(started.elapsed());
        self.engine.trace_call("swap_out", started);
        Ok(())
    }

    /// Starts writing everything that is staged, without waiting. A direct request that follows
    /// on one of its files takes effect after it.
    ///
    /// # Errors
    /// `ShutDown`, `Poisoned`, `Busy`, `Forked`.
    pub fn submit(&self) -> Result<()> {
        let mut desk = self.desk()?;
        desk.collect(&self.shared, false, None);
        self.submit_staged(&mut desk)?;
        self.note_states(&desk);
        Ok(())
    }

    /// Reads tensors; their data is there at return. What is staged and not yet being written is
    /// copied from its buffer; a path that is being written is waited for by itself.
    ///
    /// # Errors
    /// Of the list: `InvalidArgument`, `DtypeMismatch`, `NoBuffers`. Of storage: `NotFound`,
    /// `SizeMismatch`, the error of a failed write to the path, and so on; the destinations'
    /// content is undefined then.
    pub fn swap_in(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<()> {
        let mut desk = self.desk()?;
        let started = Instant::now();
        desk.check_list(tensors)?;
        let mut order = std::mem::take(&mut desk.order);
        let checked = sort_list(Direction::In, tensors, paths, &mut order);
        desk.order = order;
        checked?;
        self.read(&mut desk, tensors, paths)?;
        desk.collect(&self.shared, false, None);
        self.note_states(&desk);
        let figures = &self.shared.figures;
        figures.in_tensors.add(to_u64(tensors.len()));
        figures
            .in_elements
            .add(tensors.iter().map(|tensor| tensor.numel).sum());
        figures
            .in_bytes
            .add(tensors.iter().map(Tensor::len_bytes).sum());
        figures.swap_in.record(started.elapsed());
        self.engine.trace_call("swap_in", started);
        Ok(())
    }

    fn read(&self, desk: &mut Desk, tensors: &[Tensor], paths: &[&CStr]) -> Result<()> {
        let staged = |index: usize| {
            let tensor: &Tensor = &tensors[index];
            desk.staged
                .find(paths[index], tensor.file_offset, tensor.memory.len())
        };
        let any_staged =
            !desk.staged.is_empty() && (0..tensors.len()).any(|at| staged(at).is_some());
        if !any_staged {
            self.submit_staged(desk)?;
            self.note_avoided_copies(tensors);
            return self.reading.read(&self.engine, tensors, paths);
        }
        let mut other_tensors = Vec::new();
        let mut other_paths = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            match staged(index) {
                Some(bytes) => tensor.memory.stream_into(0, bytes)?,
                None => {
                    other_tensors.push(*tensor);
                    other_paths.push(paths[index]);
                }
            }
        }
        if other_tensors.is_empty() {
            return Ok(());
        }
        self.submit_staged(desk)?;
        self.note_avoided_copies(&other_tensors);
        self.reading
            .read(&self.engine, &other_tensors, &other_paths)
    }

    /// Counts what moves straight into pinned memory.
    fn note_avoided_copies(&self, tensors: &[Tensor]) {
        let pinned = tensors.iter().filter(|tensor| {
            !tensor.memory.is_empty() && self.engine.find_buffer(tensor.memory).is_some()
        });
        for tensor in pinned {
            self.shared.figures.copies_avoided.add(1);
            self.shared
                .figures
                .copies_avoided_bytes
                .add(tensor.len_bytes());
        }
    }

    /// Writes everything that is staged and waits for all writes. `None` waits for ever.
    ///
    /// # Errors
    /// The first failure of a write since the last flush, `TimedOut` (writing goes on), `ShutDown`,
    /// `Poisoned`, `Busy`, `Forked`.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        let mut desk = self.desk()?;
        let flushed = self.flush_desk(&mut desk, timeout);
        self.note_states(&desk);
        flushed
    }

    fn flush_desk(&self, desk: &mut Desk, timeout: Option<Duration>) -> Result<()> {
        let started = Instant::now();
        let deadline = timeout.and_then(|timeout| started.checked_add(timeout));
        let submitted = self.submit_staged(desk);
        desk.collect(&self.shared, false, None);
        let waits = desk.writes_in_flight > 0;
        let mut in_time = true;
        while desk.writes_in_flight > 0 && in_time {
            in_time = desk.collect(&self.shared, true, deadline);
        }
        let elapsed = started.elapsed();
        if waits {
            self.shared
                .figures
                .waited_ns
                .add(crate::base::units::nanos(elapsed));
            self.shared.figures.wait.record(elapsed);
        }
        self.shared.figures.flush.record(elapsed);
        self.engine.trace_call("flush", started);
        if !in_time {
            let count = desk.writes_in_flight;
            return Err(Error::TimedOut(format!(
                "{count} writes are still under way"
            )));
        }
        match desk.first_error.take() {
            Some(error) => Err(error),
            None => submitted,
        }
    }

    /// Flushes, and gives the buffers back in the order in which they were added; also when the
    /// flush failed, which the result says. The swapper can then be given buffers again.
    pub fn release_buffers(&self) -> (Vec<Buffer>, Result<()>) {
        let forked = self
            .engine
            .check()
            .is_err_and(|error| error == Error::Forked);
        let mut desk = match self.lock_desk() {
            Ok(desk) if !forked => desk,
            Ok(_) => return (Vec::new(), Err(Error::Forked)),
            Err(error) => return (Vec::new(), Err(error)),
        };
        let flushed = self.flush_desk(&mut desk, None);
        let lost = desk.staged.count();
        desk.staged.clear();
        desk.pool = Pool::default();
        let buffers = std::mem::take(&mut desk.buffers);
        self.shared.figures.buffers.sub(to_u64(buffers.len()));
        self.note_states(&desk);
        if lost > 0
            && let Err(error) = &flushed
        {
            events::staged_tensors_dropped(lost, &error.to_string());
        }
        (buffers, flushed)
    }

    /// Brings the figures of the buffers' states up to date.
    fn note_states(&self, desk: &Desk) {
        let figures = &self.shared.figures;
        figures.buffers_free.set(to_u64(desk.pool.free_count()));
        figures
            .buffers_in_flight
            .set(to_u64(desk.pool.swapping_count()));
    }

    /// The swapper's figures.
    #[must_use]
    pub fn stats(&self) -> SwapperStats {
        self.shared.figures.stats()
    }

    /// Names of the timers that have run: `swap_out`, `swap_in`, `flush`,
    /// `async_swap_gradient_wait`.
    #[must_use]
    pub fn timer_names(&self) -> Vec<&'static str> {
        self.timers()
            .filter(|(_, timer)| timer.count > 0)
            .map(|(name, _)| name)
            .collect()
    }

    /// One timer by its name; `None` where there is none of that name.
    #[must_use]
    pub fn timer(&self, name: &str) -> Option<TimerSnapshot> {
        let mut timers = self.timers();
        timers
            .find(|(known, _)| *known == name)
            .map(|(_, timer)| timer)
    }

    /// Every timer, for the list of their names in C.
    pub(crate) fn timers(&self) -> impl Iterator<Item = (&'static str, TimerSnapshot)> {
        self.shared.figures.timers()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        // In a forked child the driver is not there, and its memory must not be touched.
        if matches!(self.engine.check(), Err(Error::Forked)) {
            if let Ok(desk) = self.desk.get_mut() {
                std::mem::forget(std::mem::take(&mut desk.buffers));
            }
            return;
        }
        let (_buffers, flushed) = self.release_buffers();
        if let Err(error) = flushed {
            events::write_error_unseen(&error.to_string());
        }
    }
}

impl Desk {
    /// What must hold of a list before anything is staged or read.
    fn check_list(&self, tensors: &[Tensor]) -> Result<()> {
        if self.buffers.is_empty() {
            return Err(Error::NoBuffers(
                "the swapper has no buffers; add some first".to_owned(),
            ));
        }
        match tensors
            .iter()
            .position(|tensor| self.dtype != Dtype::Bytes && tensor.dtype != self.dtype)
        {
            Some(index) => Err(Error::DtypeMismatch(format!(
                "tensor {index} is {}, the buffers are for {}",
                tensors[index].dtype.name(),
                self.dtype.name(),
            ))),
            None => Ok(()),
        }
    }

    /// Accounts for writes that have ended; false where waiting took too long.
    pub(super) fn collect(
        &mut self,
        shared: &Shared,
        wait: bool,
        deadline: Option<Instant>,
    ) -> bool {
        let mut finished = std::mem::take(&mut self.finished);
        let in_time = shared.take_writes(wait, deadline, &mut finished);
        for Finished { buffer, outcome } in finished.drain(..) {
            self.writes_in_flight -= 1;
            self.pool.done(buffer);
            if let Some(failure) = outcome.failure {
                shared.figures.errors.add(1);
                self.first_error.get_or_insert(failure.error);
            }
        }
        self.finished = finished;
        in_time
    }
}
