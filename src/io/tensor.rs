//! A tensor as the engine sees it: memory, element type, place in a file.

use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{FILE_OFFSET_MAX, to_usize};
use crate::memory::MemoryRange;

/// Gradients accumulate onto what is there (the optimizer's; no effect on files).
pub const ACCUMULATE: u32 = 1;
/// The file keeps its length unless the tensor ends beyond it.
pub const KEEP_LENGTH: u32 = 2;

/// Memory of the caller and its place in a file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub(crate) memory: MemoryRange,
    pub(crate) numel: u64,
    pub(crate) dtype: Dtype,
    pub(crate) flags: u32,
    pub(crate) file_offset: u64,
    pub(crate) user_tag: u64,
}

impl Tensor {
    /// Describes `numel` elements at `data`.
    ///
    /// # Errors
    /// `NullArgument` for NULL data with elements, `InvalidArgument` for sizes that cannot be.
    ///
    /// # Safety
    /// `data` must be valid for the bytes of the tensor, and, when swapped in, writable, from the
    /// moment a request is submitted with it until that request is done; while it is swapped in no
    /// other code may touch it, while it is swapped out no other code may write it.
    #[expect(
        unsafe_code,
        reason = "the caller vouches for the memory; nothing is dereferenced here"
    )]
    pub unsafe fn new(data: *mut u8, numel: u64, dtype: Dtype) -> Result<Tensor> {
        let len_bytes = dtype.bytes_of(numel)?;
        if data.is_null() && len_bytes > 0 {
            return Err(Error::NullArgument("tensor data"));
        }
        let len = to_usize(len_bytes)?;
        if data.addr().checked_add(len).is_none() {
            return Err(Error::invalid(
                "the tensor runs past the end of the address space",
            ));
        }
        // SAFETY: this function's own contract is the range's: the caller keeps the memory valid.
        let memory = unsafe { MemoryRange::new(data, len) };
        Ok(Tensor {
            memory,
            numel,
            dtype,
            flags: 0,
            file_offset: 0,
            user_tag: 0,
        })
    }

    /// Sets the flags ([`ACCUMULATE`], [`KEEP_LENGTH`]).
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown flag.
    pub fn with_flags(mut self, flags: u32) -> Result<Tensor> {
        if flags & !(ACCUMULATE | KEEP_LENGTH) != 0 {
            return Err(Error::invalid(format!(
                "tensor flags {flags:#x} are not known"
            )));
        }
        self.flags = flags;
        Ok(self)
    }

    /// Sets the place of the first byte in its file.
    ///
    /// # Errors
    /// `InvalidArgument` where the tensor would end beyond the largest file offset.
    pub fn at(mut self, file_offset: u64) -> Result<Tensor> {
        let len_bytes = crate::base::units::to_u64(self.memory.len());
        match file_offset.checked_add(len_bytes) {
            Some(end) if end <= FILE_OFFSET_MAX => {
                self.file_offset = file_offset;
                Ok(self)
            }
            _ => Err(Error::invalid(format!(
                "{len_bytes} bytes at file offset {file_offset} end beyond the largest offset"
            ))),
        }
    }

    /// Sets the tag that completions carry.
    #[must_use]
    pub fn tagged(mut self, user_tag: u64) -> Tensor {
        self.user_tag = user_tag;
        self
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        crate::base::units::to_u64(self.memory.len())
    }

    /// One past the last byte in the file.
    pub(crate) fn file_end(&self) -> u64 {
        // Cannot overflow: `at` checked the sum.
        self.file_offset.saturating_add(self.len_bytes())
    }

    /// Whether the file is to end with this list's last tensor.
    pub(crate) fn sets_length(&self) -> bool {
        self.file_offset == 0 && self.flags & KEEP_LENGTH == 0
    }
}
