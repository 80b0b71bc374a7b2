//! The gradients as the optimizer sees them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Instant;

use super::gradient::{Gradient, Values};
use super::lent::Lent;
use super::rooms::Rooms;
use super::spill::Spill;
use crate::base::config::{GradientPlace, GradientType, OptimizerOptions};
use crate::base::error::{Error, Result};
use crate::base::observe::{Gauge, Timer};
use crate::base::sync::{Mutex, lock};
use crate::base::units::MIB;
use crate::io::tensor::ACCUMULATE;
use crate::io::{Engine, Tensor};
use crate::memory::numbers;
use crate::optimizer::GradientNorm;
use crate::sys;

/// The gradients of all parameters, by the number of their record.
///
/// [`lend`](Gradients::lend) and [`give_back`](Gradients::give_back) may be called by several
/// threads at any time, the rest by one thread at a time.
#[derive(Debug)]
pub(crate) struct Gradients {
    shared: Arc<Shared>,
}

/// Sizes that decide how gradients are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Gradients shorter than this stay in memory: a file of their own is not worth it.
    pub(super) spill_from_bytes: u64,
    /// Pinned memory for values that are read, changed and written, a multiple of 64.
    pub(super) chunk_bytes: u64,
}

const LIMITS: Limits = Limits {
    spill_from_bytes: MIB,
    chunk_bytes: 4 * MIB,
};

/// What lent gradients need as well.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) place: GradientPlace,
    pub(super) dtype: GradientType,
    pub(super) limits: Limits,
    /// Memory for gradients that are not told to stay in it.
    pub(super) budget_bytes: u64,
    /// Memory that holds gradients now.
    pub(super) memory: Arc<Gauge>,
    pub(super) rooms: Rooms,
    pub(super) spill: Spill,
    pub(super) timers: GradientTimers,
    /// Never held while values are moved.
    table: Mutex<HashMap<u32, Slot>>,
}

/// The timers of gradients, under DeepSpeed's names.
#[derive(Debug, Default)]
pub(crate) struct GradientTimers {
    /// Taking gradients from the caller.
    pub(crate) swap_out_gradient: Timer,
    /// Waiting for gradients to be written.
    pub(crate) async_swap_gradient_wait: Timer,
    /// Bringing gradients that stayed in memory into the form in which a step sees them.
    pub(crate) unswapped_read_gradients: Timer,
}

/// Where the gradient of a record is.
#[derive(Debug)]
enum Slot {
    Here(Box<Gradient>),
    /// With a caller, or lent.
    Out {
        id: u64,
        is_discarded: bool,
    },
}

impl Gradients {
    /// No gradients yet. Files, where there are to be some, lie in `scratch_directory`.
    pub(crate) fn new(
        engine: &Engine,
        options: &OptimizerOptions,
        scratch_directory: &CStr,
    ) -> Gradients {
        Gradients::with_limits(engine, options, scratch_directory, LIMITS)
    }

    pub(super) fn with_limits(
        engine: &Engine,
        options: &OptimizerOptions,
        scratch_directory: &CStr,
        limits: Limits,
    ) -> Gradients {
        let quarter = || sys::memory_available_bytes().map_or(u64::MAX, |bytes| bytes / 4);
        Gradients {
            shared: Arc::new(Shared {
                place: options.gradients,
                dtype: options.gradient_type,
                limits,
                budget_bytes: options.gradient_bytes.unwrap_or_else(quarter),
                memory: Arc::default(),
                rooms: Rooms::new(engine),
                spill: Spill::new(engine, scratch_directory),
                timers: GradientTimers::default(),
                table: Mutex::default(),
            }),
        }
    }

    /// Takes pieces of the gradient of a parameter with `numel` elements, in order: piece `i`
    /// begins at element `offsets[i]`. With the flag [`ACCUMULATE`] a piece is added to what was
    /// taken before, without it replaces that. The tensors are the caller's again at return.
    ///
    /// # Errors
    /// Before anything is taken: `InvalidArgument` for lists of different lengths and for a piece
    /// that ends beyond the parameter, `DtypeMismatch` for a type other than f32, f16 and bf16,
    /// `Busy` for a gradient that is lent. Else `NoMemory`, and those of files; the elements of
    /// the piece that failed are then undefined.
    pub(crate) fn swap_out(
        &self,
        record: u32,
        id: u64,
        numel: u64,
        offsets: &[u64],
        tensors: &[Tensor],
    ) -> Result<()> {
        check(id, numel, offsets, tensors)?;
        let started = Instant::now();
        let mut gradient = match self.shared.take(record, id)? {
            Some(gradient) => gradient,
            None => Box::new(Gradient::new(id, numel)),
        };
        let kept = offsets
            .iter()
            .zip(tensors)
            .try_for_each(|(offset, tensor)| {
                let values = Values::new(tensor.memory, tensor.dtype, tensor.numel)?;
                let accumulate = tensor.flags & ACCUMULATE != 0;
                self.shared.keep(&mut gradient, *offset, values, accumulate)
            });
        self.shared.put(record, gradient);
        self.shared
            .timers
            .swap_out_gradient
            .record(started.elapsed());
        kept
    }

    /// Lets everything that goes to files be written, without waiting.
    ///
    /// # Errors
    /// `ShutDown`, `Poisoned`, `Forked`.
    pub(crate) fn submit(&self) -> Result<()> {
        self.shared.spill.submit()
    }

    /// Waits until everything that goes to files is written.
    ///
    /// # Errors
    /// The first failure of a write since the last flush, with the parameter's id; `ShutDown`,
    /// `Poisoned`, `Forked`.
    pub(crate) fn flush(&self) -> Result<()> {
        let started = Instant::now();
        if self.shared.spill.flush()? {
            let timer = &self.shared.timers.async_swap_gradient_wait;
            timer.record(started.elapsed());
        }
        Ok(())
    }

    /// Sum of squares and count of values that are not finite; 0 without a gradient. The same for
    /// the same values, wherever they are kept.
    ///
    /// # Errors
    /// `Busy` for a gradient that is lent; those of reading, and of writing earlier.
    pub(crate) fn norm(&self, record: u32) -> Result<GradientNorm> {
        let mut norm = GradientNorm::default();
        let Some(gradient) = self.shared.take_written(record)? else {
            return Ok(norm);
        };
        let summed = self.shared.each_chunk(&gradient, |_, values| {
            let squares = values
                .memory
                .inspect(|bytes| numbers::sum_of_squares(bytes, values.dtype))?;
            norm.sum_of_squares += squares.sum;
            norm.nonfinite_count += squares.nonfinite_count;
            Ok(())
        });
        self.shared.put(record, gradient);
        summed.map(|()| norm)
    }

    /// Ends a parameter's gradient. One that is lent ends when it is given back.
    pub(crate) fn discard(&self, record: u32) {
        if let Some(slot) = lock(&self.shared.table).get_mut(&record) {
            slot.discard();
        }
    }

    /// Ends all gradients.
    pub(crate) fn discard_all(&self) {
        lock(&self.shared.table)
            .values_mut()
            .for_each(Slot::discard);
    }

    /// Lends a parameter's gradient to a step; `None` where nothing of it was swapped out. Any
    /// thread; does not wait.
    ///
    /// # Errors
    /// `Busy` for one that is lent already.
    pub(crate) fn lend(&self, record: u32) -> Result<Option<Lent>> {
        let gradient = self.shared.take_written(record)?;
        Ok(gradient.map(|gradient| Lent::new(&self.shared, record, gradient)))
    }

    /// Takes a gradient back; its view must not be used any more. Unless it is to be kept, it is
    /// over; its memory serves the next one. Any thread; does not wait.
    pub(crate) fn give_back(&self, lent: Lent, keep: bool) {
        let Lent {
            mut gradient,
            record,
            room,
            ..
        } = lent;
        if let Some(room) = room {
            self.shared.rooms.give(room);
        }
        if !keep {
            gradient.written.clear();
        }
        self.shared.put(record, gradient);
    }

    /// Plain memory that holds gradients now, or waits for the next ones.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.shared.memory.get()
    }

    /// Bytes of gradients written to files ever.
    pub(crate) fn spilled_bytes(&self) -> u64 {
        self.shared.spill.written_bytes.get()
    }

    /// Pinned buffers that no view uses now.
    #[cfg(test)]
    pub(super) fn free_rooms_count(&self) -> usize {
        self.shared.rooms.free_count()
    }

    /// The timers.
    pub(crate) fn timers(&self) -> &GradientTimers {
        &self.shared.timers
    }
}

impl Shared {
    /// Takes a record's gradient out of the table, if there is one; either way the caller works
    /// on it until it is [`put`](Shared::put).
    fn take(&self, record: u32, id: u64) -> Result<Option<Box<Gradient>>> {
        let mut table = lock(&self.table);
        let out = Slot::Out {
            id,
            is_discarded: false,
        };
        match table.insert(record, out) {
            None => Ok(None),
            Some(Slot::Here(gradient)) => Ok(Some(gradient)),
            Some(was_out @ Slot::Out { .. }) => {
                table.insert(record, was_out);
                Err(busy(id))
            }
        }
    }

    /// Takes a record's gradient out of the table if something of it was written.
    fn take_written(&self, record: u32) -> Result<Option<Box<Gradient>>> {
        let mut table = lock(&self.table);
        let Some(slot) = table.get_mut(&record) else {
            return Ok(None);
        };
        let id = match slot {
            Slot::Here(gradient) if gradient.written.is_empty() => return Ok(None),
            Slot::Here(gradient) => gradient.id,
            Slot::Out { id, .. } => return Err(busy(*id)),
        };
        let out = Slot::Out {
            id,
            is_discarded: false,
        };
        Ok(match std::mem::replace(slot, out) {
            Slot::Here(gradient) => Some(gradient),
            Slot::Out { .. } => None,
        })
    }

    /// Puts a gradient back into the table.
    fn put(&self, record: u32, mut gradient: Box<Gradient>) {
        let mut table = lock(&self.table);
        if let Some(Slot::Out {
            is_discarded: true, ..
        }) = table.get(&record)
        {
            gradient.written.clear();
        }
        table.insert(record, Slot::Here(gradient));
    }
}

impl Slot {
    fn discard(&mut self) {
        match self {
            Slot::Here(gradient) => gradient.written.clear(),
            Slot::Out { is_discarded, .. } => *is_discarded = true,
        }
    }
}

fn busy(id: u64) -> Error {
    Error::Busy(format!("the gradient of parameter {id} is in use"))
}

/// What must hold of a list before anything of it is taken.
fn check(id: u64, numel: u64, offsets: &[u64], tensors: &[Tensor]) -> Result<()> {
    if offsets.len() != tensors.len() {
        return Err(Error::invalid(format!(
            "{} offsets for {} gradients of parameter {id}",
            offsets.len(),
            tensors.len()
        )));
    }
    for (index, (offset, tensor)) in offsets.iter().zip(tensors).enumerate() {
        if !numbers::is_convertible(tensor.dtype) {
            return Err(Error::DtypeMismatch(format!(
                "gradient {index} of parameter {id} is {}, not f32, f16 or bf16",
                tensor.dtype.name()
            )));
        }
        let end = offset.checked_add(tensor.numel);
        if end.is_none_or(|end| end > numel) {
            return Err(Error::invalid(format!(
                "gradient {index}: {} elements at {offset} end beyond the {numel} of parameter \
                 {id}",
                tensor.numel
            )));
        }
    }
    Ok(())
}
