//! Which contestants meet over which files.

use std::io::{Error, Result};

use tensorswap::base::config::EngineOptions;
use tensorswap::memory::PinnedMemory;

use crate::common::area::Area;
use crate::contestants::Contestant;
use crate::data::Files;
use crate::fio::Fio;
use crate::library::{Direct, Setting, Staged};
use crate::limit::BareLoop;
use crate::options::Options;
use crate::plain::Plain;
use crate::round::{Kind, Sample, turn};
use crate::table::{Row, Table};

/// Lengths and numbers of files.
struct Shape {
    name: &'static str,
    files: usize,
    file_bytes: usize,
    /// Compared by tensors per second with plain system calls, not by bytes with the limit.
    small: bool,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const SHAPES: [Shape; 4] = [
    Shape {
        name: "16 x 64 MiB",
        files: 16,
        file_bytes: 64 * MIB,
        small: false,
    },
    Shape {
        name: "64 x 16 MiB",
        files: 64,
        file_bytes: 16 * MIB,
        small: false,
    },
    Shape {
        name: "10000 x 64 KiB",
        files: 10_000,
        file_bytes: 64 * KIB,
        small: true,
    },
    Shape {
        name: "10000 x 4 KiB",
        files: 10_000,
        file_bytes: 4 * KIB,
        small: true,
    },
];

/// Runs what the options ask for, and prints a table for each kind of scenario.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    for small in [false, true] {
        let mut table = Table::new(small, options.common.markdown);
        for shape in SHAPES.iter().filter(|shape| shape.small == small) {
            for kind in Kind::ALL {
                run_one(options, shape, kind, &mut table)?;
            }
        }
        table.end();
    }
    Ok(())
}

fn run_one(options: &Options, shape: &Shape, kind: Kind, table: &mut Table) -> Result<()> {
    let scenario = format!("{}, {}", shape.name, kind.name());
    if !options.common.wants(&scenario) {
        return Ok(());
    }
    let count = shape.files / if options.quick { 8 } else { 1 };
    let directory = options
        .common
        .directory("bench-swap")
        .join(scenario.replace([' ', ','], "-"));
    let mut files = Files::new(&directory, count, shape.file_bytes)?;
    // Dropped after the contestants, which use it.
    let memory = [
        allocate(options, files.total_bytes())?,
        allocate(options, files.total_bytes())?,
    ];
    // SAFETY: see above.
    let [mut content, target] = memory
        .each_ref()
        .map(|memory| unsafe { Area::new(memory.as_ptr(), files.total_bytes()) });
    content.randomize(u64::try_from(count + shape.file_bytes).map_err(Error::other)?);
    let mut contestants = if shape.small {
        small_contestants(options, content, target)?
    } else {
        large_contestants(options, content, target)?
    };
    contestants.retain(|contestant| {
        let name = contestant.name();
        // New files never are.
        let makes_sense = kind != Kind::OutNew || !name.ends_with("not open");
        makes_sense && options.wants_contestant(name)
    });
    if kind != Kind::OutNew {
        files.write(content)?;
    }
    let samples = rounds(options, kind, &mut files, &mut contestants, content)?;
    let rows = contestants
        .iter()
        .zip(samples)
        .map(|(contestant, samples)| Row {
            scenario: scenario.clone(),
            contestant: contestant.name(),
            depth_peak: contestant.depth_peak(),
            bytes: files.total_bytes(),
            tensors: count,
            samples,
        })
        .collect();
    table.add(rows);
    Ok(())
}

/// All rounds of a scenario; the first one warms up and does not count.
fn rounds(
    options: &Options,
    kind: Kind,
    files: &mut Files,
    contestants: &mut [Box<dyn Contestant>],
    content: Area,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); contestants.len()];
    let mut stamp = 0;
    for round in 0..=options.rounds() {
        for index in order(contestants.len(), round) {
            stamp += 1;
            let contestant = &mut *contestants[index];
            let sample = turn(contestant, kind, files, content, stamp, true)?;
            if round > 0 {
                samples[index].push(sample);
            }
        }
    }
    Ok(samples)
}

/// Who comes when in a round: each round another first one, and every other round backwards, so
/// that nobody always follows the same neighbour.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left(round / 2 % count);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Memory as the options want it.
fn allocate(options: &Options, bytes: usize) -> Result<PinnedMemory> {
    let len_bytes = u64::try_from(bytes).map_err(Error::other)?;
    options
        .config()
        .and_then(|config| EngineOptions::from_config(&config))
        .and_then(|engine| PinnedMemory::allocate(len_bytes, engine.pin, engine.huge_pages))
        .map_err(Error::other)
}

fn large_contestants(
    options: &Options,
    source: Area,
    target: Area,
) -> Result<Vec<Box<dyn Contestant>>> {
    let setting = Setting {
        config: options.config().map_err(Error::other)?,
        files_open: true,
        small: false,
    };
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    if let Some(fio) = Fio::find() {
        contestants.push(Box::new(fio));
    }
    contestants.push(Box::new(BareLoop::new(source, target)?));
    contestants.push(Box::new(Direct::new(setting.clone(), source, target)));
    contestants.push(Box::new(Staged::new(setting, source.len())));
    Ok(contestants)
}

fn small_contestants(
    options: &Options,
    source: Area,
    target: Area,
) -> Result<Vec<Box<dyn Contestant>>> {
    let setting = Setting {
        config: options.config().map_err(Error::other)?,
        files_open: true,
        small: true,
    };
    let plain = |direct| Plain {
        direct,
        source,
        target,
    };
    let cold = Setting {
        files_open: false,
        ..setting.clone()
    };
    Ok(vec![
        Box::new(BareLoop::new(source, target)?),
        Box::new(plain(true)),
        Box::new(plain(false)),
        Box::new(Direct::new(setting.clone(), source, target)),
        Box::new(Direct::new(cold, source, target)),
        Box::new(Staged::new(setting, source.len())),
    ])
}
