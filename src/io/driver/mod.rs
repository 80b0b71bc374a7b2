//! The driver: one thread that owns the backend and everything under way.
//!
//! Callers leave requests in a mailbox and are told the outcome through the request's sink; the
//! metadata threads leave their reports there. The driver thread alone touches the scheduler and
//! the backend, so neither needs a lock. It sleeps in the backend, and is woken only when it does.
//!
//! INVARIANT: when the thread ends, nothing is in flight, and every request's sink was told.

mod admission;
mod bounce;
mod devices;
mod failed_ranges;
mod failures;
mod files;
mod flight;
mod lengths;
mod mailbox;
mod metadata;
mod registration;
mod scheduler;
mod task;
mod transfers;
mod turns;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::backend::{Backend, Reaped};
use super::counters::Counters;
use super::request::Request;
use super::storage::{Errno, FileIdentity, Storage};
use crate::base::config::{DirectIo, EngineOptions};
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::observe::trace::Trace;
use crate::base::sync::lock;
use crate::base::units::{KIB, MIB};
use crate::memory::{Buffer, Reclaim};
use bounce::BounceOptions;
use devices::Devices;
use files::FileTable;
use mailbox::{Command, Mailbox};
use metadata::Metadata;
use scheduler::{Scheduler, Services};

/// Threads for system calls on files that can block.
const METADATA_THREADS: usize = 2;
/// Bounce blocks of a device beyond its depth: hold what was read until it is copied, while the
/// depth is kept.
const ARRIVED_BLOCKS: usize = 8;
/// Files resolved ahead of the oldest task that is not yet admitted.
const WINDOW_MAX: usize = 128;

/// Bounds of the scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Operations in flight on one device.
    pub(super) depth: usize,
    pub(super) block_bytes: u64,
    pub(super) window: usize,
    pub(super) require_direct: bool,
}

thread_local! {
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a driver's own thread.
pub(crate) fn is_driver_thread() -> bool {
    IS_DRIVER.try_with(Cell::get).unwrap_or(false)
}

/// What the driver thread told about its backend.
#[derive(Debug, Clone)]
pub(crate) struct BackendFacts {
    pub(crate) name: &'static str,
    pub(crate) reason: String,
}

/// Makes a backend on the driver thread, which will own it.
pub(crate) type MakeBackend = Box<dyn FnOnce() -> Result<(Box<dyn Backend>, BackendFacts)> + Send>;

/// The handle to the driver thread; stops and joins it on drop.
#[derive(Debug)]
pub(crate) struct Driver {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
    fork_generation: u32,
}

impl Driver {
    /// Starts the driver and its metadata threads.
    ///
    /// # Errors
    /// What making the backend said; `Unsupported` where threads cannot be started.
    pub(crate) fn start(
        options: &EngineOptions,
        files_max: usize,
        storage: Arc<dyn Storage>,
        make_backend: MakeBackend,
        counters: Arc<Counters>,
        trace: Option<Arc<Trace>>,
    ) -> Result<(Driver, BackendFacts)> {
        let mailbox = Arc::new(Mailbox::default());
        let known = Arc::new(metadata::KnownFiles::new(HashMap::new()));
        let metadata = Metadata::start(
            METADATA_THREADS,
            Arc::clone(&storage),
            Arc::clone(&known),
            Arc::clone(&mailbox),
        )?;
        let limits = Limits {
            depth: options.queue_depth as usize,
            block_bytes: options.block_bytes,
            window: (files_max / 4).clamp(1, WINDOW_MAX),
            require_direct: options.direct_io == DirectIo::Require,
        };
        let bounce = BounceOptions {
            block_bytes: options.block_bytes.clamp(64 * KIB, MIB),
            blocks_count: limits.depth + ARRIVED_BLOCKS,
            pin: options.pin,
            huge_pages: options.huge_pages,
        };
        let devices = Devices::new(limits.depth, bounce, Arc::clone(&counters));
        let files = FileTable::new(files_max, known, Arc::clone(&counters));
        let services = Services {
            metadata,
            storage,
            mailbox: Arc::clone(&mailbox),
            counters,
            trace,
        };
        let scheduler = Scheduler::new(limits, files, devices, services);
        let (tell, told) = channel();
        let thread = {
            let mailbox = Arc::clone(&mailbox);
            std::thread::Builder::new()
                .name("tsw-driver".to_owned())
                .spawn(move || {
                    crate::sys::block_signals();
                    IS_DRIVER.set(true);
                    match make_backend() {
                        Ok((backend, facts)) => {
                            // Ignored only if `start` itself is gone; then Stop follows.
                            let _told = mailbox.waker.set(backend.waker());
                            let _told = tell.send(Ok(facts));
                            run_guarded(scheduler, backend, &mailbox);
                        }
                        Err(error) => drop(tell.send(Err(error))),
                    }
                })
        };
        let thread = thread.map_err(|error| Error::Unsupported {
            message: format!("the driver thread could not be started: {error}"),
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        let driver = Driver {
            mailbox,
            thread: Some(thread),
            fork_generation: crate::sys::fork_generation(),
        };
        let facts = told
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("the driver ended at its start".to_owned())))?;
        Ok((driver, facts))
    }

    /// Where buffers go to be unregistered.
    pub(crate) fn reclaimer(&self) -> Arc<dyn Reclaim> {
        Arc::clone(&self.mailbox) as Arc<dyn Reclaim>
    }

    /// An empty request, used before if possible.
    pub(crate) fn blank_request(&self) -> Arc<Request> {
        self.mailbox.blank_request()
    }

    /// Takes back a request that was not submitted after all.
    pub(crate) fn discard(&self, mut request: Arc<Request>) {
        if let Some(request) = Arc::get_mut(&mut request) {
            request.clear();
        }
        self.mailbox.keep(request);
    }

    /// Hands a request over; its sink hears of the end exactly once if this succeeds, and never
    /// if it does not.
    ///
    /// # Errors
    /// `Poisoned` after a defect, `ShutDown` when the driver has stopped; with the request.
    pub(crate) fn submit(
        &self,
        request: Arc<Request>,
    ) -> std::result::Result<(), (Error, Arc<Request>)> {
        {
            let mut live_count = lock(&self.mailbox.live_count);
            // ORDERING: relaxed; the lock orders it.
            if self.mailbox.shut_down.load(Ordering::Relaxed) {
                return Err((Error::ShutDown, request));
            }
            *live_count += 1;
        }
        match self.mailbox.send(Command::Submit(request)) {
            Ok(()) => Ok(()),
            Err(command) => {
                self.mailbox.request_over();
                let error = if self.is_poisoned() {
                    Error::Poisoned
                } else {
                    Error::ShutDown
                };
                match command {
                    Command::Submit(request) => Err((error, request)),
                    _ => Err((error, Arc::default())),
                }
            }
        }
    }

    /// Takes no request from now on; those taken before count for `wait_idle`.
    pub(crate) fn shut_down(&self) {
        let _live_count = lock(&self.mailbox.live_count);
        // ORDERING: relaxed; the lock orders it.
        self.mailbox.shut_down.store(true, Ordering::Relaxed);
    }

    /// Registers a buffer with the backend and waits for that.
    ///
    /// # Errors
    /// The errno of the refusal; the buffer then works unregistered.
    pub(crate) fn register(&self, buffer: &Buffer) -> Result<(), Errno> {
        let (reply, answer) = channel();
        let command = Command::Register {
            buffer: buffer.clone(),
            reply,
        };
        self.mailbox.send(command).map_err(|_| libc::ESHUTDOWN)?;
        answer.recv().unwrap_or(Err(libc::ESHUTDOWN))
    }

    /// Has a file closed, unless it is in use.
    pub(crate) fn close_file(&self, identity: FileIdentity) {
        // A driver that has ended has no file open.
        let _ended = self.mailbox.send(Command::Close(identity));
    }

    /// Waits until the driver has done all it was told before.
    pub(crate) fn fence(&self) {
        let (reply, answer) = channel();
        if self.mailbox.send(Command::Fence(reply)).is_ok() {
            // An error says that the driver has ended, and with it all it was told.
            let _ended = answer.recv();
        }
    }

    /// Whether the driver met a defect.
    pub(crate) fn is_poisoned(&self) -> bool {
        // ORDERING: acquire pairs with the release in `run_guarded`: who sees the flag sees that
        // every request was told.
        self.mailbox.poisoned.load(Ordering::Acquire)
    }

    /// Waits until no request is under way; false when the time is over.
    pub(crate) fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut live_count = lock(&self.mailbox.live_count);
        while *live_count > 0 {
            live_count = match deadline {
                None => self
                    .mailbox
                    .idle
                    .wait(live_count)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.mailbox
                        .idle
                        .wait_timeout(live_count, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if crate::sys::forked_since(self.fork_generation) {
            // The thread and the ring are the parent's; the handle of the thread must not be
            // touched here.
            std::mem::forget(thread);
            return;
        }
        let _already_stopped = self.mailbox.send(Command::Stop);
        // A release hook may free the engine on the driver thread itself.
        if thread.thread().id() != std::thread::current().id() {
            let _panics_were_caught = thread.join();
        }
    }
}

/// Runs the driver; a panic ends every request with an error instead of the process.
fn run_guarded(mut scheduler: Scheduler, backend: Box<dyn Backend>, mailbox: &Mailbox) {
    let mut backend = Some(backend);
    // Outside of the loop, so that a panic loses none of them.
    let mut commands = VecDeque::new();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        if let Some(backend) = backend.as_deref_mut() {
            run(&mut scheduler, backend, mailbox, &mut commands)
        } else {
            Ok(())
        }
    }));
    // DROP ORDER: the backend first; it waits for what is in flight. Only then may requests, and
    // with them their memory, be released.
    drop(backend);
    let left = {
        let mut intake = lock(&mailbox.intake);
        intake.closed = true;
        commands.append(&mut intake.commands);
        commands
    };
    if !matches!(ended, Ok(Ok(()))) {
        let errno = ended.ok().and_then(std::result::Result::err);
        events::driver_died(errno.unwrap_or(0));
        // ORDERING: release pairs with the acquire in `is_poisoned`.
        mailbox.poisoned.store(true, Ordering::Release);
        scheduler.abandon();
        for command in left {
            match command {
                Command::Submit(request) => scheduler.refuse(&request),
                Command::Register { reply, .. } => {
                    let _heard = reply.send(Err(libc::ESHUTDOWN));
                }
                Command::Reclaim(parts) => drop(parts),
                // Dropping the reply ends the wait.
                Command::Close(_) | Command::Fence(_) | Command::Stop => {}
            }
        }
    }
}

/// The loop: take what came, decide, keep the depth, sleep until something ends.
fn run(
    scheduler: &mut Scheduler,
    backend: &mut dyn Backend,
    mailbox: &Mailbox,
    commands: &mut VecDeque<Command>,
) -> std::result::Result<(), Errno> {
    let mut reports = Vec::new();
    let mut reaped: Vec<Reaped> = Vec::with_capacity(scheduler.limits.depth);
    let mut stopping = false;
    loop {
        std::mem::swap(commands, &mut lock(&mailbox.intake).commands);
        std::mem::swap(&mut reports, &mut *lock(&mailbox.reports));
        // ORDERING: acquire pairs with the release in `Mailbox::break_down`.
        if mailbox.broken.load(Ordering::Acquire) {
            return Err(libc::EIO);
        }
        while let Some(command) = commands.pop_front() {
            match command {
                Command::Submit(request) => scheduler.submit(request),
                Command::Register { buffer, reply } => {
                    // The caller may have given up; then the buffer just is registered.
                    let _heard = reply.send(scheduler.register(&buffer, backend));
                }
                Command::Reclaim(parts) => scheduler.reclaim(parts, backend),
                Command::Close(identity) => scheduler.close_file(identity),
                Command::Fence(reply) => {
                    let _heard = reply.send(());
                }
                Command::Stop => stopping = true,
            }
        }
        for report in reports.drain(..) {
            scheduler.report(report);
        }
        scheduler.decide();
        let more = scheduler.fill(backend);
        if stopping && scheduler.is_idle() {
            // Buffers that came back meanwhile are dropped with the mailbox.
            return Ok(());
        }
        // ORDERING: sequentially consistent, see `Mailbox::wake`.
        mailbox.sleeping.store(true, Ordering::SeqCst);
        let broken = mailbox.broken.load(Ordering::SeqCst);
        let busy = more || broken || scheduler.can_decide() || scheduler.has_arrivals();
        let wait = mailbox.is_empty() && !busy;
        backend.drive(wait, &mut reaped)?;
        mailbox.sleeping.store(false, Ordering::SeqCst);
        // What arrived before: copied while what was just sent off is under way.
        scheduler.deliver();
        for each in reaped.drain(..) {
            scheduler.reaped(each, backend);
        }
    }
}
