//! Measures what several directories, snapshots and restores cost, beside what the drive gives.
//!
//! Everything that is compared is measured in turns, in the same rounds, on real random data; ratios
//! are medians of the rounds' ratios. Stores and snapshots are verified in the end.
//!
//! `cargo bench --bench store -- --help` lists the options.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../optimizer/adam.rs"]
#[allow(dead_code, reason = "one benchmark compares with updates in memory")]
mod adam;
#[path = "../optimizer/cases.rs"]
#[allow(dead_code, reason = "one benchmark compares all cases")]
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod devices;
#[path = "../optimizer/limit.rs"]
mod limit;
mod model;
mod mount;
mod options;
mod restores;
#[path = "../optimizer/shapes.rs"]
#[allow(dead_code, reason = "one benchmark has several shapes")]
mod shapes;
mod snapshots;
mod striping;
mod table;
mod throttle;
#[path = "../optimizer/training.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod training;

use std::io::Result;
use std::process::ExitCode;

use clap::Parser;
use options::Options;

/// A part of the benchmark.
type Section = fn(&Options) -> Result<()>;

const SECTIONS: [(&str, Section); 5] = [
    ("striping", striping::run),
    ("devices", devices::run),
    ("snapshot", snapshots::run),
    ("reflink", snapshots::run_reflink),
    ("restore", restores::run),
];

fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(options.directory())?;
    for (name, section) in SECTIONS {
        if options.common.wants(name) {
            section(options)?;
        }
    }
    let _ = std::fs::remove_dir(options.directory());
    Ok(())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store: {error}");
            ExitCode::FAILURE
        }
    }
}
