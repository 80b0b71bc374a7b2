//! `tsw_timer`: how often something ran, and how long it took.

use super::record::Sized32;
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
