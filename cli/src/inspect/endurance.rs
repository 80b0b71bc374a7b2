//! What a store writes, against what its drives are rated for.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tensorswap::store::StoreReader;

use crate::drive::{Smart, smart_of};
use crate::sizes::{as_f64, shown_days};

/// What is asked about drives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    /// Writes that each drive is rated for.
    pub(super) rated_bytes: Option<u64>,
    pub(super) steps_per_day: Option<f64>,
    pub(super) is_smart_wanted: bool,
}

/// What is told of the drive of one directory.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct DriveReport {
    path: String,
    /// What the drive says itself, where it was asked.
    smart: Option<Smart>,
    /// Why it says nothing.
    smart_refusal: Option<String>,
    /// Written in its life: all of it by SMART, else what this store has written.
    written_bytes: f64,
    /// Given, or what the drive's own percentage comes to.
    rated_bytes: Option<f64>,
    /// By the steps given, else what the drive has seen while it was on.
    written_bytes_per_day: Option<f64>,
    days_left: Option<f64>,
}

impl Question {
    /// Whether anything is to be told.
    pub(super) fn is_asked(&self) -> bool {
        self.is_smart_wanted || self.rated_bytes.is_some() || self.steps_per_day.is_some()
    }

    /// The drives of a store's directories, in their order.
    pub(super) fn answer(&self, places: &[PathBuf], reader: &StoreReader) -> Vec<DriveReport> {
        let weights = reader.weights();
        let sum: u32 = weights.iter().sum();
        let drives = places.iter().enumerate().map(|(number, place)| {
            let share = match weights.get(number) {
                Some(weight) => f64::from(*weight) / f64::from(sum),
                None => 1.0,
            };
            let smart = self.is_smart_wanted.then(|| smart_of(place));
            self.answer_one(
                place,
                as_f64(reader.written_bytes()) * share,
                reader.step(),
                smart,
            )
        });
        drives.collect()
    }

    /// `written_bytes` is what the store has written there in so many steps.
    fn answer_one(
        &self,
        place: &Path,
        written_bytes: f64,
        steps: u64,
        smart: Option<Result<Smart, String>>,
    ) -> DriveReport {
        let (smart, smart_refusal) = match smart {
            Some(Ok(smart)) => (Some(smart), None),
            Some(Err(refusal)) => (None, Some(refusal)),
            None => (None, None),
        };
        let given = self.steps_per_day.filter(|_| steps > 0);
        let given = given.map(|per_day| written_bytes / as_f64(steps) * per_day);
        let mut report = DriveReport {
            path: crate::output::shown_path(place),
            written_bytes,
            rated_bytes: self.rated_bytes.map(as_f64),
            written_bytes_per_day: given,
            days_left: None,
            smart,
            smart_refusal,
        };
        if let Some(smart) = &report.smart {
            report.written_bytes = as_f64(smart.written_bytes);
            if smart.used_percent > 0 && report.rated_bytes.is_none() {
                let share = f64::from(smart.used_percent) / 100.0;
                report.rated_bytes = Some(report.written_bytes / share);
            }
            if smart.power_on_hours > 0 && given.is_none() {
                let days = as_f64(smart.power_on_hours) / 24.0;
                report.written_bytes_per_day = Some(report.written_bytes / days);
            }
        }
        if let (Some(rated), Some(per_day)) = (report.rated_bytes, report.written_bytes_per_day) {
            let left = (rated - report.written_bytes).max(0.0) / per_day;
            // Nothing written by nobody lasts for ever, which JSON cannot say.
            report.days_left = left.is_finite().then_some(left);
        }
        report
    }
}

impl DriveReport {
    /// In words.
    pub(super) fn text(&self) -> String {
        let terabytes = |bytes: f64| format!("{:.2} TB", bytes / 1e12);
        let by = match &self.smart {
            Some(smart) => format!("to {}, {} % used", smart.drive, smart.used_percent),
            None => "by this store".to_owned(),
        };
        let mut text = format!("{} written {by}", terabytes(self.written_bytes));
        if let Some(rated) = self.rated_bytes {
            text += &format!(", rated for {}", terabytes(rated));
        }
        if let Some(per_day) = self.written_bytes_per_day {
            text += &format!(", {} a day", terabytes(per_day));
        }
        if let Some(days) = self.days_left {
            text += &format!(": {} left", shown_days(days));
        }
        if let Some(refusal) = &self.smart_refusal {
            text += &format!(" (no SMART: {refusal})");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TB: f64 = 1e12;

    fn answer(
        rated_bytes: Option<u64>,
        steps_per_day: Option<f64>,
        smart: Option<Result<Smart, String>>,
    ) -> DriveReport {
        let question = Question {
            rated_bytes,
            steps_per_day,
            is_smart_wanted: smart.is_some(),
        };
        // 10 GB a step.
        question.answer_one(Path::new("/"), 2.0 * TB, 200, smart)
    }

    fn smart(
        terabytes: u64,
        used_percent: u8,
        power_on_hours: u64,
    ) -> Option<Result<Smart, String>> {
        Some(Ok(Smart {
            drive: "nvme0n1".to_owned(),
            written_bytes: terabytes * 1_000_000_000_000,
            used_percent,
            power_on_hours,
        }))
    }

    fn is_near(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < expected * 1e-9)
    }

    #[test]
    fn days_left_come_from_the_rate_and_the_rating_that_were_given() {
        let told = answer(Some(602_000_000_000_000), Some(100.0), None);
        assert!(is_near(told.written_bytes_per_day, TB));
        assert!(is_near(told.days_left, 600.0));
        assert_eq!(
            told.text(),
            "2.00 TB written by this store, rated for 602.00 TB, 1.00 TB a day: 600 days left"
        );
        // What the drive says of itself counts more than what one store knows.
        let told = answer(Some(602_000_000_000_000), Some(100.0), smart(102, 9, 24));
        assert!(is_near(told.days_left, 500.0));
        // Used up is not less than nothing.
        assert_eq!(answer(Some(1), Some(1.0), None).days_left, Some(0.0));
    }

    #[test]
    fn what_was_not_given_comes_from_the_drive_where_it_says_so() {
        let told = answer(None, None, smart(50, 10, 240));
        assert!(is_near(told.rated_bytes, 500.0 * TB));
        assert!(is_near(told.written_bytes_per_day, 5.0 * TB));
        assert!(is_near(told.days_left, 90.0));
        // A new drive says neither.
        let told = answer(None, None, smart(0, 0, 0));
        assert_eq!((told.rated_bytes, told.written_bytes_per_day), (None, None));
        let told = answer(
            None,
            Some(100.0),
            Some(Err("only root may ask it".to_owned())),
        );
        assert_eq!(told.days_left, None);
        assert_eq!(
            told.text(),
            "2.00 TB written by this store, 1.00 TB a day (no SMART: only root may ask it)"
        );
    }
}
