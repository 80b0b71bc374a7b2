//! Where the driver tells of finished writes of a swapper.
//!
//! The driver thread only notes the outcome and wakes whoever waits; what follows from it is done
//! by the thread that uses the swapper, when it next looks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::error::Result;
use crate::base::observe::{Counter, Gauge, Timer};
use crate::base::sync::{Condvar, Mutex, lock};
use crate::base::units::to_u64;
use crate::io::{Engine, Outcome, Request, Sink};

/// Low bits of a write's token: which staging buffer. The rest: how many bytes.
const BUFFER_BITS: u32 = 16;
/// The most staging buffers of one swapper.
pub(super) const BUFFERS_MAX: usize = (1 << BUFFER_BITS) - 1;

/// The end of one write.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) buffer: usize,
    pub(super) outcome: Outcome,
}

/// The token of a write of `len_bytes` over a staging buffer.
fn token_of(buffer: usize, len_bytes: u64) -> u64 {
    len_bytes << BUFFER_BITS | to_u64(buffer)
}

/// What the driver and readers of figures share with a swapper.
#[derive(Debug, Default)]
pub(super) struct Shared {
    finished: Mutex<Vec<Finished>>,
    arrived: Condvar,
    pub(super) figures: Figures,
}

/// Counters and timers of a swapper.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) out_tensors: Counter,
    pub(super) out_elements: Counter,
    pub(super) out_bytes: Counter,
    pub(super) in_tensors: Counter,
    pub(super) in_elements: Counter,
    pub(super) in_bytes: Counter,
    pub(super) in_flight: Gauge,
    pub(super) waited_ns: Counter,
    pub(super) copies_avoided: Counter,
    pub(super) copies_avoided_bytes: Counter,
    pub(super) errors: Counter,
    pub(super) buffers: Gauge,
    pub(super) buffers_free: Gauge,
    pub(super) buffers_in_flight: Gauge,
    pub(super) swap_out: Timer,
    pub(super) swap_in: Timer,
    pub(super) flush: Timer,
    pub(super) wait: Timer,
}

impl Sink for Shared {
    fn is_cancelled(&self, _token: u64) -> bool {
        false
    }

    fn progress(&self, _token: u64, _bytes: u64) {}

    fn complete(&self, token: u64, outcome: Outcome) {
        let mut finished = lock(&self.finished);
        self.figures.in_flight.sub(token >> BUFFER_BITS);
        let buffer = usize::try_from(token % (1 << BUFFER_BITS)).unwrap_or(BUFFERS_MAX);
        finished.push(Finished { buffer, outcome });
        drop(finished);
        self.arrived.notify_all();
    }
}

impl Shared {
    /// Submits a write over a staging buffer.
    pub(super) fn submit_write(
        self: &Arc<Self>,
        engine: &Engine,
        mut request: Arc<Request>,
        buffer: usize,
        len_bytes: u64,
    ) -> Result<()> {
        if let Some(request) = Arc::get_mut(&mut request) {
            request.sink = Some(Arc::clone(self) as Arc<dyn Sink>);
            request.token = token_of(buffer, len_bytes);
        }
        self.figures.in_flight.add(len_bytes);
        engine
            .submit(request)
            .inspect_err(|_| self.figures.in_flight.sub(len_bytes))
    }

    /// Takes the writes that have ended; with `wait`, blocks until one has or the deadline is
    /// over (`None`: never). False where the deadline was over first.
    pub(super) fn take_writes(
        &self,
        wait: bool,
        deadline: Option<Instant>,
        into: &mut Vec<Finished>,
    ) -> bool {
        let mut finished = lock(&self.finished);
        while wait && finished.is_empty() {
            finished = match deadline {
                None => self
                    .arrived
                    .wait(finished)
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return false;
                    }
                    self.arrived
                        .wait_timeout(finished, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
        into.append(&mut finished);
        true
    }
}
