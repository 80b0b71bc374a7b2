//! A request that its caller waits for.
//!
//! Unlike a ticket it is never seen by [`Engine::poll`]: for layers above that move something on
//! behalf of a caller.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError};

use super::request::{Direction, Outcome, Priority, Sink};
use super::{Engine, FileIdentity, Tensor};
use crate::base::error::Result;
use crate::base::sync::{Condvar, Mutex, lock};

/// Where the end of one request is waited for. May be used again, by one caller at a time.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
}

impl Waiting {
    /// Reads a list and waits for it.
    ///
    /// # Errors
    /// As [`Engine::swap_in`], and what kept the list from being read.
    pub(crate) fn read(
        self: &Arc<Self>,
        engine: &Engine,
        tensors: &[Tensor],
        paths: &[&CStr],
    ) -> Result<()> {
        self.begin(engine, Direction::In, Priority::Foreground, tensors, paths)?;
        self.end()
    }

    /// Has a list written or read; [`Waiting::end`] must follow.
    ///
    /// # Errors
    /// As [`Engine::swap_in`]; then nothing was begun.
    pub(crate) fn begin(
        self: &Arc<Self>,
        engine: &Engine,
        direction: Direction,
        priority: Priority,
        tensors: &[Tensor],
        paths: &[&CStr],
    ) -> Result<()> {
        self.begin_on(engine, (direction, priority), tensors, paths, &[])
    }

    /// As [`Waiting::begin`], where each path leads to the file that has the same place in `only`, if
    /// there is one, or the request fails.
    ///
    /// # Errors
    /// As [`Waiting::begin`].
    pub(crate) fn begin_on(
        self: &Arc<Self>,
        engine: &Engine,
        way: (Direction, Priority),
        tensors: &[Tensor],
        paths: &[&CStr],
        only: &[Option<FileIdentity>],
    ) -> Result<()> {
        let sink = Arc::clone(self) as Arc<dyn Sink>;
        engine.swap_for(way, tensors, paths, only, sink, 0)
    }

    /// Waits for what was begun.
    ///
    /// # Errors
    /// What kept the list from being moved.
    pub(crate) fn end(&self) -> Result<()> {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return match outcome.failure {
                    Some(failure) => Err(failure.error),
                    None => Ok(()),
                };
            }
            outcome = self
                .arrived
                .wait(outcome)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Sink for Waiting {
    fn is_cancelled(&self, _token: u64) -> bool {
        false
    }

    fn progress(&self, _token: u64, _bytes: u64) {}

    fn complete(&self, _token: u64, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.arrived.notify_all();
    }
}
