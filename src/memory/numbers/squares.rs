//! The sum of squares, for the norm of a gradient.

use super::convert::size_of;
use super::lanes::{CHUNK, load, vectorized};
use crate::base::dtype::Dtype;
use crate::base::error::Result;

/// Sums kept side by side, so that additions need not wait for each other. Value `i` goes to sum
/// `i` modulo this, whatever the instructions: the result is the same on every processor.
const LANES: usize = 16;

/// Squares of finite values summed, and how many values were not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct SquareSum {
    /// Sum of the squares of the finite values.
    pub(crate) sum: f64,
    /// Infinities and NaNs.
    pub(crate) nonfinite_count: u64,
}

/// Sums the squares of the values in `bytes`. A square of an f32 is exact in f64; the additions
/// round to nearest, in an order that depends on the number of values alone.
///
/// # Errors
/// `Unsupported` for a type other than f32, f16 and bf16; `Internal` for half a value.
pub(crate) fn sum_of_squares(bytes: &[u8], dtype: Dtype) -> Result<SquareSum> {
    let value_bytes = size_of(dtype)?;
    let mut values = [0.0; CHUNK];
    let mut sums = [0.0; LANES];
    let mut nonfinite_count = 0;
    for chunk in bytes.chunks(CHUNK * value_bytes) {
        let count = chunk.len() / value_bytes;
        load(chunk, dtype, &mut values[..count])?;
        // Zeroes add nothing: the last chunk is filled up to whole rounds of the lanes.
        let values = &mut values[..count.next_multiple_of(LANES)];
        values[count..].fill(0.0);
        let before = sums;
        add_squares(values, &mut sums);
        // The square of a finite f32 is far below the largest f64, so only a value that is not
        // finite makes a sum infinite or NaN.
        if !sums.iter().all(|sum| sum.is_finite()) {
            sums = before;
            nonfinite_count += clear_nonfinite(values);
            add_squares(values, &mut sums);
        }
    }
    Ok(SquareSum {
        sum: sums.iter().sum(),
        nonfinite_count,
    })
}

/// Sets what is infinite or NaN to zero; returns how many there were.
fn clear_nonfinite(values: &mut [f32]) -> u64 {
    let mut count = 0;
    for value in values.iter_mut().filter(|value| !value.is_finite()) {
        *value = 0.0;
        count += 1;
    }
    count
}

vectorized! {
    /// Adds the square of value `i` to sum `i` modulo their number.
    fn add_squares(values: &[f32], sums: &mut [f64; LANES]) {
        let mut totals = *sums;
        for round in values.as_chunks::<LANES>().0 {
            for (total, value) in totals.iter_mut().zip(round) {
                let value = f64::from(*value);
                *total += value * value;
            }
        }
        *sums = totals;
    }
}
