//! Where master parameters come from: memory, or pieces that were swapped out.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
use super::image::Image;
use super::optimizer_swapper::Optimizer;
use super::record::Residency;
use crate::base::checksum::Checksum;
use crate::base::config::ChecksumMode;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::base::units::{MIB, to_usize};
use crate::io::{Engine, Tensor, Waiting};
use crate::memory::numbers::{Rounder, convert, is_convertible};
use crate::memory::{Buffer, MemoryRange};

/// Pieces of files are read in parts of this size.
const PART_BYTES: u64 = 8 * MIB;

/// One piece of a parameter: in memory, or, with `path`, in a raw file at the tensor's file offset.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    /// The parameter.
    pub parameter_id: u64,
    /// Elements before the piece.
    pub offset: u64,
    /// Where it is, and its type: f32, f16 or bf16. Its memory is not looked at with a `path`.
    pub tensor: Tensor,
    /// The file.
    pub path: Option<&'a CStr>,
}

impl Optimizer {
    /// Gives master parameters their values, from f32, f16 or bf16. The other states are zero from
    /// now on, and are neither written nor read until they are updated. Pending until the next
    /// commit.
    ///
    /// # Errors
    /// Before anything changes: `UnknownParameter`, `DtypeMismatch`, `InvalidArgument` for another
    /// number of elements, an id given twice, or lists of different lengths; `Busy` in an open step
    /// or for a parameter that is swapped in; `NoBuffers` with `views_max` views out. Then: the failure of a
    /// write.
    pub fn initialize_parameters(&self, ids: &[u64], sources: &[Tensor]) -> Result<()> {
        if ids.len() != sources.len() {
            return Err(Error::invalid(
                "there must be one source for each parameter",
            ));
        }
        let piece = |(id, source): (&u64, &Tensor)| Partition {
            parameter_id: *id,
            offset: 0,
            tensor: *source,
            path: None,
        };
        let pieces: Vec<Partition<'_>> = ids.iter().zip(sources).map(piece).collect();
        self.initialize_from_swapped(&pieces)
    }

    /// Gives master parameters their values from pieces in memory or in files, as
    /// [`initialize_parameters`](Optimizer::initialize_parameters) does. The pieces of a parameter
    /// cover it exactly.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for pieces that overlap, leave a gap or reach beyond the
    /// parameter; what kept a file from being read.
    pub fn initialize_from_swapped(&self, partitions: &[Partition<'_>]) -> Result<()> {
        let _desk = self.enter()?;
        self.initialize(partitions, &self.shared.engine)
    }

    /// Does so for a caller who is at the desk; files are read by an engine of his choice.
    ///
    /// # Errors
    /// As [`initialize_from_swapped`](Optimizer::initialize_from_swapped).
    pub(super) fn initialize(&self, pieces: &[Partition<'_>], engine: &Engine) -> Result<()> {
        let started = Instant::now();
        let mut files = FileReader::new(engine);
        let mut core = self.settled_between_steps()?;
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.sort_by_key(|at| (pieces[*at].parameter_id, pieces[*at].offset, *at));
        let same = |a: &usize, b: &usize| pieces[*a].parameter_id == pieces[*b].parameter_id;
        for run in order.chunk_by(same) {
            check_cover(&core, run.iter().map(|at| &pieces[*at]))?;
        }
        core.check_alive()?;
        core.check_views()?;
        core = self.ensure_room_for_one(core)?;
        drop(core);
        let mut indices = Vec::new();
        for run in order.chunk_by(same) {
            let parts = run.iter().map(|at| &pieces[*at]);
            let id = pieces[run[0]].parameter_id;
            let zero_states = lock(&self.shared.core).layout.zero_but_master();
            let fill = |image: &Image<'_>| fill_master(image, parts, &mut files);
            indices.push(self.make_version(id, zero_states, fill)?);
        }
        for index in indices {
            self.wait_written(index)?;
        }
        let elapsed = started.elapsed();
        self.shared.figures.swap_init_write.record(elapsed);
        Ok(())
    }

    /// Makes a version of one record from nothing but what `fill` puts into the images of its
    /// states, and lets it be written. Those in `zero_states` are all zeros, and left alone.
    ///
    /// # Errors
    /// `UnknownParameter`; those of `fill`.
    pub(super) fn make_version(
        &self,
        id: u64,
        zero_states: u8,
        fill: impl FnOnce(&Image<'_>) -> Result<()>,
    ) -> Result<u32> {
        let core = lock(&self.shared.core);
        let index = core.find(id)?;
        let (mut core, memory) = self.take_blank(core, index)?;
        let layout = Arc::clone(&core.layout);
        let numel = core.record(index).numel;
        let before = core.record(index).newest();
        drop(core);
        let image = Image {
            layout: &layout,
            numel,
            memory,
        };
        let checked = self.shared.options.checksum != ChecksumMode::Off;
        let filled = fill(&image).and_then(|()| image.describe(before, zero_states, checked));
        core = lock(&self.shared.core);
        match filled {
            Ok(version) => core.note_changed(index, version, true),
            Err(error) => {
                core.forget(index);
                return Err(error);
            }
        }
        drop(self.shared.pump(core));
        Ok(index)
    }

    /// Takes room for a record whose content does not matter any more.
    pub(super) fn take_blank<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        index: u32,
    ) -> Result<(MutexGuard<'a, Core>, MemoryRange)> {
        loop {
            let record = core.record_mut(index);
            let is_moving = matches!(record.residency, Residency::Reading | Residency::Writing);
            // What only memory has must not get lost if the new values cannot be had.
            let is_only_here = record.dirty && record.residency == Residency::Warm;
            if is_only_here && !record.write_now {
                record.write_now = true;
                core.write_queue.push_back(index);
                core = self.shared.pump(core);
            } else if is_moving || is_only_here || record.in_commit {
                core.tell_failed()?;
                core = self.shared.wait_for(core, false);
            } else {
                break;
            }
        }
        core.forget(index);
        core.unreadable.remove(&index);
        core = self.find_room(core, |core| core.take_room(index))?;
        let memory = self.shared.memory_of(&core, index)?;
        Ok((core, memory))
    }
}

fn fill_master<'a>(
    image: &Image<'_>,
    pieces: impl Iterator<Item = &'a Partition<'a>>,
    files: &mut FileReader<'_>,
) -> Result<()> {
    let master = image.layout.states[0].disk_dtype;
    let bytes = image.bytes(0)?;
    for piece in pieces {
        let start = to_usize(piece.offset * master.size_bytes())?;
        let len = to_usize(piece.tensor.numel * master.size_bytes())?;
        let into = bytes
            .slice(start, len)
            .ok_or_else(|| Error::Internal("a piece lies outside of its state".to_owned()))?;
        match piece.path {
            None => convert_range(piece.tensor.memory, piece.tensor.dtype, into, master)?,
            Some(path) => {
                files.read(&piece.tensor, path, into, master)?;
            }
        }
    }
    Ok(())
}

/// Reads pieces from files, through memory that is used again.
#[derive(Debug)]
pub(super) struct FileReader<'a> {
    engine: &'a Engine,
    room: Option<Buffer>,
    waiting: Arc<Waiting>,
}

impl FileReader<'_> {
    pub(super) fn new(engine: &Engine) -> FileReader<'_> {
        FileReader {
            engine,
            room: None,
            waiting: Arc::default(),
        }
    }

    /// Reads a piece from its file, part by part, and converts it; returns the checksum of what was
    /// read.
    pub(super) fn read(
        &mut self,
        piece: &Tensor,
        path: &CStr,
        into: MemoryRange,
        into_dtype: Dtype,
    ) -> Result<u32> {
        let (from_size, into_size) = (piece.dtype.size_bytes(), into_dtype.size_bytes());
        let part_numel = PART_BYTES / from_size;
        let room = self.room(PART_BYTES.min(piece.numel * from_size))?;
        let mut checksum = Checksum::new();
        let mut done = 0;
        while done < piece.numel {
            let numel = part_numel.min(piece.numel - done);
            let outside = || Error::Internal("a part lies outside of its piece".to_owned());
            let memory = room
                .slice(0, to_usize(numel * from_size)?)
                .ok_or_else(outside)?;
            let tensor = Tensor {
                memory,
                numel,
                file_offset: piece.file_offset + done * from_size,
                ..*piece
            };
            self.waiting.read(self.engine, &[tensor], &[path])?;
            memory.inspect(|bytes| checksum.update(bytes));
            let target = into
                .slice(to_usize(done * into_size)?, to_usize(numel * into_size)?)
                .ok_or_else(outside)?;
            convert_range(memory, piece.dtype, target, into_dtype)?;
            done += numel;
        }
        Ok(checksum.finish())
    }

    /// Reads a list as it is, into the memory of its tensors.
    ///
    /// # Errors
    /// What kept it from being read.
    pub(super) fn read_whole(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<()> {
        self.waiting.read(self.engine, tensors, paths)
    }

    /// Memory of at least this length.
    fn room(&mut self, len_bytes: u64) -> Result<MemoryRange> {
        match &self.room {
            Some(room) if room.len_bytes() >= len_bytes => Ok(room.range()),
            _ => {
                let room = self.engine.allocate_buffer(len_bytes.max(1))?;
                Ok(self.room.insert(room).range())
            }
        }
    }
}

/// Converts all of `from` into `into`.
pub(super) fn convert_range(
    from: MemoryRange,
    from_dtype: Dtype,
    into: MemoryRange,
    to: Dtype,
) -> Result<()> {
    from.inspect(|source| {
        into.update(|target| convert(source, from_dtype, target, to, Rounder::Nearest))
    })
}

/// Whether pieces of one parameter, sorted by offset, can give it its values.
fn check_cover<'a>(core: &Core, pieces: impl Iterator<Item = &'a Partition<'a>>) -> Result<()> {
    let mut covered = None;
    for piece in pieces {
        let id = piece.parameter_id;
        let index = core.find(id)?;
        let record = core.record(index);
        core.check_not_out(index)?;
        let dtype = piece.tensor.dtype;
        if !is_convertible(dtype) {
            return Err(Error::DtypeMismatch(format!(
                "parameter {id} cannot be made from {}: f32, f16 and bf16 are known",
                dtype.name()
            )));
        }
        let (numel, end) = covered.unwrap_or((record.numel, 0));
        if piece.offset != end {
            return Err(Error::invalid(format!(
                "the pieces of parameter {id} must cover it exactly: element {end} is followed by \
                 a piece at {}",
                piece.offset
            )));
        }
        covered = Some((numel, end + piece.tensor.numel));
        let (numel, end) = (numel, end + piece.tensor.numel);
        if end > numel {
            return Err(Error::invalid(format!(
                "parameter {id} has {numel} elements, and a piece ends at {end}"
            )));
        }
    }
    match covered {
        Some((numel, end)) if end < numel => Err(Error::invalid(format!(
            "the pieces of a parameter with {numel} elements cover {end}"
        ))),
        _ => Ok(()),
    }
}
