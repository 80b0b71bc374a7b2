//! Chunks of values: from bytes to f32 on the stack and back.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::rounding::{self, Rounder};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};

/// Values in a chunk: 4 KiB as f32, so that a chunk and what it comes from and goes to stay in
/// the first cache.
pub(super) const CHUNK: usize = 1024;

/// Defines a function that exists twice, for any processor and for one with AVX2, and chooses.
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        pub(super) fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn with_avx2($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the function is safe but for the instructions it is compiled to,
                    // and the processor has them.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}
pub(super) use vectorized;

/// Widens the values in `from`, of type `dtype`, to `to`, which has room for exactly those: at
/// most a chunk.
///
/// # Errors
/// `Unsupported` for a type that is none of the three; `Internal` where the lengths do not agree.
pub(super) fn load(from: &[u8], dtype: Dtype, to: &mut [f32]) -> Result<()> {
    check(from.len(), to.len(), dtype)?;
    match dtype {
        Dtype::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(from),
        Dtype::Bf16 => load_bf16(from, to),
        _ => {
            let mut values = [f16::ZERO; CHUNK];
            let values = &mut values[..to.len()];
            bytemuck::cast_slice_mut(values).copy_from_slice(from);
            values.convert_to_f32_slice(to);
        }
    }
    Ok(())
}

/// Stores `from`, at most a chunk, to `to` as values of type `dtype`.
///
/// # Errors
/// As [`load`].
pub(super) fn store(from: &[f32], to: &mut [u8], dtype: Dtype, rounder: Rounder) -> Result<()> {
    check(to.len(), from.len(), dtype)?;
    match (dtype, rounder) {
        (Dtype::F32, _) => to.copy_from_slice(bytemuck::cast_slice(from)),
        (Dtype::Bf16, Rounder::Nearest) => store_bf16(from, to),
        (_, Rounder::Nearest) => {
            let mut values = [f16::ZERO; CHUNK];
            let values = &mut values[..from.len()];
            values.convert_from_f32_slice(from);
            to.copy_from_slice(bytemuck::cast_slice(values));
        }
        // Elements share a number, so the first may begin in the middle of one.
        (Dtype::Bf16, Rounder::Stochastic { key, first }) => {
            let mut numbers = [0; CHUNK / 4 + 1];
            rounding::random(key, first / 4, &mut numbers);
            let random: &[u16] = bytemuck::cast_slice(&numbers);
            store_bf16_by_chance(from, &random[usize::from((first % 4) as u8)..], to);
        }
        (_, Rounder::Stochastic { key, first }) => {
            let mut numbers = [0; CHUNK / 2 + 1];
            rounding::random(key, first / 2, &mut numbers);
            let random: &[u32] = bytemuck::cast_slice(&numbers);
            store_f16_by_chance(from, &random[usize::from((first % 2) as u8)..], to);
        }
    }
    Ok(())
}

fn check(len_bytes: usize, numel: usize, dtype: Dtype) -> Result<()> {
    let size = match dtype {
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::Bf16 => 2,
        _ => return Err(unsupported(dtype)),
    };
    if numel > CHUNK || numel * size != len_bytes {
        return Err(Error::Internal(format!(
            "{numel} values of {} in {len_bytes} bytes",
            dtype.name()
        )));
    }
    Ok(())
}

/// The error for a type that is not one of the three.
pub(super) fn unsupported(dtype: Dtype) -> Error {
    Error::Unsupported {
        message: format!(
            "no conversion from or to {}: only among f32, f16 and bf16",
            dtype.name()
        ),
        errno: 0,
    }
}

vectorized! {
    fn load_bf16(from: &[u8], to: &mut [f32]) {
        for (from, to) in from.as_chunks::<2>().0.iter().zip(to) {
            *to = f32::from_bits(u32::from(u16::from_ne_bytes(*from)) << 16);
        }
    }
}

vectorized! {
    fn store_bf16(from: &[f32], to: &mut [u8]) {
        for (from, to) in from.iter().zip(to.as_chunks_mut::<2>().0) {
            *to = rounding::nearest_bf16(from.to_bits()).to_ne_bytes();
        }
    }
}

vectorized! {
    fn store_bf16_by_chance(from: &[f32], random: &[u16], to: &mut [u8]) {
        for ((from, random), to) in from.iter().zip(random).zip(to.as_chunks_mut::<2>().0) {
            *to = rounding::stochastic_bf16(from.to_bits(), *random).to_ne_bytes();
        }
    }
}

vectorized! {
    fn store_f16_by_chance(from: &[f32], random: &[u32], to: &mut [u8]) {
        for ((from, random), to) in from.iter().zip(random).zip(to.as_chunks_mut::<2>().0) {
            *to = rounding::stochastic_f16(from.to_bits(), *random).to_ne_bytes();
        }
    }
}
