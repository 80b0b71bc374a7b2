//! `doctor`: whether this machine and its drives are fit, and what mends what is not.

mod finding;
mod kernel;
mod limits;
mod pages;
mod place;
mod report;

use std::path::PathBuf;

use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::sizes;
use report::Report;

/// Say whether this machine and its drives are fit, and which command mends what is not
///
/// Looks at the kernel and io_uring, at the limits of locked memory and of open files, at huge pages,
/// and for each PATH at the file system, direct I/O, free space, and the speed of the drive (moves
/// --size of scratch files, which are removed). A problem makes the exit status 1; a remark, about
/// what works but could be faster, only with --strict.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directories that are to hold swapped state
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    /// Remarks make the exit status 1 as well
    #[arg(long)]
    strict: bool,
    /// Do not measure speeds
    #[arg(long)]
    no_speed: bool,
    /// Bytes of the files that speeds are measured with
    #[arg(long, value_name = "SIZE", value_parser = sizes::block_size, default_value = "256MiB")]
    size: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let mut report = Report::default();
    report.machine.extend(kernel::findings());
    report.machine.extend(limits::findings());
    report.machine.extend(pages::findings());
    let speed_bytes = (!options.no_speed).then_some(options.size);
    for path in &options.paths {
        report.places.push(place::look_at(path, speed_bytes));
    }
    match options.json {
        true => output::print_json(&report)?,
        false => output::print(&report.text())?,
    }
    Ok(Outcome::well_if(report.is_well(options.strict)))
}
