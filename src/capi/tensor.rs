//! `tsw_tensor`: memory of the caller and its place in a file.

use std::ffi::c_void;

use super::guard::{Failure, Outcome};
use crate::base::dtype::Dtype;
use crate::io::Tensor;
use crate::io::tensor::{ACCUMULATE, KEEP_LENGTH};

/// Flag of a tensor: a gradient is added to what is there already. Without effect on files.
pub const TSW_TENSOR_ACCUMULATE: u32 = 1;
/// Flag of a tensor: the file is not cut to the end of this request, even by a tensor at its
/// beginning.
pub const TSW_TENSOR_KEEP_LENGTH: u32 = 2;

/// Memory of the caller and its place in a file. 64 bytes, frozen.
///
/// Set everything to zero first (`tsw_tensor tensor = {0}`): what is reserved must be zero.
///
/// `data` belongs to the library from the submission until the request is done: it must stay valid,
/// must not be written while it goes out, and not be touched while it comes in. Any address, any
/// length and any file offset will do; a pointer into a `tsw_buffer`, with address, length and
/// offset multiples of 4096, moves without a copy.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_tensor {
    /// The first element; may be NULL where `numel` is 0.
    pub data: *mut c_void,
    /// How many elements.
    pub numel: u64,
    /// Element type: `TSW_BYTES`, `TSW_F32`, ...
    pub dtype: u32,
    /// 0, or `TSW_TENSOR_...` flags.
    pub flags: u32,
    /// Where in the file the first byte is, in bytes.
    pub file_offset: u64,
    /// Any number of the caller's; completions carry it.
    pub user_tag: u64,
    /// Must be zero.
    pub reserved: [u64; 3],
}

impl tsw_tensor {
    /// The tensor as the layers below know it.
    ///
    /// # Safety
    /// As [`Tensor::new`].
    pub(super) unsafe fn checked(&self) -> Outcome<Tensor> {
        if self.reserved != [0; 3] {
            return Err(Failure::invalid("reserved is not zero"));
        }
        let dtype = Dtype::from_number(self.dtype)?;
        // SAFETY: this function's contract.
        let tensor = unsafe { Tensor::new(self.data.cast(), self.numel, dtype) }?;
        Ok(tensor
            .with_flags(self.flags)?
            .at(self.file_offset)?
            .tagged(self.user_tag))
    }
}

// The numbers of the header are those of the layer below.
const _: () = assert!(TSW_TENSOR_ACCUMULATE == ACCUMULATE && TSW_TENSOR_KEEP_LENGTH == KEEP_LENGTH);
