//! The ticket table: a pure state machine over a fixed number of slots.
//!
//! A slot is free, pending or done. Done slots form a list in the order of completion, linked
//! through the slots, so that nothing is allocated after construction.

use std::time::Instant;

use super::{Completion, Ticket};
use crate::base::error::{Error, Result};
use crate::base::units::nanos;
use crate::io::request::Outcome;

/// Low bits of a ticket: slot index + 1, at most [`SLOTS_MAX`].
const INDEX_BITS: u32 = 20;
/// The bits between index and generation: which engine of this process.
const SALT_BITS: u32 = 12;
/// The largest number of tickets of one engine.
pub(crate) const SLOTS_MAX: u32 = (1 << INDEX_BITS) - 1;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum State {
    Free,
    Pending,
    Done(Outcome),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    waited: bool,
    sequence: u64,
    user_tag: u64,
    opened: Instant,
    elapsed_ns: u64,
    /// Neighbours in the list of done slots.
    before: u32,
    after: u32,
}

/// A running `wait_all`.
#[derive(Debug)]
struct Audience {
    id: u64,
    /// Tickets opened before this sequence number count.
    bound: u64,
    pending: usize,
    first_error: Option<(u64, Error)>,
}

/// What the shell must do after a completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct News {
    pub(super) waited: bool,
    pub(super) drained: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    salt: u64,
    next_sequence: u64,
    done_first: u32,
    done_last: u32,
    /// Done slots that no thread waits for: what `poll` could deliver.
    deliverable_count: usize,
    audiences: Vec<Audience>,
    next_audience: u64,
}

/// The slot of a ticket that was made by a table.
pub(super) fn index_of(ticket: Ticket) -> usize {
    let index = (ticket & u64::from(SLOTS_MAX)).wrapping_sub(1);
    usize::try_from(index).unwrap_or(usize::MAX)
}

impl Table {
    /// A table of `slots_count` (at most [`SLOTS_MAX`]) free slots.
    pub(crate) fn new(slots_count: u32, salt: u32) -> Table {
        let now = Instant::now();
        let slots_count = slots_count.min(SLOTS_MAX);
        Table {
            slots: (0..slots_count)
                .map(|_| Slot {
                    generation: 1,
                    state: State::Free,
                    waited: false,
                    sequence: 0,
                    user_tag: 0,
                    opened: now,
                    elapsed_ns: 0,
                    before: NONE,
                    after: NONE,
                })
                .collect(),
            free: (0..slots_count).rev().collect(),
            salt: u64::from(salt) % (1 << SALT_BITS),
            next_sequence: 0,
            done_first: NONE,
            done_last: NONE,
            deliverable_count: 0,
            audiences: Vec::new(),
            next_audience: 0,
        }
    }

    fn ticket(&self, index: u32) -> Ticket {
        let generation = u64::from(self.slots[index as usize].generation);
        generation << (INDEX_BITS + SALT_BITS) | self.salt << INDEX_BITS | (u64::from(index) + 1)
    }

    /// The slot of a live ticket.
    fn find(&self, ticket: Ticket) -> Result<u32> {
        let index = index_of(ticket);
        match (self.slots.get(index), u32::try_from(index)) {
            (Some(slot), Ok(index))
                if !matches!(slot.state, State::Free) && self.ticket(index) == ticket =>
            {
                Ok(index)
            }
            _ => Err(Error::BadTicket(ticket)),
        }
    }

    /// Whether the ticket is alive.
    pub(super) fn check(&self, ticket: Ticket) -> Result<()> {
        self.find(ticket).map(|_| ())
    }

    pub(super) fn open(&mut self, user_tag: u64) -> Result<Ticket> {
        let index = self.free.pop().ok_or_else(|| {
            Error::Busy(format!(
                "all {} tickets (tickets_max) are alive",
                self.slots.len()
            ))
        })?;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let slot = &mut self.slots[index as usize];
        slot.state = State::Pending;
        slot.waited = false;
        slot.sequence = sequence;
        slot.user_tag = user_tag;
        slot.opened = Instant::now();
        Ok(self.ticket(index))
    }

    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        if let Ok(index) = self.find(ticket) {
            let sequence = self.slots[index as usize].sequence;
            for audience in &mut self.audiences {
                if sequence < audience.bound {
                    audience.pending -= 1;
                }
            }
            self.release(index);
        }
    }

    pub(super) fn begin_wait(&mut self, ticket: Ticket) -> Result<()> {
        let index = self.find(ticket)?;
        let slot = &mut self.slots[index as usize];
        if slot.waited {
            return Err(Error::Busy(format!(
                "another thread waits for ticket {ticket:#x}"
            )));
        }
        slot.waited = true;
        if matches!(slot.state, State::Done(_)) {
            self.deliverable_count -= 1;
        }
        Ok(())
    }

    pub(super) fn end_wait(&mut self, ticket: Ticket) {
        if let Ok(index) = self.find(ticket) {
            let slot = &mut self.slots[index as usize];
            slot.waited = false;
            if matches!(slot.state, State::Done(_)) {
                self.deliverable_count += 1;
            }
        }
    }

    /// Ends a ticket on which the caller waits, if it is done.
    pub(super) fn take_done(&mut self, ticket: Ticket) -> Option<Completion> {
        let index = self.find(ticket).ok()?;
        matches!(self.slots[index as usize].state, State::Done(_)).then(|| self.deliver(index))
    }

    /// Ends the oldest done ticket for which no thread waits.
    pub(super) fn take_next(&mut self) -> Option<Completion> {
        let mut index = self.done_first;
        while index != NONE {
            if !self.slots[index as usize].waited {
                self.deliverable_count -= 1;
                return Some(self.deliver(index));
            }
            index = self.slots[index as usize].after;
        }
        None
    }

    pub(super) fn deliverable(&self) -> bool {
        self.deliverable_count > 0
    }

    pub(super) fn complete(&mut self, ticket: Ticket, outcome: Outcome) -> News {
        let Ok(index) = self.find(ticket) else {
            debug_assert!(false, "a ticket completed that is not alive");
            return News {
                waited: false,
                drained: false,
            };
        };
        let slot = &mut self.slots[index as usize];
        slot.elapsed_ns = nanos(slot.opened.elapsed());
        let waited = slot.waited;
        let drained = Self::tell(&mut self.audiences, slot.sequence, &outcome);
        slot.state = State::Done(outcome);
        slot.before = self.done_last;
        slot.after = NONE;
        match self.done_last {
            NONE => self.done_first = index,
            last => self.slots[last as usize].after = index,
        }
        self.done_last = index;
        if !waited {
            self.deliverable_count += 1;
        }
        News { waited, drained }
    }

    /// Counts a completion in every running `wait_all`; true where one of them is at its end.
    fn tell(audiences: &mut [Audience], sequence: u64, outcome: &Outcome) -> bool {
        let mut drained = false;
        for audience in audiences
            .iter_mut()
            .filter(|audience| sequence < audience.bound)
        {
            audience.pending -= 1;
            drained |= audience.pending == 0;
            audience.note(sequence, outcome);
        }
        drained
    }

    pub(super) fn begin_wait_all(&mut self) -> u64 {
        let id = self.next_audience;
        self.next_audience += 1;
        let mut audience = Audience {
            id,
            bound: self.next_sequence,
            pending: 0,
            first_error: None,
        };
        for slot in &self.slots {
            match &slot.state {
                State::Free => {}
                State::Pending => audience.pending += 1,
                State::Done(outcome) => audience.note(slot.sequence, outcome),
            }
        }
        self.audiences.push(audience);
        id
    }

    /// Ends a `wait_all` whose tickets are all done, with the first error among them.
    pub(super) fn end_wait_all_if_done(&mut self, id: u64) -> Option<Result<()>> {
        let position = self
            .audiences
            .iter()
            .position(|audience| audience.id == id)?;
        if self.audiences[position].pending > 0 {
            return None;
        }
        let audience = self.audiences.swap_remove(position);
        Some(audience.first_error.map_or(Ok(()), |(_, error)| Err(error)))
    }

    /// Ends a `wait_all` that gave up; returns how many tickets it still waited for.
    pub(super) fn abandon_wait_all(&mut self, id: u64) -> usize {
        match self.audiences.iter().position(|audience| audience.id == id) {
            Some(position) => self.audiences.swap_remove(position).pending,
            None => 0,
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn is_anyone_waiting_for_all(&self) -> bool {
        !self.audiences.is_empty()
    }

    /// Unlinks a done slot and frees it.
    fn deliver(&mut self, index: u32) -> Completion {
        let ticket = self.ticket(index);
        let slot = &mut self.slots[index as usize];
        let (before, after) = (slot.before, slot.after);
        let (elapsed_ns, first_tag) = (slot.elapsed_ns, slot.user_tag);
        let outcome = match std::mem::replace(&mut slot.state, State::Pending) {
            State::Done(outcome) => outcome,
            State::Free | State::Pending => Outcome::internal("a ticket was delivered undone"),
        };
        match before {
            NONE => self.done_first = after,
            before => self.slots[before as usize].after = after,
        }
        match after {
            NONE => self.done_last = before,
            after => self.slots[after as usize].before = before,
        }
        self.release(index);
        Completion {
            ticket,
            user_tag: outcome
                .failure
                .as_ref()
                .map_or(first_tag, |failure| failure.user_tag),
            failed_index: outcome.failure.as_ref().map(|failure| failure.index),
            bytes_done: outcome.bytes_done,
            elapsed_ns,
            outcome: outcome.failure.map_or(Ok(()), |failure| Err(failure.error)),
        }
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.waited = false;
        // A generation of 0 would make ticket 0 possible in principle; skip it.
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.free.push(index);
    }
}

impl Audience {
    fn note(&mut self, sequence: u64, outcome: &Outcome) {
        let Some(failure) = &outcome.failure else {
            return;
        };
        if self
            .first_error
            .as_ref()
            .is_none_or(|(first, _)| sequence < *first)
        {
            self.first_error = Some((sequence, failure.error.clone()));
        }
    }
}
