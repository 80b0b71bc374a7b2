//! `inspect`: what a store or a snapshot holds, and whether it is as it was written.

mod endurance;
mod report;
mod snapshot;
mod usage;
mod verify;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tensorswap::base::error::Error;
use tensorswap::store::StoreReader;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::sizes;
use endurance::Question;
use report::StoreReport;
use snapshot::SnapshotReport;
use verify::Verified;

/// Show what a store or a snapshot holds; with --verify, whether its bytes are as they were written
///
/// Opens files for reading only and changes nothing: neither the store, nor its lock, nor anything
/// else. The lock is not taken and not tried, so that a process that uses the store, or is about to,
/// is not disturbed, and a store on a read-only file system can be looked at. Whether the store is
/// in use is read from /proc/locks. Beside a process that uses the store, what was committed last is
/// shown. A store that is damaged makes the exit status 1; where nothing can be told, because there is
/// no store, or one in a version of the format that is not known here, it is 3.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The store or snapshot: a directory rankN, or the one that holds several; for a store in
    /// several directories all of them, in their order
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
    /// Writes that each drive is rated for in its life, for example 600TB: tell how long they last
    #[arg(long, value_name = "SIZE", value_parser = sizes::size)]
    endurance: Option<u64>,
    /// Steps of the training in a day; with --smart what the drive was written to so far counts where
    /// it is not given
    #[arg(long, value_name = "NUMBER", value_parser = sizes::positive)]
    steps_per_day: Option<f64>,
    /// Ask the drives what was written to them; needs root, and NVMe drives
    #[arg(long)]
    smart: bool,
}

impl Options {
    fn question(&self) -> Question {
        Question {
            rated_bytes: self.endurance,
            steps_per_day: self.steps_per_day,
            is_smart_wanted: self.smart,
        }
    }
}

/// What is told of one store or snapshot.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Report {
    Store(StoreReport),
    Snapshot(SnapshotReport),
}

impl Report {
    fn of(places: &[PathBuf], options: &Options) -> Result<Report, Failure> {
        let (place, is_verified) = (&places[0], options.verify);
        if is_snapshot(place) {
            return match places.len() {
                1 => SnapshotReport::new(place, is_verified).map(Report::Snapshot),
                _ => Err(Failure::wrong("a snapshot lies in one directory")),
            };
        }
        // Before the log is read: who begins to write after that is noticed by the verification.
        let usage = usage::usage_of(place);
        let reader = StoreReader::open(places)?;
        let (reader, verified) = match is_verified {
            true => verify::verify(places, reader).map(|(reader, found)| (reader, Some(found)))?,
            false => (reader, None),
        };
        let question = options.question();
        let drives = question
            .is_asked()
            .then(|| question.answer(places, &reader));
        let report = StoreReport::new(place, &reader, usage, verified, drives);
        Ok(Report::Store(report))
    }

    fn text(&self, limit: usize) -> String {
        match self {
            Report::Store(report) => report::text_of(report, limit),
            Report::Snapshot(report) => snapshot::text_of(report, limit),
        }
    }

    /// Whether nothing was found that should not be.
    fn is_well(&self) -> bool {
        let verified: &Option<Verified> = match self {
            Report::Store(report) => &report.verified,
            Report::Snapshot(report) => &report.verified,
        };
        verified
            .as_ref()
            .is_none_or(|verified| verified.damages.is_empty())
    }
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let places = places_in(&options.store)?;
    let reports = places.iter().map(|place| Report::of(place, options));
    let reports: Vec<Report> = reports.collect::<Result<_, _>>()?;
    if options.json {
        output::print_json(&reports)?;
    } else {
        let texts: Vec<String> = reports
            .iter()
            .map(|report| report.text(options.limit))
            .collect();
        output::print(&texts.join("\n"))?;
    }
    Ok(Outcome::well_if(reports.iter().all(Report::is_well)))
}

fn is_snapshot(place: &Path) -> bool {
    place.join("manifest.json").symlink_metadata().is_ok()
}

/// The directories that were named, or those of the ranks in them.
fn places_in(paths: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>, Failure> {
    let path = &paths[0];
    if is_snapshot(path) || path.join("log").symlink_metadata().is_ok() {
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
