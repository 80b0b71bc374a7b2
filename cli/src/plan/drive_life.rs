//! How long a drive lives with what is written to it.

use serde::Serialize;

use crate::sizes::as_f64;

const DAY_SECONDS: f64 = 86_400.0;

/// Writes of a training that goes on day and night, against what the drive is rated for.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct DriveLife {
    pub(crate) step_interval_seconds: f64,
    pub(crate) written_bytes_per_day: f64,
    /// How often the drive is written over each day; `None` without its capacity.
    pub(crate) drive_writes_per_day: Option<f64>,
    /// Writes that it is rated for.
    pub(crate) rated_bytes: Option<f64>,
    /// Days until the rating is used up.
    pub(crate) days: Option<f64>,
    /// Steps until the rating is used up.
    pub(crate) steps: Option<f64>,
}

impl DriveLife {
    pub(crate) fn new(
        step_written_bytes: u64,
        step_interval_seconds: f64,
        capacity_bytes: Option<u64>,
        rated_bytes: Option<f64>,
    ) -> DriveLife {
        let written_bytes = as_f64(step_written_bytes);
        let per_day = written_bytes * DAY_SECONDS / step_interval_seconds;
        DriveLife {
            step_interval_seconds,
            written_bytes_per_day: per_day,
            drive_writes_per_day: capacity_bytes.map(|capacity| per_day / as_f64(capacity)),
            rated_bytes,
            days: rated_bytes.map(|rated| rated / per_day),
            steps: rated_bytes.map(|rated| rated / written_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_that_is_written_over_every_day_lives_as_many_days_as_it_is_rated_for() {
        // 10 GB each 864 s: 1 TB a day.
        let life = DriveLife::new(10_000_000_000, 864.0, Some(1_000_000_000_000), Some(1e15));
        assert!((life.written_bytes_per_day - 1e12).abs() < 1.0);
        assert!(
            life.drive_writes_per_day
                .is_some_and(|writes| (writes - 1.0).abs() < 1e-9)
        );
        assert!(life.days.is_some_and(|days| (days - 1000.0).abs() < 1e-6));
        assert!(life.steps.is_some_and(|steps| (steps - 1e5).abs() < 1e-6));
    }
}
