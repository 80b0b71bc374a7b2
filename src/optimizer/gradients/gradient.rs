//! The gradient of one parameter, and where it lies.

use std::ffi::CString;
use std::sync::Arc;

use super::intervals::Intervals;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::Gauge;
use crate::base::units::to_usize;
use crate::memory::{Block, MemoryRange};

/// The gradient of one parameter: which elements were written, and their values.
#[derive(Debug)]
pub(super) struct Gradient {
    pub(super) id: u64,
    pub(super) numel: u64,
    /// The elements written since the gradient began.
    pub(super) written: Intervals,
    /// The type of the values that are kept; means nothing while none is written.
    pub(super) dtype: Dtype,
    pub(super) place: Place,
}

/// Where values are kept: element `i` at `i` times the size of the gradient's type.
#[derive(Debug)]
pub(super) enum Place {
    /// Nowhere yet.
    Nowhere,
    /// In memory, which outlasts the gradient and serves the next one.
    Memory(Held),
    /// In a file.
    File(CString),
}

impl Gradient {
    pub(super) fn new(id: u64, numel: u64) -> Gradient {
        Gradient {
            id,
            numel,
            written: Intervals::default(),
            dtype: Dtype::F32,
            place: Place::Nowhere,
        }
    }

    /// Bytes of all values in a type.
    pub(super) fn bytes_in(&self, dtype: Dtype) -> Result<u64> {
        dtype.bytes_of(self.numel)
    }
}

/// Memory that holds a gradient, and is counted while it does.
#[derive(Debug)]
pub(super) struct Held {
    block: Block,
    total: Arc<Gauge>,
}

impl Held {
    /// Allocates and counts.
    ///
    /// # Errors
    /// `NoMemory`.
    pub(super) fn allocate(len_bytes: u64, total: &Arc<Gauge>) -> Result<Held> {
        let block = Block::allocate(len_bytes)?;
        total.add(block.len_bytes());
        Ok(Held {
            block,
            total: Arc::clone(total),
        })
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.block.len_bytes()
    }

    pub(super) fn range(&self) -> MemoryRange {
        self.block.range()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.sub(self.block.len_bytes());
    }
}

/// Values of one type in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    pub(super) memory: MemoryRange,
    pub(super) dtype: Dtype,
    pub(super) numel: u64,
}

impl Values {
    /// The first `numel` values of a type in `memory`.
    ///
    /// # Errors
    /// `Internal` where they do not fit.
    pub(super) fn new(memory: MemoryRange, dtype: Dtype, numel: u64) -> Result<Values> {
        let len = to_usize(dtype.bytes_of(numel)?)?;
        let memory = memory
            .slice(0, len)
            .ok_or_else(|| Error::Internal(format!("{numel} values in {} bytes", memory.len())))?;
        Ok(Values {
            memory,
            dtype,
            numel,
        })
    }

    /// `numel` values from the one with index `first` on.
    ///
    /// # Errors
    /// `Internal` where they are not all there.
    pub(super) fn part(self, first: u64, numel: u64) -> Result<Values> {
        let start = to_usize(self.dtype.bytes_of(first)?)?;
        let len = to_usize(self.dtype.bytes_of(numel)?)?;
        let memory = self.memory.slice(start, len).ok_or_else(|| {
            Error::Internal(format!("{numel} values at {first} of {}", self.numel))
        })?;
        Ok(Values {
            memory,
            dtype: self.dtype,
            numel,
        })
    }
}
