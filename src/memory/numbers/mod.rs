//! Floating-point values in memory: conversions between f32, f16 and bf16, addition, sums of
//! squares.
//!
//! Values lie in byte slices of any alignment. Everything goes in chunks that stay in the first
//! cache: a chunk is widened to f32 on the stack (`lanes`), and from there stored, added or
//! squared. The loops are plain; they are compiled a second time for AVX2, which is chosen where
//! the processor has it. Results do not depend on the processor, the alignment, or how a
//! parameter is cut into calls.
//!
//! Pure: no I/O, no allocation, no state. Any thread. It lives beside the other code that touches
//! memory because choosing instructions at run time takes `unsafe`.

mod convert;
mod lanes;
mod rounding;
mod squares;
#[cfg(test)]
mod tests;

pub(crate) use convert::{accumulate, convert, convert_in_place};
pub(crate) use rounding::Rounder;
pub(crate) use squares::sum_of_squares;

use crate::base::dtype::Dtype;

/// Whether values of this type can be converted, added and squared.
pub(crate) fn is_convertible(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}
