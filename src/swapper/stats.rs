//! A swapper's figures, readable by any thread while it works.

use super::sink::{Figures, Shared};
use crate::base::observe::prometheus::Value::{Counter, Gauge, Summary};
use crate::base::observe::{Timer, TimerSnapshot};
use crate::io::{Metric, Metrics};

/// Counters of a swapper at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapperStats {
    /// Tensors staged.
    pub swap_out_tensors_count: u64,
    /// Elements staged.
    pub swap_out_elements_count: u64,
    /// Bytes staged.
    pub swap_out_bytes: u64,
    /// Tensors read.
    pub swap_in_tensors_count: u64,
    /// Elements read.
    pub swap_in_elements_count: u64,
    /// Bytes read.
    pub swap_in_bytes: u64,
    /// Bytes submitted and not yet written.
    pub in_flight_bytes: u64,
    /// The most bytes that were in flight at once.
    pub in_flight_peak_bytes: u64,
    /// Nanoseconds that calls waited for writes: for a free buffer, and in flush.
    pub waited_ns: u64,
    /// Tensors read straight into pinned memory.
    pub copies_avoided_count: u64,
    /// Their bytes.
    pub copies_avoided_bytes: u64,
    /// Buffers held.
    pub buffers_count: u64,
    /// Buffers that are free.
    pub buffers_free_count: u64,
    /// Buffers with writes in flight.
    pub buffers_in_flight_count: u64,
    /// Writes of staged tensors that failed.
    pub errors_count: u64,
}

/// A timer's name, and where it is.
type NamedTimer = (&'static str, fn(&Figures) -> &Timer);

/// The timers by name. `async_swap_gradient_wait` is DeepSpeed's name for waiting for writes.
const TIMERS: [NamedTimer; 4] = [
    ("swap_out", |figures| &figures.swap_out),
    ("swap_in", |figures| &figures.swap_in),
    ("flush", |figures| &figures.flush),
    ("async_swap_gradient_wait", |figures| &figures.wait),
];

impl Figures {
    pub(super) fn stats(&self) -> SwapperStats {
        SwapperStats {
            swap_out_tensors_count: self.out_tensors.get(),
            swap_out_elements_count: self.out_elements.get(),
            swap_out_bytes: self.out_bytes.get(),
            swap_in_tensors_count: self.in_tensors.get(),
            swap_in_elements_count: self.in_elements.get(),
            swap_in_bytes: self.in_bytes.get(),
            in_flight_bytes: self.in_flight.get(),
            in_flight_peak_bytes: self.in_flight.peak(),
            waited_ns: self.waited_ns.get(),
            copies_avoided_count: self.copies_avoided.get(),
            copies_avoided_bytes: self.copies_avoided_bytes.get(),
            buffers_count: self.buffers.get(),
            buffers_free_count: self.buffers_free.get(),
            buffers_in_flight_count: self.buffers_in_flight.get(),
            errors_count: self.errors.get(),
        }
    }

    /// Every timer by its name.
    pub(super) fn timers(&self) -> impl Iterator<Item = (&'static str, TimerSnapshot)> {
        TIMERS
            .iter()
            .map(|(name, timer)| (*name, timer(self).snapshot()))
    }
}

impl Metrics for Shared {
    fn kind(&self) -> &'static str {
        "swapper"
    }

    fn metrics(&self) -> Vec<Metric> {
        let stats = self.figures.stats();
        let wait = self.figures.wait.snapshot();
        vec![
            (
                "tensorswap_swapper_out_tensors_total",
                "Tensors staged.",
                Counter(stats.swap_out_tensors_count),
            ),
            (
                "tensorswap_swapper_out_bytes_total",
                "Bytes staged.",
                Counter(stats.swap_out_bytes),
            ),
            (
                "tensorswap_swapper_in_tensors_total",
                "Tensors read.",
                Counter(stats.swap_in_tensors_count),
            ),
            (
                "tensorswap_swapper_in_bytes_total",
                "Bytes read.",
                Counter(stats.swap_in_bytes),
            ),
            (
                "tensorswap_swapper_in_flight_bytes",
                "Bytes submitted and not yet written.",
                Gauge(stats.in_flight_bytes),
            ),
            (
                "tensorswap_swapper_in_flight_peak_bytes",
                "The most bytes that were in flight at once.",
                Gauge(stats.in_flight_peak_bytes),
            ),
            (
                "tensorswap_swapper_copies_avoided_bytes_total",
                "Bytes read straight into pinned memory.",
                Counter(stats.copies_avoided_bytes),
            ),
            (
                "tensorswap_swapper_buffers",
                "Staging buffers held.",
                Gauge(stats.buffers_count),
            ),
            (
                "tensorswap_swapper_buffers_free",
                "Staging buffers that are free.",
                Gauge(stats.buffers_free_count),
            ),
            (
                "tensorswap_swapper_errors_total",
                "Writes of staged tensors that failed.",
                Counter(stats.errors_count),
            ),
            (
                "tensorswap_swapper_wait_nanoseconds",
                "Time that calls waited for writes.",
                Summary(wait),
            ),
        ]
    }
}
