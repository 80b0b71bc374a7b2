//! Keeping values: where they go, and reading them again.

use std::ops::Range;

use super::gradient::{Gradient, Held, Place, Values};
use super::gradients::Shared;
use super::spill;
use crate::base::config::{GradientPlace, GradientType};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::to_usize;
use crate::memory::MemoryRange;
use crate::memory::numbers::{self, Rounder};

impl Shared {
    /// Keeps `values` as the elements from `first` on, or adds them to what was written there.
    ///
    /// # Errors
    /// `NoMemory`, and those of writing and reading files. The elements are then undefined, but
    /// count as written only where they did before.
    pub(super) fn keep(
        &self,
        gradient: &mut Gradient,
        first: u64,
        values: Values,
        accumulate: bool,
    ) -> Result<()> {
        if values.numel == 0 {
            return Ok(());
        }
        self.prepare(gradient, values.dtype)?;
        let range = first..first + values.numel;
        if accumulate {
            for (part, is_written) in gradient.written.parts(range.clone()) {
                let values = values.part(part.start - first, part.end - part.start)?;
                if is_written {
                    self.add(gradient, part.start, values)?;
                } else {
                    self.write(gradient, part.start, values)?;
                }
            }
        } else {
            self.write(gradient, first, values)?;
        }
        gradient.written.insert(range);
        Ok(())
    }

    /// Gives a gradient a place in which values of type `incoming` can be kept, and brings along
    /// what was written.
    fn prepare(&self, gradient: &mut Gradient, incoming: Dtype) -> Result<()> {
        let is_new = gradient.written.is_empty();
        let dtype = match self.dtype {
            GradientType::F32 => Dtype::F32,
            GradientType::F16 => Dtype::F16,
            GradientType::Bf16 => Dtype::Bf16,
            GradientType::Auto if is_new || gradient.dtype == incoming => incoming,
            GradientType::Auto => Dtype::F32,
        };
        if !is_new && gradient.dtype == dtype {
            return Ok(());
        }
        let len_bytes = gradient.bytes_in(dtype)?;
        match &gradient.place {
            Place::Memory(held) if held.len_bytes() >= len_bytes => {
                if !is_new {
                    let numel = to_usize(gradient.numel)?;
                    let (from, rounder) = (gradient.dtype, Rounder::Nearest);
                    held.range().update(|bytes| {
                        numbers::convert_in_place(bytes, numel, from, dtype, rounder)
                    })?;
                }
            }
            _ if is_new => {
                // What is too short is freed before its successor is allocated.
                gradient.place = Place::Nowhere;
                gradient.place = self.place_for(gradient, dtype)?;
            }
            _ => return self.move_to(gradient, dtype),
        }
        gradient.dtype = dtype;
        Ok(())
    }

    /// Chooses a place for a gradient in a type.
    fn place_for(&self, gradient: &Gradient, dtype: Dtype) -> Result<Place> {
        let len_bytes = gradient.bytes_in(dtype)?;
        let is_short = len_bytes < self.limits.spill_from_bytes;
        let file = || self.spill.file(gradient.id, dtype).map(Place::File);
        let memory = || Held::allocate(len_bytes, &self.memory).map(Place::Memory);
        let left_bytes = self.budget_bytes.saturating_sub(self.memory.get());
        match self.place {
            GradientPlace::Memory => memory(),
            _ if is_short => memory(),
            GradientPlace::Auto if len_bytes <= left_bytes => match memory() {
                Err(Error::NoMemory(_)) => file(),
                placed => placed,
            },
            GradientPlace::Auto | GradientPlace::Disk => file(),
        }
    }

    /// Brings what was written to a new place, in another type.
    fn move_to(&self, gradient: &mut Gradient, dtype: Dtype) -> Result<()> {
        let mut moved = Gradient::new(gradient.id, gradient.numel);
        moved.place = self.place_for(gradient, dtype)?;
        moved.dtype = dtype;
        self.each_chunk(gradient, |first, values| self.write(&moved, first, values))?;
        moved.written = std::mem::take(&mut gradient.written);
        *gradient = moved;
        Ok(())
    }

    /// Writes values over the elements from `first` on.
    fn write(&self, gradient: &Gradient, first: u64, values: Values) -> Result<()> {
        match &gradient.place {
            Place::Memory(held) => {
                let all = Values::new(held.range(), gradient.dtype, gradient.numel)?;
                convert(values, all.part(first, values.numel)?)
            }
            Place::File(path) if gradient.dtype == values.dtype => {
                let tensor = spill::tensor(values.memory, values.dtype, first, values.numel)?;
                self.spill.write(path, tensor)
            }
            Place::File(path) => self.with_chunk(|chunk| {
                for part in self.chunks(0..values.numel) {
                    let numel = part.end - part.start;
                    let room = Values::new(chunk, gradient.dtype, numel)?;
                    convert(values.part(part.start, numel)?, room)?;
                    let first = first + part.start;
                    let tensor = spill::tensor(room.memory, room.dtype, first, numel)?;
                    self.spill.write(path, tensor)?;
                }
                Ok(())
            }),
            Place::Nowhere => Err(nowhere()),
        }
    }

    /// Adds values to the elements from `first` on, all of which were written.
    fn add(&self, gradient: &Gradient, first: u64, values: Values) -> Result<()> {
        match &gradient.place {
            Place::Memory(held) => {
                let all = Values::new(held.range(), gradient.dtype, gradient.numel)?;
                accumulate(all.part(first, values.numel)?, values)
            }
            Place::File(path) => self.with_chunk(|chunk| {
                for part in self.chunks(0..values.numel) {
                    let numel = part.end - part.start;
                    let sums = Values::new(chunk, gradient.dtype, numel)?;
                    let first = first + part.start;
                    let tensor = spill::tensor(sums.memory, sums.dtype, first, numel)?;
                    self.spill.read(path, &[tensor])?;
                    accumulate(sums, values.part(part.start, numel)?)?;
                    self.spill.write(path, tensor)?;
                }
                Ok(())
            }),
            Place::Nowhere => Err(nowhere()),
        }
    }

    /// Shows everything that was written, in order, cut in the same way wherever it lies.
    ///
    /// # Errors
    /// Those of reading files, and of `look`.
    pub(super) fn each_chunk(
        &self,
        gradient: &Gradient,
        mut look: impl FnMut(u64, Values) -> Result<()>,
    ) -> Result<()> {
        let parts = gradient.written.iter().flat_map(|range| self.chunks(range));
        match &gradient.place {
            Place::Memory(held) => {
                let all = Values::new(held.range(), gradient.dtype, gradient.numel)?;
                for part in parts {
                    look(part.start, all.part(part.start, part.end - part.start)?)?;
                }
                Ok(())
            }
            Place::File(path) => self.with_chunk(|chunk| {
                for part in parts {
                    let numel = part.end - part.start;
                    let values = Values::new(chunk, gradient.dtype, numel)?;
                    let tensor = spill::tensor(values.memory, values.dtype, part.start, numel)?;
                    self.spill.read(path, &[tensor])?;
                    look(part.start, values)?;
                }
                Ok(())
            }),
            Place::Nowhere => Ok(()),
        }
    }

    /// Lends pinned memory for one chunk.
    fn with_chunk(&self, work: impl FnOnce(MemoryRange) -> Result<()>) -> Result<()> {
        let room = self.rooms.take(self.limits.chunk_bytes)?;
        let worked = work(room.range());
        self.rooms.give(room);
        worked
    }

    /// Cuts a range of elements into chunks, of as many values as fit in any type.
    fn chunks(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let chunk_numel = self.limits.chunk_bytes / Dtype::F32.size_bytes();
        let mut start = range.start;
        std::iter::from_fn(move || {
            let end = range.end.min(start.saturating_add(chunk_numel));
            let chunk = start..end;
            start = end;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

/// Converts values to as many of another type.
///
/// # Errors
/// As [`numbers::convert`].
pub(super) fn convert(from: Values, to: Values) -> Result<()> {
    from.memory.inspect(|from_bytes| {
        to.memory.update(|to_bytes| {
            let rounder = Rounder::Nearest;
            numbers::convert(from_bytes, from.dtype, to_bytes, to.dtype, rounder)
        })
    })
}

fn accumulate(into: Values, from: Values) -> Result<()> {
    from.memory.inspect(|from_bytes| {
        into.memory.update(|into_bytes| {
            numbers::accumulate(into_bytes, into.dtype, from_bytes, from.dtype)
        })
    })
}

fn nowhere() -> Error {
    Error::Internal("a gradient has no place".to_owned())
}
