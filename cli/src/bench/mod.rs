//! `bench`: what a drive gives, and what the engine gets of it.

mod report;
mod scenarios;

use std::path::{Path, PathBuf};

use clap::Args;
use tensorswap::base::config::Config;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::sizes;

/// Measure what the drive gives, and what the engine gets of it: out, in and mixed, large and small
///
/// Moves random data between pinned memory and scratch files, which are removed at the end: large
/// files one request each, small ones (64 KiB) in one list. The limit is a bare io_uring loop with
/// nothing around it (or threads, where io_uring is refused). Both do the same work on the same
/// files, in turn in every round; the medians count. Everything that was moved is compared, outside
/// of the time that is measured. Files are written over, not made anew, as in training.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory whose drive is measured
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Bytes of large files
    #[arg(long, value_name = "SIZE", value_parser = sizes::block_size, default_value = "512MiB")]
    size: u64,
    /// Bytes of one large file
    #[arg(long, value_name = "SIZE", value_parser = sizes::block_size, default_value = "16MiB")]
    file_size: u64,
    /// How many small files
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(2..=100_000))]
    small: u64,
    /// Rounds; each takes every measurement once
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: u64,
    /// A configuration of the engine as JSON, for example one that tune wrote
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    if options.size < 2 * options.file_size {
        return Err(Failure::wrong(
            "--size is less than two files of --file-size",
        ));
    }
    let config = configuration(options.config.as_deref(), &options.set)?;
    let report = scenarios::measure(options, &config)?;
    match options.json {
        true => output::print_json(&report)?,
        false => output::print(&report.text())?,
    }
    Ok(Outcome::Well)
}

/// The engine's configuration from a file and from keys that were given one by one.
///
/// # Errors
/// `Wrong` names what the engine does not take.
pub(crate) fn configuration(file: Option<&Path>, keys: &[String]) -> Result<Config, Failure> {
    let mut config = Config::new();
    if let Some(path) = file {
        let text = std::fs::read(path).map_err(Failure::at("read", path))?;
        let loaded = config.load_json(&text);
        loaded.map_err(|error| Failure::wrong(format!("{}: {error}", path.display())))?;
    }
    for pair in keys {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::wrong(format!("--set {pair}: write KEY=VALUE")))?;
        let set = config.set(key, value);
        set.map_err(|error| Failure::wrong(format!("--set {pair}: {error}")))?;
    }
    match config.get("backend").as_deref() {
        Some("memory") => Err(Failure::wrong("backend=memory uses no drive")),
        _ => Ok(config),
    }
}
