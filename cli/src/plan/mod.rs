//! `plan`: what a model will need.

mod drive_life;
mod parameters;
mod report;
mod states;

use std::path::PathBuf;

use clap::Args;
use tensorswap::base::config::{Config, OptimizerOptions};
use tensorswap::optimizer::Footprint;

use crate::drive::{Speeds, measure_speeds};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::sizes;
use drive_life::DriveLife;
use report::{Floor, PlanReport};
use states::StateTypes;

/// Bytes of scratch files to measure the drive with.
const PROBE_BYTES: u64 = 128 << 20;

/// Say what a model will need: storage, pinned memory, bytes moved in a step, time, drive life
///
/// A parameter is a number of elements or a shape, with a count where there are several of them:
/// 16777216, 4096x4096, 4096x11008:64. A file lists one or more on each line; what follows # is
/// ignored. Storage and pinned memory are computed by the engine's own code for the configuration
/// given; the time is that which the drive needs to move the bytes of a step, and no step is faster.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Parameters: ELEMENTS or SHAPE, each with an optional :COUNT
    #[arg(value_name = "PARAMETER", value_parser = parameters::parse_one)]
    parameters: Vec<parameters::Group>,
    /// Read parameters from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Take the tensors of a safetensors file as parameters; only its header is read
    #[arg(long, value_name = "FILE")]
    safetensors: Vec<PathBuf>,
    /// Types of the states, the master parameter's first; MEMORY:STORAGE where the two differ
    #[arg(long, value_name = "TYPES", default_value = "f32,f32,f32", value_parser = states::parse)]
    states: StateTypes,
    /// A configuration of the engine as JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Measure the drive below this directory (moves 128 MiB of scratch files)
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["read", "write", "mixed"])]
    measure: Option<PathBuf>,
    /// Speed of reading, for example 6.8GB/s
    #[arg(long, value_name = "SPEED", value_parser = sizes::speed, requires = "write")]
    read: Option<f64>,
    /// Speed of writing
    #[arg(long, value_name = "SPEED", value_parser = sizes::speed, requires = "read")]
    write: Option<f64>,
    /// Speed of both at once, together; without it they are taken not to disturb each other
    #[arg(long, value_name = "SPEED", value_parser = sizes::speed, requires = "read")]
    mixed: Option<f64>,
    /// Seconds from one step to the next; the time floor where it is not given
    #[arg(long, value_name = "SECONDS", value_parser = sizes::positive)]
    step_seconds: Option<f64>,
    /// Capacity of the drive, for example 3.84TB
    #[arg(long, value_name = "SIZE", value_parser = sizes::size)]
    capacity: Option<u64>,
    /// Writes that the drive is rated for in its life, for example 7PB
    #[arg(long, value_name = "SIZE", value_parser = sizes::size, conflicts_with = "dwpd")]
    endurance: Option<u64>,
    /// Drive writes per day that it is rated for, during --years
    #[arg(long, value_name = "NUMBER", value_parser = sizes::positive, requires = "capacity")]
    dwpd: Option<f64>,
    /// Years of the rating in drive writes per day
    #[arg(long, value_name = "YEARS", value_parser = sizes::positive, default_value_t = 5.0)]
    years: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> Result<Outcome, Failure> {
    let config = crate::bench::configuration(options.config.as_deref(), &options.set)?;
    let optimizer = optimizer_options(config)?;
    let groups = parameters::gather(&options.parameters, &options.from, &options.safetensors)?;
    let numels = groups
        .iter()
        .flat_map(|group| (0..group.count).map(|_| group.numel));
    let footprint = Footprint::compute(&optimizer, &options.states.0, numels)?;
    let floor = match (&options.measure, options.read, options.write) {
        (Some(place), _, _) => Some(measured_floor(&footprint, place)?),
        (None, Some(read), Some(write)) => {
            let mixed = options.mixed.unwrap_or(read + write);
            Some(Floor::new(&footprint, [read, write, mixed], "given"))
        }
        _ => None,
    };
    let interval = options
        .step_seconds
        .or(floor.as_ref().map(|floor| floor.seconds))
        // A step that moves nothing takes the drive no time, and wears it not.
        .filter(|seconds| *seconds > 0.0 && footprint.step_written_bytes > 0);
    let rated_bytes = match (options.endurance, options.dwpd, options.capacity) {
        (Some(bytes), _, _) => Some(sizes::as_f64(bytes)),
        (None, Some(writes), Some(capacity)) => {
            Some(writes * 365.0 * options.years * sizes::as_f64(capacity))
        }
        _ => None,
    };
    let life = interval.map(|seconds| {
        DriveLife::new(
            footprint.step_written_bytes,
            seconds,
            options.capacity,
            rated_bytes,
        )
    });
    let report = PlanReport::new(&footprint, &options.states, floor, life, options.capacity);
    match options.json {
        true => output::print_json(&report)?,
        false => output::print(&report.text())?,
    }
    Ok(Outcome::well_if(report.fits()))
}

fn measured_floor(footprint: &Footprint, place: &std::path::Path) -> Result<Floor, Failure> {
    let Speeds {
        read_bytes_per_second: read,
        write_bytes_per_second: write,
        mixed_bytes_per_second: mixed,
        ..
    } = measure_speeds(place, PROBE_BYTES)?;
    Ok(Floor::new(footprint, [read, write, mixed], "measured"))
}

/// The optimizer's part; a plan needs no directory, but the options do.
fn optimizer_options(mut config: Config) -> Result<OptimizerOptions, Failure> {
    if !config.is_set("path") {
        config.set("path", ".")?;
    }
    Ok(OptimizerOptions::from_config(&config)?)
}
