//! The optimizer's figures at one moment.

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
    /// Bytes reserved in the store's data file.
    pub store_bytes: u64,
}
