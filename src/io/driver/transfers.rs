//! Moving bytes: planning operations to a constant depth, and accounting for each completion.
//!
//! The part of the [`Scheduler`] that talks to the backend. Depth is kept constant by refilling on
//! each completion, never by batch and drain. The devices start operations in turn; whose turn it
//! is on one of them, [`super::turns`] knows.

use std::sync::Arc;
use std::time::Instant;

use super::bounce::{BouncePool, gather, overlay, scatter, slice, zero};
use super::flight::Flight;
use super::scheduler::Scheduler;
use crate::base::observe::events;
use crate::base::observe::trace::{Details, Row, Span};
use crate::base::units::{MIB, round_down};
use crate::io::backend::{Backend, Reaped, Transfer};
use crate::io::planner::{self, Operation, Place};
use crate::io::request::{Direction, Priority};
use crate::io::storage::{Alignment, Errno};
use crate::memory::MemoryRange;

/// How often an operation is submitted again after `EINTR` or `EAGAIN`.
const RETRIES_MAX: u32 = 256;
/// Short transfers in a row that end at the same byte before that counts as the end of the file,
/// or of the disk's ability to write.
const STALLS_MAX: u32 = 16;

/// Bytes copied from or to bounce blocks before operations that could be in flight are sent off:
/// the drive must not run dry while the driver copies.
const COPY_BYTES: u64 = MIB;

/// What trying to start an operation of a task came to.
enum Started {
    /// One more is in flight.
    Yes,
    /// The task has nothing more to start.
    Exhausted,
    /// All bounce blocks are in use.
    NoBlock,
}

impl Scheduler {
    /// Starts operations until the depths are reached or nothing can be started; true where more
    /// could be started, after what was is on its way.
    pub(super) fn fill(&mut self, backend: &mut dyn Backend) -> bool {
        self.gathered_bytes = 0;
        let mut idle_count = 0;
        while idle_count < self.devices.all.len() {
            let device = self.devices.next();
            let turns = &self.devices.all[device].turns;
            if !turns.is_open() {
                idle_count += 1;
                continue;
            }
            if self.gathered_bytes >= COPY_BYTES {
                return true;
            }
            let started = turns
                .order()
                .any(|(priority, direction)| self.fill_one(device, priority, direction, backend));
            idle_count = if started { 0 } else { idle_count + 1 };
        }
        false
    }

    /// Starts one operation of a device's oldest running task of a kind; false if there is none.
    fn fill_one(
        &mut self,
        device: usize,
        priority: Priority,
        direction: Direction,
        backend: &mut dyn Backend,
    ) -> bool {
        loop {
            let turns = &mut self.devices.all[device].turns;
            let Some(key) = turns.front(priority, direction) else {
                return false;
            };
            match self.start_operation(key, backend) {
                Started::Yes => {
                    self.devices.all[device].started(priority, direction);
                    return true;
                }
                Started::NoBlock => return false,
                Started::Exhausted => {
                    self.devices.all[device].turns.pop(priority, direction);
                    if self.tasks[key].in_flight == 0 {
                        self.operations_over(key);
                    } else {
                        self.tasks[key].planned = true;
                    }
                }
            }
        }
    }

    fn start_operation(&mut self, key: usize, backend: &mut dyn Backend) -> Started {
        let task = &self.tasks[key];
        if task.failed {
            return Started::Exhausted;
        }
        let request = Arc::clone(&self.requests[task.request].request);
        let segments = request.segments(&request.files[task.part]);
        let mut cursor = task.cursor;
        let Some(operation) = planner::next(&mut cursor, task.direction, segments, &task.geometry)
        else {
            return Started::Exhausted;
        };
        if request
            .sink
            .as_ref()
            .is_some_and(|sink| sink.is_cancelled(request.token))
        {
            self.fail_cancelled(key);
            return Started::Exhausted;
        }
        let flight = match operation.place {
            Place::Direct { segment_offset } => {
                let segment = &segments[operation.segment];
                let memory = slice(segment.memory, segment_offset, operation.len_bytes);
                let ring_slot = segment
                    .buffer
                    .and_then(|at| request.buffers.get(at as usize))
                    .and_then(|buffer| buffer.ring_slot_of(memory.address(), memory.len()))
                    .and_then(|slot| u16::try_from(slot).ok());
                self.flight_of(key, operation, memory, None, ring_slot)
            }
            Place::Bounce => match self.bounce_of(key).take() {
                Ok(Some((block, memory))) => {
                    let memory = slice(memory, 0, operation.len_bytes);
                    self.counters.bounced_bytes.add(operation.payload_bytes);
                    let flight = self.flight_of(key, operation, memory, Some(block), None);
                    if task_writes(self, key) && !operation.read_first {
                        gather(&operation, segments, memory);
                        self.gathered_bytes += operation.payload_bytes;
                    }
                    flight
                }
                Ok(None) => return Started::NoBlock,
                Err(error) => {
                    self.fail(key, Some(operation.file_offset), error);
                    return Started::Exhausted;
                }
            },
        };
        let task = &mut self.tasks[key];
        task.cursor = cursor;
        task.in_flight += 1;
        self.counters.of(task.direction).in_flight.add(1);
        self.counters.in_flight.add(1);
        self.launch(flight, backend);
        Started::Yes
    }

    /// The bounce blocks of a task's device.
    fn bounce_of(&mut self, task: usize) -> &mut BouncePool {
        let file = &self.files.files[self.tasks[task].file];
        &mut self.devices.all[file.device].bounce
    }

    fn flight_of(
        &self,
        task: usize,
        operation: Operation,
        memory: MemoryRange,
        bounce: Option<usize>,
        ring_slot: Option<u16>,
    ) -> Flight {
        let file = &self.files.files[self.tasks[task].file];
        Flight {
            slot: 0,
            task,
            device: file.device,
            operation,
            reading_first: operation.read_first,
            bounce,
            memory,
            ring_slot,
            done_bytes: 0,
            reached_before: 0,
            stalls_count: 0,
            retries_count: 0,
            started: Instant::now(),
            launched_at: 0,
            direct: file.direct,
        }
    }

    /// Hands what is left of an operation to the backend.
    fn launch(&mut self, mut flight: Flight, backend: &mut dyn Backend) {
        let task = &mut self.tasks[flight.task];
        let file = &self.files.files[task.file];
        flight.direct = file.direct;
        flight.launched_at = self.files.now();
        let direction = if flight.reading_first {
            Direction::In
        } else {
            task.direction
        };
        if direction == Direction::Out {
            task.touched = true;
            task.written_end = task.written_end.max(flight.operation.file_end());
        }
        let left = flight.operation.len_bytes - flight.done_bytes;
        let transfer = Transfer {
            direction,
            device: flight.device,
            file: Arc::clone(&file.handle),
            memory: slice(flight.memory, flight.done_bytes, left),
            file_offset: flight.operation.file_offset + flight.done_bytes,
            ring_slot: flight.ring_slot,
        };
        let key = self.flights.board(flight);
        debug_assert!(key.is_some(), "an operation was started beyond the depth");
        if let Some(key) = key {
            backend.submit(key, transfer);
        }
    }

    /// Accounts for the end of a transfer.
    pub(super) fn reaped(&mut self, reaped: Reaped, backend: &mut dyn Backend) {
        let Some(mut flight) = self.flights.land(reaped.key) else {
            debug_assert!(false, "a completion came for nothing in flight");
            return;
        };
        match reaped.result {
            Ok(moved) => self.moved(flight, crate::base::units::to_u64(moved), backend),
            Err(errno) if self.is_worth_another_try(&mut flight, errno) => {
                self.launch(flight, backend);
            }
            Err(errno) => self.operation_failed(&flight, errno),
        }
    }

    fn moved(&mut self, mut flight: Flight, moved: u64, backend: &mut dyn Backend) {
        let task = &self.tasks[flight.task];
        let file = &self.files.files[task.file];
        let reads = flight.reading_first || task.direction == Direction::In;
        let len_bytes = flight.operation.len_bytes;
        let way = if reads { Direction::In } else { Direction::Out };
        self.devices.all[flight.device].moved(way, moved);
        let reached = flight.done_bytes + moved;
        let stalled = moved == 0 || flight.stalls_at(reached) >= STALLS_MAX;
        let enough = match (flight.reading_first, reads) {
            // What survives of the block; the rest is zero.
            (true, _) => {
                let existing = task.geometry.file_len_bytes;
                moved == 0
                    || flight.operation.file_offset + reached >= existing
                    || reached >= len_bytes
            }
            (false, true) => reached >= flight.operation.required_bytes,
            (false, false) => reached >= len_bytes,
        };
        if reached > len_bytes {
            self.fail(
                flight.task,
                Some(flight.operation.file_offset),
                crate::base::error::Error::Internal(format!(
                    "{reached} bytes were reported moved of {len_bytes}"
                )),
            );
            self.operation_over(&flight);
        } else if enough {
            self.operation_done(flight, reached, backend);
        } else if reads && stalled {
            // Nothing more comes, also after the last whole block was read again.
            let end = flight.operation.file_offset + reached;
            let at = end.max(self.tasks[flight.task].bytes.start);
            self.fail_short(flight.task, at, end, reached > 0);
            self.operation_over(&flight);
        } else if stalled {
            self.operation_failed(&flight, libc::EIO);
        } else {
            // A short transfer: go on behind what was moved, from a whole block.
            if !flight.reading_first {
                self.counters.of(task.direction).short_transfers.add(1);
            }
            flight.done_bytes = round_down(reached, file.alignment.offset_bytes);
            self.launch(flight, backend);
        }
    }

    /// Whether the operation may be submitted again; prepares it for that.
    fn is_worth_another_try(&mut self, flight: &mut Flight, errno: Errno) -> bool {
        let task = &self.tasks[flight.task];
        match errno {
            libc::EINTR | libc::EAGAIN if flight.retries_count < RETRIES_MAX => {
                flight.retries_count += 1;
                self.counters.of(task.direction).retries.add(1);
                true
            }
            // Nothing was reserved: the file system cannot, or copies on write.
            libc::ENOSPC | libc::EDQUOT if task.direction == Direction::Out => {
                self.files.free_space(flight.launched_at)
            }
            // Accepted at the open and refused at the transfer: some file systems do.
            libc::EINVAL | libc::EOPNOTSUPP if flight.direct => {
                self.leave_direct(task.file, flight.task, errno)
            }
            _ => false,
        }
    }

    /// Turns a file to buffered I/O; false where direct I/O is required or cannot be turned off.
    fn leave_direct(&mut self, file: usize, task: usize, errno: Errno) -> bool {
        if self.limits.require_direct {
            return false;
        }
        let file = &mut self.files.files[file];
        if !file.direct {
            return true;
        }
        if self.storage.clear_direct(&file.handle).is_err() {
            return false;
        }
        file.direct = false;
        file.alignment = Alignment::NONE;
        let task = &self.tasks[task];
        self.counters.of(task.direction).fallbacks.add(1);
        let request = &self.requests[task.request].request;
        events::direct_io_fallback(request.path(&request.files[task.part]), errno);
        true
    }

    /// All bytes of an operation were moved.
    fn operation_done(&mut self, mut flight: Flight, reached: u64, backend: &mut dyn Backend) {
        let task = &mut self.tasks[flight.task];
        let request = Arc::clone(&self.requests[task.request].request);
        let segments = request.segments(&request.files[task.part]);
        if flight.reading_first {
            // The block is here: change it, and write it.
            let rest = flight.operation.len_bytes - reached;
            zero(slice(flight.memory, reached, rest));
            overlay(&flight.operation, segments, flight.memory);
            flight.reading_first = false;
            flight.done_bytes = 0;
            flight.reached_before = 0;
            flight.stalls_count = 0;
            self.launch(flight, backend);
            return;
        }
        // The request may end with this, and is recycled only by its last owner.
        drop(request);
        self.landed(&flight);
        if flight.bounce.is_some() && self.tasks[flight.task].direction == Direction::In {
            // Copied when the next operations are on their way.
            self.arrived.push_back(flight);
        } else {
            self.credit(&flight);
        }
    }

    /// Whether blocks that were read wait to be copied to where they belong.
    pub(super) fn has_arrivals(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Copies some of the blocks that were read.
    pub(super) fn deliver(&mut self) {
        let mut copied_bytes = 0;
        while copied_bytes < COPY_BYTES {
            let Some(flight) = self.arrived.pop_front() else {
                return;
            };
            let task = &self.tasks[flight.task];
            let request = &self.requests[task.request].request;
            let segments = request.segments(&request.files[task.part]);
            scatter(&flight.operation, segments, flight.memory);
            copied_bytes += flight.operation.payload_bytes;
            self.credit(&flight);
        }
    }

    /// Counts what an operation has moved, and ends it.
    fn credit(&mut self, flight: &Flight) {
        let task = &mut self.tasks[flight.task];
        let live = &mut self.requests[task.request];
        let payload_bytes = flight.operation.payload_bytes;
        task.done_bytes += payload_bytes;
        let counters = self.counters.of(task.direction);
        counters.operations.add(1);
        counters.bytes.add(payload_bytes);
        live.bytes_done += payload_bytes;
        if let Some(sink) = &live.request.sink {
            sink.progress(live.request.token, payload_bytes);
        }
        self.release(flight);
    }

    fn operation_failed(&mut self, flight: &Flight, errno: Errno) {
        let task = &self.tasks[flight.task];
        let verb = match (flight.reading_first, task.direction) {
            (false, Direction::Out) => "written",
            _ => "read",
        };
        let total = task.bytes.end - task.bytes.start;
        let detail = format!(
            "{} of {total} bytes {verb}",
            task.done_bytes + flight.done_bytes
        );
        let at = (flight.operation.file_offset + flight.done_bytes).max(task.bytes.start);
        self.fail_errno(flight.task, Some(at), errno, &detail);
        self.operation_over(flight);
    }

    /// Nothing of an operation is in flight any more, and nothing of it is left to do.
    fn operation_over(&mut self, flight: &Flight) {
        self.landed(flight);
        self.release(flight);
    }

    /// Nothing of an operation is in flight any more.
    fn landed(&mut self, flight: &Flight) {
        let task = &self.tasks[flight.task];
        self.devices.all[flight.device].landed(task.priority);
        self.counters.of(task.direction).in_flight.sub(1);
        self.counters.in_flight.sub(1);
    }

    /// Gives back what an operation held; its task may be over with it.
    fn release(&mut self, flight: &Flight) {
        if let Some(block) = flight.bounce {
            self.devices.all[flight.device].bounce.give_back(block);
        }
        self.trace_operation(flight);
        let task = &mut self.tasks[flight.task];
        task.in_flight -= 1;
        if task.in_flight == 0 && task.planned {
            self.operations_over(flight.task);
        }
    }
}

impl Scheduler {
    /// Adds an operation to the timeline, if there is one.
    fn trace_operation(&self, flight: &Flight) {
        let Some(trace) = &self.trace else { return };
        let task = &self.tasks[flight.task];
        let request = &self.requests[task.request].request;
        let path = request.path(&request.files[task.part]);
        let details = Details {
            path: String::from_utf8_lossy(path).into_owned(),
            bytes: flight.operation.payload_bytes,
            failed: task.failed,
            ..Details::default()
        };
        let name = task.direction.operation();
        let row = Row::Operation(flight.slot);
        trace.span(Span::new(name, row, flight.started, details));
    }
}

fn task_writes(scheduler: &Scheduler, key: usize) -> bool {
    scheduler.tasks[key].direction == Direction::Out
}
