//! Checked arithmetic on lengths and offsets, and rounding to alignment blocks.
//!
//! Lengths are bytes in `u64` unless a name says otherwise. Nothing here wraps: what does not fit
//! is an error or saturates where saturation is the meaning ("to the end of the file").

use super::error::{Error, Result};

/// One kibibyte in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte in bytes.
pub const GIB: u64 = 1 << 30;

/// The largest file offset the kernel can express (`loff_t` is signed).
pub const FILE_OFFSET_MAX: u64 = i64::MAX.unsigned_abs();

/// Rounds `value` down to a multiple of `align_bytes`, which must not be zero.
pub(crate) fn round_down(value: u64, align_bytes: u64) -> u64 {
    value - value % align_bytes
}

/// Rounds `value` up to a multiple of `align_bytes`; saturates at the last multiple below 2^64.
pub(crate) fn round_up(value: u64, align_bytes: u64) -> u64 {
    match value % align_bytes {
        0 => value,
        over => value
            .checked_add(align_bytes - over)
            .unwrap_or(u64::MAX - u64::MAX % align_bytes),
    }
}

/// Converts a length to the address size of this machine.
///
/// # Errors
/// `InvalidArgument` where the length cannot be addressed.
pub(crate) fn to_usize(len_bytes: u64) -> Result<usize> {
    usize::try_from(len_bytes)
        .map_err(|_| Error::invalid(format!("{len_bytes} bytes cannot be addressed here")))
}

/// Converts an in-memory length to bytes on storage.
pub(crate) fn to_u64(len: usize) -> u64 {
    // `usize` is at most 64 bits on every target with io_uring.
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Nanoseconds of a duration; saturates after 584 years.
pub(crate) fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_multiples_and_never_wraps() {
        for align in [1, 2, 512, 4096] {
            for value in [0, 1, 511, 512, 513, 4095, 4096, u64::MAX - 1, u64::MAX] {
                assert!(round_down(value, align) <= value);
                assert_eq!(round_down(value, align) % align, 0);
                assert_eq!(round_up(value, align) % align, 0);
            }
        }
        assert_eq!(round_up(u64::MAX, 4096), u64::MAX - 4095);
    }
}
