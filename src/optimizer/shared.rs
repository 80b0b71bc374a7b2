//! What callers, completions and the commit thread share, and the way of a record to the engine
//! and back.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Instant;

use super::core::{Core, Job};
use super::figures::Figures;
use super::image::Image;
use super::record::StepPart;
use super::timeline::Timeline;
use crate::base::config::OptimizerOptions;
use crate::base::error::{Error, Result};
use crate::base::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::base::units::{nanos, to_u64, to_usize};
use crate::io::{Direction, Engine, Length, Outcome, Segment, Sink};
use crate::memory::{Buffer, MemoryRange};
use crate::store::{Layout, Piece, Store};

/// An optimizer without its handle.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) options: OptimizerOptions,
    pub(super) store: Store,
    pub(super) figures: Figures,
    pub(super) timeline: Timeline,
    pub(super) core: Mutex<Core>,
    /// Something happened that a waiting caller, or the commit thread, may wait for.
    pub(super) changed: Condvar,
}

impl Shared {
    /// Waits until something happens.
    pub(super) fn wait<'a>(&self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        self.changed
            .wait(core)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something happens, and counts the time as waiting for reads or writes.
    pub(super) fn wait_for<'a>(
        &self,
        core: MutexGuard<'a, Core>,
        reads: bool,
    ) -> MutexGuard<'a, Core> {
        let started = Instant::now();
        let core = self.wait(core);
        let (counter, name) = if reads {
            (&self.figures.wait_read_ns, "wait for a read")
        } else {
            (&self.figures.wait_write_ns, "wait for a write")
        };
        counter.add(nanos(started.elapsed()));
        self.engine.trace_call(name, started);
        core
    }

    /// Lets everything start that can.
    pub(super) fn pump<'a>(
        self: &'a Arc<Self>,
        mut core: MutexGuard<'a, Core>,
    ) -> MutexGuard<'a, Core> {
        loop {
            core.pump();
            core.note_clocks();
            if core.jobs.is_empty() {
                return core;
            }
            let mut jobs = std::mem::take(&mut core.jobs);
            let buffer = core.buffer.clone();
            let layout = Arc::clone(&core.layout);
            drop(core);
            let mut refused = Vec::new();
            for job in &jobs {
                if let Err(error) = self.submit(*job, &layout, buffer.as_ref()) {
                    refused.push((*job, error));
                }
            }
            core = lock(&self.core);
            jobs.clear();
            if core.jobs.is_empty() {
                core.jobs = jobs;
            }
            let any_refused = !refused.is_empty();
            for (job, error) in refused {
                core.moved(job.record, job.writes, Some(error));
            }
            if !any_refused && core.jobs.is_empty() {
                return core;
            }
            self.changed.notify_all();
        }
    }

    /// Hands one record to the engine.
    fn submit(self: &Arc<Self>, job: Job, layout: &Layout, buffer: Option<&Buffer>) -> Result<()> {
        let buffer = buffer.ok_or_else(|| Error::Internal("there is no arena".to_owned()))?;
        let memory = record_memory(buffer, layout, job.place, job.numel)?;
        let image = Image {
            layout,
            numel: job.numel,
            memory,
        };
        let mut request = self.engine.blank_request();
        let group = self.engine.next_group();
        let Some(filled) = Arc::get_mut(&mut request) else {
            return Err(Error::Internal("a blank request is shared".to_owned()));
        };
        filled.clear();
        filled.direction = if job.writes {
            Direction::Out
        } else {
            Direction::In
        };
        filled.sink = Some(Arc::clone(self) as Arc<dyn Sink>);
        filled.token = u64::from(job.record) << 1 | u64::from(job.writes);
        filled.buffers.push(buffer.clone());
        let striping = self.store.striping();
        let (area, slot) = layout.slot(job.offset, job.version.slot, job.numel);
        for place in 0..striping.places_len() {
            let mut pending: Option<Segment> = None;
            let mut is_named = false;
            let mut push = |segment| {
                if !is_named {
                    filled.push_file(self.store.path(area, place), Length::Grow, group);
                    if let Some(only) = self.store.file_identity(area, place) {
                        filled.expect_file(only);
                    }
                    is_named = true;
                }
                filled.push_segment(segment);
            };
            let states = (0..layout.states.len()).filter(|state| !job.version.is_zero(*state));
            for state in states {
                let memory = image.padded(state)?;
                let address = slot + layout.image(state, job.numel).start;
                let pieces = striping.pieces(area, address, to_u64(memory.len()));
                for piece in pieces.filter(|piece| piece.place == place) {
                    let memory = piece_of(memory, piece)?;
                    if let Some(last) = pending.as_mut()
                        && last.file_end() == piece.file_offset
                        && last.memory.address() + last.memory.len() == memory.address()
                        && let Some(joined) = image.joined(last.memory, memory)
                    {
                        last.memory = joined;
                        continue;
                    }
                    let segment = Segment {
                        file_offset: piece.file_offset,
                        memory,
                        padding_bytes: 0,
                        buffer: Some(0),
                        index: 0,
                        user_tag: 0,
                    };
                    if let Some(done) = pending.replace(segment) {
                        push(done);
                    }
                }
            }
            if let Some(done) = pending {
                push(done);
            }
        }
        self.timeline.move_begins(job.record);
        self.engine.submit(request)
    }

    /// The memory of a record that has a place.
    pub(super) fn memory_of(&self, core: &Core, index: u32) -> Result<MemoryRange> {
        let record = core.record(index);
        let buffer = core
            .buffer
            .as_ref()
            .ok_or_else(|| Error::Internal("there is no arena".to_owned()))?;
        record_memory(buffer, &core.layout, record.place, record.numel)
    }
}

fn record_memory(buffer: &Buffer, layout: &Layout, place: u64, numel: u64) -> Result<MemoryRange> {
    let (start, len) = (to_usize(place)?, to_usize(layout.record_bytes(numel))?);
    buffer
        .range()
        .slice(start, len)
        .ok_or_else(|| Error::Internal("a record lies outside of the arena".to_owned()))
}

/// The memory of a piece of what `memory` holds.
fn piece_of(memory: MemoryRange, piece: Piece) -> Result<MemoryRange> {
    let (start, len) = (to_usize(piece.before_bytes)?, to_usize(piece.len_bytes)?);
    memory
        .slice(start, len)
        .ok_or_else(|| Error::Internal("a piece lies outside of its state".to_owned()))
}

impl Sink for Shared {
    fn is_cancelled(&self, _token: u64) -> bool {
        false
    }

    fn progress(&self, token: u64, bytes: u64) {
        if token & 1 == 1 {
            self.figures.written_bytes.add(bytes);
            self.store.note_written(bytes);
        } else {
            self.figures.read_bytes.add(bytes);
        }
    }

    fn complete(&self, token: u64, outcome: Outcome) {
        let mut core = lock(&self.core);
        let index = u32::try_from(token >> 1).unwrap_or(u32::MAX);
        let writes = token & 1 == 1;
        let error = outcome.failure.map(|failure| failure.error);
        let id = core.record(index).id;
        self.timeline.move_ended(index, id, writes, error.is_some());
        core.moved(index, writes, error);
        // The engine holds the sink as an `Arc`; this is it.
        if let Some(this) = core.this.upgrade() {
            drop(this.pump(core));
        }
        self.changed.notify_all();
    }
}

impl Core {
    /// Notes that a record was moved, or what went wrong.
    pub(super) fn moved(&mut self, index: u32, writes: bool, error: Option<Error>) {
        if index as usize >= self.records.len() {
            return;
        }
        let error =
            error.map(|error| error.striking(&format!("parameter {}", self.record(index).id)));
        if writes {
            self.writing_count -= 1;
            self.writing_bytes -= self.extent_bytes(index);
            self.note_committed_write(index, error.as_ref());
            match error {
                None => self.note_clean(index),
                Some(error) => self.note_lost(index, error),
            }
        } else {
            self.reading_count -= 1;
            match error {
                None => self.note_clean(index),
                Some(error) => self.note_unreadable(index, error),
            }
        }
    }

    /// A write was lost: the version is given up, and the one before is what can be read.
    pub(super) fn note_lost(&mut self, index: u32, error: Error) {
        self.forget(index);
        let before = self.step.as_mut().and_then(|step| {
            let before = step.undo.get(&index).copied()?;
            step.error.get_or_insert_with(|| error.clone());
            before
        });
        let record = self.record_mut(index);
        // A version in the same slot was written over.
        let slot = record.working.map(|working| working.slot);
        record.working = before.filter(|before| Some(before.slot) != slot);
        record.lost = Some(Box::new(error.clone()));
        record.told = false;
        self.lost.push(index);
        self.tell_step(index, error);
    }

    fn note_unreadable(&mut self, index: u32, error: Error) {
        self.forget(index);
        if let Some(error) = self.tell_step(index, error) {
            self.unreadable.insert(index, error);
        }
    }

    /// Has the step say that it cannot give out a record; the error is given back where no step
    /// is about to.
    fn tell_step(&mut self, index: u32, error: Error) -> Option<Error> {
        let is_todo = self.record(index).part == StepPart::Todo;
        let Some(step) = self.step.as_mut().filter(|_| is_todo) else {
            return Some(error);
        };
        step.unreadable.push_back((index, error));
        self.record_mut(index).part = StepPart::Done;
        None
    }

    /// Brings the clocks up to date.
    pub(super) fn note_clocks(&mut self) {
        let (moving, updating) = (self.is_moving(), !self.outs.is_empty());
        self.io_clock.set(moving);
        self.compute_clock.set(updating);
    }
}
