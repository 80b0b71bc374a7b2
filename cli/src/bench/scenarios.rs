//! The measurements of a benchmark, in rounds.

use tensorswap::base::config::{Config, EngineOptions};

use super::Options;
use super::report::{BenchReport, Row};
use crate::drive::figures::median;
use crate::drive::{
    EngineMover, Field, FileSet, Kind, Mover, RawMover, Sample, check_space, raise_file_limit, turn,
};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::sizes::{as_f64, to_u64};

/// Bytes of a small file.
const SMALL_BYTES: usize = 64 << 10;

/// One set of files, and who moves them.
struct Scenario {
    name: &'static str,
    files: FileSet,
    raw: RawMover,
    engine: EngineMover,
    /// Of each kind: the raw loop's samples, and the engine's.
    samples: [[Vec<Sample>; 2]; 3],
}

/// Measures everything.
///
/// # Errors
/// `Refused`; `Damaged` where something came back wrong.
pub(super) fn measure(options: &Options, config: &Config) -> Result<BenchReport, Failure> {
    raise_file_limit();
    let as_len = |bytes: u64| {
        usize::try_from(bytes).map_err(|_| Failure::wrong("more than this machine can address"))
    };
    let (small, file_len) = (as_len(options.small)?, as_len(options.file_size)?);
    let large = as_len(options.size / options.file_size)?;
    let large_bytes = large * file_len;
    let field_bytes = to_u64(large_bytes.max(small * SMALL_BYTES));
    check_space(&options.path, to_u64(large_bytes + small * SMALL_BYTES))?;
    let engine_options = EngineOptions::from_config(config)?;
    let scratch = Scratch::new(&options.path)?;
    // Each scenario takes its files once unmeasured, and each round moves and compares them.
    let turns = 2 * (1 + options.rounds * 3 * 2);
    let progress = Progress::of_parts(turns);
    progress.say("preparing");
    let mut field = Field::new(field_bytes, engine_options.huge_pages)?;
    let mut report = None;
    let mut rows = Vec::new();
    let mut stamp = 0;
    for (name, count, file_bytes) in [("large", large, file_len), ("small", small, SMALL_BYTES)] {
        let mut scenario = Scenario {
            name,
            files: FileSet::make(scratch.path(), name, count, file_bytes)?,
            raw: RawMover::new(&field),
            engine: EngineMover::new(config, &field)?,
            samples: Default::default(),
        };
        // Everything is written and opened once, as it is after the first step of a training.
        scenario.raw.run(Kind::Out, &scenario.files, &field)?;
        scenario.files.settle()?;
        scenario.engine.run(Kind::In, &scenario.files, &field)?;
        progress.advance(1);
        for round in 0..options.rounds {
            scenario.round(round, options.rounds, &mut field, &mut stamp, &progress)?;
        }
        rows.extend(Kind::ALL.into_iter().map(|kind| scenario.row(kind)));
        report.get_or_insert_with(|| BenchReport {
            path: crate::output::shown_path(&options.path),
            rounds: options.rounds,
            raw_way: scenario.raw.name(),
            engine: scenario.engine.description(),
            pages: field.pages().name(),
            is_locked: field.is_locked(),
            is_direct: scenario.files.is_direct,
            rows: Vec::new(),
        });
    }
    let mut report = report.ok_or_else(|| Failure::wrong("nothing to measure"))?;
    report.rows = rows;
    Ok(report)
}

impl Scenario {
    /// Every kind once, by both; who comes first changes.
    fn round(
        &mut self,
        round: u64,
        rounds: u64,
        field: &mut Field,
        stamp: &mut u64,
        progress: &Progress,
    ) -> Result<(), Failure> {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let engine_first = (round + to_u64(index)) % 2 == 1;
            for is_engine in [engine_first, !engine_first] {
                progress.say(format!(
                    "{} {}, round {} of {rounds}",
                    self.name,
                    kind.name(),
                    round + 1
                ));
                *stamp += 1;
                let mut checker = RawMover::new(field);
                let mover: &mut dyn Mover = match is_engine {
                    true => &mut self.engine,
                    false => &mut self.raw,
                };
                let sample = turn(mover, Some(&mut checker), kind, &self.files, field, *stamp)?;
                self.samples[index][usize::from(is_engine)].push(sample);
                progress.advance(1);
            }
        }
        Ok(())
    }

    fn row(&self, kind: Kind) -> Row {
        let [raw, engine] = &self.samples[kind as usize];
        let speed = |samples: &[Sample]| {
            median(
                samples
                    .iter()
                    .map(|sample| sample.bytes_per_second)
                    .collect(),
            )
        };
        let gib = as_f64(to_u64(self.files.total_bytes())) / crate::sizes::GIB;
        let cpu = |samples: &[Sample]| {
            median(
                samples
                    .iter()
                    .map(|sample| sample.cpu_seconds / gib)
                    .collect(),
            )
        };
        // In the same round both met the same moods of the drive.
        let pairs = raw.iter().zip(engine);
        let ratios = pairs.map(|(raw, engine)| engine.bytes_per_second / raw.bytes_per_second);
        Row {
            size: self.name,
            kind,
            files_count: self.files.len(),
            file_bytes: self.files.file_bytes,
            raw_bytes_per_second: speed(raw),
            engine_bytes_per_second: speed(engine),
            ratio: median(ratios.collect()),
            raw_depth_peak: self.raw.depth_peak(),
            engine_depth_peak: self.engine.depth_peak(),
            raw_cpu_seconds_per_gib: cpu(raw),
            engine_cpu_seconds_per_gib: cpu(engine),
        }
    }
}
