//! The scheduler: the state of everything under way, and the decisions over it.
//!
//! Owned by the driver thread. It admits tasks in the order of submission, keeps overlapping
//! requests on one file in that order, has space reserved before and lengths set after, and tells
//! each request's sink how it ended, once. It makes no system calls: it posts jobs to the metadata
//! threads and transfers to the backend. Moving bytes is in [`super::transfers`].
//!
//! INVARIANT: a request lives in `requests` from its submission until its sink was told; while it
//! does, no memory of it is released.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;

use super::bounce::BouncePool;
use super::files::FileTable;
use super::flight::{Flight, Flights};
use super::metadata::{Found, Job, Metadata, Report};
use super::registration::RingSlots;
use super::task::{Phase, Task, is_contiguous};
use super::{Limits, Mailbox};
use crate::base::error::Error;
use crate::base::observe::events;
use crate::base::observe::trace::Trace;
use crate::io::counters::Counters;
use crate::io::planner::{Cursor, Geometry};
use crate::io::request::{Direction, Failure, Outcome, Request};
use crate::io::storage::Storage;

/// A request under way.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) request: Arc<Request>,
    /// Parts that are not yet tasks.
    next_part: usize,
    parts_left: usize,
    pub(super) bytes_done: u64,
    pub(super) failure: Option<Failure>,
}

/// Everything under way in one engine.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) limits: Limits,
    pub(super) requests: Slab<Live>,
    pub(super) tasks: Slab<Task>,
    /// Requests with parts that are not yet tasks, in the order of submission.
    backlog: VecDeque<usize>,
    /// Tasks whose files are being resolved, in the order of submission.
    window: VecDeque<usize>,
    /// A task ended since the last decision.
    task_ended: bool,
    /// Tasks whose last blocker ended.
    pub(super) startable: VecDeque<usize>,
    pub(super) files: FileTable,
    /// Running tasks with operations still to plan: readers, writers.
    pub(super) readers: VecDeque<usize>,
    pub(super) writers: VecDeque<usize>,
    pub(super) flights: Flights,
    pub(super) bounce: BouncePool,
    /// Blocks that were read and are not yet copied to where they belong.
    pub(super) arrived: VecDeque<Flight>,
    /// Bytes copied to bounce blocks since operations were last sent off.
    pub(super) gathered_bytes: u64,
    /// When a writer was last admitted: files that were missing before may exist now.
    writer_admitted_at: u64,
    /// Operations started since a writer last had its turn before readers.
    pub(super) reads_in_a_row: u32,
    /// Paths that could not even be opened for writing.
    pub(super) stuck_paths: HashMap<Box<[u8]>, Error>,
    pub(super) metadata: Metadata,
    pub(super) storage: Arc<dyn Storage>,
    mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) ring_slots: RingSlots,
    pub(super) trace: Option<Trace>,
}

/// What the scheduler works with and others see too.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) metadata: Metadata,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) trace: Option<Trace>,
}

impl Scheduler {
    pub(super) fn new(
        limits: Limits,
        files: FileTable,
        bounce: BouncePool,
        services: Services,
    ) -> Scheduler {
        let Services {
            metadata,
            storage,
            mailbox,
            counters,
            trace,
        } = services;
        Scheduler {
            flights: Flights::new(limits.depth),
            limits,
            requests: Slab::new(),
            tasks: Slab::new(),
            backlog: VecDeque::new(),
            window: VecDeque::new(),
            task_ended: false,
            startable: VecDeque::new(),
            files,
            readers: VecDeque::new(),
            writers: VecDeque::new(),
            bounce,
            arrived: VecDeque::new(),
            gathered_bytes: 0,
            writer_admitted_at: 0,
            reads_in_a_row: 0,
            stuck_paths: HashMap::new(),
            metadata,
            storage,
            mailbox,
            counters,
            ring_slots: RingSlots::new(),
            trace,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether a decision waits that needs no news from outside. A task that ends makes room for
    /// another file, or closes one.
    pub(super) fn can_decide(&self) -> bool {
        !self.startable.is_empty() || (self.task_ended && !self.window.is_empty())
    }

    /// Takes a request in.
    pub(super) fn submit(&mut self, request: Arc<Request>) {
        self.counters.requests.add(1);
        self.counters.requests_in_flight.add(1);
        let parts_left = request.files.len();
        let key = self.requests.insert(Live {
            request,
            next_part: 0,
            parts_left,
            bytes_done: 0,
            failure: None,
        });
        if parts_left == 0 {
            self.end_request(key);
        } else {
            self.backlog.push_back(key);
        }
    }

    /// Takes in what a metadata thread reports.
    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::Resolved { task, found } => self.tasks[task].phase = Phase::Resolved(found),
            Report::Reserved { task, result } => self.reserved(task, result),
            Report::Length { file, result } => self.settled(file, result),
        }
    }

    /// Makes every decision that can be made now.
    pub(super) fn decide(&mut self) {
        self.task_ended = false;
        loop {
            self.extend_window();
            let admitted = self.admit_front();
            let started = self.startable.pop_front();
            if let Some(task) = started {
                self.start(task);
            }
            if !admitted && started.is_none() {
                return;
            }
        }
    }

    /// Turns parts of requests into tasks and has their files resolved, as far as bounds allow.
    fn extend_window(&mut self) {
        while self.window.len() < self.limits.window {
            let Some(&key) = self.backlog.front() else {
                return;
            };
            let live = &mut self.requests[key];
            let part = live.next_part;
            live.next_part += 1;
            if live.next_part == live.request.files.len() {
                self.backlog.pop_front();
            }
            let request = Arc::clone(&self.requests[key].request);
            let file_part = &request.files[part];
            let task = Task::new(
                key,
                part,
                request.direction,
                file_part,
                request.segments(file_part),
            );
            let task = self.tasks.insert(task);
            self.tasks[task].resolved_at = self.files.now();
            self.window.push_back(task);
            self.metadata.post(Job::Resolve {
                task,
                request,
                part,
                open: false,
            });
        }
    }

    fn resolve_again(&mut self, task: usize, open: bool) {
        let (request, part) = (self.tasks[task].request, self.tasks[task].part);
        let request = Arc::clone(&self.requests[request].request);
        self.tasks[task].phase = Phase::Resolving;
        self.tasks[task].resolved_at = self.files.now();
        self.metadata.post(Job::Resolve {
            task,
            request,
            part,
            open,
        });
    }

    /// Admits the oldest task of the window if its file is known; true if something moved.
    fn admit_front(&mut self) -> bool {
        let Some(&task) = self.window.front() else {
            return false;
        };
        if !matches!(self.tasks[task].phase, Phase::Resolved(_)) {
            return false;
        }
        if !self.has_room_for(task) {
            return false;
        }
        let phase = std::mem::replace(&mut self.tasks[task].phase, Phase::Queued);
        let Phase::Resolved(found) = phase else {
            return false;
        };
        match found {
            Err(errno @ (libc::EMFILE | libc::ENFILE)) if self.can_free_descriptors() => {
                events::descriptors_exhausted(errno);
                self.tasks[task].phase = Phase::Starved;
                self.feed_starved();
                return false;
            }
            // An earlier write may have made the file since a metadata thread looked.
            Err(libc::ENOENT) if self.writer_admitted_at > self.tasks[task].resolved_at => {
                self.resolve_again(task, true);
            }
            Err(errno) => {
                self.window.pop_front();
                self.fail_errno(task, None, errno, "opening the file");
                self.end_task(task);
            }
            Ok(Found::Known {
                identity,
                len_bytes,
            }) => {
                let usable = self.files.find(identity).filter(|key| {
                    self.files.files[*key].writable || self.tasks[task].direction == Direction::In
                });
                match usable {
                    Some(file) => self.admit(task, file, len_bytes),
                    // Closed since a metadata thread looked.
                    None => self.resolve_again(task, true),
                }
            }
            Ok(Found::Opened(opened)) if self.limits.require_direct && !opened.direct => {
                self.window.pop_front();
                self.fail_direct(task, opened.fallback_errno.unwrap_or(libc::EINVAL));
                self.end_task(task);
            }
            // Written by us and closed since a metadata thread looked at its length.
            Ok(Found::Opened(opened))
                if self.files.find(opened.identity).is_none()
                    && self.files.forgot_since(self.tasks[task].resolved_at) =>
            {
                self.resolve_again(task, true);
            }
            Ok(Found::Opened(opened)) => {
                let len_bytes = opened.len_bytes;
                self.note_fallback(task, &opened);
                let file = self.files.insert(opened);
                self.admit(task, file, len_bytes);
            }
        }
        true
    }

    /// Whether the task's file is in the table, or room for it could be made.
    fn has_room_for(&mut self, task: usize) -> bool {
        let Phase::Resolved(Ok(Found::Opened(opened))) = &self.tasks[task].phase else {
            return true;
        };
        self.files.find(opened.identity).is_some()
            || self
                .files
                .make_room(&mut |handle| self.metadata.post(Job::Close { handle }))
    }

    /// Whether descriptors of ours are open that could be closed, now or later.
    fn can_free_descriptors(&self) -> bool {
        !self.files.files.is_empty()
    }

    /// Tries again what found too many files open.
    fn feed_starved(&mut self) {
        let Some(&task) = self.window.front() else {
            return;
        };
        if !matches!(self.tasks[task].phase, Phase::Starved) {
            return;
        }
        let evicted = self
            .files
            .evict(&mut |handle| self.metadata.post(Job::Close { handle }));
        if evicted || self.files.files.is_empty() {
            self.resolve_again(task, false);
        }
    }

    fn note_fallback(&self, task: usize, opened: &crate::io::storage::OpenedFile) {
        if let Some(errno) = opened.fallback_errno {
            let task = &self.tasks[task];
            self.counters.of(task.direction).fallbacks.add(1);
            let request = &self.requests[task.request].request;
            events::direct_io_fallback(request.path(&request.files[task.part]), errno);
        }
    }

    /// Puts the oldest task of the window into the order of its file.
    fn admit(&mut self, task: usize, file: usize, len_bytes: u64) {
        self.window.pop_front();
        if self.tasks[task].direction == Direction::Out {
            self.writer_admitted_at = self.files.tick();
        }
        let entry = &mut self.files.files[file];
        let fresh = entry.written_at <= self.tasks[task].resolved_at;
        if fresh && entry.queue.is_empty() && !entry.is_settling() {
            // Nobody of ours has changed the file since: storage knows best.
            entry.len_bytes = len_bytes;
            entry.disk_len_bytes = len_bytes;
        }
        self.tasks[task].file = file;
        if entry.queue.is_empty() {
            entry.planned_len_bytes = entry.len_bytes;
        }
        let admitted = &mut self.tasks[task];
        admitted.concern(entry.alignment, entry.planned_len_bytes);
        if admitted.direction == Direction::Out {
            entry.planned_len_bytes = admitted.final_len(entry.planned_len_bytes);
        }
        let blockers = entry
            .queue
            .iter()
            .filter(|earlier| self.tasks[task].must_wait_for(&self.tasks[**earlier]))
            .count();
        self.tasks[task].blockers = blockers;
        entry.queue.push_back(task);
        if blockers == 0 {
            self.startable.push_back(task);
        }
    }

    /// Starts a task that nothing blocks.
    fn start(&mut self, key: usize) {
        let task = &self.tasks[key];
        let file = &mut self.files.files[task.file];
        let live = &self.requests[task.request];
        let cancelled = live
            .request
            .sink
            .as_ref()
            .is_some_and(|sink| sink.is_cancelled(live.request.token));
        if cancelled {
            self.fail_cancelled(key);
            self.end_task(key);
            return;
        }
        match task.direction {
            Direction::In => {
                let request = &live.request;
                let path = request.path(&request.files[task.part]);
                let stuck = file
                    .stuck(&task.bytes)
                    .or_else(|| self.stuck_paths.get(path));
                if let Some(error) = stuck.cloned() {
                    self.fail(key, None, error);
                    self.end_task(key);
                } else {
                    self.run(key);
                }
            }
            Direction::Out if file.is_settling() => file.held.push(key),
            Direction::Out => {
                file.writers += 1;
                let (from, end) = (file.len_bytes, task.target_len());
                if end > from {
                    self.reserve(key, from, end, Vec::new());
                } else {
                    self.run(key);
                }
            }
        }
    }

    /// Lets a task's operations be planned.
    pub(super) fn run(&mut self, key: usize) {
        let task = &mut self.tasks[key];
        let file = &self.files.files[task.file];
        let align = file.alignment.offset_bytes;
        task.phase = Phase::Running;
        task.cursor = Cursor::default();
        task.geometry = Geometry {
            offset_align_bytes: align,
            memory_align_bytes: file.alignment.memory_bytes,
            block_bytes: self.limits.block_bytes.max(align),
            bounce_bytes: self.bounce.block_bytes(),
            file_len_bytes: task.surviving_len(file.len_bytes),
        };
        match task.direction {
            Direction::In => self.readers.push_back(key),
            Direction::Out => self.writers.push_back(key),
        }
    }

    /// All operations of a running task are over.
    pub(super) fn operations_over(&mut self, key: usize) {
        match self.tasks[key].direction {
            Direction::In => self.end_task(key),
            Direction::Out => self.settle(key),
        }
    }

    /// Takes a task out of its file's order and lets those go that waited for it.
    pub(super) fn end_task(&mut self, key: usize) {
        self.task_ended = true;
        let task = self.tasks.remove(key);
        if self.files.files.contains(task.file) {
            let request = &self.requests[task.request].request;
            if task.direction == Direction::Out {
                self.files.files[task.file].written_at = self.files.tick();
            }
            let file = &mut self.files.files[task.file];
            if task.direction == Direction::Out && !task.failed {
                let segments = request.segments(&request.files[task.part]);
                file.unstick(|range| task.rewrote(range, is_contiguous(segments)));
                if !self.stuck_paths.is_empty() {
                    self.stuck_paths
                        .remove(request.path(&request.files[task.part]));
                }
            }
            let position = file.queue.iter().position(|queued| *queued == key);
            let position = position.unwrap_or(file.queue.len());
            for &later in file.queue.iter().skip(position + 1) {
                let later_task = &mut self.tasks[later];
                if later_task.must_wait_for(&task) {
                    later_task.blockers -= 1;
                    if later_task.blockers == 0 {
                        self.startable.push_back(later);
                    }
                }
            }
            file.queue.remove(position);
            if file.queue.is_empty() {
                self.files.rest(task.file);
            }
        }
        let live = &mut self.requests[task.request];
        live.parts_left -= 1;
        if live.parts_left == 0 {
            self.end_request(task.request);
        }
        self.feed_starved();
    }

    /// Tells the sink and recycles the request.
    fn end_request(&mut self, key: usize) {
        let Live {
            mut request,
            bytes_done,
            failure,
            ..
        } = self.requests.remove(key);
        self.counters.requests_in_flight.sub(1);
        let (sink, token) = (request.sink.clone(), request.token);
        // The buffers go first: whoever hears of the end may free them at once.
        if let Some(request) = Arc::get_mut(&mut request) {
            request.clear();
        }
        if let Some(sink) = sink {
            sink.complete(
                token,
                Outcome {
                    bytes_done,
                    failure,
                },
            );
        }
        self.mailbox.recycle(request);
    }

    /// Ends a request that was never taken in.
    pub(super) fn refuse(&mut self, request: &Request) {
        if let Some(sink) = &request.sink {
            sink.complete(
                request.token,
                Outcome::internal("the driver met a defect before this"),
            );
        }
        self.mailbox.recycle(Arc::default());
    }

    /// Ends everything with an internal error, after a defect; nothing is in flight any more.
    pub(super) fn abandon(&mut self) {
        for live in self.requests.drain() {
            if let Some(sink) = &live.request.sink {
                sink.complete(
                    live.request.token,
                    Outcome::internal("the driver met a defect; the request's data is undefined"),
                );
            }
            self.counters.requests_in_flight.sub(1);
            self.mailbox.recycle(Arc::default());
        }
    }
}
