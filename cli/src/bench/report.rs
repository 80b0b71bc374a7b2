//! What is told of a benchmark.

use std::fmt::Write;

use serde::Serialize;

use crate::drive::Kind;
use crate::output::{BAD, BOLD, DOUBTFUL, FAINT, GOOD, styled, table};
use crate::sizes::{shown, shown_speed, to_u64};

/// The whole report.
#[derive(Debug, Serialize)]
pub(crate) struct BenchReport {
    pub(super) path: String,
    pub(super) rounds: u64,
    /// `io_uring` or `threads`.
    pub(super) raw_way: &'static str,
    /// The engine's own description of what is in effect.
    pub(super) engine: serde_json::Value,
    pub(super) pages: &'static str,
    pub(super) is_locked: bool,
    pub(super) is_direct: bool,
    pub(super) rows: Vec<Row>,
}

/// One kind of work.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// `large` or `small`.
    pub(super) size: &'static str,
    pub(super) kind: Kind,
    pub(super) files_count: usize,
    pub(super) file_bytes: usize,
    pub(super) raw_bytes_per_second: f64,
    pub(super) engine_bytes_per_second: f64,
    /// The engine's speed by that of the raw loop: the median of the rounds' ratios.
    pub(super) ratio: f64,
    pub(super) raw_depth_peak: u64,
    pub(super) engine_depth_peak: u64,
    pub(super) raw_cpu_seconds_per_gib: f64,
    pub(super) engine_cpu_seconds_per_gib: f64,
}

/// From here on the engine is as good as the drive, and from here on nearly.
const RATIO_GOOD: f64 = 0.95;
const RATIO_DOUBTFUL: f64 = 0.85;

impl BenchReport {
    /// The report for people.
    pub(super) fn text(&self) -> String {
        let text_of = |key: &str| self.engine[key].as_str().unwrap_or("?").to_owned();
        let number = |key: &str| self.engine[key].as_u64().unwrap_or(0);
        let mut text = styled(BOLD, &self.path) + "\n";
        let direct = match self.is_direct {
            true => "direct I/O",
            false => "through the page cache (this file system knows no direct I/O)",
        };
        let locked = if self.is_locked {
            "locked"
        } else {
            "not locked"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "engine {} ({}), {} at once of up to {}; {direct}; memory {}, {locked}",
            text_of("version"),
            text_of("backend"),
            number("queue_depth"),
            shown(number("block_bytes")),
            pages_text(self.pages),
        );
        let _ = writeln!(
            text,
            "drive alone: bare loop ({}); medians of {} rounds, everything compared\n",
            self.raw_way, self.rounds
        );
        let header = [
            "",
            "files",
            "drive alone",
            "engine",
            "ratio",
            "depth reached",
            "CPU s/GiB",
        ];
        text += &table(&header, self.rows.iter().map(Row::cells));
        text += &styled(FAINT, "depth reached and CPU: drive alone / engine\n");
        text
    }
}

/// Where memory lies, in words.
fn pages_text(name: &str) -> &'static str {
    match name {
        "hugetlb" => "in reserved huge pages",
        "transparent" => "in transparent huge pages",
        _ => "not all in huge pages",
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let ratio = format!("{:.2}", self.ratio);
        let style = match self.ratio {
            ratio if ratio >= RATIO_GOOD => GOOD,
            ratio if ratio >= RATIO_DOUBTFUL => DOUBTFUL,
            _ => BAD,
        };
        vec![
            format!("{} {}", self.size, self.kind.name()),
            format!("{} × {}", self.files_count, shown(to_u64(self.file_bytes))),
            shown_speed(self.raw_bytes_per_second),
            shown_speed(self.engine_bytes_per_second),
            styled(style, &ratio),
            format!("{} / {}", self.raw_depth_peak, self.engine_depth_peak),
            format!(
                "{:.2} / {:.2}",
                self.raw_cpu_seconds_per_gib, self.engine_cpu_seconds_per_gib
            ),
        ]
    }
}
