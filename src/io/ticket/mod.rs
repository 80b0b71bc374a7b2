//! Tickets: one number per pending request, waited for, polled, cancelled.
//!
//! [`table`] is the pure state machine; [`Tickets`] puts a lock, a condition variable per ticket
//! and the event descriptor around it. Any thread may call anything here. A ticket ends when its
//! completion was delivered once; the generation in its number makes every later use an error.

mod signal;
mod table;
#[cfg(test)]
mod tests;

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::base::error::{Error, Result};
use crate::base::sync::{AtomicBool, AtomicU64, Condvar, Mutex, lock};
use crate::io::request::{Outcome, Sink};
use signal::Signal;
pub(crate) use table::Table;

/// Names one pending request; 0 is never valid.
pub type Ticket = u64;

/// How a request ended, delivered exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The ticket that ends with this.
    pub ticket: Ticket,
    /// Success, or the first error of the request.
    pub outcome: Result<()>,
    /// Index in the request's list of the tensor that failed first.
    pub failed_index: Option<u64>,
    /// Bytes of the caller's tensors that were moved.
    pub bytes_done: u64,
    /// Nanoseconds from submission to completion.
    pub elapsed_ns: u64,
    /// The tag of the failed tensor, else of the first one.
    pub user_tag: u64,
}

/// What callers read and write without the lock while a request runs.
#[derive(Debug, Default)]
struct Live {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    cancelled: AtomicBool,
}

/// The tickets of one engine.
#[derive(Debug)]
pub(crate) struct Tickets {
    table: Mutex<Table>,
    /// One per slot: wakes the one thread that waits for this ticket.
    delivered: Vec<Condvar>,
    /// Wakes `wait_all`.
    drained: Condvar,
    live: Vec<Live>,
    signal: Signal,
}

impl Tickets {
    /// Room for `tickets_max` tickets; `salt` keeps the numbers of two engines apart.
    pub(crate) fn new(tickets_max: u32, salt: u32) -> Tickets {
        let slots = 0..tickets_max;
        Tickets {
            table: Mutex::new(Table::new(tickets_max, salt)),
            delivered: slots.clone().map(|_| Condvar::new()).collect(),
            drained: Condvar::new(),
            live: slots.map(|_| Live::default()).collect(),
            signal: Signal::default(),
        }
    }

    /// Takes a ticket for a request of `total_bytes`.
    ///
    /// # Errors
    /// `Busy` with all tickets alive.
    pub(crate) fn open(&self, total_bytes: u64, user_tag: u64) -> Result<Ticket> {
        let mut table = lock(&self.table);
        let ticket = table.open(user_tag)?;
        let live = &self.live[table::index_of(ticket)];
        // ORDERING: relaxed; the table's lock publishes these before the ticket is known.
        live.done_bytes.store(0, Ordering::Relaxed);
        live.total_bytes.store(total_bytes, Ordering::Relaxed);
        live.cancelled.store(false, Ordering::Relaxed);
        Ok(ticket)
    }

    /// Takes back a ticket whose request was never submitted.
    pub(crate) fn withdraw(&self, ticket: Ticket) {
        lock(&self.table).withdraw(ticket);
        self.drained.notify_all();
    }

    /// Waits for one ticket and ends it; `None` waits for ever.
    ///
    /// # Errors
    /// `BadTicket`; `Busy` where another thread waits for it; `TimedOut`, the ticket stays valid.
    pub(crate) fn wait(&self, ticket: Ticket, timeout: Option<Duration>) -> Result<Completion> {
        let deadline = deadline_of(timeout);
        let mut table = lock(&self.table);
        table.begin_wait(ticket)?;
        let completion = loop {
            if let Some(completion) = table.take_done(ticket) {
                break completion;
            }
            let wake = &self.delivered[table::index_of(ticket)];
            table = match remaining_of(deadline) {
                Remaining::Forever => wake
                    .wait(table)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Remaining::For(left) => {
                    wake.wait_timeout(table, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
                Remaining::Over => {
                    table.end_wait(ticket);
                    drop(table);
                    // The ticket may be polled again, so a poll loop must hear of it.
                    self.signal.update(|| lock(&self.table).deliverable());
                    return Err(Error::TimedOut(format!(
                        "ticket {ticket:#x} is still pending"
                    )));
                }
            };
        };
        drop(table);
        self.signal.update(|| lock(&self.table).deliverable());
        Ok(completion)
    }

    /// Delivers up to `cap` finished tickets, oldest first, and ends them; returns how many.
    pub(crate) fn poll(&self, cap: usize, deliver: &mut dyn FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < cap {
            let Some(completion) = lock(&self.table).take_next() else {
                break;
            };
            deliver(completion);
            count += 1;
        }
        if count > 0 {
            self.signal.update(|| lock(&self.table).deliverable());
        }
        count
    }

    /// Asks for the request to stop; it still completes.
    ///
    /// # Errors
    /// `BadTicket`.
    pub(crate) fn cancel(&self, ticket: Ticket) -> Result<()> {
        let table = lock(&self.table);
        table.check(ticket)?;
        // ORDERING: relaxed; a request for stopping, seen by the driver when it next looks.
        self.live[table::index_of(ticket)]
            .cancelled
            .store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes done and bytes in total.
    ///
    /// # Errors
    /// `BadTicket`.
    pub(crate) fn progress(&self, ticket: Ticket) -> Result<(u64, u64)> {
        let table = lock(&self.table);
        table.check(ticket)?;
        let live = &self.live[table::index_of(ticket)];
        // ORDERING: relaxed; a figure for people, not a synchronization.
        Ok((
            live.done_bytes.load(Ordering::Relaxed),
            live.total_bytes.load(Ordering::Relaxed),
        ))
    }

    /// Waits until every ticket opened before this call is done; delivers none.
    ///
    /// # Errors
    /// The first error among them, in the order of submission; `TimedOut`.
    pub(crate) fn wait_all(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = deadline_of(timeout);
        let mut table = lock(&self.table);
        let audience = table.begin_wait_all();
        loop {
            if let Some(outcome) = table.end_wait_all_if_done(audience) {
                return outcome;
            }
            table = match remaining_of(deadline) {
                Remaining::Forever => self
                    .drained
                    .wait(table)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Remaining::For(left) => {
                    self.drained
                        .wait_timeout(table, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
                Remaining::Over => {
                    let pending = table.abandon_wait_all(audience);
                    return Err(Error::TimedOut(format!(
                        "{pending} requests are still pending"
                    )));
                }
            };
        }
    }

    /// A descriptor that is readable while a completion waits to be delivered.
    ///
    /// # Errors
    /// The errno of making it, as `Unsupported`.
    pub(crate) fn event_fd(&self) -> Result<RawFd> {
        self.signal.descriptor(|| lock(&self.table).deliverable())
    }
}

impl Sink for Tickets {
    fn is_cancelled(&self, token: u64) -> bool {
        // ORDERING: relaxed; see `cancel`.
        self.live[table::index_of(token)]
            .cancelled
            .load(Ordering::Relaxed)
    }

    fn progress(&self, token: u64, bytes: u64) {
        // ORDERING: relaxed; see `progress` above.
        self.live[table::index_of(token)]
            .done_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn complete(&self, token: u64, outcome: Outcome) {
        let mut table = lock(&self.table);
        let news = table.complete(token, outcome);
        drop(table);
        if news.waited {
            self.delivered[table::index_of(token)].notify_one();
        }
        if news.drained {
            self.drained.notify_all();
        }
        self.signal.update(|| lock(&self.table).deliverable());
    }
}

/// The moment a wait gives up; `None` never.
fn deadline_of(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

enum Remaining {
    Forever,
    For(Duration),
    Over,
}

fn remaining_of(deadline: Option<Instant>) -> Remaining {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        None => Remaining::Forever,
        Some(left) if left.is_zero() => Remaining::Over,
        Some(left) => Remaining::For(left),
    }
}
