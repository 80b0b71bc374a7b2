//! A gradient while a step uses it.

use std::sync::Arc;
use std::time::Instant;

use super::gradient::{Gradient, Place, Values};
use super::gradients::Shared;
use super::keeping;
use super::spill;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::to_usize;
use crate::memory::numbers::{self, Rounder};
use crate::memory::{Buffer, MemoryRange};

/// A gradient that was lent to a step; to be given back with
/// [`give_back`](super::Gradients::give_back), or its parameter gets no gradient ever again. May
/// go from thread to thread.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(super) shared: Arc<Shared>,
    pub(super) record: u32,
    pub(super) gradient: Box<Gradient>,
    /// Where the view lies, if it is not the gradient's own memory.
    pub(super) room: Option<Buffer>,
    view: Option<MemoryRange>,
}

impl Lent {
    pub(super) fn new(shared: &Arc<Shared>, record: u32, gradient: Box<Gradient>) -> Lent {
        Lent {
            shared: Arc::clone(shared),
            record,
            gradient,
            room: None,
            view: None,
        }
    }

    /// The whole gradient in `dtype`: elements that were not written are zero. Valid until the
    /// gradient is given back; a second call gives the same memory, whatever is in it by then.
    ///
    /// Waits for storage where the gradient lies in a file. What the holder changes in the view
    /// may or may not be seen again where the gradient is kept afterwards.
    ///
    /// # Errors
    /// `Unsupported` for a type other than f32, f16 and bf16; `NoMemory`, `Memlock` where a
    /// pinned buffer is needed; those of reading, and of writing earlier. It can be tried again.
    pub(crate) fn view(&mut self, dtype: Dtype) -> Result<MemoryRange> {
        if let Some(view) = self.view {
            return Ok(view);
        }
        if !numbers::is_convertible(dtype) {
            let name = dtype.name();
            return Err(Error::Unsupported {
                message: format!("gradients come as f32, f16 or bf16, not as {name}"),
                errno: 0,
            });
        }
        let started = Instant::now();
        let numel = self.gradient.numel;
        let all = match &self.gradient.place {
            Place::Memory(held) if self.gradient.dtype == dtype => held.range(),
            _ => self.fill_room(dtype)?,
        };
        let view = Values::new(all, dtype, numel)?;
        for gap in self.gradient.written.gaps(numel) {
            let part = view.part(gap.start, gap.end - gap.start)?.memory;
            part.zero(0, part.len())?;
        }
        if matches!(self.gradient.place, Place::Memory(_)) {
            let timers = &self.shared.timers;
            timers.unswapped_read_gradients.record(started.elapsed());
        }
        self.view = Some(view.memory);
        Ok(view.memory)
    }

    /// Brings the gradient into a pinned buffer, in `dtype`. Elements that were not written are
    /// undefined there.
    fn fill_room(&mut self, dtype: Dtype) -> Result<MemoryRange> {
        let gradient = &self.gradient;
        let wider = gradient
            .bytes_in(dtype)?
            .max(gradient.bytes_in(gradient.dtype)?);
        let room = self.shared.rooms.take(wider)?;
        let range = room.range();
        match self.fill(range, dtype) {
            Ok(()) => {
                self.room = Some(room);
                Ok(range)
            }
            Err(error) => {
                self.shared.rooms.give(room);
                Err(error)
            }
        }
    }

    fn fill(&self, room: MemoryRange, dtype: Dtype) -> Result<()> {
        let gradient = &self.gradient;
        let kept = gradient.dtype;
        match &gradient.place {
            Place::Memory(held) => {
                let from = Values::new(held.range(), kept, gradient.numel)?;
                let to = Values::new(room, dtype, gradient.numel)?;
                for part in gradient.written.iter() {
                    let numel = part.end - part.start;
                    keeping::convert(from.part(part.start, numel)?, to.part(part.start, numel)?)?;
                }
                Ok(())
            }
            Place::File(path) => {
                let all = Values::new(room, kept, gradient.numel)?;
                let tensors = gradient.written.iter().map(|part| {
                    let numel = part.end - part.start;
                    let memory = all.part(part.start, numel)?.memory;
                    spill::tensor(memory, kept, part.start, numel)
                });
                self.shared
                    .spill
                    .read(path, &tensors.collect::<Result<Vec<_>>>()?)?;
                let numel = to_usize(gradient.numel)?;
                room.update(|bytes| {
                    numbers::convert_in_place(bytes, numel, kept, dtype, Rounder::Nearest)
                })
            }
            Place::Nowhere => Err(Error::Internal("a gradient has no place".to_owned())),
        }
    }
}
