//! `tsw_engine_stats`: what an engine has done.

use super::record::Sized32;
use crate::io::EngineStats;

/// What an engine has done since it was made, and what it is doing.
///
/// Set `struct_size` to `sizeof(tsw_engine_stats)` before the call that fills it in. Later versions
/// add fields at the end.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_engine_stats {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Operations that ended well, memory to storage.
    pub swap_out_operations_count: u64,
    /// Bytes of tensors moved, memory to storage.
    pub swap_out_bytes: u64,
    /// Operations under way, memory to storage.
    pub swap_out_in_flight_count: u64,
    /// The most operations that were under way at once, memory to storage.
    pub swap_out_in_flight_peak_count: u64,
    /// Operations submitted again after EINTR or EAGAIN, memory to storage.
    pub swap_out_retries_count: u64,
    /// Transfers that moved less than asked and were continued, memory to storage.
    pub swap_out_short_transfers_count: u64,
    /// Files that had to go through the page cache, memory to storage.
    pub swap_out_fallbacks_count: u64,
    /// Files of requests that failed, memory to storage.
    pub swap_out_errors_count: u64,
    /// Operations that ended well, storage to memory.
    pub swap_in_operations_count: u64,
    /// Bytes of tensors moved, storage to memory.
    pub swap_in_bytes: u64,
    /// Operations under way, storage to memory.
    pub swap_in_in_flight_count: u64,
    /// The most operations that were under way at once, storage to memory.
    pub swap_in_in_flight_peak_count: u64,
    /// Operations submitted again after EINTR or EAGAIN, storage to memory.
    pub swap_in_retries_count: u64,
    /// Transfers that moved less than asked and were continued, storage to memory.
    pub swap_in_short_transfers_count: u64,
    /// Files that had to go through the page cache, storage to memory.
    pub swap_in_fallbacks_count: u64,
    /// Files of requests that failed, storage to memory.
    pub swap_in_errors_count: u64,
    /// Requests taken in.
    pub requests_count: u64,
    /// Requests under way.
    pub requests_in_flight_count: u64,
    /// Operations under way, both directions.
    pub in_flight_count: u64,
    /// The most operations that were under way at once, both directions.
    pub in_flight_peak_count: u64,
    /// Bytes that went through a bounce block, because memory or file were not aligned.
    pub bounced_bytes: u64,
    /// Files that are open.
    pub open_files_count: u64,
    /// Bytes of pinned buffers, the library's own and registered ones.
    pub pinned_bytes: u64,
}

// SAFETY: `repr(C)`, integers only, the two `u32` fill the first eight bytes.
unsafe impl Sized32 for tsw_engine_stats {
    const SIZE_BYTES_MIN: usize = 8;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl From<EngineStats> for tsw_engine_stats {
    fn from(stats: EngineStats) -> tsw_engine_stats {
        let (out, r#in) = (stats.swap_out, stats.swap_in);
        tsw_engine_stats {
            struct_size: 0,
            reserved: 0,
            swap_out_operations_count: out.operations_count,
            swap_out_bytes: out.bytes,
            swap_out_in_flight_count: out.in_flight_count,
            swap_out_in_flight_peak_count: out.in_flight_peak_count,
            swap_out_retries_count: out.retries_count,
            swap_out_short_transfers_count: out.short_transfers_count,
            swap_out_fallbacks_count: out.fallbacks_count,
            swap_out_errors_count: out.errors_count,
            swap_in_operations_count: r#in.operations_count,
            swap_in_bytes: r#in.bytes,
            swap_in_in_flight_count: r#in.in_flight_count,
            swap_in_in_flight_peak_count: r#in.in_flight_peak_count,
            swap_in_retries_count: r#in.retries_count,
            swap_in_short_transfers_count: r#in.short_transfers_count,
            swap_in_fallbacks_count: r#in.fallbacks_count,
            swap_in_errors_count: r#in.errors_count,
            requests_count: stats.requests_count,
            requests_in_flight_count: stats.requests_in_flight_count,
            in_flight_count: stats.in_flight_count,
            in_flight_peak_count: stats.in_flight_peak_count,
            bounced_bytes: stats.bounced_bytes,
            open_files_count: stats.open_files_count,
            pinned_bytes: stats.pinned_bytes,
        }
    }
}
