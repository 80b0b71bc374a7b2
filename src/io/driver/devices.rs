//! The devices that files lie on, each with a depth, bounce blocks and figures of its own.
//!
//! A device is what `stat` calls one: a file system. What is slow or hangs on one fills its own
//! depth and its own blocks, and the others go on. They start operations in turn.

use std::sync::Arc;
use std::time::Instant;

use super::bounce::{BounceOptions, BouncePool};
use super::turns::Turns;
use crate::base::sync::lock;
use crate::io::counters::{Counters, DeviceCounters};
use crate::io::request::{Direction, Priority};

/// Devices that are told apart; those beyond share what the last of them has.
///
/// BOUND: all that an engine has for each operation in flight is made for this many depths at
/// most, for each device when its first file is opened.
pub(crate) const DEVICES_MAX: usize = 16;

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) turns: Turns,
    pub(super) bounce: BouncePool,
    counters: Arc<DeviceCounters>,
}

impl Device {
    /// Notes that an operation was started.
    pub(super) fn started(&mut self, priority: Priority, direction: Direction) {
        if self.turns.in_flight() == 0 {
            self.counters.busy_from(Instant::now());
        }
        self.turns.started(priority, direction);
    }

    /// Notes that nothing of an operation is in flight any more.
    pub(super) fn landed(&mut self, priority: Priority) {
        self.turns.landed(priority);
        if self.turns.in_flight() == 0 {
            self.counters.busy_until(Instant::now());
        }
    }

    /// Notes that the device moved bytes, padding included.
    pub(super) fn moved(&self, direction: Direction, bytes: u64) {
        match direction {
            Direction::In => self.counters.read_bytes.add(bytes),
            Direction::Out => self.counters.written_bytes.add(bytes),
        }
    }
}

/// The devices seen so far; none is forgotten.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) all: Vec<Device>,
    depth: usize,
    bounce: BounceOptions,
    counters: Arc<Counters>,
    /// Who is asked next to start an operation.
    next: usize,
}

impl Devices {
    /// No devices yet; each will have `depth` operations in flight and bounce blocks as told.
    pub(super) fn new(depth: usize, bounce: BounceOptions, counters: Arc<Counters>) -> Devices {
        Devices {
            all: Vec::new(),
            depth,
            bounce,
            counters,
            next: 0,
        }
    }

    /// The index of a device, by its number.
    pub(super) fn index_of(&mut self, number: u64) -> usize {
        let is_it = |device: &Device| device.counters.number == number;
        if let Some(index) = self.all.iter().position(is_it) {
            return index;
        }
        if self.all.len() == DEVICES_MAX {
            return DEVICES_MAX - 1;
        }
        let counters = Arc::new(DeviceCounters::new(number));
        lock(&self.counters.devices).push(Arc::clone(&counters));
        self.all.push(Device {
            turns: Turns::new(self.depth),
            bounce: BouncePool::new(self.bounce),
            counters,
        });
        self.all.len() - 1
    }

    /// The device whose turn it is; there must be one.
    pub(super) fn next(&mut self) -> usize {
        self.next = (self.next + 1) % self.all.len();
        self.next
    }

    /// Operations that may be in flight on all devices together.
    pub(super) fn depth(&self) -> usize {
        self.depth * self.all.len()
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
