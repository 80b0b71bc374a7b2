//! The metadata threads: system calls on files that can block, kept off the driver thread.
//!
//! Opening, reserving space, setting lengths and closing. Jobs are taken in order, several
//! threads run them, so their reports come back in any order; the driver restores the order of
//! submission. Bounded by the driver: it never has more than its window outstanding.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::mailbox::Mailbox;
use crate::base::error::{Error, Result};
use crate::base::sync::{Condvar, Mutex, lock};
use crate::io::request::{Direction, Request};
use crate::io::storage::{Access, Errno, FileHandle, FileIdentity, OpenedFile, Storage};

/// Jobs that one thread takes at once.
const BATCH: usize = 8;

/// Work for a metadata thread.
#[derive(Debug)]
pub(super) enum Job {
    /// Find the file of a request's part; open it where it is not open or `open` demands it.
    Resolve {
        task: usize,
        request: Arc<Request>,
        part: usize,
        open: bool,
    },
    /// Reserve space from the file's end up to `end`.
    Reserve {
        task: usize,
        handle: Arc<FileHandle>,
        from: u64,
        end: u64,
    },
    /// Set the length, or only ask for it.
    Length {
        file: usize,
        handle: Arc<FileHandle>,
        len_bytes: Option<u64>,
    },
    /// Drop the last reference here, off the driver thread.
    Close { handle: Arc<FileHandle> },
}

/// What a job brought.
#[derive(Debug)]
pub(super) enum Report {
    Resolved {
        task: usize,
        found: Result<Found, Errno>,
    },
    Reserved {
        task: usize,
        result: Result<(), Errno>,
    },
    Length {
        file: usize,
        result: Result<u64, Errno>,
    },
}

/// How a path resolved.
#[derive(Debug)]
pub(super) enum Found {
    /// A file that is open already.
    Known {
        identity: FileIdentity,
        len_bytes: u64,
    },
    Opened(OpenedFile),
}

/// Identities of open files and whether they can be written; kept by the driver's file table so
/// that a metadata thread need not open what is open.
pub(super) type KnownFiles = Mutex<HashMap<FileIdentity, bool>>;

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle_threads: usize,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    known: Arc<KnownFiles>,
    storage: Arc<dyn Storage>,
    mailbox: Arc<Mailbox>,
}

/// The pool; ended on drop, after the jobs that wait.
#[derive(Debug)]
pub(super) struct Metadata {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Metadata {
    /// Starts `threads_count` threads over `storage`, reporting to `mailbox`.
    pub(super) fn start(
        threads_count: usize,
        storage: Arc<dyn Storage>,
        known: Arc<KnownFiles>,
        mailbox: Arc<Mailbox>,
    ) -> Result<Metadata> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            known,
            storage,
            mailbox,
        });
        let mut threads = Vec::new();
        for number in 0..threads_count {
            let shared = Arc::clone(&shared);
            let started = std::thread::Builder::new()
                .name(format!("tsw-files-{number}"))
                .spawn(move || shared.run());
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    return Err(Error::Unsupported {
                        message: format!("no thread for files could be started: {error}"),
                        errno: error.raw_os_error().unwrap_or(0),
                    });
                }
                Err(_) => break,
            }
        }
        Ok(Metadata { shared, threads })
    }

    /// Queues a job.
    pub(super) fn post(&self, job: Job) {
        let mut queue = lock(&self.shared.queue);
        queue.jobs.push_back(job);
        let wake = queue.idle_threads > 0;
        drop(queue);
        if wake {
            self.shared.work.notify_one();
        }
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Nothing is left to do for a thread that ended in a panic: its report is missing and
            // the driver, if it still runs, has poisoned the engine.
            let _ended = thread.join();
        }
    }
}

/// Tells the driver when its thread panics: reports are lost then, and requests would wait for
/// ever.
struct Alarm<'a>(&'a Mailbox);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_down();
        }
    }
}

impl Shared {
    fn run(&self) {
        let _alarm = Alarm(&self.mailbox);
        crate::sys::block_signals();
        let mut jobs = Vec::with_capacity(BATCH);
        let mut reports = Vec::with_capacity(BATCH);
        while self.take(&mut jobs) {
            for job in jobs.drain(..) {
                reports.extend(self.perform(job));
            }
            self.mailbox.report(&mut reports);
        }
    }

    /// Waits for jobs; false when the pool is closed and none are left.
    fn take(&self, jobs: &mut Vec<Job>) -> bool {
        let mut queue = lock(&self.queue);
        while queue.jobs.is_empty() {
            if queue.closed {
                return false;
            }
            queue.idle_threads += 1;
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.idle_threads -= 1;
        }
        // Leave work for the other threads when there is little.
        let count = queue.jobs.len().div_ceil(2).min(BATCH);
        jobs.extend(queue.jobs.drain(..count));
        true
    }

    fn perform(&self, job: Job) -> Option<Report> {
        match job {
            Job::Resolve {
                task,
                request,
                part,
                open,
            } => {
                let found = self.resolve(&request, part, open);
                // The driver recycles requests and must find itself the only owner.
                drop(request);
                Some(Report::Resolved { task, found })
            }
            Job::Reserve {
                task,
                handle,
                from,
                end,
            } => {
                let result = self.storage.reserve(&handle, from, end);
                Some(Report::Reserved { task, result })
            }
            Job::Length {
                file,
                handle,
                len_bytes,
            } => {
                let set = len_bytes.map_or(Ok(()), |len| self.storage.set_len(&handle, len));
                let result = set.and_then(|()| self.storage.len_bytes(&handle));
                Some(Report::Length { file, result })
            }
            Job::Close { handle } => {
                drop(handle);
                None
            }
        }
    }

    fn resolve(&self, request: &Request, part: usize, open: bool) -> Result<Found, Errno> {
        let part = &request.files[part];
        let path = request.path_c(part);
        let access = match request.direction {
            Direction::Out if part.only.is_some() => Access::Change,
            Direction::Out => Access::Write,
            Direction::In => Access::Read,
        };
        let is_other = |identity| part.only.is_some_and(|only| only != identity);
        if !open && let Some((identity, len_bytes)) = self.storage.identify(path) {
            if is_other(identity) {
                return Err(libc::ESTALE);
            }
            let known = lock(&self.known).get(&identity).copied();
            if known.is_some_and(|writable| writable || access == Access::Read) {
                return Ok(Found::Known {
                    identity,
                    len_bytes,
                });
            }
        }
        match self.storage.open(path, access)? {
            other if is_other(other.identity) => Err(libc::ESTALE),
            opened => Ok(Found::Opened(opened)),
        }
    }
}
