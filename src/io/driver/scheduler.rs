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

use super::devices::Devices;
use super::failed_ranges::FailedRanges;
use super::files::FileTable;
use super::flight::{Flight, Flights};
use super::mailbox::Mailbox;
use super::metadata::{Metadata, Report};
use super::registration::RingSlots;
use super::task::{Phase, Task, runs};
use super::{ARRIVED_BLOCKS, Limits};
use crate::base::observe::trace::Trace;
use crate::base::units::round_down;
use crate::io::counters::Counters;
use crate::io::planner::{Cursor, Geometry};
use crate::io::request::{Direction, Failure, Length, Outcome, Request};
use crate::io::storage::Storage;

/// A request under way.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) request: Arc<Request>,
    /// Parts that are not yet tasks.
    pub(super) next_part: usize,
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
    pub(super) backlog: VecDeque<usize>,
    /// Tasks whose files are being resolved, in the order of submission.
    pub(super) window: VecDeque<usize>,
    /// A task ended since the last decision.
    task_ended: bool,
    /// Tasks whose last blocker ended.
    pub(super) startable: VecDeque<usize>,
    pub(super) files: FileTable,
    /// The devices, with the running tasks on each that have operations still to plan.
    pub(super) devices: Devices,
    pub(super) flights: Flights,
    /// Blocks that were read and are not yet copied to where they belong.
    pub(super) arrived: VecDeque<Flight>,
    /// Bytes copied to bounce blocks since operations were last sent off.
    pub(super) gathered_bytes: u64,
    /// When a writer was last admitted: files that were missing before may exist now.
    pub(super) writer_admitted_at: u64,
    /// Failed writes to paths that could not even be opened.
    pub(super) unopened: HashMap<Box<[u8]>, FailedRanges>,
    pub(super) metadata: Metadata,
    pub(super) storage: Arc<dyn Storage>,
    mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) ring_slots: RingSlots,
    pub(super) trace: Option<Arc<Trace>>,
}

/// What the scheduler works with and others see too.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) metadata: Metadata,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) trace: Option<Arc<Trace>>,
}

impl Scheduler {
    pub(super) fn new(
        limits: Limits,
        files: FileTable,
        devices: Devices,
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
            flights: Flights::default(),
            devices,
            limits,
            requests: Slab::new(),
            tasks: Slab::new(),
            backlog: VecDeque::new(),
            window: VecDeque::new(),
            task_ended: false,
            startable: VecDeque::new(),
            files,
            arrived: VecDeque::with_capacity(limits.depth + ARRIVED_BLOCKS),
            gathered_bytes: 0,
            writer_admitted_at: 0,
            unopened: HashMap::new(),
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
                let segments = live.request.segments(&live.request.files[task.part]);
                let met = segments.iter().find_map(|segment| {
                    let error = file
                        .failed
                        .find(&(segment.file_offset..segment.file_end()))?;
                    Some((segment.file_offset, error.clone()))
                });
                if let Some((offset, error)) = met {
                    self.fail(key, Some(offset), error);
                    self.end_task(key);
                } else {
                    self.run(key);
                }
            }
            Direction::Out if file.is_settling() => file.held.push(key),
            Direction::Out => {
                file.writers += 1;
                self.reserve(key);
            }
        }
    }

    /// Lets a task's operations be planned.
    pub(super) fn run(&mut self, key: usize) {
        let task = &mut self.tasks[key];
        let file = &self.files.files[task.file];
        let device = &mut self.devices.all[file.device];
        let align = file.alignment.offset_bytes;
        let whole_blocks = |bytes: u64| round_down(bytes.max(align), align);
        task.phase = Phase::Running;
        task.cursor = Cursor::default();
        task.geometry = Geometry {
            offset_align_bytes: align,
            memory_align_bytes: file.alignment.memory_bytes,
            block_bytes: whole_blocks(self.limits.block_bytes),
            bounce_bytes: whole_blocks(self.limits.block_bytes.min(device.bounce.block_bytes())),
            // A file whose new length is not yet set is shorter on storage.
            file_len_bytes: task.surviving_len(file.len_bytes.min(file.disk_len_bytes)),
        };
        device.turns.push(task.priority, task.direction, key);
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
                let now = self.files.tick();
                self.files.files[task.file].written_at = now;
                self.files.files[task.file].believed_from = now;
            }
            let file = &mut self.files.files[task.file];
            if task.direction == Direction::Out && !task.failed && !file.failed.is_empty() {
                for run in runs(request.segments(&request.files[task.part]), 0) {
                    file.failed.rewritten(&run);
                }
                if let Length::Exact { bytes, last: true } = task.length {
                    file.failed.rewritten(&(bytes..u64::MAX));
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
        let exclusive = Arc::get_mut(&mut request);
        debug_assert!(
            exclusive.is_some(),
            "a request ended that somebody still holds"
        );
        if let Some(request) = exclusive {
            request.clear();
        }
        // Before its end is told: whoever then submits the next one finds it.
        self.mailbox.recycle(request);
        if let Some(sink) = sink {
            sink.complete(
                token,
                Outcome {
                    bytes_done,
                    failure,
                },
            );
        }
        self.mailbox.request_over();
    }

    /// Ends a request that was never taken in.
    pub(super) fn refuse(&mut self, request: &Request) {
        if let Some(sink) = &request.sink {
            sink.complete(
                request.token,
                Outcome::internal("the driver met a defect before this"),
            );
        }
        self.mailbox.request_over();
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
            self.mailbox.request_over();
        }
    }
}
