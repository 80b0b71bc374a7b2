//! The optimizer's figures at one moment.

use super::optimizer_swapper::Optimizer;
use super::shared::Shared;
use crate::base::observe::TimerSnapshot;
use crate::base::observe::prometheus::Value::{Counter, Gauge, Summary};
use crate::base::sync::lock;
use crate::base::units::to_u64;
use crate::io::{Metric, Metrics};

/// Counters of an optimizer swapper at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OptimizerStats {
    /// Parameters registered.
    pub parameters_count: u64,
    /// Steps done, counting from the store's beginning.
    pub steps_count: u64,
    /// Commits made durable by this object.
    pub commits_count: u64,
    /// The last step that is durable.
    pub durable_step: u64,
    /// Bytes of records read since the last `step_begin`.
    pub step_read_bytes: u64,
    /// Bytes of records written since the last `step_begin`.
    pub step_written_bytes: u64,
    /// Bytes of records read ever.
    pub read_bytes: u64,
    /// Bytes of records written ever.
    pub written_bytes: u64,
    /// Records given out without being read, because they were still in memory.
    pub cache_hits_count: u64,
    /// Records that had to be read before they were given out.
    pub cache_misses_count: u64,
    /// Time in which callers waited for a record to be read.
    pub wait_read_ns: u64,
    /// Time in which callers waited for records to be written, or for a commit.
    pub wait_write_ns: u64,
    /// Time in which callers held views, summed over views.
    pub update_ns: u64,
    /// Of the last step: from `step_begin` to `step_end`.
    pub step_ns: u64,
    /// Of the last step: time in which records were being read or written.
    pub io_floor_ns: u64,
    /// Of the last step: time in which at least one view was out.
    pub compute_floor_ns: u64,
    /// Pinned memory, as computed from the parameters and the options.
    pub pinned_computed_bytes: u64,
    /// Pinned memory in use by records now.
    pub pinned_used_bytes: u64,
    /// The most that was in use.
    pub pinned_peak_bytes: u64,
    /// Memory that holds gradients now.
    pub gradient_memory_bytes: u64,
    /// Bytes of gradients written to storage ever.
    pub gradient_spilled_bytes: u64,
    /// Checksums that did not match ever.
    pub checksum_errors_count: u64,
    /// Bytes of the store's data files that records take, in all directories.
    pub store_bytes: u64,
    /// Bytes that were written to records since the store was made, in all runs.
    pub store_written_bytes: u64,
}

impl Optimizer {
    /// The optimizer's figures.
    #[must_use]
    pub fn stats(&self) -> OptimizerStats {
        OptimizerStats {
            gradient_memory_bytes: self.gradients.memory_bytes(),
            gradient_spilled_bytes: self.gradients.spilled_bytes(),
            ..self.shared.stats()
        }
    }

    /// Names of the timers that have run.
    #[must_use]
    pub fn timer_names(&self) -> Vec<&'static str> {
        self.timers()
            .filter(|(_, timer)| timer.count > 0)
            .map(|(name, _)| name)
            .collect()
    }

    /// One timer by its name; `None` where there is none of that name.
    #[must_use]
    pub fn timer(&self, name: &str) -> Option<TimerSnapshot> {
        let mut timers = self.timers();
        timers
            .find(|(known, _)| *known == name)
            .map(|(_, timer)| timer)
    }

    /// Every timer, for the list of their names in C.
    pub(crate) fn timers(&self) -> impl Iterator<Item = (&'static str, TimerSnapshot)> {
        let gradients = self.gradients.timers();
        self.shared.figures.timers().chain([
            ("swap_out_gradient", gradients.swap_out_gradient.snapshot()),
            (
                "async_swap_gradient_wait",
                gradients.async_swap_gradient_wait.snapshot(),
            ),
            (
                "unswapped_read_gradients",
                gradients.unswapped_read_gradients.snapshot(),
            ),
        ])
    }
}

impl Shared {
    /// All figures but those of gradients.
    fn stats(&self) -> OptimizerStats {
        let core = lock(&self.core);
        let figures = &self.figures;
        let step = &core.step_figures;
        let (read_bytes, written_bytes) = (figures.read_bytes.get(), figures.written_bytes.get());
        let arena = core.arena.as_ref();
        OptimizerStats {
            parameters_count: to_u64(core.records.len()),
            steps_count: core.step_number,
            commits_count: figures.commits.get(),
            durable_step: core.durable_step,
            step_read_bytes: read_bytes - step.read_bytes_before,
            step_written_bytes: written_bytes - step.written_bytes_before,
            read_bytes,
            written_bytes,
            cache_hits_count: figures.cache_hits.get(),
            cache_misses_count: figures.cache_misses.get(),
            wait_read_ns: figures.wait_read_ns.get(),
            wait_write_ns: figures.wait_write_ns.get(),
            update_ns: figures.update_ns.get(),
            step_ns: step.step_ns,
            io_floor_ns: step.io_floor_ns,
            compute_floor_ns: step.compute_floor_ns,
            pinned_computed_bytes: core.computed_bytes,
            pinned_used_bytes: arena.map_or(0, |arena| arena.used_bytes()),
            pinned_peak_bytes: arena.map_or(0, |arena| arena.peak_bytes()),
            gradient_memory_bytes: 0,
            gradient_spilled_bytes: 0,
            checksum_errors_count: figures.checksum_errors.get(),
            store_bytes: self.store.data_bytes(),
            store_written_bytes: self.store.written_bytes(),
        }
    }
}

impl Metrics for Shared {
    fn kind(&self) -> &'static str {
        "optimizer"
    }

    fn metrics(&self) -> Vec<Metric> {
        let stats = self.stats();
        let commit = self.figures.commit.snapshot();
        vec![
            (
                "tensorswap_optimizer_parameters",
                "Parameters registered.",
                Gauge(stats.parameters_count),
            ),
            (
                "tensorswap_optimizer_steps",
                "Steps done since the store's beginning.",
                Gauge(stats.steps_count),
            ),
            (
                "tensorswap_optimizer_durable_step",
                "The last step that is durable.",
                Gauge(stats.durable_step),
            ),
            (
                "tensorswap_optimizer_commits_total",
                "Commits made durable.",
                Counter(stats.commits_count),
            ),
            (
                "tensorswap_optimizer_read_bytes_total",
                "Bytes of records read.",
                Counter(stats.read_bytes),
            ),
            (
                "tensorswap_optimizer_written_bytes_total",
                "Bytes of records written.",
                Counter(stats.written_bytes),
            ),
            (
                "tensorswap_optimizer_store_written_bytes",
                "Bytes of records written since the store was made.",
                Gauge(stats.store_written_bytes),
            ),
            (
                "tensorswap_optimizer_cache_hits_total",
                "Records given out without a read.",
                Counter(stats.cache_hits_count),
            ),
            (
                "tensorswap_optimizer_cache_misses_total",
                "Records read before they were given out.",
                Counter(stats.cache_misses_count),
            ),
            (
                "tensorswap_optimizer_wait_read_nanoseconds_total",
                "Time that callers waited for reads.",
                Counter(stats.wait_read_ns),
            ),
            (
                "tensorswap_optimizer_wait_write_nanoseconds_total",
                "Time that callers waited for writes and commits.",
                Counter(stats.wait_write_ns),
            ),
            (
                "tensorswap_optimizer_update_nanoseconds_total",
                "Time that callers held views.",
                Counter(stats.update_ns),
            ),
            (
                "tensorswap_optimizer_pinned_bytes",
                "Pinned memory that records take.",
                Gauge(stats.pinned_used_bytes),
            ),
            (
                "tensorswap_optimizer_checksum_errors_total",
                "Checksums that did not match.",
                Counter(stats.checksum_errors_count),
            ),
            (
                "tensorswap_optimizer_commit_nanoseconds",
                "Time that commits took.",
                Summary(commit),
            ),
        ]
    }
}
