//! What is told of a plan.

use std::fmt::Write;

use serde::Serialize;
use tensorswap::optimizer::Footprint;

use super::drive_life::DriveLife;
use super::states::StateTypes;
use crate::output::{BAD, styled};
use crate::sizes::{as_f64, grouped, shown, shown_days, shown_seconds, shown_speed};

/// The least time that the drive needs for the bytes of a step.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Floor {
    pub(crate) seconds: f64,
    read_bytes_per_second: f64,
    write_bytes_per_second: f64,
    mixed_bytes_per_second: f64,
    /// `measured` or `given`.
    origin: &'static str,
}

impl Floor {
    /// From the speeds of reading, of writing, and of both at once.
    pub(crate) fn new(footprint: &Footprint, speeds: [f64; 3], origin: &'static str) -> Floor {
        let [read, write, mixed] = speeds;
        let read_bytes = as_f64(footprint.step_read_bytes);
        let written_bytes = as_f64(footprint.step_written_bytes);
        // Neither direction, nor both together, can be faster than the drive.
        let seconds = (read_bytes / read)
            .max(written_bytes / write)
            .max((read_bytes + written_bytes) / mixed);
        Floor {
            seconds,
            read_bytes_per_second: read,
            write_bytes_per_second: write,
            mixed_bytes_per_second: mixed,
            origin,
        }
    }
}

/// All that there is to tell.
#[derive(Debug, Serialize)]
pub(crate) struct PlanReport {
    states: String,
    parameters_count: u64,
    elements_count: u64,
    storage_bytes: u64,
    pinned_bytes: u64,
    resident_bytes: u64,
    step_read_bytes: u64,
    step_written_bytes: u64,
    floor: Option<Floor>,
    drive: Option<DriveLife>,
    capacity_bytes: Option<u64>,
}

impl PlanReport {
    pub(crate) fn new(
        footprint: &Footprint,
        states: &StateTypes,
        floor: Option<Floor>,
        drive: Option<DriveLife>,
        capacity_bytes: Option<u64>,
    ) -> PlanReport {
        PlanReport {
            states: states.text(),
            parameters_count: footprint.parameters_count,
            elements_count: footprint.elements_count,
            storage_bytes: footprint.storage_bytes,
            pinned_bytes: footprint.pinned_bytes,
            resident_bytes: footprint.resident_bytes,
            step_read_bytes: footprint.step_read_bytes,
            step_written_bytes: footprint.step_written_bytes,
            floor,
            drive,
            capacity_bytes,
        }
    }

    /// Whether the store fits on the drive, as far as its capacity is known.
    pub(crate) fn fits(&self) -> bool {
        self.capacity_bytes
            .is_none_or(|capacity| self.storage_bytes <= capacity)
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<18} {value}");
        };
        let elements = grouped(self.elements_count);
        let count = grouped(self.parameters_count);
        line(
            "parameters",
            format!("{count} with {elements} elements; states {}", self.states),
        );
        let mut storage = shown(self.storage_bytes) + " (two versions of each record)";
        if !self.fits() {
            storage += &styled(BAD, "; the drive is too small");
        }
        line("storage", storage);
        let resident = match self.resident_bytes {
            0 => String::new(),
            bytes => format!(", {} of it resident", shown(bytes)),
        };
        line("pinned memory", shown(self.pinned_bytes) + &resident);
        let (read, written) = (shown(self.step_read_bytes), shown(self.step_written_bytes));
        line(
            "moved in a step",
            format!("{read} read, {written} written, at most"),
        );
        if let Some(floor) = &self.floor {
            let speeds = [
                floor.read_bytes_per_second,
                floor.write_bytes_per_second,
                floor.mixed_bytes_per_second,
            ];
            let [read, write, mixed] = speeds.map(shown_speed);
            let seconds = shown_seconds(floor.seconds);
            line(
                "time of a step",
                format!("{seconds} at least, for the drive alone"),
            );
            let origin = floor.origin;
            line(
                "",
                format!("({origin}: {read} read, {write} written, {mixed} both at once)"),
            );
        }
        if let Some(drive) = &self.drive {
            let interval = shown_seconds(drive.step_interval_seconds);
            let per_day = drive.written_bytes_per_day / 1e12;
            line(
                "writes per day",
                format!("{per_day:.2} TB, with a step every {interval}"),
            );
            if let Some(writes) = drive.drive_writes_per_day {
                line("", format!("{writes:.2} drive writes per day"));
            }
            if let (Some(days), Some(steps)) = (drive.days, drive.steps) {
                let rated = drive.rated_bytes.unwrap_or_default() / 1e12;
                line(
                    "drive life",
                    format!(
                        "{}, {steps:.0} steps, until {rated:.0} TB are written",
                        shown_days(days)
                    ),
                );
            }
        }
        text
    }
}
