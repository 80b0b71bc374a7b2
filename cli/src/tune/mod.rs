//! `tune`: looks for the settings with which this drive is fastest.

mod chart;
mod grid;
mod page;
mod published;
mod sweep;

use std::path::PathBuf;

use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::sizes;
use published::{Published, names};

/// Find the block size, queue depth, pages and backend with which this drive is fastest
///
/// Measures every combination with the engine itself, out, in and mixed, as often as the time
/// permits; then the best few and the defaults again, against each other. Prints the best and writes
/// three files: tensorswap.json for tsw_config_load_json, deepspeed_aio.json with the aio section of
/// a DeepSpeed configuration, and tensorswap-tune.html, a report with heat maps. They are written
/// when everything has succeeded, each of them whole, and never over others without --force.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The directory whose drive is measured
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The directory for what is written
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,
    /// Write over files that exist
    #[arg(long)]
    force: bool,
    /// About how long it may take; every combination is measured once, however short this is
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = sizes::positive)]
    seconds: f64,
    /// Bytes that one measurement moves
    #[arg(long, value_name = "SIZE", value_parser = sizes::block_size, default_value = "128MiB")]
    size: u64,
    /// Block sizes to try
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = block_bytes,
          default_values = ["128KiB", "256KiB", "512KiB", "1MiB", "2MiB", "4MiB"])]
    blocks: Vec<u64>,
    /// Queue depths to try
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=256),
          default_values = ["2", "4", "8", "16", "32", "64"])]
    depths: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    published::check(&options.output, options.force)?;
    let found = sweep::measure(options)?;
    let page = page::html(&found)?;
    let published = Published {
        config: found.configuration_json()?,
        deepspeed: found.deepspeed_json()?,
        page,
    };
    published.write(&options.output, options.force)?;
    match options.json {
        true => output::print_json(&found)?,
        false => {
            let text = found.text();
            let paths = names().map(|name| options.output.join(name).display().to_string());
            output::print(&format!("{text}\nwritten: {}\n", paths.join(", ")))?;
        }
    }
    Ok(Outcome::Well)
}

/// A block size that the engine takes.
fn block_bytes(text: &str) -> Result<u64, String> {
    let bytes = sizes::block_size(text)?;
    let mut config = tensorswap::base::config::Config::new();
    match config.set("block_bytes", &bytes.to_string()) {
        Ok(()) => Ok(bytes),
        Err(_) => Err("the engine takes 4KiB to 1GiB".to_owned()),
    }
}
