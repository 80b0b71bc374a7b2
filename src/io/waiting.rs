//! A sink for one request that its caller waits for.
//!
//! Unlike a ticket it is never seen by [`Engine::poll`](super::Engine::poll): for layers above
//! that move something on behalf of a caller.

use std::ffi::CStr;
use std::sync::{Arc, PoisonError};

use super::request::{Direction, Outcome, Sink};
use super::{Engine, Tensor};
use crate::base::error::Result;
use crate::base::sync::{Condvar, Mutex, lock};

#[derive(Debug, Default)]
struct Waiting {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
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

impl Engine {
    /// Reads a list and waits for it.
    ///
    /// # Errors
    /// As [`Engine::swap_in`], and what kept the list from being read.
    pub(crate) fn read_now(&self, tensors: &[Tensor], paths: &[&CStr]) -> Result<()> {
        let waiting: Arc<Waiting> = Arc::default();
        let sink = Arc::clone(&waiting) as Arc<dyn Sink>;
        self.swap_for(Direction::In, tensors, paths, sink, 0)?;
        let mut outcome = lock(&waiting.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return match outcome.failure {
                    Some(failure) => Err(failure.error),
                    None => Ok(()),
                };
            }
            outcome = waiting
                .arrived
                .wait(outcome)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
