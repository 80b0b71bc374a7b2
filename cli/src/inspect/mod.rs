//! `inspect`: what a store holds, and whether it is as it was written.

mod report;
mod usage;
mod verify;

use std::path::PathBuf;

use clap::Args;
use tensorswap::base::error::Error;
use tensorswap::store::StoreReader;

use crate::failure::{Failure, Outcome};
use crate::output;
use report::{StoreReport, text_of};

/// Show what a store holds; with --verify, whether its bytes are as they were written
///
/// Opens files for reading only and changes nothing: neither the store, nor its lock, nor anything
/// else. The lock is not taken and not tried, so that a process that uses the store, or is about to,
/// is not disturbed, and a store on a read-only file system can be looked at. Whether the store is
/// in use is read from /proc/locks. Beside a process that uses the store, what was committed last is
/// shown. A store that is damaged makes the exit status 1; where nothing can be told, because there is
/// no store, or one in a version of the format that is not known here, it is 3.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The store: a directory rankN, or the one that holds several; for a store in several
    /// directories all of them, in their order
    #[arg(required = true)]
    store: Vec<PathBuf>,
    /// Read all that was committed, and compare the checksums
    #[arg(long)]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show so many parameters at most; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 40)]
    limit: usize,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let mut reports = Vec::new();
    for places in stores_in(&options.store)? {
        let place = &places[0];
        // Before the log is read: who begins to write after that is noticed by the verification.
        let usage = usage::usage_of(place);
        let reader = StoreReader::open(&places)?;
        let (reader, verified) = match options.verify {
            true => verify::verify(&places, reader).map(|(reader, found)| (reader, Some(found)))?,
            false => (reader, None),
        };
        let report = StoreReport::new(place, &reader, usage, verified);
        reports.push(report);
    }
    if options.json {
        output::print_json(&reports)?;
    } else {
        let texts: Vec<String> = reports
            .iter()
            .map(|report| text_of(report, options.limit))
            .collect();
        output::print(&texts.join("\n"))?;
    }
    Ok(Outcome::well_if(reports.iter().all(StoreReport::is_well)))
}

/// The store's own directories, or those of the ranks in them.
fn stores_in(paths: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>, Failure> {
    let path = &paths[0];
    if path.join("log").symlink_metadata().is_ok() {
        return Ok(vec![paths.to_vec()]);
    }
    let failed = Failure::at("open", path);
    let mut ranks = Vec::new();
    for entry in std::fs::read_dir(path).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("rank"));
        if let Some(rank) = number.and_then(|number| number.parse::<u32>().ok()) {
            let places = paths.iter().map(|path| path.join(&name)).collect();
            ranks.push((rank, places));
        }
    }
    ranks.sort();
    match ranks.is_empty() {
        false => Ok(ranks.into_iter().map(|(_, places)| places).collect()),
        true => Err(Failure::Refused(format!(
            "{} is not a store: it has no log in it, and no directory rank<N>",
            path.display()
        ))),
    }
}

/// An error about the contents of a store.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Checksum(_) | Error::Corrupt(_))
}
