//! `tsw_partition`: one piece of a parameter.

use std::ffi::{CStr, c_char};

use super::guard::{Failure, Outcome};
use super::tensor::tsw_tensor;
use crate::base::error::Error;
use crate::optimizer::Partition;

/// One piece of a parameter, in memory or in a raw file. 112 bytes, frozen.
///
/// Set everything to zero first (`tsw_partition piece = {0}`): what is reserved must be zero.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_partition {
    /// The parameter.
    pub param_id: u64,
    /// Elements of the parameter before the piece.
    pub offset: u64,
    /// The piece, f32, f16 or bf16. With a `path`, `numel`, `dtype` and `file_offset` tell where it
    /// lies in that file, and `data` may be NULL.
    pub tensor: tsw_tensor,
    /// The file, or NULL where the piece is in memory.
    pub path: *const c_char,
    /// Must be zero.
    pub reserved: [u64; 3],
}

impl tsw_partition {
    /// The piece as the layer below knows it.
    ///
    /// # Safety
    /// As [`tsw_tensor::checked`]; the path is NULL or ends in NUL and stays for `'a`.
    unsafe fn checked<'a>(&self) -> Outcome<Partition<'a>> {
        if self.reserved != [0; 3] {
            return Err(Failure::invalid("reserved is not zero"));
        }
        let mut tensor = self.tensor;
        if !self.path.is_null() && tensor.data.is_null() {
            // What lies in a file needs no memory; the address is never used.
            tensor.data = std::ptr::dangling_mut::<u64>().cast();
        }
        Ok(Partition {
            parameter_id: self.param_id,
            offset: self.offset,
            // SAFETY: this function's contract.
            tensor: unsafe { tensor.checked() }?,
            path: match self.path.is_null() {
                true => None,
                // SAFETY: not NULL, and this function's contract.
                false => Some(unsafe { CStr::from_ptr(self.path) }),
            },
        })
    }
}

/// Checks a caller's list of pieces.
///
/// # Safety
/// `partitions` has `count` elements, each as [`tsw_partition::checked`] demands.
pub(super) unsafe fn checked<'a>(
    partitions: *const tsw_partition,
    count: usize,
) -> Outcome<Vec<Partition<'a>>> {
    if count > 0 && partitions.is_null() {
        return Err(Failure::null("partitions"));
    }
    let mut pieces = Vec::new();
    pieces
        .try_reserve_exact(count)
        .map_err(|_| Error::NoMemory(format!("a list of {count} partitions")))?;
    for index in 0..count {
        // SAFETY: `index` is below `count`, and this function's contract.
        let piece = unsafe { (*partitions.add(index)).checked() };
        pieces.push(piece.map_err(|failure| failure.at("partitions", index))?);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Status;

    fn piece() -> tsw_partition {
        tsw_partition {
            param_id: 3,
            offset: 5,
            tensor: tsw_tensor {
                data: std::ptr::null_mut(),
                numel: 7,
                dtype: 3,
                flags: 0,
                file_offset: 11,
                user_tag: 0,
                reserved: [0; 3],
            },
            path: c"file".as_ptr(),
            reserved: [0; 3],
        }
    }

    fn outcome(pieces: &[tsw_partition]) -> Outcome<Vec<Partition<'static>>> {
        // SAFETY: the list is as long as it is; the memory is not touched.
        unsafe { checked(pieces.as_ptr(), pieces.len()) }
    }

    #[test]
    fn a_piece_in_a_file_needs_no_memory() {
        let pieces = outcome(&[piece()]).unwrap();
        assert_eq!((pieces[0].parameter_id, pieces[0].offset), (3, 5));
        assert_eq!(pieces[0].tensor.numel, 7);
        assert_eq!(pieces[0].tensor.file_offset, 11);
        assert_eq!(pieces[0].path, Some(c"file"));
    }

    #[test]
    fn a_bad_piece_is_named() {
        let mut bad = piece();
        bad.reserved[2] = 1;
        let failure = outcome(&[piece(), bad]).unwrap_err();
        assert_eq!(failure.message, "partitions[1]: reserved is not zero");
        let mut bad = piece();
        bad.path = std::ptr::null();
        let failure = outcome(&[bad]).unwrap_err();
        assert_eq!(failure.status, Status::NullArgument);
        assert!(outcome(&[]).unwrap().is_empty());
        // SAFETY: nothing is read.
        let failure = unsafe { checked(std::ptr::null(), 1) }.unwrap_err();
        assert_eq!(failure.message, "partitions is NULL");
        // SAFETY: nothing is read: there is no room for that many.
        let failure = unsafe { checked(&raw const bad, usize::MAX) }.unwrap_err();
        assert_eq!(failure.status, Status::NoMemory);
    }
}
