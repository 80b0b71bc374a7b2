//! Operations in flight: a slot for each, as many as the devices' depths, told apart by generation.
//!
//! The key of a transfer is slot and generation, so a completion can only ever be credited to the
//! operation that was submitted under it. Pure.

use std::time::Instant;

use crate::io::planner::Operation;
use crate::memory::MemoryRange;

/// One operation on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    /// Which slot it is in.
    pub(super) slot: usize,
    pub(super) task: usize,
    pub(super) device: usize,
    pub(super) operation: Operation,
    /// The block is being read before it is changed.
    pub(super) reading_first: bool,
    pub(super) bounce: Option<usize>,
    /// All of the operation's memory.
    pub(super) memory: MemoryRange,
    pub(super) ring_slot: Option<u16>,
    /// Bytes that earlier, short transfers of this operation moved.
    pub(super) done_bytes: u64,
    /// Where the last short transfer ended, and how many in a row ended there.
    pub(super) reached_before: u64,
    pub(super) stalls_count: u32,
    pub(super) retries_count: u32,
    /// When the operation was started.
    pub(super) started: Instant,
    /// When it was last handed to the backend, on the clock of the file table.
    pub(super) launched_at: u64,
    /// Submitted while the file was open for direct I/O.
    pub(super) direct: bool,
}

impl Flight {
    /// Notes that a transfer ended at `reached`; returns how many in a row did.
    pub(super) fn stalls_at(&mut self, reached: u64) -> u32 {
        self.stalls_count = if self.reached_before == reached {
            self.stalls_count + 1
        } else {
            0
        };
        self.reached_before = reached;
        self.stalls_count
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

/// The slots.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Flights {
    /// Makes room for this many operations at once; low slots are taken first.
    pub(super) fn grow_to(&mut self, count: usize) {
        let before = self.slots.len();
        self.slots.resize_with(count.max(before), Slot::default);
        self.free.splice(..0, (before..count).rev());
    }

    /// Puts an operation into a slot and returns its key; the caller checked that one is free.
    pub(super) fn board(&mut self, flight: Flight) -> Option<u64> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        slot.flight = Some(Flight {
            slot: index,
            ..flight
        });
        Some(u64::from(slot.generation) << 32 | crate::base::units::to_u64(index))
    }

    /// The operation under a key; `None` for a key that is not in flight.
    pub(super) fn get(&self, key: u64) -> Option<&Flight> {
        let slot = self.slots.get(index_of(key))?;
        slot.flight
            .as_ref()
            .filter(|_| u64::from(slot.generation) == key >> 32)
    }

    /// Ends the flight under a key, so that its slot may be used again.
    pub(super) fn land(&mut self, key: u64) -> Option<Flight> {
        self.get(key)?;
        let index = index_of(key);
        self.free.push(index);
        self.slots[index].flight.take()
    }
}

fn index_of(key: u64) -> usize {
    usize::try_from(key & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::planner::Place;

    fn flight(task: usize) -> Flight {
        Flight {
            slot: 0,
            task,
            device: 0,
            operation: Operation {
                file_offset: 0,
                len_bytes: 1,
                place: Place::Bounce,
                segment: 0,
                read_first: false,
                required_bytes: 1,
                payload_bytes: 1,
            },
            reading_first: false,
            bounce: None,
            memory: MemoryRange::EMPTY,
            ring_slot: None,
            done_bytes: 0,
            reached_before: 0,
            stalls_count: 0,
            retries_count: 0,
            started: Instant::now(),
            launched_at: 0,
            direct: false,
        }
    }

    #[test]
    fn a_late_completion_is_never_credited_to_the_next_operation() {
        let mut flights = Flights::default();
        flights.grow_to(1);
        let first = flights.board(flight(1)).unwrap();
        assert_eq!(flights.board(flight(9)), None);
        assert_eq!(flights.land(first).unwrap().task, 1);
        let second = flights.board(flight(2)).unwrap();
        assert!(flights.land(first).is_none());
        assert_eq!(flights.land(second).unwrap().task, 2);
    }

    #[test]
    fn more_room_leaves_what_is_in_flight_where_it_is() {
        let mut flights = Flights::default();
        flights.grow_to(2);
        let mut keys: Vec<u64> = (0..2).map(|_| flights.board(flight(0)).unwrap()).collect();
        flights.grow_to(4);
        keys.extend((0..2).map(|_| flights.board(flight(0)).unwrap()));
        assert_eq!(flights.board(flight(9)), None);
        let slots: Vec<_> = keys
            .iter()
            .map(|key| flights.land(*key).unwrap().slot)
            .collect();
        assert_eq!(slots, [0, 1, 2, 3]);
    }
}
