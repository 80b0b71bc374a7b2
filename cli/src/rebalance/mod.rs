//! `rebalance`: a store moved to other directories, or to other shares of the same ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tensorswap::base::config::{Config, Directory};
use tensorswap::store::{RebalanceOptions, Rebalanced, StoreReader, rebalance};

use crate::failure::{Failure, Outcome};
use crate::output::{self, shown_path, table};
use crate::progress::Progress;
use crate::sizes::{grouped, shown, to_u64};

/// Move a store to other directories, or to other shares of the same ones
///
/// Nobody may use the store meanwhile. A copy is made in .rebalance of each directory that the store
/// moves to, which takes as much space again; checksums are compared on the way. When it is whole it
/// takes the store's place, and the store's files are removed. A run that is stopped or killed, at any
/// moment, is gone on with by the same command; until it has ended, a store whose copy was whole cannot
/// be opened. To give up a copy that is not whole, remove .rebalance in the directories of --to.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the store lies: the directories in their order, as the key path lists them
    #[arg(long, value_name = "LIST", value_parser = directories)]
    from: List,
    /// Where it is to lie: directories that exist, each with =WEIGHT for its share; without weights
    /// they are measured
    #[arg(long, value_name = "LIST", value_parser = directories)]
    to: List,
    /// Move the store of this rank only
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A list as the key `path` has it.
#[derive(Debug, Clone)]
struct List(Vec<Directory>);

/// Where a rank's store is now.
#[derive(Debug, Serialize)]
struct RankReport {
    rank: u32,
    /// Whether it lay there before.
    was_there: bool,
    copied_bytes: u64,
    step: u64,
    parameters_count: usize,
    data_bytes: u64,
    directories: Vec<PlaceReport>,
}

#[derive(Debug, Serialize)]
struct PlaceReport {
    path: String,
    /// Its share; 1 where it is the only one.
    weight: u32,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let from: Vec<PathBuf> = options
        .from
        .0
        .iter()
        .map(|place| place.path.clone())
        .collect();
    if options.from.0.iter().any(|place| place.weight.is_some()) {
        return Err(Failure::wrong("weights belong to --to"));
    }
    let ranks = match options.rank {
        Some(rank) => BTreeSet::from([rank]),
        None => ranks_in(&from[0], &options.to.0[0].path)?,
    };
    let mut reports = Vec::new();
    for rank in ranks {
        let mut bar: Option<(Progress, u64)> = None;
        let moved = rebalance(
            &Config::new(),
            &RebalanceOptions {
                rank,
                from: from.clone(),
                to: options.to.0.clone(),
            },
            &mut |bytes, total| {
                let (bar, shown) = bar.get_or_insert_with(|| (Progress::of_bytes(total), 0));
                bar.advance(bytes - *shown);
                *shown = bytes;
            },
        )?;
        drop(bar);
        reports.push(RankReport::new(rank, &options.to.0, moved)?);
    }
    match options.json {
        true => output::print_json(&reports)?,
        false => output::print(&text_of(&reports))?,
    }
    Ok(Outcome::Well)
}

impl RankReport {
    fn new(rank: u32, to: &[Directory], moved: Rebalanced) -> Result<RankReport, Failure> {
        let places: Vec<PathBuf> = to
            .iter()
            .map(|place| place.path.join(format!("rank{rank}")))
            .collect();
        let store = StoreReader::open(&places)?;
        let weights = store.weights().iter().chain(std::iter::repeat(&1));
        let directories = to.iter().zip(weights).map(|(place, weight)| PlaceReport {
            path: shown_path(&place.path),
            weight: *weight,
        });
        Ok(RankReport {
            rank,
            was_there: moved == Rebalanced::AlreadyThere,
            copied_bytes: match moved {
                Rebalanced::Moved { copied_bytes } => copied_bytes,
                Rebalanced::AlreadyThere => 0,
            },
            step: store.step(),
            parameters_count: store.parameters().len(),
            data_bytes: store.data_bytes(),
            directories: directories.collect(),
        })
    }
}

/// The ranks with a store in either directory: some may have been moved already.
fn ranks_in(from: &Path, to: &Path) -> Result<BTreeSet<u32>, Failure> {
    let mut ranks = BTreeSet::new();
    for path in [from, to] {
        let failed = Failure::at("open", path);
        for entry in std::fs::read_dir(path).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("rank"));
            ranks.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
    }
    match ranks.is_empty() {
        false => Ok(ranks),
        true => Err(Failure::Refused(format!(
            "{} has no store in it: there is no directory rank<N>",
            from.display()
        ))),
    }
}

fn directories(text: &str) -> Result<List, String> {
    let mut config = Config::new();
    let list = config
        .set("path", text)
        .and_then(|()| config.directories("path"));
    match list {
        Ok(list) if list.is_empty() => Err("no directory is in the list".to_owned()),
        list => list.map(List).map_err(|error| error.to_string()),
    }
}

fn text_of(reports: &[RankReport]) -> String {
    let rows = reports.iter().map(|report| {
        let places: Vec<String> = report
            .directories
            .iter()
            .map(|place| format!("{}={}", place.path, place.weight))
            .collect();
        vec![
            format!("rank{}", report.rank),
            grouped(report.step),
            grouped(to_u64(report.parameters_count)),
            match report.was_there {
                true => "was there".to_owned(),
                false => shown(report.copied_bytes),
            },
            places.join(","),
        ]
    });
    table(&["", "step", "parameters", "copied", "directories"], rows)
}
