//! `tsw_timer`: how often something ran, and how long it took.

use std::ffi::c_char;

use super::guard::{Failure, Outcome};
use super::record::{Record, Sized32};
use super::text::{self, Name, name};
use crate::base::observe::TimerSnapshot;

/// How often something ran, and how long it took; all 0 where it never did.
///
/// Set `struct_size` to `sizeof(tsw_timer)` before the call that fills it in.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_timer {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// How often it ran.
    pub count: u64,
    /// All of them together, in nanoseconds.
    pub total_ns: u64,
    /// The shortest, in nanoseconds.
    pub min_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// Half of them took at most this long; at most 12.5 % too high, never too low.
    pub p50_ns: u64,
    /// 99 % of them took at most this long; at most 12.5 % too high, never too low.
    pub p99_ns: u64,
}

// SAFETY: `repr(C)`, integers only, the two `u32` fill the first eight bytes.
unsafe impl Sized32 for tsw_timer {
    const SIZE_BYTES_MIN: usize = 8;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl From<TimerSnapshot> for tsw_timer {
    fn from(timer: TimerSnapshot) -> tsw_timer {
        tsw_timer {
            struct_size: 0,
            reserved: 0,
            count: timer.count,
            total_ns: timer.total_ns,
            min_ns: timer.min_ns,
            max_ns: timer.max_ns,
            p50_ns: timer.p50_ns,
            p99_ns: timer.p99_ns,
        }
    }
}

/// Lists those of `timers` that have run, at most `cap` of them, and tells how many there are.
///
/// # Safety
/// `names_out` is NULL or has room for `cap` names.
pub(super) unsafe fn list(
    timers: &'static [Name],
    have_run: &[&str],
    names_out: *mut *const c_char,
    cap: usize,
) -> usize {
    let names = timers
        .iter()
        .filter(|timer| have_run.iter().any(|known| **timer == name(known)));
    let mut count = 0;
    for timer in names {
        if count < cap && !names_out.is_null() {
            // SAFETY: below `cap`, and this function's contract.
            unsafe { names_out.add(count).write(timer.as_ptr().cast()) };
        }
        count += 1;
    }
    count
}

/// Fills in the timer that `find` knows by the caller's name.
///
/// # Safety
/// `name` is NULL or a text ending in NUL; `record` was opened on the caller's structure.
pub(super) unsafe fn fill(
    record: Outcome<Record<tsw_timer>>,
    name: *const c_char,
    find: impl FnOnce(&str) -> Option<TimerSnapshot>,
) -> Outcome<()> {
    let record = record?;
    // SAFETY: this function's contract.
    let name = unsafe { text::input(name, "name") }?.to_string_lossy();
    let timer =
        find(&name).ok_or_else(|| Failure::invalid(format!("no timer is called {name}")))?;
    record.write(timer.into());
    Ok(())
}
