//! Counters and timers of an optimizer, readable by any thread while it works.

use std::time::{Duration, Instant};

use crate::base::observe::{Counter, Timer, TimerSnapshot};
use crate::base::units::nanos;

/// What an optimizer counts.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) commits: Counter,
    pub(super) read_bytes: Counter,
    pub(super) written_bytes: Counter,
    pub(super) cache_hits: Counter,
    pub(super) cache_misses: Counter,
    pub(super) wait_read_ns: Counter,
    pub(super) wait_write_ns: Counter,
    pub(super) update_ns: Counter,
    pub(super) checksum_errors: Counter,
    pub(super) swap_in_state: Timer,
    pub(super) swap_out_state: Timer,
    pub(super) async_swap_in_state: Timer,
    pub(super) async_swap_out_state: Timer,
    pub(super) swap_init_write: Timer,
    pub(super) commit: Timer,
}

/// A timer's name, and where it is.
type NamedTimer = (&'static str, fn(&Figures) -> &Timer);

/// The timers of records by their names, which are DeepSpeed's; those of gradients are kept by the
/// gradients. `commit` is ours: DeepSpeed makes nothing durable.
const TIMERS: [NamedTimer; 6] = [
    ("swap_in_state", |figures| &figures.swap_in_state),
    ("swap_out_state", |figures| &figures.swap_out_state),
    ("async_swap_in_state", |figures| {
        &figures.async_swap_in_state
    }),
    ("async_swap_out_state", |figures| {
        &figures.async_swap_out_state
    }),
    ("swap_init_write", |figures| &figures.swap_init_write),
    ("commit", |figures| &figures.commit),
];

impl Figures {
    /// Notes the end of a commit.
    pub(super) fn note_commit(&self, started: Instant, done: bool) {
        self.commit.record(started.elapsed());
        if done {
            self.commits.add(1);
        }
    }

    /// Every timer by its name.
    pub(super) fn timers(&self) -> impl Iterator<Item = (&'static str, TimerSnapshot)> {
        TIMERS
            .iter()
            .map(|(name, timer)| (*name, timer(self).snapshot()))
    }
}

/// Measures for how long something was the case.
#[derive(Debug, Default)]
pub(super) struct Clock {
    since: Option<Instant>,
    total: Duration,
}

impl Clock {
    /// Says whether it is the case from now on.
    pub(super) fn set(&mut self, is_on: bool) {
        match (self.since, is_on) {
            (None, true) => self.since = Some(Instant::now()),
            (Some(since), false) => {
                self.total += since.elapsed();
                self.since = None;
            }
            _ => {}
        }
    }

    /// Nanoseconds until now.
    pub(super) fn total_ns(&self) -> u64 {
        nanos(self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

/// Where the figures of a step began, and what the last one came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepFigures {
    pub(super) read_bytes_before: u64,
    pub(super) written_bytes_before: u64,
    pub(super) io_ns_before: u64,
    pub(super) compute_ns_before: u64,
    pub(super) step_ns: u64,
    pub(super) io_floor_ns: u64,
    pub(super) compute_floor_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_only_while_it_is_on() {
        let mut clock = Clock::default();
        clock.set(false);
        assert_eq!(clock.total_ns(), 0);
        clock.set(true);
        clock.set(true);
        std::thread::sleep(Duration::from_millis(1));
        clock.set(false);
        let total = clock.total_ns();
        assert!(total >= 1_000_000);
        clock.set(false);
        assert_eq!(clock.total_ns(), total);
    }
}
