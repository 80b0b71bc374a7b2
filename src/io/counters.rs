//! The engine's counters: written by the driver, read by any thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::observe::{Counter, Gauge};
use crate::base::sync::{Mutex, lock};
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
    /// In the order in which the driver met them.
    pub(crate) devices: Mutex<Vec<Arc<DeviceCounters>>>,
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

/// What is counted for each device.
#[derive(Debug)]
pub(crate) struct DeviceCounters {
    /// As `stat` tells it.
    pub(crate) number: u64,
    /// Bytes that the device moved, padding included.
    pub(crate) read_bytes: Counter,
    pub(crate) written_bytes: Counter,
    busy: Mutex<Busy>,
}

/// Time with operations in flight.
#[derive(Debug, Default)]
struct Busy {
    /// Up to when there last were none.
    before: Duration,
    /// Since when there are some.
    since: Option<Instant>,
}

impl DeviceCounters {
    pub(crate) fn new(number: u64) -> DeviceCounters {
        DeviceCounters {
            number,
            read_bytes: Counter::new(),
            written_bytes: Counter::new(),
            busy: Mutex::default(),
        }
    }

    /// The first operation is in flight.
    pub(crate) fn busy_from(&self, moment: Instant) {
        lock(&self.busy).since = Some(moment);
    }

    /// The last operation has ended.
    pub(crate) fn busy_until(&self, moment: Instant) {
        let mut busy = lock(&self.busy);
        if let Some(since) = busy.since.take() {
            busy.before += moment.saturating_duration_since(since);
        }
    }

    /// How long there were operations in flight, up to `now`.
    pub(crate) fn busy(&self, now: Instant) -> Duration {
        let busy = lock(&self.busy);
        let running = busy.since.map(|since| now.saturating_duration_since(since));
        busy.before + running.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_busy_from_its_first_operation_to_its_last() {
        let device = DeviceCounters::new(0);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(device.busy(at(1)), Duration::ZERO);
        device.busy_from(at(2));
        assert_eq!(device.busy(at(5)), Duration::from_millis(3), "still busy");
        device.busy_until(at(7));
        device.busy_from(at(10));
        device.busy_until(at(11));
        assert_eq!(device.busy(at(20)), Duration::from_millis(6));
    }
}
