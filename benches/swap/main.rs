//! Measures swap-out and swap-in against what the drive gives.
//!
//! Every contestant does the same work on the same files in the same run, one after the other in
//! each round, in an order that rotates. The limit is the faster of `fio` and a bare ring loop with
//! no engine around it. What was written is read back and compared, and what was read is compared,
//! after each round and outside of the timed part. Nobody syncs in the timed part; between rounds
//! the file system is synced for everybody.
//!
//! `cargo bench --bench swap -- --help` lists the options.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod contestants;
mod data;
mod fio;
mod library;
mod limit;
mod options;
mod plain;
mod round;
mod scenarios;
mod table;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = options::Options::parse();
    match scenarios::run_all(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("swap: {error}");
            ExitCode::FAILURE
        }
    }
}
