//! The engine's figures at one moment.

use std::time::{Duration, Instant};

use super::counters::{Counters, DirectionCounters};
use crate::base::sync::lock;

/// Counters of one direction at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionStats {
    /// Operations that ended well.
    pub operations_count: u64,
    /// Bytes of tensors moved.
    pub bytes: u64,
    /// Operations under way.
    pub in_flight_count: u64,
    /// The most that were under way at once.
    pub in_flight_peak_count: u64,
    /// Operations submitted again after `EINTR` or `EAGAIN`.
    pub retries_count: u64,
    /// Transfers that moved less than asked and were continued.
    pub short_transfers_count: u64,
    /// Files that had to go through the page cache.
    pub fallbacks_count: u64,
    /// Files of requests that failed.
    pub errors_count: u64,
}

/// Counters of one device at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// The device as `stat` tells it (`st_dev`): a file system. 0 for files in memory. Of more than
    /// 16 devices, the last stands for all further ones.
    pub device: u64,
    /// Bytes read from it, with what only fills blocks.
    pub read_bytes: u64,
    /// Bytes written to it, padding included.
    pub written_bytes: u64,
    /// How long at least one operation was under way: the bytes divided by this are the bandwidth
    /// that was achieved.
    pub busy: Duration,
}

impl DeviceStats {
    /// Reads the counters of all devices.
    pub(super) fn of_all(counters: &Counters) -> Vec<DeviceStats> {
        let now = Instant::now();
        let devices = lock(&counters.devices);
        let stats = devices.iter().map(|device| DeviceStats {
            device: device.number,
            read_bytes: device.read_bytes.get(),
            written_bytes: device.written_bytes.get(),
            busy: device.busy(now),
        });
        stats.collect()
    }
}

/// Counters of an engine at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Memory to storage.
    pub swap_out: DirectionStats,
    /// Storage to memory.
    pub swap_in: DirectionStats,
    /// Requests taken in.
    pub requests_count: u64,
    /// Requests under way.
    pub requests_in_flight_count: u64,
    /// Operations under way, both directions.
    pub in_flight_count: u64,
    /// The most operations that were under way at once.
    pub in_flight_peak_count: u64,
    /// Bytes that went through a bounce block.
    pub bounced_bytes: u64,
    /// Files that are open.
    pub open_files_count: u64,
    /// Bytes of pinned buffers, owned and registered.
    pub pinned_bytes: u64,
}

impl EngineStats {
    /// Reads the counters; `pinned_bytes` is the registry's to tell.
    pub(super) fn of(counters: &Counters, pinned_bytes: u64) -> EngineStats {
        EngineStats {
            swap_out: direction_stats(&counters.out),
            swap_in: direction_stats(&counters.r#in),
            requests_count: counters.requests.get(),
            requests_in_flight_count: counters.requests_in_flight.get(),
            in_flight_count: counters.in_flight.get(),
            in_flight_peak_count: counters.in_flight.peak(),
            bounced_bytes: counters.bounced_bytes.get(),
            open_files_count: counters.open_files.get(),
            pinned_bytes,
        }
    }
}

fn direction_stats(counters: &DirectionCounters) -> DirectionStats {
    DirectionStats {
        operations_count: counters.operations.get(),
        bytes: counters.bytes.get(),
        in_flight_count: counters.in_flight.get(),
        in_flight_peak_count: counters.in_flight.peak(),
        retries_count: counters.retries.get(),
        short_transfers_count: counters.short_transfers.get(),
        fallbacks_count: counters.fallbacks.get(),
        errors_count: counters.errors.get(),
    }
}
