//! Medians, and how they are shown.

use crate::common::figures::{GIB, median};
use crate::scenario::{Row, Turn};

const HEAD: [&str; 15] = [
    "case",
    "step s",
    "commit s",
    "read GiB",
    "written GiB",
    "I/O limit s",
    "compute s",
    "update s",
    "x floor",
    "wait read s",
    "wait write s",
    "pinned peak MiB",
    "computed MiB",
    "depth",
    "CPU s/GiB",
];
const NAME_WIDTH: usize = 44;

/// A table on standard output.
///
/// `x floor` is the median over the rounds of step time by the longer of limit and compute. `CPU
/// s/GiB` is what the processor did beyond the update itself, for each GiB read or written.
pub(crate) struct Table {
    markdown: bool,
}

impl Table {
    pub(crate) fn new(markdown: bool) -> Table {
        Table { markdown }
    }

    /// Shows all cases of one model.
    pub(crate) fn print(&self, title: &str, rows: &[Row]) {
        println!("{title}\n");
        self.line(&HEAD.map(str::to_owned));
        if self.markdown {
            println!("|---|{}", "---:|".repeat(HEAD.len() - 1));
        }
        for row in rows {
            self.line(&cells(row));
        }
        println!();
    }

    fn line(&self, cells: &[String; 15]) {
        if self.markdown {
            println!("| {} |", cells.join(" | "));
            return;
        }
        print!("{:<NAME_WIDTH$}", cells[0]);
        for (cell, head) in cells.iter().zip(HEAD).skip(1) {
            print!("  {cell:>width$}", width = head.len());
        }
        println!();
    }
}

fn cells(row: &Row) -> [String; 15] {
    let of = |value: &dyn Fn(&Turn) -> f64| median(row.turns.iter().map(value).collect());
    let seconds = |value: &dyn Fn(&Turn) -> f64| format!("{:.3}", of(value));
    let gib = |value: &dyn Fn(&Turn) -> f64| format!("{:.2}", of(value) / GIB);
    let peak = |value: &dyn Fn(&Turn) -> u64| row.turns.iter().map(value).max().unwrap_or(0);
    let moved = |turn: &Turn| (turn.sample.read_bytes + turn.sample.written_bytes) / GIB;
    let floor = |turn: &Turn| turn.limit_seconds.max(turn.compute_seconds);
    let swapping = |turn: &Turn| turn.sample.cpu_seconds - turn.compute_cpu_seconds;
    [
        row.case.name.clone(),
        seconds(&|turn| turn.sample.seconds),
        seconds(&|turn| turn.sample.commit_seconds),
        gib(&|turn| turn.sample.read_bytes),
        gib(&|turn| turn.sample.written_bytes),
        seconds(&|turn| turn.limit_seconds),
        seconds(&|turn| turn.compute_seconds),
        seconds(&|turn| turn.sample.update_seconds),
        format!("{:.2}", of(&|turn| turn.sample.seconds / floor(turn))),
        seconds(&|turn| turn.sample.wait_read_seconds),
        seconds(&|turn| turn.sample.wait_write_seconds),
        (peak(&|turn| turn.sample.pinned_peak_bytes) >> 20).to_string(),
        (peak(&|turn| turn.sample.pinned_computed_bytes) >> 20).to_string(),
        peak(&|turn| turn.sample.depth_peak).to_string(),
        match of(&moved) > 0.0 {
            true => seconds(&|turn| swapping(turn) / moved(turn)),
            false => "-".to_owned(),
        },
    ]
}
