//! Medians, ratios, and how they are shown.

use crate::common::figures::{GIB, median};
use crate::round::Sample;

/// All rounds of one contestant in one scenario.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) contestant: &'static str,
    pub(crate) depth_peak: Option<u64>,
    pub(crate) bytes: usize,
    pub(crate) tensors: usize,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    fn median_seconds(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.seconds).collect())
    }

    fn median_cpu_seconds(&self) -> f64 {
        median(
            self.samples
                .iter()
                .map(|sample| sample.cpu_seconds)
                .collect(),
        )
    }

    /// How many times as fast as `other`: the median over the rounds, so that a drive which is
    /// slower for a while is slower for both.
    fn ratio_to(&self, other: &Row) -> f64 {
        let rounds = self.samples.iter().zip(&other.samples);
        median(rounds.map(|(own, its)| its.seconds / own.seconds).collect())
    }

    fn per_second(&self, count: f64) -> [f64; 3] {
        let seconds = |sample: &Sample| sample.seconds;
        let slowest = self.samples.iter().map(seconds).fold(0.0, f64::max);
        let fastest = self.samples.iter().map(seconds).fold(f64::MAX, f64::min);
        [self.median_seconds(), slowest, fastest].map(|seconds| count / seconds)
    }
}

/// A table on its way to standard output.
pub(crate) struct Table {
    small: bool,
    markdown: bool,
    started: bool,
}

/// Widths of the columns where the table is plain text.
const WIDTHS: [usize; 7] = [36, 32, 9, 17, 10, 10, 8];

impl Table {
    pub(crate) fn new(small: bool, markdown: bool) -> Table {
        Table {
            small,
            markdown,
            started: false,
        }
    }

    /// Shows the rows of one scenario.
    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        self.head();
        let fastest = |names: &dyn Fn(&str) -> bool| {
            rows.iter()
                .filter(|row| names(row.contestant))
                .min_by(|a, b| a.median_seconds().total_cmp(&b.median_seconds()))
        };
        let (first, second) = if self.small {
            (
                fastest(&|name| name.ends_with("close, direct")),
                fastest(&|name| name.ends_with("close, buffered")),
            )
        } else {
            (
                fastest(&|name| name.starts_with("fio") || name.starts_with("bare")),
                None,
            )
        };
        for row in &rows {
            let gib = row.bytes as f64 / GIB;
            let cpu = row.median_cpu_seconds();
            let ratio = |base: Option<&Row>| {
                base.map_or("-".to_owned(), |base| format!("{:.2}", row.ratio_to(base)))
            };
            let depth = row
                .depth_peak
                .map_or("-".to_owned(), |depth| depth.to_string());
            let (rate, last) = if self.small {
                let [rate, low, high] = row.per_second(row.tensors as f64);
                let rate = [format!("{rate:.0}"), format!("{low:.0} to {high:.0}")];
                let micros = cpu / row.tensors as f64 * 1e6;
                (rate, [ratio(first), ratio(second), format!("{micros:.1}")])
            } else {
                let [rate, low, high] = row.per_second(gib);
                let rate = [format!("{rate:.2}"), format!("{low:.2} to {high:.2}")];
                (rate, [ratio(first), format!("{:.3}", cpu / gib), depth])
            };
            let [rate, range] = rate;
            let [a, b, c] = last;
            self.line(&[&row.scenario, row.contestant, &rate, &range, &a, &b, &c]);
        }
        if !self.markdown {
            println!();
        }
    }

    /// Ends the table.
    pub(crate) fn end(&self) {
        if self.started {
            println!();
        }
    }

    fn head(&mut self) {
        if self.started {
            return;
        }
        self.started = true;
        if self.small {
            self.line(&[
                "scenario",
                "contestant",
                "tensors/s",
                "range",
                "x direct",
                "x buffered",
                "CPU us",
            ]);
        } else {
            self.line(&[
                "scenario",
                "contestant",
                "GiB/s",
                "range",
                "x limit",
                "CPU s/GiB",
                "depth",
            ]);
        }
        if self.markdown {
            println!("|---|---|---:|---:|---:|---:|---:|");
        }
    }

    fn line(&self, cells: &[&str; 7]) {
        if self.markdown {
            println!("| {} |", cells.join(" | "));
            return;
        }
        let mut text = String::new();
        for (index, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
            let cell = if index < 2 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}  ")
            };
            text.push_str(&cell);
        }
        println!("{}", text.trim_end());
    }
}
