//! Which contestants meet over which files.

use std::io::{Error, Result};

use crate::contestants::{Contestant, Direct, area_of};
use crate::data::{Area, Files};
use crate::fio::Fio;
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
        let mut table = Table::new(small, options.markdown);
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
    if !options.wants_scenario(&scenario) {
        return Ok(());
    }
    let count = shape.files / if options.quick { 8 } else { 1 };
    let directory = options.directory.join(scenario.replace([' ', ','], "-"));
    let mut files = Files::new(&directory, count, shape.file_bytes)?;
    let direct = Direct::new(
        "direct requests",
        &options.config,
        files.total_bytes(),
        shape.small,
    )?;
    // Held to the end: the other contestants use the same memory.
    let buffers = direct.buffers();
    let [mut content, target] = buffers.each_ref().map(area_of);
    content.randomize(u64::try_from(count + shape.file_bytes).map_err(Error::other)?);
    let mut contestants = if shape.small {
        small_contestants(options, direct, content, target)?
    } else {
        large_contestants(direct, content, target)?
    };
    contestants.retain(|contestant| options.wants_contestant(contestant.name()));
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
    for round in 0..=options.rounds {
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

fn large_contestants(
    direct: Direct,
    source: Area,
    target: Area,
) -> Result<Vec<Box<dyn Contestant>>> {
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    if let Some(fio) = Fio::find() {
        contestants.push(Box::new(fio));
    }
    contestants.push(Box::new(BareLoop::new(source, target)?));
    contestants.push(Box::new(direct));
    Ok(contestants)
}

fn small_contestants(
    options: &Options,
    direct: Direct,
    source: Area,
    target: Area,
) -> Result<Vec<Box<dyn Contestant>>> {
    let mut cold = options.config.clone();
    cold.set("open_files_max", "256").map_err(Error::other)?;
    let cold = Direct::new("direct requests, files not open", &cold, source.len(), true)?;
    Ok(vec![
        Box::new(BareLoop::new(source, target)?),
        Box::new(Plain {
            direct: true,
            source,
            target,
        }),
        Box::new(Plain {
            direct: false,
            source,
            target,
        }),
        Box::new(cold),
        Box::new(direct),
    ])
}
