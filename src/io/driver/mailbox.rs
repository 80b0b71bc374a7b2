//! The mailbox: what other threads leave for the driver, and what they wait on.
//!
//! Any thread leaves commands, metadata threads leave reports; the driver takes both. Each part has a
//! lock of its own that is held for a few instructions, never across a system call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use super::super::backend::Wake;
use super::super::request::Request;
use super::super::storage::{Errno, FileIdentity};
use super::metadata::Report;
use crate::base::error::Result;
use crate::base::sync::{Condvar, Mutex, lock};
use crate::memory::{Buffer, Reclaim, Reclaimed};

/// Requests kept for reuse, and the largest list that is.
const POOL_MAX: usize = 4096;
const POOLED_SEGMENTS_MAX: usize = 1 << 16;

/// What other threads ask of the driver.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Arc<Request>),
    Register {
        buffer: Buffer,
        reply: Sender<Result<(), Errno>>,
    },
    Reclaim(Reclaimed),
    /// Closes a file that nobody uses now: its owner has done with it.
    Close(FileIdentity),
    /// Answers when everything before it is done.
    Fence(Sender<()>),
    Stop,
}

#[derive(Debug, Default)]
pub(super) struct Intake {
    pub(super) commands: VecDeque<Command>,
    /// The driver takes nothing any more.
    pub(super) closed: bool,
}

/// Where other threads leave work for the driver.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pub(super) intake: Mutex<Intake>,
    pub(super) reports: Mutex<Vec<Report>>,
    /// The driver is about to sleep, or sleeps.
    pub(super) sleeping: AtomicBool,
    pub(super) waker: OnceLock<Arc<dyn Wake>>,
    /// Requests to be used again.
    pool: Mutex<Vec<Arc<Request>>>,
    /// Requests submitted and not over.
    pub(super) live_count: Mutex<usize>,
    /// No request is taken any more; changed and read under the lock of `live_count`.
    pub(super) shut_down: AtomicBool,
    pub(super) idle: Condvar,
    pub(super) poisoned: AtomicBool,
    /// A metadata thread panicked: a report is missing for ever.
    pub(super) broken: AtomicBool,
}

impl Mailbox {
    /// Wakes the driver if it sleeps.
    fn wake(&self) {
        // ORDERING: sequentially consistent, against the driver's store of `sleeping` followed by
        // its look at the queues: either it sees what was just left, or this sees it asleep.
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// Leaves a command; gives it back where the driver takes nothing any more.
    pub(super) fn send(&self, command: Command) -> std::result::Result<(), Command> {
        let mut intake = lock(&self.intake);
        if intake.closed {
            return Err(command);
        }
        intake.commands.push_back(command);
        drop(intake);
        self.wake();
        Ok(())
    }

    /// Leaves what a metadata thread found out.
    pub(super) fn report(&self, reports: &mut Vec<Report>) {
        if !reports.is_empty() {
            lock(&self.reports).append(reports);
            self.wake();
        }
    }

    /// Makes the driver give up: a metadata thread will not report.
    pub(super) fn break_down(&self) {
        // ORDERING: release pairs with the acquire in `run`; sequentially consistent against its
        // look before it sleeps, as in `wake`.
        self.broken.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether nothing was left for the driver.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.intake).commands.is_empty() && lock(&self.reports).is_empty()
    }

    /// Takes a request back to be used again.
    pub(super) fn recycle(&self, mut request: Arc<Request>) {
        let reusable = Arc::get_mut(&mut request)
            .is_some_and(|request| request.segments.capacity() <= POOLED_SEGMENTS_MAX);
        if reusable {
            self.keep(request);
        }
    }

    /// Keeps an empty request for the next one who needs one.
    pub(super) fn keep(&self, request: Arc<Request>) {
        let mut pool = lock(&self.pool);
        if pool.len() < POOL_MAX {
            pool.push(request);
        }
    }

    /// An empty request, used before if possible.
    pub(super) fn blank_request(&self) -> Arc<Request> {
        lock(&self.pool).pop().unwrap_or_default()
    }

    /// Notes that a request is over and its sink was told.
    pub(super) fn request_over(&self) {
        let mut live_count = lock(&self.live_count);
        *live_count -= 1;
        if *live_count == 0 {
            self.idle.notify_all();
        }
    }
}

impl Reclaim for Mailbox {
    fn reclaim(&self, parts: Reclaimed) {
        // With the driver gone the ring is closed: what comes back is dropped right here.
        let _dropped_here = self.send(Command::Reclaim(parts));
    }
}
