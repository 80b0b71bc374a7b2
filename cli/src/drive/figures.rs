//! Figures: medians, and what the processor did.

use std::mem::MaybeUninit;
use std::time::Duration;

pub(crate) const GIB: f64 = (1_u64 << 30) as f64;

/// The middle of some values; not a number where there is none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len().is_multiple_of(2), values.get(middle)) {
        (_, None) => f64::NAN,
        (true, Some(upper)) => f64::midpoint(values[middle - 1], *upper),
        (false, Some(value)) => *value,
    }
}

/// Processor seconds of this process so far, all threads, user and kernel.
pub(crate) fn cpu_seconds() -> f64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: there is room for one `struct rusage`; zeroes are valid as well.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime)
}

fn seconds_of(time: libc::timeval) -> f64 {
    let whole = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    let micros = Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0));
    (whole + micros).as_secs_f64()
}
