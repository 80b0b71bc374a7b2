//! The measurements: every combination, then the best ones against each other.

use std::time::Instant;

use tensorswap::base::config::Policy;
use tensorswap::memory::PageKind;

use super::Options;
use super::grid::{Cell, EngineDefaults, Found, Setting};
use crate::drive::{
    EngineMover, Field, FileSet, Kind, Mover, RawMover, Verify, check_space, raise_file_limit, turn,
};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::sizes::{as_f64, to_u64};

/// The files that are moved.
const FILES: usize = 8;
/// The least that a measurement moves, however short the time is.
const MEASURED_BYTES_MIN: u64 = 16 << 20;
/// How much of the time the first round may take, and all rounds.
const FIRST_SHARE: f64 = 0.5;
const ROUNDS_SHARE: f64 = 0.85;
/// How many of the best are measured again, besides the defaults, and how often.
const FINALISTS: usize = 4;
const FINAL_ROUNDS: usize = 5;
/// What is less better than this is as good as the defaults.
const GAIN_MIN: f64 = 1.03;
/// A drive on which one setting is so much faster at one time than at another is in use elsewhere.
const UNSTEADY: f64 = 1.5;
/// Threads take three to five times the CPU: they are worth it from this gain over io_uring on.
const THREADS_GAIN_MIN: f64 = 1.1;

/// Memory of one kind of page, and the files that hold the same.
struct Bench {
    field: Field,
    files: FileSet,
    stamp: u64,
}

/// What this machine permits.
struct Machine {
    backends: Vec<&'static str>,
    /// With huge pages, where there are any; and without.
    pages: Vec<bool>,
    notes: Vec<String>,
}

/// Measures everything.
///
/// # Errors
/// `Refused`; `Damaged` where something came back wrong.
pub(super) fn measure(options: &Options) -> Result<Found, Failure> {
    let started = Instant::now();
    raise_file_limit();
    check_space(&options.path, 2 * options.size)?;
    let scratch = Scratch::new(&options.path)?;
    let machine = Machine::look(options.size)?;
    let settings = machine.settings(options);
    let defaults = machine.defaults();
    let mut benches = Vec::new();
    let bytes = measured_bytes(options, &scratch, &defaults, settings.len())?;
    for huge in &machine.pages {
        benches.push((*huge, Bench::new(&scratch, *huge, bytes)?));
    }
    let mut cells: Vec<Cell> = settings.into_iter().map(Cell::new).collect();
    let mut rounds = 0;
    let finals = (FINALISTS + 2) * FINAL_ROUNDS;
    let progress = Progress::of_parts(to_u64(cells.len() + finals));
    let mut last_round_seconds = 0.0;
    while rounds == 0
        || started.elapsed().as_secs_f64() + last_round_seconds < ROUNDS_SHARE * options.seconds
    {
        let round_started = Instant::now();
        if rounds > 0 {
            progress.extend(to_u64(cells.len()));
        }
        for cell in &mut cells {
            progress.say(cell.setting.text());
            measure_cell(cell, &mut benches, Verify::No)?;
            progress.advance(1);
        }
        rounds += 1;
        last_round_seconds = round_started.elapsed().as_secs_f64();
    }
    cells.iter_mut().for_each(Cell::settle);
    let finalists = finals_of(&cells, defaults, &mut benches, &progress)?;
    let notes = notes_of(machine.notes, &benches, &finalists);
    Ok(found(
        options, bytes, rounds, notes, cells, finalists, defaults,
    ))
}

/// What is to be known about the figures.
fn notes_of(mut notes: Vec<String>, benches: &[(bool, Bench)], finalists: &[Cell]) -> Vec<String> {
    if !benches.iter().all(|(_, bench)| bench.files.is_direct) {
        notes.push("no direct I/O on this file system: memory was measured as well".to_owned());
    }
    let is_huge = |bench: &Bench| bench.field.pages() != PageKind::Base;
    if benches.iter().any(|(huge, bench)| *huge && !is_huge(bench)) {
        notes.push("memory was too scattered for all of it to lie in huge pages".to_owned());
    }
    let variation = finalists.iter().map(Cell::variation).fold(1.0, f64::max);
    if variation > UNSTEADY {
        notes.push(format!(
            "one and the same setting varied by a factor of {variation:.1}: something else uses \
             the drive; try again when it is quiet, or with more --seconds"
        ));
    }
    notes
}

fn found(
    options: &Options,
    measured_bytes: u64,
    rounds: usize,
    notes: Vec<String>,
    cells: Vec<Cell>,
    mut finalists: Vec<Cell>,
    defaults: Setting,
) -> Found {
    finalists.sort_by(|a, b| b.score().total_cmp(&a.score()));
    let best_of = |wanted: &dyn Fn(&Setting) -> bool| {
        let mut fitting = finalists.iter().filter(|cell| wanted(&cell.setting));
        fitting
            .next()
            .map_or((defaults, f64::NAN), |cell| (cell.setting, cell.score()))
    };
    let (_, default_score) = best_of(&|setting| *setting == defaults);
    let unless_as_good = |(setting, score): (Setting, f64)| match score / default_score {
        gain if gain < GAIN_MIN => (defaults, 1.0),
        gain => (setting, gain),
    };
    let overall = best_of(&|_| true);
    let same_backend = best_of(&|setting| setting.backend == defaults.backend);
    let (best, gain) = match overall.1 / same_backend.1 {
        gain if gain < THREADS_GAIN_MIN => unless_as_good(same_backend),
        _ => unless_as_good(overall),
    };
    // A DeepSpeed configuration names neither backend nor pages: they will be the defaults.
    let (best_for_deepspeed, _) = unless_as_good(best_of(&|setting| setting.is_beside(&defaults)));
    Found {
        path: crate::output::shown_path(&options.path),
        machine: format!("Linux {}", tensorswap::sys::kernel_release()),
        engine_version: env!("CARGO_PKG_VERSION"),
        measured_bytes,
        rounds,
        notes,
        blocks: options.blocks.clone(),
        depths: options.depths.clone(),
        cells,
        best,
        best_for_deepspeed,
        defaults,
        gain,
        finalists,
    }
}

/// The best ones and the defaults, in turn, with everything compared.
fn finals_of(
    cells: &[Cell],
    defaults: Setting,
    benches: &mut [(bool, Bench)],
    progress: &Progress,
) -> Result<Vec<Cell>, Failure> {
    let mut order: Vec<&Cell> = cells.iter().collect();
    order.sort_by(|a, b| b.score().total_cmp(&a.score()));
    let best = order
        .iter()
        .map(|cell| cell.setting)
        .filter(|setting| *setting != defaults);
    let mut settings: Vec<Setting> = best.clone().take(FINALISTS).collect();
    settings.extend(best.filter(|setting| setting.is_beside(&defaults)).take(1));
    settings.push(defaults);
    let first_place = |setting: &Setting| settings.iter().position(|other| other == setting);
    let unique = settings.iter().enumerate();
    let unique = unique.filter(|(place, setting)| first_place(setting) == Some(*place));
    let mut finalists: Vec<Cell> = unique.map(|(_, setting)| Cell::new(*setting)).collect();
    for round in 0..FINAL_ROUNDS {
        for index in 0..finalists.len() {
            // Everybody comes first once.
            let index = (index + round) % finalists.len();
            progress.say("the best ones again");
            measure_cell(&mut finalists[index], benches, Verify::Yes)?;
            progress.advance(1);
        }
    }
    finalists.iter_mut().for_each(Cell::settle);
    Ok(finalists)
}

/// So many bytes that a round takes its share of the time at the speed of the defaults.
fn measured_bytes(
    options: &Options,
    scratch: &Scratch,
    defaults: &Setting,
    cells_count: usize,
) -> Result<u64, Failure> {
    let mut bench = Bench::new(scratch, defaults.huge_pages, options.size)?;
    let mut engine = EngineMover::new(&defaults.config()?, &bench.field)?;
    let started = Instant::now();
    for kind in Kind::ALL {
        bench.turn(&mut engine, kind, Verify::No)?;
    }
    let bytes_per_second = 3.0 * as_f64(options.size) / started.elapsed().as_secs_f64();
    let seconds_each = FIRST_SHARE * options.seconds / (3.0 * as_f64(to_u64(cells_count)));
    // A share of the size in 64ths, which needs no conversion of numbers with fractions.
    let share = bytes_per_second * seconds_each / as_f64(options.size) * 64.0;
    let parts = (1..=64_u32).rev().find(|part| f64::from(*part) <= share);
    let bytes = options.size / 64 * u64::from(parts.unwrap_or(1));
    drop(engine);
    bench.files.remove()?;
    Ok(bytes.max(MEASURED_BYTES_MIN.min(options.size)))
}

fn measure_cell(
    cell: &mut Cell,
    benches: &mut [(bool, Bench)],
    verify: Verify,
) -> Result<(), Failure> {
    let huge_pages = cell.setting.huge_pages;
    let bench = benches.iter_mut().find(|(huge, _)| *huge == huge_pages);
    let (_, bench) = bench.ok_or_else(|| Failure::wrong("no memory of this kind of page"))?;
    let mut engine = EngineMover::new(&cell.setting.config()?, &bench.field)?;
    for (samples, kind) in cell.samples.iter_mut().zip(Kind::ALL) {
        samples.push(bench.turn(&mut engine, kind, verify)?);
    }
    Ok(())
}

impl Bench {
    fn new(scratch: &Scratch, huge: bool, bytes: u64) -> Result<Bench, Failure> {
        let policy = if huge { Policy::Prefer } else { Policy::Off };
        let file_bytes = (bytes / to_u64(FILES)).next_multiple_of(4096);
        let field = Field::new(file_bytes * to_u64(FILES), policy)?;
        let name = format!("{}-pages", if huge { "huge" } else { "base" });
        let len = usize::try_from(file_bytes)
            .map_err(|_| Failure::wrong("more than this machine can address"))?;
        let files = FileSet::make(scratch.path(), &name, FILES, len)?;
        RawMover::new(&field).run(Kind::Out, &files, &field)?;
        files.settle()?;
        Ok(Bench {
            field,
            files,
            stamp: 0,
        })
    }

    fn turn(
        &mut self,
        engine: &mut EngineMover,
        kind: Kind,
        verify: Verify,
    ) -> Result<f64, Failure> {
        self.stamp += 1;
        let mut checker = RawMover::new(&self.field);
        let checker = (verify == Verify::Yes).then_some(&mut checker as &mut dyn Mover);
        let sample = turn(
            engine,
            checker,
            kind,
            &self.files,
            &mut self.field,
            self.stamp,
        )?;
        Ok(sample.bytes_per_second)
    }
}

impl Machine {
    /// Tries what there is.
    fn look(size: u64) -> Result<Machine, Failure> {
        let mut notes = Vec::new();
        let field = Field::new(size.min(16 << 20), Policy::Prefer)?;
        let pages = match field.pages() {
            PageKind::Base => {
                notes.push("no huge pages are to be had; tensorswap doctor says why".to_owned());
                vec![false]
            }
            _ => vec![true, false],
        };
        let mut config = tensorswap::base::config::Config::new();
        config.set("backend", "io_uring")?;
        let backends = match EngineMover::new(&config, &field) {
            Ok(_) => vec!["io_uring", "threads"],
            Err(failure) => {
                notes.push(format!("no io_uring: {failure}"));
                vec!["threads"]
            }
        };
        Ok(Machine {
            backends,
            pages,
            notes,
        })
    }

    fn settings(&self, options: &Options) -> Vec<Setting> {
        let mut settings = Vec::new();
        for backend in &self.backends {
            for huge_pages in &self.pages {
                for block_bytes in &options.blocks {
                    settings.extend(options.depths.iter().map(|queue_depth| Setting {
                        backend,
                        huge_pages: *huge_pages,
                        block_bytes: *block_bytes,
                        queue_depth: *queue_depth,
                    }));
                }
            }
        }
        settings
    }

    /// What an engine does here when nothing is set.
    fn defaults(&self) -> Setting {
        let defaults = EngineDefaults::read();
        let backend = self.backends[0];
        Setting {
            backend,
            huge_pages: self.pages[0],
            block_bytes: defaults.block_bytes,
            queue_depth: match backend {
                "threads" => defaults.threads,
                _ => defaults.queue_depth,
            },
        }
    }
}
