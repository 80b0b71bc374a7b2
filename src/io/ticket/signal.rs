//! The event descriptor: readable while a completion waits to be delivered.
//!
//! Made on first use, so that engines which never ask for it pay nothing. A lock of its own keeps
//! the system calls outside of the ticket table's lock.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use crate::base::error::{Error, Result};
use crate::base::sync::{AtomicBool, Mutex, lock};
use crate::sys;

#[derive(Debug, Default)]
pub(super) struct Signal {
    wanted: AtomicBool,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    descriptor: OwnedFd,
    readable: bool,
}

impl Signal {
    /// Makes the descriptor agree with what `deliverable` says now.
    ///
    /// INVARIANT: every change of the table is followed by a call of this, and `deliverable` is
    /// asked under this lock, so the last call always sees the last change.
    pub(super) fn update(&self, deliverable: impl FnOnce() -> bool) {
        // ORDERING: a completion that misses the flag changed the table before `descriptor` looked
        // at it, which then counts it: the table's lock orders the two.
        if !self.wanted.load(Ordering::SeqCst) {
            return;
        }
        let mut state = lock(&self.state);
        if let Some(state) = state.as_mut() {
            state.set(deliverable());
        }
    }

    /// The descriptor, made on the first call.
    pub(super) fn descriptor(&self, deliverable: impl FnOnce() -> bool) -> Result<RawFd> {
        let mut state = lock(&self.state);
        if state.is_none() {
            let descriptor = sys::event_new().map_err(|errno| Error::Unsupported {
                message: "an event descriptor could not be made".to_owned(),
                errno,
            })?;
            *state = Some(State {
                descriptor,
                readable: false,
            });
        }
        self.wanted.store(true, Ordering::SeqCst);
        match state.as_mut() {
            Some(state) => {
                state.set(deliverable());
                Ok(state.descriptor.as_raw_fd())
            }
            None => Err(Error::Internal("the event descriptor vanished".to_owned())),
        }
    }
}

impl State {
    fn set(&mut self, readable: bool) {
        if readable == self.readable {
            return;
        }
        // An eventfd of ours, non-blocking and never near its maximum: neither call can fail.
        let done = if readable {
            sys::event_signal(self.descriptor.as_fd())
        } else {
            sys::event_drain(self.descriptor.as_fd()).map(drop)
        };
        if done.is_ok() {
            self.readable = readable;
        }
    }
}
