//! The command line tool of tensorswap.
//!
//! Looks at a machine (`doctor`), at a drive (`bench`, `tune`), at stores and snapshots (`inspect`),
//! and at what a model will need (`plan`); moves stores (`rebalance`) and cuts snapshots anew
//! (`reshard`). Each command lies in the folder of its name: it checks its arguments, gathers what it reports in one plain structure, and prints that as text or JSON.
//! What is a matter of the library is asked of the library: nothing about stores, pinned memory or
//! configurations is computed here.
//!
//! Invariants: nothing is written outside of what [`scratch`] removes before the arguments are
//! checked and all work has succeeded, but for `rebalance`, which is gone on with; scratch directories go when the process ends, a signal
//! included. Only `drive` has unsafe code.

mod arguments;
mod bench;
mod doctor;
mod drive;
mod failure;
mod inspect;
mod man;
mod output;
mod plan;
mod progress;
mod rebalance;
mod reshard;
mod scratch;
mod sizes;
mod tune;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::{Failure, Outcome};

fn main() -> ExitCode {
    let outcome = match Arguments::try_parse() {
        Ok(arguments) => run(&arguments.command),
        Err(error) => arguments::answer(&error),
    };
    match outcome {
        Ok(outcome) => ExitCode::from(outcome.status()),
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(failure.status())
        }
    }
}

fn run(command: &Command) -> Result<Outcome, Failure> {
    scratch::remove_on_signals()?;
    match command {
        Command::Doctor(options) => doctor::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Tune(options) => tune::run(options),
        Command::Inspect(options) => inspect::run(options),
        Command::Plan(options) => plan::run(options),
        Command::Rebalance(options) => rebalance::run(options),
        Command::Reshard(options) => reshard::run(options),
        Command::Completions(options) => man::completions(options),
        Command::Man(options) => man::pages(options),
    }
}
