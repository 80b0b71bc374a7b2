//! All cases over one model, in rounds.

use std::ffi::CString;
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use crate::adam::{InMemory, Rates};
use crate::cases::{Case, Types, cases};
use crate::common::figures::{GIB, cpu_seconds};
use crate::limit::Limit;
use crate::options::Options;
use crate::shapes::{Shape, shapes};
use crate::table::Table;
use crate::training::{Sample, Training};

/// One case in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) sample: Sample,
    /// A bare ring loop with as many bytes.
    pub(crate) limit_seconds: f64,
    /// The same update in memory: seconds, and processor seconds.
    pub(crate) compute_seconds: f64,
    pub(crate) compute_cpu_seconds: f64,
}

/// A case and its rounds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) turns: Vec<Turn>,
}

/// Runs what the options ask for, and prints a table for each model.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    std::fs::create_dir_all(options.directory())?;
    for shape in shapes(options) {
        let named = |case: &Case| {
            options
                .common
                .wants(&format!("{}, {}", shape.name, case.name))
        };
        let wanted: Vec<Case> = cases().into_iter().filter(named).collect();
        if !wanted.is_empty() {
            run_one(options, &shape, wanted)?;
        }
    }
    let _ = std::fs::remove_dir(options.directory());
    Ok(())
}

fn run_one(options: &Options, shape: &Shape, cases: Vec<Case>) -> Result<()> {
    let state_bytes = |types: Types| shape.elements() * types.element_bytes();
    let types: Vec<Types> = Types::ALL
        .into_iter()
        .filter(|types| cases.iter().any(|case| case.types == *types))
        .collect();
    let largest = types.iter().copied().map(state_bytes).max().unwrap_or(0);
    // Two slots of each store, padded, and as much for the limit's file.
    let stores: usize = types.iter().copied().map(state_bytes).sum();
    let padding = shape.numels.len() * 6 * 4096;
    check_space(&options.directory(), 2 * (stores + largest + padding))?;

    let mut limit = Limit::new(&options.directory(), largest)?;
    let threads = cases.iter().map(|case| case.threads).max().unwrap_or(1);
    let mut memory = InMemory::new(shape, threads);
    let mut stores: Vec<(Types, Training)> = Vec::new();
    for types in types {
        stores.push((types, Training::new(options, shape, types)?));
    }
    let mut rows: Vec<Row> = cases
        .into_iter()
        .map(|case| Row {
            case,
            turns: Vec::new(),
        })
        .collect();
    for round in 0..=options.common.rounds(5) {
        let mut order: Vec<&mut Row> = rows.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for row in order {
            let Some((_, training)) = stores
                .iter_mut()
                .find(|(types, _)| *types == row.case.types)
            else {
                continue;
            };
            let sample = training.turn(&row.case, options.steps.get())?;
            let turn = floor(sample, &row.case, shape, &mut limit, &mut memory)?;
            // The first round warms up.
            if round > 0 {
                row.turns.push(turn);
            }
        }
    }
    for (_, training) in &stores {
        training.verify()?;
    }
    let title = format!(
        "{}: {} parameters, {:.2} GiB of state in 32 bits",
        shape.name,
        shape.numels.len(),
        state_bytes(Types::F32) as f64 / GIB
    );
    Table::new(options.common.markdown).print(&title, &rows);
    Ok(())
}

/// What the drive and the processor need for what a step did.
fn floor(
    sample: Sample,
    case: &Case,
    shape: &Shape,
    limit: &mut Limit,
    memory: &mut InMemory,
) -> Result<Turn> {
    let whole = |bytes: f64| format!("{bytes:.0}").parse::<usize>().map_err(Error::other);
    let limit_seconds = limit.seconds(whole(sample.read_bytes)?, whole(sample.written_bytes)?)?;
    let (start, cpu_before) = (Instant::now(), cpu_seconds());
    memory.step(shape, case.threads, Rates::of(1));
    Ok(Turn {
        sample,
        limit_seconds,
        compute_seconds: start.elapsed().as_secs_f64(),
        compute_cpu_seconds: cpu_seconds() - cpu_before,
    })
}

/// Refuses what the disk has no room for before anything is written.
pub(crate) fn check_space(directory: &Path, needed_bytes: usize) -> Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut status = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in NUL and there is room for one `struct statvfs`.
    if unsafe { libc::statvfs(path.as_ptr(), status.as_mut_ptr()) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: zeroes are valid, and the call has filled them in.
    let status = unsafe { status.assume_init() };
    let free = u128::from(status.f_bavail) * u128::from(status.f_frsize);
    if free < needed_bytes as u128 * 11 / 10 {
        return Err(Error::other(format!(
            "{} has room for {} MiB, {} MiB are needed; --scale makes the models smaller",
            directory.display(),
            free >> 20,
            needed_bytes >> 20
        )));
    }
    Ok(())
}
