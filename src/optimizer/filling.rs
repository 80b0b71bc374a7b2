//! Records made anew from what files or memory hold: read ahead, compared, converted, written.
//!
//! Every state is moved in parts, and several batches of parts are being read while an earlier one is
//! looked at in the caller's thread: those of the same record, then those of the next ones, as far as
//! the arena has room. What a file holds in the type that the store keeps is read into its place, and
//! its checksum is that of the new version; else it goes through a piece of memory.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec;

use super::core::Core;
use super::image::{Image, convert_range};
use super::optimizer_swapper::Optimizer;
use super::record::Residency;
use crate::base::checksum::Checksum;
use crate::base::config::ChecksumMode;
use crate::base::error::{Error, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::{MIB, round_up, to_u64, to_usize};
use crate::io::{Direction, Engine, FileIdentity, Priority, Tensor, Waiting};
use crate::memory::{Buffer, MemoryRange};
use crate::store::{BLOCK_BYTES, Layout, STATES_MAX, Version};

/// The bytes of a batch, and of the longest part.
const BATCH_BYTES: u64 = 4 * MIB;
/// BOUND: batches under way at once.
const BATCHES_MAX: usize = 8;

/// Consecutive elements of one state, and where they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) state: usize,
    /// In memory, or, with `path`, at the tensor's place in a file.
    pub(super) tensor: Tensor,
    pub(super) path: Option<&'a CStr>,
    /// The one file that the path may lead to, if it matters.
    pub(super) only: Option<FileIdentity>,
}

/// What a record is to be made of.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    pub(super) id: u64,
    /// A bit for each state that is all zeros from now on, and has no origin.
    pub(super) zero_states: u8,
    /// By state; those of one state cover it in their order.
    pub(super) origins: Vec<Origin<'a>>,
}

/// Says whether the checksum of what was read of a state is right: the recipe's number, the state, and
/// the checksum.
pub(super) type Compare<'a> = &'a dyn Fn(usize, usize, u32) -> Result<()>;

/// A record that is being made.
#[derive(Debug)]
struct Blank {
    /// Of its recipe.
    number: usize,
    index: u32,
    numel: u64,
    memory: MemoryRange,
    before: Option<Version>,
    zero_states: u8,
    /// Of the states that are done.
    checksums: [u32; STATES_MAX],
}

/// A part of an origin.
#[derive(Debug)]
struct Part<'a> {
    state: usize,
    /// Its memory is where the caller has it, or where it is read to; empty while that is to be found.
    source: Tensor,
    path: Option<&'a CStr>,
    only: Option<FileIdentity>,
    /// Its place in the image.
    into: MemoryRange,
    /// It is the state's last part.
    ends_state: bool,
}

/// Parts of one record on their way.
#[derive(Debug)]
struct Batch<'a> {
    parts: Vec<Part<'a>>,
    /// Where what is to be converted is read to.
    room: Option<Buffer>,
    /// Where something is read.
    waiting: Option<Arc<Waiting>>,
    /// It is the record's last batch.
    ends_record: bool,
}

/// Records on their way.
struct Filling<'a> {
    optimizer: &'a Optimizer,
    engine: &'a Engine,
    layout: Arc<Layout>,
    compare: Option<Compare<'a>>,
    /// Versions have checksums.
    checked: bool,
    /// The oldest one first, which the oldest batch is of.
    blanks: VecDeque<Blank>,
    /// Parts of the youngest record that are not under way yet.
    parts: Option<Peekable<vec::IntoIter<Part<'a>>>>,
    batches: VecDeque<Batch<'a>>,
    rooms: Vec<Buffer>,
    /// The checksums of the state that is being looked at, as it was read and as it will be stored.
    read: Checksum,
    made: Checksum,
}

impl Optimizer {
    /// Makes versions of records from nothing but what their recipes say, and writes them; there is
    /// room for one. Files are read by an engine of the caller's choice.
    ///
    /// # Errors
    /// `UnknownParameter`; those of `compare`; what kept something from being read or written.
    pub(super) fn make_versions<'a>(
        &'a self,
        engine: &'a Engine,
        recipes: impl Iterator<Item = Recipe<'a>>,
        compare: Option<Compare<'a>>,
    ) -> Result<()> {
        let layout = Arc::clone(&lock(&self.shared.core).layout);
        let mut filling = Filling {
            optimizer: self,
            engine,
            layout,
            compare,
            checked: self.shared.options.checksum != ChecksumMode::Off,
            blanks: VecDeque::new(),
            parts: None,
            batches: VecDeque::new(),
            rooms: Vec::new(),
            read: Checksum::new(),
            made: Checksum::new(),
        };
        for index in filling.run(recipes)? {
            self.wait_written(index)?;
        }
        Ok(())
    }

    /// Takes room for a record whose content does not matter any more.
    fn take_blank<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        index: u32,
    ) -> Result<MutexGuard<'a, Core>> {
        while !core.is_replaceable(index) {
            let record = core.record_mut(index);
            if record.residency == Residency::Warm && !record.in_commit && !record.write_now {
                record.write_now = true;
                core.write_queue.push_back(index);
                core = self.shared.pump(core);
            } else {
                core.tell_failed()?;
                core = self.shared.wait_for(core, false);
            }
        }
        self.find_room(core, |core| core.take_blank(index))
    }
}

impl<'a> Filling<'a> {
    /// Makes all versions and has them written; the records.
    fn run(&mut self, recipes: impl Iterator<Item = Recipe<'a>>) -> Result<Vec<u32>> {
        let mut recipes = recipes.enumerate().peekable();
        let mut made = Vec::new();
        loop {
            while self.batches.len() < BATCHES_MAX {
                let parts = match self.parts.take() {
                    Some(parts) => parts,
                    None => match recipes.peek() {
                        Some((number, recipe)) if self.begin_record(*number, recipe)? => {
                            recipes.next();
                            continue;
                        }
                        _ => break,
                    },
                };
                self.begin_batch(parts)?;
            }
            let Some(batch) = self.batches.pop_front() else {
                return Ok(made);
            };
            if let Some(waiting) = &batch.waiting {
                waiting.end()?;
            }
            for part in &batch.parts {
                self.take_part(part)?;
            }
            self.rooms.extend(batch.room);
            if batch.ends_record {
                made.extend(self.end_record()?);
            }
        }
    }

    /// Takes room for one more record; false where there is none before earlier ones are done.
    fn begin_record(&mut self, number: usize, recipe: &Recipe<'a>) -> Result<bool> {
        let shared = &self.optimizer.shared;
        let mut core = lock(&shared.core);
        let index = core.find(recipe.id)?;
        if self.blanks.is_empty() {
            // INVARIANT: nothing is waited for while other records of this have room.
            core = self.optimizer.take_blank(core, index)?;
        } else if self.blanks.len() > core.ahead_max() || !core.take_blank(index) {
            return Ok(false);
        }
        let memory = shared.memory_of(&core, index)?;
        let record = core.record(index);
        let blank = Blank {
            number,
            index,
            numel: record.numel,
            memory,
            before: record.newest(),
            zero_states: recipe.zero_states,
            checksums: [0; STATES_MAX],
        };
        drop(core);
        let parts = parts_of(&self.image_of(&blank), &recipe.origins);
        self.blanks.push_back(blank);
        self.parts = Some(parts?.into_iter().peekable());
        Ok(true)
    }

    fn image_of(&self, blank: &Blank) -> Image<'_> {
        Image {
            layout: &self.layout,
            numel: blank.numel,
            memory: blank.memory,
        }
    }

    /// Starts to read a batch of parts, and keeps the others for later.
    fn begin_batch(&mut self, mut parts: Peekable<vec::IntoIter<Part<'a>>>) -> Result<()> {
        let mut list = Vec::new();
        let mut len_bytes = 0;
        while let Some(part) = parts.next_if(|part| len_bytes + part.room_bytes() <= BATCH_BYTES) {
            len_bytes += part.room_bytes();
            list.push(part);
        }
        let room_bytes = list.iter().filter(|part| part.needs_room());
        let room = self.room(room_bytes.map(Part::room_bytes).sum())?;
        let (mut tensors, mut paths, mut only) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken = 0;
        for part in &mut list {
            let Some(path) = part.path else { continue };
            if part.needs_room() {
                let free = room.as_ref().map(Buffer::range);
                part.source.memory =
                    slice(free.unwrap_or(MemoryRange::EMPTY), taken, part.len_bytes())?;
                taken += part.room_bytes();
            }
            tensors.push(part.source);
            paths.push(path);
            only.push(part.only);
        }
        let waiting = (!tensors.is_empty()).then(Arc::<Waiting>::default);
        if let Some(waiting) = &waiting {
            let way = (Direction::In, Priority::Foreground);
            waiting.begin_on(self.engine, way, &tensors, &paths, &only)?;
        }
        let ends_record = parts.peek().is_none();
        self.parts = (!ends_record).then_some(parts);
        self.batches.push_back(Batch {
            parts: list,
            room,
            waiting,
            ends_record,
        });
        Ok(())
    }

    /// Memory of at least this length, used again where there is some.
    fn room(&mut self, len_bytes: u64) -> Result<Option<Buffer>> {
        if len_bytes == 0 {
            return Ok(None);
        }
        match self.rooms.pop() {
            Some(room) if room.len_bytes() >= len_bytes => Ok(Some(room)),
            _ => self.engine.allocate_buffer(len_bytes).map(Some),
        }
    }

    /// Brings a part into the form of the image, and counts it in the checksums.
    fn take_part(&mut self, part: &Part<'_>) -> Result<()> {
        let Some(blank) = self.blanks.front_mut() else {
            return Err(outside());
        };
        let dtype = self.layout.states[part.state].disk_dtype;
        let is_in_place = part.source.memory == part.into;
        if !is_in_place {
            if self.compare.is_some() {
                part.source.memory.inspect(|bytes| self.read.update(bytes));
            }
            convert_range(part.source.memory, part.source.dtype, part.into, dtype)?;
        }
        if self.checked || is_in_place && self.compare.is_some() {
            part.into.inspect(|bytes| self.made.update(bytes));
        }
        if part.ends_state {
            let [read, made] = [&mut self.read, &mut self.made]
                .map(|checksum| std::mem::replace(checksum, Checksum::new()).finish());
            blank.checksums[part.state] = made;
            if let Some(compare) = self.compare {
                let found = if is_in_place { made } else { read };
                compare(blank.number, part.state, found)?;
            }
        }
        Ok(())
    }

    /// Has the oldest record written, which is whole now.
    fn end_record(&mut self) -> Result<Option<u32>> {
        let Some(blank) = self.blanks.front() else {
            return Ok(None);
        };
        let checksums = self.checked.then_some(blank.checksums);
        let image = self.image_of(blank);
        let version = image.describe_with(blank.before, blank.zero_states, checksums)?;
        let index = blank.index;
        self.blanks.pop_front();
        let shared = &self.optimizer.shared;
        let mut core = lock(&shared.core);
        core.note_changed(index, version, true);
        drop(shared.pump(core));
        Ok(Some(index))
    }
}

impl Drop for Filling<'_> {
    /// After a failure: no memory is given back that is still being read into.
    fn drop(&mut self) {
        for waiting in self.batches.drain(..).filter_map(|batch| batch.waiting) {
            let _ = waiting.end();
        }
        let mut core = lock(&self.optimizer.shared.core);
        for blank in self.blanks.drain(..) {
            core.forget(blank.index);
        }
    }
}

impl Part<'_> {
    fn len_bytes(&self) -> u64 {
        self.source.numel * self.source.dtype.size_bytes()
    }

    /// What it takes of a batch.
    fn room_bytes(&self) -> u64 {
        round_up(self.len_bytes(), BLOCK_BYTES)
    }

    fn needs_room(&self) -> bool {
        self.source.memory.is_empty()
    }
}

/// Cuts the origins of a record into parts.
fn parts_of<'a>(image: &Image<'_>, origins: &[Origin<'a>]) -> Result<Vec<Part<'a>>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for run in origins.chunk_by(|a, b| a.state == b.state) {
        let state = run[0].state;
        let bytes = image.bytes(state)?;
        let dtype = image.layout.states[state].disk_dtype;
        let mut place = 0;
        for Origin {
            tensor, path, only, ..
        } in run
        {
            let size = tensor.dtype.size_bytes();
            let mut done = 0;
            while done < tensor.numel {
                let numel = (BATCH_BYTES / size).min(tensor.numel - done);
                let into = slice(bytes, place, numel * dtype.size_bytes())?;
                let memory = match path {
                    None => slice(tensor.memory, done * size, numel * size)?,
                    Some(_) if tensor.dtype == dtype => into,
                    Some(_) => MemoryRange::EMPTY,
                };
                parts.push(Part {
                    state,
                    source: Tensor {
                        memory,
                        numel,
                        file_offset: tensor.file_offset + done * size,
                        ..*tensor
                    },
                    path: *path,
                    only: *only,
                    into,
                    ends_state: false,
                });
                done += numel;
                place += to_u64(into.len());
            }
        }
        if let Some(last) = parts.last_mut() {
            last.ends_state = true;
        }
    }
    Ok(parts)
}

fn slice(range: MemoryRange, start: u64, len_bytes: u64) -> Result<MemoryRange> {
    let part = range.slice(to_usize(start)?, to_usize(len_bytes)?);
    part.ok_or_else(outside)
}

fn outside() -> Error {
    Error::Internal("a part lies outside of its record".to_owned())
}
