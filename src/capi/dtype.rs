//! Element types: their numbers, sizes and names.

use std::ffi::c_char;
use std::ptr;

use super::text::{Name, name};
use crate::base::dtype::Dtype;

/// Element type: raw bytes; as the type of a buffer: anything goes.
pub const TSW_BYTES: u32 = 0;
/// Element type: IEEE 754 binary32.
pub const TSW_F32: u32 = 1;
/// Element type: IEEE 754 binary16.
pub const TSW_F16: u32 = 2;
/// Element type: bfloat16: the upper half of a binary32.
pub const TSW_BF16: u32 = 3;
/// Element type: IEEE 754 binary64.
pub const TSW_F64: u32 = 4;
/// Element type: 8-bit float, 4 exponent and 3 mantissa bits.
pub const TSW_F8_E4M3: u32 = 5;
/// Element type: 8-bit float, 5 exponent and 2 mantissa bits.
pub const TSW_F8_E5M2: u32 = 6;
/// Element type: signed 8-bit integer.
pub const TSW_I8: u32 = 7;
/// Element type: signed 16-bit integer.
pub const TSW_I16: u32 = 8;
/// Element type: signed 32-bit integer.
pub const TSW_I32: u32 = 9;
/// Element type: signed 64-bit integer.
pub const TSW_I64: u32 = 10;
/// Element type: unsigned 8-bit integer.
pub const TSW_U8: u32 = 11;
/// Element type: unsigned 16-bit integer.
pub const TSW_U16: u32 = 12;
/// Element type: unsigned 32-bit integer.
pub const TSW_U32: u32 = 13;
/// Element type: unsigned 64-bit integer.
pub const TSW_U64: u32 = 14;
/// Element type: one byte, 0 or 1.
pub const TSW_BOOL: u32 = 15;

/// The names, by number.
static NAMES: [Name; Dtype::ALL.len()] = {
    let mut names = [name(""); Dtype::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = name(Dtype::ALL[index].name());
        index += 1;
    }
    names
};

/// Tell the size of one element in bytes; 0 for a number that is no element type.
///
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_dtype_size(dtype: u32) -> u64 {
    Dtype::from_number(dtype).map_or(0, Dtype::size_bytes)
}

/// Tell the name of an element type, such as "bf16"; NULL for a number that is none.
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_dtype_name(dtype: u32) -> *const c_char {
    let index = usize::try_from(dtype).ok();
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => name.as_ptr().cast(),
        None => ptr::null(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_type_has_its_constant_its_size_and_its_name() {
        let constants = [
            TSW_BYTES,
            TSW_F32,
            TSW_F16,
            TSW_BF16,
            TSW_F64,
            TSW_F8_E4M3,
            TSW_F8_E5M2,
            TSW_I8,
            TSW_I16,
            TSW_I32,
            TSW_I64,
            TSW_U8,
            TSW_U16,
            TSW_U32,
            TSW_U64,
            TSW_BOOL,
        ];
        let numbers: Vec<u32> = Dtype::ALL.iter().map(|dtype| dtype.number()).collect();
        assert_eq!(constants.as_slice(), numbers);
        for dtype in Dtype::ALL {
            assert_eq!(tsw_dtype_size(dtype.number()), dtype.size_bytes());
            // SAFETY: a text of the library.
            let name = unsafe { CStr::from_ptr(tsw_dtype_name(dtype.number())) };
            assert_eq!(name.to_str(), Ok(dtype.name()));
        }
        assert_eq!(tsw_dtype_size(16), 0);
        assert!(tsw_dtype_name(16).is_null() && tsw_dtype_name(u32::MAX).is_null());
    }
}
