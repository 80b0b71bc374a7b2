//! A request that its caller waits for.
//!
//! Unlike a ticket it is never seen by [`Engine::poll`]: for layers above that move something on
//! behalf of a caller.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError};

use super::request::{Direction, Outcome, Sink};
use super::{Engine, Tensor};
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
        self.start(engine, Direction::In, tensors, paths)?;
        self.finish()
    }

    /// Starts to write or read a list, to be waited for by [`finish`](Waiting::finish).
    ///
    /// # Errors
    /// As [`Engine::swap_in`]; then there is nothing to wait for.
    pub(crate) fn start(
        self: &Arc<Self>,
        engine: &Engine,
        direction: Direction,
        tensors: &[Tensor],
        paths: &[&CStr],
    ) -> Result<()> {
        let sink = Arc::clone(self) as Arc<dyn Sink>;
        engine.swap_for(direction, tensors, paths, sink, 0)
    }

    /// Waits for the request that was started.
    ///
    /// # Errors
    /// What made it fail.
    pub(crate) fn finish(&self) -> Result<()> {
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
