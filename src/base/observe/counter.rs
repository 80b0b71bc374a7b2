//! Counters and gauges.
//!
//! All accesses are relaxed: the numbers are for people, and nothing else is ordered by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    #[must_use]
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds. 2^64 bytes or nanoseconds are not reached in a lifetime of a process.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down, and the highest it ever was.
#[derive(Debug, Default)]
pub struct Gauge {
    value: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    /// A gauge at 0.
    #[must_use]
    pub const fn new() -> Gauge {
        Gauge {
            value: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        }
    }

    /// Raises the value, and the peak with it. Every value that was ever reached counts for the
    /// peak, however short it lasted.
    pub fn add(&self, amount: u64) {
        let before = self.value.fetch_add(amount, Relaxed);
        self.peak.fetch_max(before.saturating_add(amount), Relaxed);
    }

    /// Lowers the value. What was not added must not be taken away; a defect that does so leaves
    /// 0 rather than a number near 2^64.
    pub fn sub(&self, amount: u64) {
        let lower = |value: u64| Some(value.saturating_sub(amount));
        // The closure never declines, so there is always a value before.
        let before = self
            .value
            .fetch_update(Relaxed, Relaxed, lower)
            .unwrap_or_default();
        debug_assert!(before >= amount, "a gauge at {before} lowered by {amount}");
    }

    /// Sets the value, and raises the peak to it.
    pub fn set(&self, value: u64) {
        self.value.store(value, Relaxed);
        self.peak.fetch_max(value, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }

    /// The highest value there ever was.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_lose_nothing_and_the_peak_is_one_that_was_reached() {
        const ROUNDS: u64 = 10_000;
        let (counter, gauge) = (Counter::new(), Gauge::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        counter.add(3);
                        gauge.add(5);
                        gauge.sub(5);
                    }
                });
            }
        });
        assert_eq!(counter.get(), 4 * ROUNDS * 3);
        assert_eq!(gauge.get(), 0);
        assert!((5..=20).contains(&gauge.peak()) && gauge.peak().is_multiple_of(5));
    }

    #[test]
    fn the_peak_stays() {
        let gauge = Gauge::new();
        gauge.add(7);
        gauge.sub(6);
        gauge.add(2);
        assert_eq!((gauge.get(), gauge.peak()), (3, 7));
    }
}
