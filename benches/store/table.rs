//! Medians, and how they are shown.

use crate::common::figures::{GIB, median};
use crate::options::Options;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) seconds: f64,
    /// Bytes read and written.
    pub(crate) bytes: f64,
    /// The most operations that were in flight.
    pub(crate) depth: u64,
}

/// One contestant and its rounds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) turns: Vec<Turn>,
    /// What the section compares, for each round.
    pub(crate) ratios: Vec<f64>,
}

impl Row {
    pub(crate) fn new(name: &str) -> Row {
        Row {
            name: name.to_owned(),
            turns: Vec::new(),
            ratios: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, turn: Turn, ratio: f64) {
        self.turns.push(turn);
        self.ratios.push(ratio);
    }

    /// Something that was done whole, and of whose operations nothing is known.
    pub(crate) fn push_whole(&mut self, seconds: f64, bytes: f64, ratio: f64) {
        let depth = 0;
        let turn = Turn {
            seconds,
            bytes,
            depth,
        };
        self.push(turn, ratio);
    }
}

const NAME_WIDTH: usize = 44;

/// Shows a section on standard output; `ratio` says what the last columns compare.
pub(crate) fn print(options: &Options, title: &str, ratio: &str, rows: &[Row]) {
    println!("{title}\n");
    let heads = ["case", "s", "range", "GiB/s", "depth", ratio, "its range"];
    let lines = std::iter::once(heads.map(str::to_owned)).chain(rows.iter().map(cells));
    for (number, line) in lines.enumerate() {
        if options.common.markdown {
            println!("| {} |", line.join(" | "));
            if number == 0 {
                println!("|---|{}", "---:|".repeat(heads.len() - 1));
            }
            continue;
        }
        print!("{:<NAME_WIDTH$}", line[0]);
        for (cell, head) in line.iter().zip(heads).skip(1) {
            print!("  {cell:>width$}", width = head.len().max(14));
        }
        println!();
    }
    println!();
}

fn cells(row: &Row) -> [String; 7] {
    let of = |value: &dyn Fn(&Turn) -> f64| row.turns.iter().map(value).collect::<Vec<f64>>();
    let seconds = of(&|turn| turn.seconds);
    let speeds = of(&|turn| turn.bytes / turn.seconds / GIB);
    let depth = row.turns.iter().map(|turn| turn.depth).max().unwrap_or(0);
    [
        row.name.clone(),
        format!("{:.3}", median(seconds.clone())),
        range(&seconds),
        format!("{:.2}", median(speeds)),
        if depth > 0 {
            depth.to_string()
        } else {
            "-".to_owned()
        },
        format!("{:.2}", median(row.ratios.clone())),
        range(&row.ratios),
    ]
}

fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.2} to {most:.2}")
}
