//! `reshard`: the snapshots of several ranks, cut anew for another number of ranks.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tensorswap::snapshot::{ReshardOptions, Resharding, Snapshot};

use crate::failure::{Failure, Outcome};
use crate::output::{self, DOUBTFUL, shown_path, styled, table};
use crate::progress::Progress;
use crate::scratch;
use crate::sizes::{grouped, shown, to_u64};

/// Cut the snapshots of several ranks anew for another number of ranks
///
/// For parameters that are partitioned by ranges of elements, as ZeRO does: what the ranks hold of a
/// parameter is joined in the order of the ranks, and each new rank gets as many consecutive elements,
/// the last ones fewer or none. Steps and states of all ranks must agree; user data is that of rank 0.
/// Checksums are verified while reading. Everything is made in OUT.partial, read again from storage and
/// compared element by element; then OUT.partial is renamed to OUT. A run that is stopped removes
/// OUT.partial; what a killed one left is removed by the next.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory of the snapshots rank0, rank1, …; with --from 1, the snapshot itself as well
    snapshot: PathBuf,
    /// The directory to make, which does not exist; it will hold rank0, rank1, …
    out: PathBuf,
    /// How many ranks there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    from: u32,
    /// How many ranks there will be
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=65536))]
    to: u32,
    /// Give every rank a piece of every parameter, all of the same length, with zeros behind the end
    #[arg(long)]
    padded: bool,
    /// The parameter ID has N elements; what its pieces have more, at the end, is padding, and cut off
    #[arg(long, value_name = "ID=N", value_parser = numel)]
    numel: Vec<(u64, u64)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Report {
    path: String,
    step: u64,
    from_ranks_count: usize,
    compared_bytes: u64,
    /// Ranks whose user data was not taken although it is not that of rank 0.
    other_user_data: Vec<usize>,
    ranks: Vec<RankReport>,
}

#[derive(Debug, Serialize)]
struct RankReport {
    parameters_count: usize,
    elements_count: u64,
    data_bytes: u64,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let places = ranks_in(&options.snapshot, options.from)?;
    let opened = places.iter().map(|place| Snapshot::open(place));
    let sources: Vec<Snapshot> = opened.collect::<Result<_, _>>()?;
    let how = ReshardOptions {
        ranks_count: options.to,
        is_padded: options.padded,
        numels: options.numel.clone(),
    };
    let resharding = Resharding::begin(&sources, &options.out, &how)?;
    let removed_on_signal = scratch::remove_on_signal_too(resharding.partial_path());
    let (total, progress) = {
        let total = resharding.total_bytes();
        (total, Progress::of_bytes(total))
    };
    let made = resharding.run(&mut |bytes| progress.advance(bytes))?;
    drop(progress);
    let signals = scratch::hold_signals();
    made.publish()?;
    drop(signals);
    drop(removed_on_signal);
    let report = Report {
        path: shown_path(&options.out),
        step: sources[0].step(),
        from_ranks_count: sources.len(),
        compared_bytes: total / 2,
        other_user_data: (0..sources.len())
            .filter(|rank| sources[*rank].user_data() != sources[0].user_data())
            .collect(),
        ranks: (0..options.to)
            .map(|rank| RankReport::of(&options.out.join(format!("rank{rank}"))))
            .collect::<Result<_, _>>()?,
    };
    match options.json {
        true => output::print_json(&report)?,
        false => output::print(&text_of(&report))?,
    }
    Ok(Outcome::Well)
}

impl RankReport {
    fn of(place: &Path) -> Result<RankReport, Failure> {
        let snapshot = Snapshot::open(place)?;
        let numels = snapshot.parameters().map(|parameter| parameter.numel);
        Ok(RankReport {
            parameters_count: numels.len(),
            elements_count: numels.sum(),
            data_bytes: snapshot.data_bytes(),
        })
    }
}

/// The directories of the ranks; no more and no fewer than there are.
fn ranks_in(path: &Path, count: u32) -> Result<Vec<PathBuf>, Failure> {
    if count == 1 && path.join("manifest.json").symlink_metadata().is_ok() {
        return Ok(vec![path.to_owned()]);
    }
    let rank = |rank: u32| path.join(format!("rank{rank}"));
    if rank(count).symlink_metadata().is_ok() {
        return Err(Failure::wrong(format!(
            "--from {count} leaves out {}",
            rank(count).display()
        )));
    }
    Ok((0..count).map(rank).collect())
}

/// The id of a parameter and its length.
fn numel(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once('=').and_then(|(id, numel)| {
        let numel = numel.trim().parse().ok()?;
        Some((id.trim().parse().ok()?, numel))
    });
    parsed.ok_or_else(|| "write the id and the number of elements, for example 7=4096".to_owned())
}

fn text_of(report: &Report) -> String {
    let mut text = format!(
        "{}: {} ranks from {}, step {}; {} compared with what they come from\n",
        report.path,
        report.ranks.len(),
        report.from_ranks_count,
        report.step,
        shown(report.compared_bytes)
    );
    if let Some(rank) = report.other_user_data.first() {
        let remark = format!("user data is that of rank 0; rank {rank} has other");
        text += &format!("{}\n", styled(DOUBTFUL, &remark));
    }
    let rows = report.ranks.iter().enumerate().map(|(rank, made)| {
        vec![
            format!("rank{rank}"),
            grouped(to_u64(made.parameters_count)),
            grouped(made.elements_count),
            shown(made.data_bytes),
        ]
    });
    text + &table(&["", "parameters", "elements", "data"], rows)
}
