//! The engine's counters: written by the driver, read by any thread.

use crate::base::observe::{Counter, Gauge};
use crate::io::request::Direction;

/// What is counted for each direction.
#[derive(Debug, Default)]
pub(crate) struct DirectionCounters {
    /// Operations that ended well.
    pub(crate) operations: Counter,
    /// Bytes of callers' tensors moved.
    pub(crate) bytes: Counter,
    /// Operations under way.
    pub(crate) in_flight: Gauge,
    /// Operations submitted again after `EINTR` or `EAGAIN`.
    pub(crate) retries: Counter,
    /// Transfers that moved less than asked and were continued.
    pub(crate) short_transfers: Counter,
    /// Files that had to go through the page cache.
    pub(crate) fallbacks: Counter,
    /// Tensors lists on a file that failed.
    pub(crate) errors: Counter,
}

/// All counters of one engine.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) out: DirectionCounters,
    pub(crate) r#in: DirectionCounters,
    pub(crate) requests: Counter,
    pub(crate) requests_in_flight: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) bounced_bytes: Counter,
    pub(crate) open_files: Gauge,
}

impl Counters {
    /// The counters of one direction.
    pub(crate) fn of(&self, direction: Direction) -> &DirectionCounters {
        match direction {
            Direction::Out => &self.out,
            Direction::In => &self.r#in,
        }
    }
}
