//! The engine as callers see it.

mod figures;

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::backend::fault::FaultPlan;
use super::counters::Counters;
use super::driver::{self, BackendFacts, Driver};
use super::metrics::Sources;
use super::request::{Direction, Priority, Request, Sink};
use super::start;
use super::storage::FileIdentity;
use super::store_faults::StoreFaults;
use super::tensor::Tensor;
use super::ticket::{Completion, Ticket, Tickets};
use crate::base::config::{Config, EngineOptions};
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::observe::trace::{Details, Span, Trace};
use crate::base::sync::Mutex;
use crate::memory::{Buffer, MemoryRange, Registry, ReleaseHook};
use crate::sys;

/// Tells the tickets of one engine from those of another; the table takes what fits.
static ENGINES_MADE: AtomicU64 = AtomicU64::new(1);

/// Moves tensors between memory and storage. Cheap to clone; any thread may call any method.
///
/// When the last clone goes, whatever is under way is finished first.
#[derive(Debug, Clone)]
pub struct Engine {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    // DROP ORDER: the driver first, it ends what is under way; then what it reports to.
    driver: Driver,
    tickets: Arc<Tickets>,
    registry: Registry,
    counters: Arc<Counters>,
    config: Config,
    options: EngineOptions,
    open_files_max: usize,
    backend: BackendFacts,
    store_faults: Option<Arc<StoreFaults>>,
    trace: Option<Arc<Trace>>,
    /// Lists submitted so far: names the groups of [`Request`]s.
    groups: AtomicU64,
    shut_down: AtomicBool,
    fork_generation: u32,
    sources: Mutex<Sources>,
}

impl Engine {
    /// Starts an engine.
    ///
    /// # Errors
    /// `Config` for options that exclude each other; `Unsupported` where the demanded backend
    /// cannot be had; `NoMemory`.
    pub fn new(config: &Config) -> Result<Engine> {
        Engine::start(config, None, None)
    }

    /// Starts an engine on which faults strike, for tests.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_faults(config: &Config, plan: FaultPlan) -> Result<Engine> {
        Engine::start(config, Some(plan), None)
    }

    /// Starts an engine on which faults strike, as they do on the stores that use it, for tests.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_store_faults(
        config: &Config,
        plan: FaultPlan,
        store_faults: Arc<StoreFaults>,
    ) -> Result<Engine> {
        Engine::start(config, Some(plan), Some(store_faults))
    }

    fn start(
        config: &Config,
        faults: Option<FaultPlan>,
        store_faults: Option<Arc<StoreFaults>>,
    ) -> Result<Engine> {
        let options = EngineOptions::from_config(config)?;
        let open_files_max = start::open_files_max(&options);
        let counters = Arc::new(Counters::default());
        let trace = options.trace.as_deref().map(Trace::create).transpose()?;
        let trace = trace.map(Arc::new);
        let (driver, backend) = start::driver(
            &options,
            open_files_max,
            faults,
            Arc::clone(&counters),
            trace.clone(),
        )?;
        // ORDERING: relaxed; only uniqueness matters.
        let salt = ENGINES_MADE.fetch_add(1, Ordering::Relaxed);
        let tickets = Tickets::new(options.tickets_max, u32::try_from(salt % 4096).unwrap_or(0));
        events::engine_started(backend.name, &backend.reason);
        Ok(Engine {
            core: Arc::new(Core {
                driver,
                tickets: Arc::new(tickets),
                registry: Registry::new(),
                counters,
                config: config.clone(),
                options,
                open_files_max,
                backend,
                store_faults,
                trace,
                groups: AtomicU64::new(0),
                shut_down: AtomicBool::new(false),
                fork_generation: sys::fork_generation(),
                sources: Mutex::default(),
            }),
        })
    }

    /// The configuration the engine was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Whether the engine can be used by this process.
    ///
    /// # Errors
    /// `Forked` in a child of the process that made it, `Poisoned` after a defect.
    pub fn check(&self) -> Result<()> {
        if sys::forked_since(self.core.fork_generation) {
            return Err(Error::Forked);
        }
        if self.core.driver.is_poisoned() {
            return Err(Error::Poisoned);
        }
        Ok(())
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.check()?;
        // ORDERING: relaxed; who shuts down and submits at once may see either order.
        if self.core.shut_down.load(Ordering::Relaxed) {
            return Err(Error::ShutDown);
        }
        Ok(())
    }

    /// Takes nothing more and waits until everything under way is over. Completions that were not
    /// delivered stay to be waited for or polled.
    ///
    /// # Errors
    /// `TimedOut`: it still takes nothing more, and may be called again.
    pub fn shutdown(&self, timeout: Option<Duration>) -> Result<()> {
        self.check()?;
        // ORDERING: relaxed; see `check_open`.
        self.core.shut_down.store(true, Ordering::Relaxed);
        self.core.driver.shut_down();
        self.quiesce(timeout)
    }

    /// Waits until nothing is under way, snapshots included; delivers no completion.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn quiesce(&self, timeout: Option<Duration>) -> Result<()> {
        self.check()?;
        let begun = Instant::now();
        if !self.core.driver.wait_idle(timeout) {
            return Err(Error::TimedOut("requests are still under way".to_owned()));
        }
        // What a layer above does itself may have nothing to be moved at this moment.
        let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
        match self.core.tickets.wait_all(left) {
            Err(error @ Error::TimedOut(_)) => Err(error),
            // How they ended is told with their completions.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Waits until the driver has done all it was told before this call: what buffers that are
    /// gone had registered is then unregistered, and their release hooks have run.
    pub fn fence(&self) {
        if self.check_waiting().is_ok() {
            self.core.driver.fence();
        }
    }

    /// Closes a file, which stays open for reuse otherwise, and keeps its space when it is deleted.
    /// For its owner, who has done with it; one that is in use stays open. Does not wait.
    pub(crate) fn close_file(&self, file: FileIdentity) {
        if self.check().is_ok() {
            self.core.driver.close_file(file);
        }
    }

    /// Whether this is a driver's own thread, on which release hooks may run, and where waiting
    /// for the driver would never end.
    #[must_use]
    pub fn is_driver_thread() -> bool {
        driver::is_driver_thread()
    }

    /// Allocates a pinned buffer: zeroed, aligned, locked and registered as far as the options
    /// `pin`, `huge_pages` and `register_buffers` say and the system permits.
    ///
    /// # Errors
    /// `InvalidArgument` for a length of 0; `NoMemory`; `Memlock` or `Unsupported` where an option
    /// says `require`.
    pub fn allocate_buffer(&self, len_bytes: u64) -> Result<Buffer> {
        self.check_open()?;
        let options = &self.core.options;
        self.adopt(Buffer::allocate(
            len_bytes,
            options.pin,
            options.huge_pages,
        )?)
    }

    /// Takes the caller's memory as a pinned buffer, at any address and of any length.
    ///
    /// # Errors
    /// `NullArgument`, `InvalidArgument` for NULL, for no bytes, or a range that cannot be.
    ///
    /// # Safety
    /// The memory must stay valid until `release` was called, or, without one, until
    /// [`Buffer::released_latch`] opens.
    #[expect(unsafe_code, reason = "the caller vouches for the memory")]
    pub unsafe fn register_buffer(
        &self,
        data: *mut u8,
        len_bytes: u64,
        release: Option<ReleaseHook>,
    ) -> Result<Buffer> {
        self.check_open()?;
        // SAFETY: this function's own contract.
        let buffer = unsafe { Buffer::foreign(data.expose_provenance(), len_bytes, release) }?;
        self.adopt(buffer)
    }

    /// Makes a new buffer known to lookups and to the ring.
    fn adopt(&self, buffer: Buffer) -> Result<Buffer> {
        self.core.registry.register(&buffer)?;
        if self.core.options.register_buffers && self.core.backend.name == "io_uring" {
            buffer.set_reclaim(self.core.driver.reclaimer());
            if let Err(errno) = self.core.driver.register(&buffer) {
                events::buffer_unregistered(buffer.len_bytes(), errno);
            }
        }
        Ok(buffer)
    }

    /// Starts writing tensors to files.
    ///
    /// # Errors
    /// Of the call: `InvalidArgument`, `Busy` with all tickets alive, `ShutDown`, `Poisoned`,
    /// `Forked`. Errors of files come with the ticket.
    pub fn swap_out(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<Ticket> {
        self.swap(Direction::Out, tensors, paths)
    }

    /// Starts reading tensors from files.
    ///
    /// # Errors
    /// As [`Engine::swap_out`].
    pub fn swap_in(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<Ticket> {
        self.swap(Direction::In, tensors, paths)
    }

    fn swap(&self, direction: Direction, tensors: &[Tensor], paths: &[&CStr]) -> Result<Ticket> {
        let sink = Arc::clone(&self.core.tickets);
        let mut request = self.fill(direction, tensors, paths)?;
        let tag = tensors.first().map_or(0, |tensor| tensor.user_tag);
        let ticket = match sink.open(request.total_bytes, tag) {
            Ok(ticket) => ticket,
            Err(error) => {
                self.core.driver.discard(request);
                return Err(error);
            }
        };
        let told = Arc::clone(&sink) as Arc<dyn Sink>;
        set_sink(&mut request, told, ticket, Priority::Foreground);
        match self.core.driver.submit(request) {
            Ok(()) => Ok(ticket),
            Err((error, request)) => {
                sink.withdraw(ticket);
                self.core.driver.discard(request);
                Err(error)
            }
        }
    }

    /// Checks a list and brings it into the form of a request.
    fn fill(
        &self,
        direction: Direction,
        tensors: &[Tensor],
        paths: &[&CStr],
    ) -> Result<Arc<Request>> {
        self.check_open()?;
        let mut request = self.core.driver.blank_request();
        let registry = &self.core.registry;
        let filled = match Arc::get_mut(&mut request) {
            Some(request) => request.fill(
                direction,
                tensors,
                paths,
                self.next_group(),
                &mut |memory| registry.find(memory.address(), memory.len()),
            ),
            None => Err(Error::Internal("a blank request is shared".to_owned())),
        };
        match filled {
            Ok(()) => Ok(request),
            Err(error) => {
                self.core.driver.discard(request);
                Err(error)
            }
        }
    }

    /// A number for one caller's list, unique in this engine.
    pub(crate) fn next_group(&self) -> u64 {
        // ORDERING: relaxed; only uniqueness matters.
        self.core.groups.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes or reads a list for a layer above, which is told through its own sink. A path that has a
    /// file in `only`, at the same place, must lead to it.
    ///
    /// # Errors
    /// As [`Engine::swap_out`]; then the sink hears nothing.
    pub(crate) fn swap_for(
        &self,
        (direction, priority): (Direction, Priority),
        tensors: &[Tensor],
        paths: &[&CStr],
        only: &[Option<FileIdentity>],
        sink: Arc<dyn Sink>,
        token: u64,
    ) -> Result<()> {
        let mut request = self.fill(direction, tensors, paths)?;
        if let Some(request) = Arc::get_mut(&mut request) {
            request.expect_files(paths, only);
        }
        set_sink(&mut request, sink, token, priority);
        self.submit(request)
    }

    /// Takes a ticket for something that a layer above does itself; it tells the sink, with the
    /// ticket as token, how that goes on and ends.
    ///
    /// # Errors
    /// `Busy` with all tickets alive.
    pub(crate) fn open_ticket(&self, total_bytes: u64) -> Result<(Ticket, Arc<dyn Sink>)> {
        let ticket = self.core.tickets.open(total_bytes, 0)?;
        Ok((ticket, Arc::clone(&self.core.tickets) as Arc<dyn Sink>))
    }

    /// Takes back a ticket of [`Engine::open_ticket`] that nobody knows of.
    pub(crate) fn withdraw_ticket(&self, ticket: Ticket) {
        self.core.tickets.withdraw(ticket);
    }

    /// An empty request for a layer above to fill.
    pub(crate) fn blank_request(&self) -> Arc<Request> {
        self.core.driver.blank_request()
    }

    /// Submits a request of a layer above, filled by it, with its sink.
    ///
    /// # Errors
    /// `ShutDown`, `Poisoned`, `Forked`; then the sink hears nothing.
    pub(crate) fn submit(&self, request: Arc<Request>) -> Result<()> {
        if let Err(error) = self.check_open() {
            self.core.driver.discard(request);
            return Err(error);
        }
        self.core
            .driver
            .submit(request)
            .map_err(|(error, request)| {
                self.core.driver.discard(request);
                error
            })
    }

    /// Whether files are in the memory of the process, and never on storage.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.core.backend.name == "memory"
    }

    /// The timeline, where there is one.
    pub(crate) fn trace(&self) -> Option<&Arc<Trace>> {
        self.core.trace.as_ref()
    }

    /// Adds what the calling thread has done until now to the timeline.
    pub(crate) fn trace_call(&self, name: &'static str, started: Instant) {
        if let Some(trace) = self.trace() {
            trace.span(Span::of_this_thread(name, started, Details::default()));
        }
    }

    /// Does something that is to be in the timeline. Without one, no clock is read.
    fn traced<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let started = self.trace().map(|_| Instant::now());
        let done = work();
        if let Some(started) = started {
            self.trace_call(name, started);
        }
        done
    }

    /// Who is to be told of changes of storage that are not the engine's.
    pub(crate) fn store_faults(&self) -> Option<&Arc<StoreFaults>> {
        self.core.store_faults.as_ref()
    }

    /// Whether a buffer was made by this engine.
    pub(crate) fn owns(&self, buffer: &Buffer) -> bool {
        let known = self.core.registry.buffers();
        known.iter().any(|other| other.is_same(buffer))
    }

    /// The registered buffer around a range of memory.
    pub(crate) fn find_buffer(&self, memory: MemoryRange) -> Option<Buffer> {
        self.core.registry.find(memory.address(), memory.len())
    }

    /// Waits for a ticket and ends it. `None` waits for ever, zero polls.
    ///
    /// # Errors
    /// `BadTicket`, `Busy` where another thread waits for it, `TimedOut` (the ticket stays valid).
    /// The request's own error is in the completion.
    pub fn wait(&self, ticket: Ticket, timeout: Option<Duration>) -> Result<Completion> {
        self.check_waiting()?;
        self.traced("wait", || self.core.tickets.wait(ticket, timeout))
    }

    /// Delivers up to `cap` finished tickets, oldest first, and ends them; returns how many.
    ///
    /// # Errors
    /// `Forked`.
    pub fn poll(&self, cap: usize, deliver: &mut dyn FnMut(Completion)) -> Result<usize> {
        self.check_waiting()?;
        Ok(self.core.tickets.poll(cap, deliver))
    }

    /// Asks for a request to stop. Its ticket still completes and is to be waited for.
    ///
    /// # Errors
    /// `BadTicket`, `Forked`.
    pub fn cancel(&self, ticket: Ticket) -> Result<()> {
        self.check_waiting()?;
        self.core.tickets.cancel(ticket)
    }

    /// Bytes done and bytes in total of a request.
    ///
    /// # Errors
    /// `BadTicket`, `Forked`.
    pub fn progress(&self, ticket: Ticket) -> Result<(u64, u64)> {
        self.check_waiting()?;
        self.core.tickets.progress(ticket)
    }

    /// Waits for every ticket submitted before this call; delivers none.
    ///
    /// # Errors
    /// The first error among them, `TimedOut`, `Forked`.
    pub fn wait_all(&self, timeout: Option<Duration>) -> Result<()> {
        self.check_waiting()?;
        self.traced("wait for all", || self.core.tickets.wait_all(timeout))
    }

    /// A descriptor that is readable while a completion waits to be delivered. The engine's: it is
    /// neither to be read nor closed by the caller.
    ///
    /// # Errors
    /// `Unsupported` where none can be made, `Forked`.
    pub fn event_fd(&self) -> Result<RawFd> {
        self.check_waiting()?;
        self.core.tickets.event_fd()
    }

    /// Completions are delivered also after a defect or a shut-down, never in a forked child.
    fn check_waiting(&self) -> Result<()> {
        match self.check() {
            Err(Error::Poisoned) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn set_sink(request: &mut Arc<Request>, sink: Arc<dyn Sink>, token: u64, priority: Priority) {
    // The request was filled through the same reference just before: it is not shared.
    if let Some(request) = Arc::get_mut(request) {
        request.sink = Some(sink);
        request.token = token;
        request.priority = priority;
    }
}
