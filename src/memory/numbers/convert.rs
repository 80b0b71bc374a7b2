//! Conversions between types, and addition, on whole slices.

use std::ops::Range;

use super::lanes::{CHUNK, load, store, unsupported};
use super::rounding::Rounder;
use crate::base::cache::{TOUCH_BYTES, touch};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{to_u64, to_usize};

/// Values that are brought into the cache together: whole chunks.
const GROUP: usize = TOUCH_BYTES / 4;

/// Converts the `numel` values at the start of `region` from one type to another, in place; they
/// begin at the start of `region` afterwards too. What lies behind them there is not defined,
/// where they became narrower. Of equal types nothing is done, whatever they are.
///
/// # Errors
/// `Unsupported` for different types of which one is not f32, f16 or bf16; `Internal` where the
/// values of either type do not fit `region`. Nothing is changed then.
pub(crate) fn convert_in_place(
    region: &mut [u8],
    numel: usize,
    from: Dtype,
    to: Dtype,
    rounder: Rounder,
) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let (from_bytes, to_bytes) = (size_of(from)?, size_of(to)?);
    let room = region.len() / from_bytes.max(to_bytes);
    if numel > room {
        return Err(Error::Internal(format!(
            "{numel} values in a region for {room}"
        )));
    }
    let mut values = [0.0; CHUNK];
    let mut convert_group = |start: usize| {
        let group_end = numel.min(start + GROUP);
        touch(&region[start * from_bytes..group_end * from_bytes]);
        touch(&region[start * to_bytes..group_end * to_bytes]);
        let mut convert = |first: usize| {
            let end = group_end.min(first + CHUNK);
            let values = &mut values[..end - first];
            load(&region[first * from_bytes..end * from_bytes], from, values)?;
            let to_region = &mut region[first * to_bytes..end * to_bytes];
            store(values, to_region, to, rounder.after(to_u64(first)))
        };
        in_order(start..group_end, CHUNK, to_bytes > from_bytes).try_for_each(&mut convert)
    };
    // A chunk is on the stack before its place is overwritten, and the direction is the one in
    // which the values of other chunks are overwritten only after they were converted.
    in_order(0..numel, GROUP, to_bytes > from_bytes).try_for_each(&mut convert_group)
}

/// Every `step`th number of a range, the last of them first where `backward`.
fn in_order(range: Range<usize>, step: usize, backward: bool) -> impl Iterator<Item = usize> {
    let count = range.len().div_ceil(step);
    (0..count).map(move |index| {
        let index = if backward { count - 1 - index } else { index };
        range.start + index * step
    })
}

/// Converts the values in `from` to `to`. Of equal types it is a copy, whatever they are.
///
/// # Errors
/// `Unsupported` for different types of which one is not f32, f16 or bf16; `Internal` where the
/// lengths do not agree.
pub(crate) fn convert(
    from: &[u8],
    from_type: Dtype,
    to: &mut [u8],
    to_type: Dtype,
    rounder: Rounder,
) -> Result<()> {
    if from_type == to_type {
        check_lengths(from.len(), to.len())?;
        to.copy_from_slice(from);
        return Ok(());
    }
    let (from_bytes, to_bytes) = (size_of(from_type)?, size_of(to_type)?);
    check_lengths(from.len() / from_bytes, to.len() / to_bytes)?;
    let mut values = [0.0; CHUNK];
    let chunks = from
        .chunks(CHUNK * from_bytes)
        .zip(to.chunks_mut(CHUNK * to_bytes));
    for (index, (from, to)) in chunks.enumerate() {
        let values = &mut values[..from.len() / from_bytes];
        load(from, from_type, values)?;
        let first = to_u64(index * CHUNK);
        store(values, to, to_type, rounder.after(first))?;
    }
    Ok(())
}

/// Adds the values in `from` to those in `into`: in f32, rounded to the nearest.
///
/// # Errors
/// `Unsupported` for a type other than f32, f16 and bf16; `Internal` where the lengths do not
/// agree.
pub(crate) fn accumulate(
    into: &mut [u8],
    into_type: Dtype,
    from: &[u8],
    from_type: Dtype,
) -> Result<()> {
    let (from_bytes, into_bytes) = (size_of(from_type)?, size_of(into_type)?);
    check_lengths(from.len() / from_bytes, into.len() / into_bytes)?;
    let (mut sums, mut values) = ([0.0; CHUNK], [0.0; CHUNK]);
    let chunks = from
        .chunks(CHUNK * from_bytes)
        .zip(into.chunks_mut(CHUNK * into_bytes));
    for (from, into) in chunks {
        let count = from.len() / from_bytes;
        let (sums, values) = (&mut sums[..count], &mut values[..count]);
        load(into, into_type, sums)?;
        load(from, from_type, values)?;
        for (sum, value) in sums.iter_mut().zip(values.iter()) {
            *sum += *value;
        }
        store(sums, into, into_type, Rounder::Nearest)?;
    }
    Ok(())
}

/// Bytes of a value of a type that can be converted.
pub(super) fn size_of(dtype: Dtype) -> Result<usize> {
    if super::is_convertible(dtype) {
        to_usize(dtype.size_bytes())
    } else {
        Err(unsupported(dtype))
    }
}

fn check_lengths(from: usize, to: usize) -> Result<()> {
    if from == to {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "a conversion from {from} to {to} values"
    )))
}
