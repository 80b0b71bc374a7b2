//! `tsw_optimizer_stats`: what an optimizer has done; and its timers.

use std::ffi::c_char;

use super::guard;
use super::optimizer::tsw_optimizer;
use super::record::{Record, Sized32};
use super::status::tsw_status;
use super::text::{Name, name};
use super::timer::{self, tsw_timer};
use crate::optimizer::OptimizerStats;

/// What an optimizer has done since it was made, and what its last step was like.
///
/// Set `struct_size` to `sizeof(tsw_optimizer_stats)` before the call that fills it in. Later
/// versions add fields at the end.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_optimizer_stats {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Parameters registered.
    pub parameters_count: u64,
    /// Steps done, counting from the store's beginning.
    pub steps_count: u64,
    /// Commits made durable by this object.
    pub commits_count: u64,
    /// The last step that is durable.
    pub durable_step: u64,
    /// Bytes of records read since the last `tsw_optimizer_step_begin`.
    pub step_read_bytes: u64,
    /// Bytes of records written since the last `tsw_optimizer_step_begin`.
    pub step_written_bytes: u64,
    /// Bytes of records read ever.
    pub read_bytes: u64,
    /// Bytes of records written ever.
    pub written_bytes: u64,
    /// Records given out without being read, because they were still in memory.
    pub cache_hits_count: u64,
    /// Records that had to be read before they were given out.
    pub cache_misses_count: u64,
    /// Nanoseconds in which callers waited for a record to be read.
    pub wait_read_ns: u64,
    /// Nanoseconds in which callers waited for records to be written, or for a commit.
    pub wait_write_ns: u64,
    /// Nanoseconds in which callers held views, summed over views.
    pub update_ns: u64,
    /// Of the last step: nanoseconds from `tsw_optimizer_step_begin` to `tsw_optimizer_step_end`.
    pub step_ns: u64,
    /// Of the last step: nanoseconds in which records were being read or written.
    pub io_floor_ns: u64,
    /// Of the last step: nanoseconds in which at least one view was out.
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

// SAFETY: `repr(C)`, integers only, the two `u32` fill the first eight bytes.
unsafe impl Sized32 for tsw_optimizer_stats {
    const SIZE_BYTES_MIN: usize = 8;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl From<OptimizerStats> for tsw_optimizer_stats {
    fn from(stats: OptimizerStats) -> tsw_optimizer_stats {
        tsw_optimizer_stats {
            struct_size: 0,
            reserved: 0,
            parameters_count: stats.parameters_count,
            steps_count: stats.steps_count,
            commits_count: stats.commits_count,
            durable_step: stats.durable_step,
            step_read_bytes: stats.step_read_bytes,
            step_written_bytes: stats.step_written_bytes,
            read_bytes: stats.read_bytes,
            written_bytes: stats.written_bytes,
            cache_hits_count: stats.cache_hits_count,
            cache_misses_count: stats.cache_misses_count,
            wait_read_ns: stats.wait_read_ns,
            wait_write_ns: stats.wait_write_ns,
            update_ns: stats.update_ns,
            step_ns: stats.step_ns,
            io_floor_ns: stats.io_floor_ns,
            compute_floor_ns: stats.compute_floor_ns,
            pinned_computed_bytes: stats.pinned_computed_bytes,
            pinned_used_bytes: stats.pinned_used_bytes,
            pinned_peak_bytes: stats.pinned_peak_bytes,
            gradient_memory_bytes: stats.gradient_memory_bytes,
            gradient_spilled_bytes: stats.gradient_spilled_bytes,
            checksum_errors_count: stats.checksum_errors_count,
            store_bytes: stats.store_bytes,
            store_written_bytes: stats.store_written_bytes,
        }
    }
}

/// Fill in what an optimizer has done, and what its last step was like.
///
/// `inout->struct_size` is `sizeof(tsw_optimizer_stats)`, set by the caller.
///
/// Threads: any, concurrently.
/// Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_get_stats(
    optimizer: *const tsw_optimizer,
    inout: *mut tsw_optimizer_stats,
) -> tsw_status {
    // SAFETY: the caller's handle and structure.
    unsafe {
        let record = Record::open(inout, "inout");
        guard::with(optimizer, |optimizer| {
            record?.write(optimizer.optimizer.stats().into());
            Ok(())
        })
    }
}

/// The timers of an optimizer, as C reads their names.
static TIMERS: [Name; 9] = [
    name("swap_in_state"),
    name("swap_out_state"),
    name("swap_out_gradient"),
    name("async_swap_in_state"),
    name("async_swap_out_state"),
    name("async_swap_gradient_wait"),
    name("swap_init_write"),
    name("unswapped_read_gradients"),
    name("commit"),
];

/// List the timers of an optimizer that have run, and return how many there are.
///
/// Writes at most `cap` names to `names_out`, which may be NULL where `cap` is 0. The names are
/// DeepSpeed's: "swap_in_state", "swap_out_state", "swap_out_gradient", "async_swap_in_state",
/// "async_swap_out_state", "async_swap_gradient_wait", "swap_init_write" and
/// "unswapped_read_gradients"; and "commit".
///
/// Ownership: the names are the library's and live as long as it is loaded.
/// Threads: any, concurrently. Returns 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_timer_names(
    optimizer: *const tsw_optimizer,
    names_out: *mut *const c_char,
    cap: usize,
) -> usize {
    // SAFETY: the caller's handle and places.
    unsafe {
        guard::value(optimizer, 0, |optimizer| {
            let have_run = optimizer.optimizer.timer_names();
            Ok(timer::list(&TIMERS, &have_run, names_out, cap))
        })
    }
}

/// Fill in a timer of an optimizer, by its name.
///
/// `inout->struct_size` is `sizeof(tsw_timer)`, set by the caller. A timer that has not run is all 0.
///
/// Threads: any, concurrently.
/// Errors: INVALID_ARGUMENT for a name that no timer has, or a `struct_size` that cannot be;
/// NULL_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_get_timer(
    optimizer: *const tsw_optimizer,
    name: *const c_char,
    inout: *mut tsw_timer,
) -> tsw_status {
    // SAFETY: the caller's handle, text and structure.
    unsafe {
        let record = Record::open(inout, "inout");
        guard::with(optimizer, |optimizer| {
            timer::fill(record, name, |name| optimizer.optimizer.timer(name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Config;
    use crate::io::Engine;
    use crate::optimizer::Optimizer;

    #[test]
    fn c_knows_every_timer_by_its_name() {
        let mut config = Config::new();
        config.set("backend", "memory").unwrap();
        config.set("path", "/nowhere").unwrap();
        let engine = Engine::new(&config).unwrap();
        let optimizer = Optimizer::new(&engine, &config).unwrap();
        let known: Vec<Name> = optimizer.timers().map(|(text, _)| name(text)).collect();
        assert_eq!(known.len(), TIMERS.len());
        assert!(known.iter().all(|name| TIMERS.contains(name)));
    }
}
