//! `tsw_swapper_stats`: what a swapper has done.

use super::record::Sized32;
use crate::swapper::SwapperStats;

/// What a swapper has done since it was made, and what it is doing.
///
/// Set `struct_size` to `sizeof(tsw_swapper_stats)` before the call that fills it in. Later
/// versions add fields at the end.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_swapper_stats {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Tensors taken for swapping out.
    pub swap_out_tensors_count: u64,
    /// Their elements.
    pub swap_out_elements_count: u64,
    /// Their bytes.
    pub swap_out_bytes: u64,
    /// Tensors swapped in.
    pub swap_in_tensors_count: u64,
    /// Their elements.
    pub swap_in_elements_count: u64,
    /// Their bytes.
    pub swap_in_bytes: u64,
    /// Bytes being written or read.
    pub in_flight_bytes: u64,
    /// The most bytes that were being written or read at once.
    pub in_flight_peak_bytes: u64,
    /// Nanoseconds that callers waited: for a free buffer, for data, for a flush.
    pub waited_ns: u64,
    /// Swap-ins that went straight into pinned memory of the caller.
    pub copies_avoided_count: u64,
    /// Their bytes.
    pub copies_avoided_bytes: u64,
    /// Buffers given to the swapper.
    pub buffers_count: u64,
    /// Those of them that are free.
    pub buffers_free_count: u64,
    /// Those of them that are being written or read.
    pub buffers_in_flight_count: u64,
    /// Operations that failed.
    pub errors_count: u64,
}

// SAFETY: `repr(C)`, integers only, the two `u32` fill the first eight bytes.
unsafe impl Sized32 for tsw_swapper_stats {
    const SIZE_BYTES_MIN: usize = 8;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl From<SwapperStats> for tsw_swapper_stats {
    fn from(stats: SwapperStats) -> tsw_swapper_stats {
        tsw_swapper_stats {
            struct_size: 0,
            reserved: 0,
            swap_out_tensors_count: stats.swap_out_tensors_count,
            swap_out_elements_count: stats.swap_out_elements_count,
            swap_out_bytes: stats.swap_out_bytes,
            swap_in_tensors_count: stats.swap_in_tensors_count,
            swap_in_elements_count: stats.swap_in_elements_count,
            swap_in_bytes: stats.swap_in_bytes,
            in_flight_bytes: stats.in_flight_bytes,
            in_flight_peak_bytes: stats.in_flight_peak_bytes,
            waited_ns: stats.waited_ns,
            copies_avoided_count: stats.copies_avoided_count,
            copies_avoided_bytes: stats.copies_avoided_bytes,
            buffers_count: stats.buffers_count,
            buffers_free_count: stats.buffers_free_count,
            buffers_in_flight_count: stats.buffers_in_flight_count,
            errors_count: stats.errors_count,
        }
    }
}
