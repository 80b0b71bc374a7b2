//! Tensors of other frameworks, described by DLPack (dmlc/dlpack, version 1; the layout of
//! `DLTensor` is the same in every version).

use std::ffi::c_void;

use super::dtype::{
    TSW_BF16, TSW_BOOL, TSW_F8_E4M3, TSW_F8_E5M2, TSW_F16, TSW_F32, TSW_F64, TSW_I8, TSW_I16,
    TSW_I32, TSW_I64, TSW_U8, TSW_U16, TSW_U32, TSW_U64,
};
use super::guard::{self, Failure, Outcome};
use super::status::tsw_status;
use super::tensor::tsw_tensor;
use crate::base::dtype::Dtype;
use crate::base::error::Error;

/// The part of `dlpack.h` that is needed here; the names are its own.
#[repr(C)]
struct DLTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype_code: u8,
    dtype_bits: u8,
    dtype_lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// Memory of the host: plain, and pinned for CUDA and for ROCm.
const HOST_DEVICES: [i32; 3] = [1, 3, 11];
/// BOUND: dimensions; frameworks stop at 64.
const NDIM_MAX: i32 = 1024;

fn unsupported(message: String) -> Failure {
    Error::Unsupported { message, errno: 0 }.into()
}

/// Our number for `DLDataType`.
fn dtype_of(code: u8, bits: u8, lanes: u16) -> Outcome<u32> {
    let dtype = match (code, bits) {
        (0, 8) => TSW_I8,
        (0, 16) => TSW_I16,
        (0, 32) => TSW_I32,
        (0, 64) => TSW_I64,
        (1, 8) => TSW_U8,
        (1, 16) => TSW_U16,
        (1, 32) => TSW_U32,
        (1, 64) => TSW_U64,
        (2, 16) => TSW_F16,
        (2, 32) => TSW_F32,
        (2, 64) => TSW_F64,
        (4, 16) => TSW_BF16,
        (6, 8) => TSW_BOOL,
        // kDLFloat8_e4m3, kDLFloat8_e4m3fn
        (8 | 10, 8) => TSW_F8_E4M3,
        // kDLFloat8_e5m2
        (12, 8) => TSW_F8_E5M2,
        _ => {
            return Err(unsupported(format!(
                "dl_tensor: no element type has code {code} and {bits} bits here"
            )));
        }
    };
    if lanes != 1 {
        return Err(unsupported(format!(
            "dl_tensor: elements have {lanes} lanes"
        )));
    }
    Ok(dtype)
}

/// The number of elements, which must lie side by side, the last dimension fastest.
fn numel_of(shape: &[i64], strides: Option<&[i64]>) -> Outcome<u64> {
    if shape.iter().any(|length| *length < 0) {
        return Err(Failure::invalid("dl_tensor: a dimension is negative"));
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let mut numel: u64 = 1;
    for (index, length) in shape.iter().enumerate().rev() {
        // The stride of a dimension of one element is never used.
        if let Some(strides) = strides
            && *length > 1
            && u64::try_from(strides[index]) != Ok(numel)
        {
            return Err(unsupported(format!(
                "dl_tensor: dimension {index} has stride {}, {numel} would be compact",
                strides[index]
            )));
        }
        numel = numel
            .checked_mul(length.unsigned_abs())
            .ok_or_else(|| Failure::invalid("dl_tensor: too many elements"))?;
    }
    Ok(numel)
}

/// # Safety
/// `dl` is a `DLTensor` whose shape, and strides where there are any, have `ndim` elements.
unsafe fn describe(dl: &DLTensor) -> Outcome<tsw_tensor> {
    if !HOST_DEVICES.contains(&dl.device_type) {
        return Err(unsupported(format!(
            "dl_tensor: device type {} is no memory of the host",
            dl.device_type
        )));
    }
    let dtype = dtype_of(dl.dtype_code, dl.dtype_bits, dl.dtype_lanes)?;
    let ndim = usize::try_from(dl.ndim)
        .ok()
        .filter(|_| dl.ndim <= NDIM_MAX)
        .ok_or_else(|| Failure::invalid(format!("dl_tensor: {} dimensions", dl.ndim)))?;
    if ndim > 0 && dl.shape.is_null() {
        return Err(Failure::null("dl_tensor shape"));
    }
    // SAFETY: this function's contract; NULL is replaced where nothing is read.
    let list = |start: *const i64| unsafe {
        match ndim {
            0 => &[],
            ndim => std::slice::from_raw_parts(start, ndim),
        }
    };
    let strides = (!dl.strides.is_null()).then(|| list(dl.strides));
    let numel = numel_of(list(dl.shape), strides)?;
    Dtype::from_number(dtype)?.bytes_of(numel)?;
    let data = match (dl.data.is_null(), numel) {
        (true, 0) => dl.data,
        (true, _) => return Err(Failure::null("dl_tensor data")),
        (false, _) => {
            let offset = usize::try_from(dl.byte_offset)
                .ok()
                .filter(|offset| dl.data.addr().checked_add(*offset).is_some())
                .ok_or_else(|| Failure::invalid("dl_tensor: byte_offset is out of range"))?;
            dl.data.wrapping_byte_add(offset)
        }
    };
    Ok(tsw_tensor {
        data,
        numel,
        dtype,
        flags: 0,
        file_offset: 0,
        user_tag: 0,
        reserved: [0; 3],
    })
}

/// Describe a tensor of another framework.
///
/// `dl_tensor` is a `const DLTensor *` of DLPack, such as `&managed->dl_tensor`. Its memory must be
/// the host's (kDLCPU, kDLCUDAHost or kDLROCMHost), its strides NULL or compact with the last
/// dimension fastest, its lanes 1; `byte_offset` is honoured. `file_offset`, `flags` and `user_tag`
/// of the result are 0 and may be set afterwards.
///
/// Ownership: nothing is copied and nothing kept. The framework's object must outlive every request
/// with the result.
/// Threads: any.
/// Errors: UNSUPPORTED for other devices, strides, lanes or element types; INVALID_ARGUMENT for a
/// shape that cannot be; NULL_ARGUMENT. The result is then all zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_tensor_from_dlpack(
    dl_tensor: *const c_void,
    tensor_out: *mut tsw_tensor,
) -> tsw_status {
    if !tensor_out.is_null() {
        // SAFETY: the caller's structure; zero is valid for each of its fields.
        unsafe { std::ptr::write_bytes(tensor_out, 0, 1) };
    }
    guard::call(|| {
        // SAFETY: the caller's `DLTensor`, or NULL.
        let dl = unsafe { dl_tensor.cast::<DLTensor>().as_ref() }
            .ok_or_else(|| Failure::null("dl_tensor"))?;
        if tensor_out.is_null() {
            return Err(Failure::null("tensor_out"));
        }
        // SAFETY: as above; the caller vouches for its lists.
        let tensor = unsafe { describe(dl) }?;
        // SAFETY: the caller's structure.
        unsafe { tensor_out.write(tensor) };
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Status;

    fn numel(shape: &[i64], strides: Option<&[i64]>) -> Result<u64, Status> {
        numel_of(shape, strides).map_err(|failure| failure.status)
    }

    #[test]
    fn compact_shapes_are_counted_and_others_refused() {
        assert_eq!(numel(&[], None), Ok(1));
        assert_eq!(numel(&[2, 3, 4], None), Ok(24));
        assert_eq!(numel(&[2, 3, 4], Some(&[12, 4, 1])), Ok(24));
        assert_eq!(numel(&[2, 1, 4], Some(&[4, 77, 1])), Ok(8));
        assert_eq!(numel(&[2, 0, 4], Some(&[9, 9, 9])), Ok(0));
        assert_eq!(numel(&[2, 3], Some(&[1, 2])), Err(Status::Unsupported));
        assert_eq!(numel(&[2, 3], Some(&[-3, 1])), Err(Status::Unsupported));
        assert_eq!(numel(&[-2, 3], None), Err(Status::InvalidArgument));
        assert_eq!(numel(&[-2, 0], None), Err(Status::InvalidArgument));
        let huge = [i64::MAX, i64::MAX, i64::MAX];
        assert_eq!(numel(&huge, None), Err(Status::InvalidArgument));
        assert_eq!(numel(&[i64::MAX, i64::MAX, 0], None), Ok(0));
    }
}
