//! Timers: how often, how long in all, and how the durations spread.
//!
//! The histogram is fixed and log-spaced, after HdrHistogram (Gil Tene): each power of two is
//! cut into 8 buckets of equal width, and below 8 ns every nanosecond has its own. A bucket is
//! at most an eighth as wide as its lower end, so a percentile, given as the upper end of its
//! bucket, is never too low and at most 12.5 % too high.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::units::nanos;

/// Bits of a duration that tell the buckets within a power of two apart.
const SUB_BITS: u32 = 3;
/// Buckets within a power of two.
const SUBS: usize = 1 << SUB_BITS;
/// Buckets: the single nanoseconds, then 8 for each power of two from 2^3 to 2^63.
const BUCKETS: usize = SUBS + (64 - SUB_BITS as usize) * SUBS;

/// A timer. Any thread may record and take snapshots at any time; neither locks nor allocates.
/// It takes 4 KiB.
#[derive(Debug)]
pub struct Timer {
    total_ns: AtomicU64,
    /// `u64::MAX` while nothing is recorded.
    min_ns: AtomicU64,
    max_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What a timer has recorded up to some instant; all 0 where nothing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimerSnapshot {
    /// Durations recorded.
    pub count: u64,
    /// Their sum in nanoseconds; stays at 2^64 - 1 once it gets there.
    pub total_ns: u64,
    /// The shortest in nanoseconds.
    pub min_ns: u64,
    /// The longest in nanoseconds.
    pub max_ns: u64,
    /// Half of them are not longer than this; at most 12.5 % above the true median, never below.
    pub p50_ns: u64,
    /// 99 % of them are not longer than this; at most 12.5 % above the true value, never below.
    pub p99_ns: u64,
}

impl Timer {
    /// A timer that has recorded nothing.
    #[must_use]
    pub const fn new() -> Timer {
        Timer {
            total_ns: AtomicU64::new(0),
            min_ns: AtomicU64::new(u64::MAX),
            max_ns: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Records one duration.
    pub fn record(&self, duration: Duration) {
        let ns = nanos(duration);
        let longer = |total: u64| Some(total.saturating_add(ns));
        // The closure never declines; what was there before does not matter.
        let _ = self
            .total_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, longer);
        self.min_ns.fetch_min(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
        // ORDERING: release after the three above, acquired by `snapshot`: a duration that is
        // counted there is also in the total and between the extremes.
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Release);
    }

    /// What has been recorded so far.
    ///
    /// While other threads record, the total and the extremes may already know a duration that
    /// the count and the percentiles do not, never the other way round.
    #[must_use]
    pub fn snapshot(&self) -> TimerSnapshot {
        let mut counts = [0; BUCKETS];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            // ORDERING: acquire, before the loads below; see `record`.
            *count = bucket.load(Ordering::Acquire);
        }
        let count = counts
            .iter()
            .fold(0u64, |sum, count| sum.saturating_add(*count));
        if count == 0 {
            return TimerSnapshot::default();
        }
        let min_ns = self.min_ns.load(Ordering::Relaxed);
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        // The rank of a percentile is the nearest one from above: ceil(p × count), from 1.
        let percentile = |rank: u64| upper_end_at(&counts, rank).clamp(min_ns, max_ns);
        TimerSnapshot {
            count,
            total_ns: self.total_ns.load(Ordering::Relaxed),
            min_ns,
            max_ns,
            p50_ns: percentile(count.div_ceil(2)),
            p99_ns: percentile(count - count / 100),
        }
    }
}

impl Default for Timer {
    fn default() -> Timer {
        Timer::new()
    }
}

/// The bucket of a duration: the leading bit tells the power of two, the next three the place
/// within it. Below 8 the place is the duration itself.
fn bucket_of(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let power = if ns >> SUB_BITS == 0 {
        0
    } else {
        shift as usize + 1
    };
    // The low byte is all that matters, and fits any integer.
    let sub = usize::from((ns >> shift).to_le_bytes()[0]) % SUBS;
    power * SUBS + sub
}

/// The longest duration of a bucket, in nanoseconds.
fn upper_end(bucket: usize) -> u64 {
    let (power, sub) = (bucket / SUBS, (bucket % SUBS) as u64);
    match power {
        0 => sub,
        // The last bucket ends at 2^64 - 1, which the wider type reaches without wrapping.
        _ => {
            let end = (u128::from(sub) + SUBS as u128 + 1) << (power - 1);
            u64::try_from(end - 1).unwrap_or(u64::MAX)
        }
    }
}

/// The upper end of the bucket that holds the duration with this rank, counted from 1.
fn upper_end_at(counts: &[u64; BUCKETS], rank: u64) -> u64 {
    let mut seen = 0u64;
    for (bucket, count) in counts.iter().enumerate() {
        seen = seen.saturating_add(*count);
        if seen >= rank {
            return upper_end(bucket);
        }
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_ordered_adjoin_and_cover_everything() {
        assert_eq!(upper_end(BUCKETS - 1), u64::MAX);
        assert_eq!(bucket_of(0), 0);
        for bucket in 0..BUCKETS {
            let end = upper_end(bucket);
            assert_eq!(bucket_of(end), bucket);
            if let Some(next) = end.checked_add(1) {
                assert_eq!(bucket_of(next), bucket + 1);
            }
        }
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Timer::new().snapshot(), TimerSnapshot::default());
    }

    #[test]
    fn a_single_duration_is_told_exactly() {
        for ns in [0, 1, 7, 8, 1_000_003, u64::MAX] {
            let timer = Timer::new();
            timer.record(Duration::from_nanos(ns));
            let expected = TimerSnapshot {
                count: 1,
                total_ns: ns,
                min_ns: ns,
                max_ns: ns,
                p50_ns: ns,
                p99_ns: ns,
            };
            assert_eq!(timer.snapshot(), expected);
        }
    }

    #[test]
    fn the_total_saturates() {
        let timer = Timer::new();
        timer.record(Duration::MAX);
        timer.record(Duration::from_secs(1));
        let snapshot = timer.snapshot();
        assert_eq!((snapshot.count, snapshot.total_ns), (2, u64::MAX));
        assert_eq!(
            (snapshot.min_ns, snapshot.max_ns),
            (1_000_000_000, u64::MAX)
        );
    }

    #[test]
    fn snapshots_taken_while_threads_record_are_consistent() {
        const ROUNDS: u64 = 20_000;
        let timer = Timer::new();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let timer = &timer;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        timer.record(Duration::from_nanos(100 + thread * ROUNDS + round));
                    }
                });
            }
            let mut last = 0;
            while last < 3 * ROUNDS {
                let snapshot = timer.snapshot();
                assert!(snapshot.count >= last);
                last = snapshot.count;
                if last > 0 {
                    assert!((100..u64::MAX).contains(&snapshot.min_ns));
                    assert!(snapshot.min_ns <= snapshot.p50_ns);
                    assert!(snapshot.p50_ns <= snapshot.p99_ns);
                    assert!(snapshot.p99_ns <= snapshot.max_ns);
                    assert!(snapshot.total_ns >= snapshot.count * 100);
                }
            }
        });
        let snapshot = timer.snapshot();
        assert_eq!((snapshot.min_ns, snapshot.max_ns), (100, 99 + 3 * ROUNDS));
        let sum: u64 = (0..3 * ROUNDS).map(|n| n + 100).sum();
        assert_eq!(snapshot.total_ns, sum);
    }

    /// The true value at a rank is at most what the timer says, which is at most 12.5 % more.
    fn is_close(told: u64, truth: u64) -> bool {
        told >= truth && u128::from(told) <= u128::from(truth) + u128::from(truth) / 8
    }

    proptest! {
        #[test]
        fn a_snapshot_agrees_with_the_sorted_list(
            list in prop::collection::vec((any::<u64>(), 0u32..64).prop_map(|(n, s)| n >> s), 1..400),
        ) {
            let timer = Timer::new();
            for ns in &list {
                timer.record(Duration::from_nanos(*ns));
            }
            let mut sorted = list.clone();
            sorted.sort_unstable();
            let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
            let snapshot = timer.snapshot();
            prop_assert_eq!(snapshot.count, list.len() as u64);
            prop_assert_eq!(snapshot.total_ns, list.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns)));
            prop_assert_eq!(snapshot.min_ns, sorted[0]);
            prop_assert_eq!(snapshot.max_ns, sorted[sorted.len() - 1]);
            prop_assert!(is_close(snapshot.p50_ns, at(50)), "{} {}", snapshot.p50_ns, at(50));
            prop_assert!(is_close(snapshot.p99_ns, at(99)), "{} {}", snapshot.p99_ns, at(99));
        }
    }
}
