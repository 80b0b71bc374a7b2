//! Measures an optimizer step against what the drive and the processor give.
//!
//! The floor of a step is the longer of two times, taken in the same round as the step: a bare ring
//! loop that moves as many bytes as the step did, reading and writing mixed, over a preallocated
//! file; and the same Adam update on memory, by as many threads. Every case opens the same store
//! with other options, takes one step that does not count, then some that do. At the end some
//! parameters are compared, bit for bit, with the same updates made in memory.
//!
//! `cargo bench --bench optimizer -- --help` lists the options.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod adam;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod limit;
mod options;
mod records;
mod scenario;
mod shapes;
mod table;
mod training;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = options::Options::parse();
    let outcome = match options.records {
        Some(count) => records::run(&options, count),
        None => scenario::run_all(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("optimizer: {error}");
            ExitCode::FAILURE
        }
    }
}
