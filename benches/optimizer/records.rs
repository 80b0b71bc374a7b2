//! What many tiny parameters cost: registering, committing, a step, opening again, memory.

use std::io::{Error, Result};
use std::path::Path;
use std::time::Instant;

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;

use crate::cases::Types;
use crate::options::Options;
use crate::scenario::check_space;

/// Two slots of three states of one block each.
const RECORD_BYTES: usize = 2 * 3 * 4096;

fn other(error: impl std::fmt::Display) -> Error {
    Error::other(error.to_string())
}

/// Memory that the process has resident, after what is free has been given back.
fn resident_bytes() -> Result<f64> {
    // SAFETY: gives free memory back to the system, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.ok_or_else(|| other("no VmRSS"))? * 1024.0)
}

fn open(engine: &Engine, options: &Options, directory: &Path, store: &str) -> Result<Optimizer> {
    let mut config = Config::new();
    let path = directory.to_str().ok_or_else(|| other("a strange path"))?;
    for (key, value) in [("path", path), ("store", store), ("sync", "none")] {
        config.set(key, value).map_err(other)?;
    }
    for (key, value) in &options.common.set {
        config.set(key, value).map_err(other)?;
    }
    let optimizer = Optimizer::new(engine, &config).map_err(other)?;
    for (name, dtype, disk_dtype) in Types::F32.states() {
        optimizer
            .add_state(name, dtype, disk_dtype)
            .map_err(other)?;
    }
    Ok(optimizer)
}

fn register(optimizer: &Optimizer, count: u64) -> Result<()> {
    (0..count).try_for_each(|id| {
        // One block of storage each, whatever the number of elements.
        let added = optimizer.add_parameter(id, None, 1 + id % 1000);
        added.map_err(other)
    })
}

/// Gives every record out once and changes it.
fn step(optimizer: &Optimizer) -> Result<()> {
    optimizer.step_begin(None).map_err(other)?;
    while let Some(view) = optimizer
        .step_next()
        .map_err(|failed| other(failed.error))?
    {
        for state in view.states() {
            let first = state.as_mut_ptr();
            // SAFETY: a state has at least one element, and the view is ours until it is given
            // back.
            unsafe { first.write(first.read().wrapping_add(1)) };
        }
        optimizer.step_done(view.id, true).map_err(other)?;
    }
    optimizer.step_end().map_err(other)
}

/// Registers `count` records, and prints what each phase took.
pub(crate) fn run(options: &Options, count: u64) -> Result<()> {
    let directory = options.directory().join("records");
    std::fs::create_dir_all(&directory)?;
    let records = usize::try_from(count).map_err(other)?;
    check_space(&directory, records * RECORD_BYTES)?;
    let engine = Engine::new(&Config::new()).map_err(other)?;
    let outcome = measure(options, &engine, &directory, count);
    std::fs::remove_dir_all(&directory)?;
    let _ = std::fs::remove_dir(options.directory());
    outcome
}

fn measure(options: &Options, engine: &Engine, directory: &Path, count: u64) -> Result<()> {
    let mut lines = Vec::new();
    let mut time = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let start = Instant::now();
        work()?;
        lines.push((name.to_owned(), start.elapsed().as_secs_f64()));
        Ok(())
    };
    let empty = resident_bytes()?;
    let optimizer = open(engine, options, directory, "new")?;
    time("register", &mut || register(&optimizer, count))?;
    let registered = resident_bytes()? - empty;
    time("commit of the registration", &mut || {
        optimizer.commit().map_err(other)
    })?;
    time("first step", &mut || step(&optimizer))?;
    time("step", &mut || step(&optimizer))?;
    time("commit of all", &mut || optimizer.commit().map_err(other))?;
    drop(optimizer);

    let empty = resident_bytes()?;
    let mut opened = None;
    time("open again", &mut || {
        opened = Some(open(engine, options, directory, "existing")?);
        Ok(())
    })?;
    let Some(optimizer) = opened else {
        return Err(other("nothing was opened"));
    };
    if optimizer.parameters_len() != usize::try_from(count).map_err(other)? {
        return Err(other("records are missing"));
    }
    time("attach", &mut || register(&optimizer, count))?;
    let attached = resident_bytes()? - empty;
    check(&optimizer, count)?;

    print(options, count, &lines, [registered, attached]);
    Ok(())
}

/// Each state's first byte was counted up twice.
fn check(optimizer: &Optimizer, count: u64) -> Result<()> {
    for id in (0..count).step_by(997) {
        let mut values = vec![0.0_f32; usize::try_from(1 + id % 1000).map_err(other)?];
        let numel = u64::try_from(values.len()).map_err(other)?;
        for (name, ..) in Types::F32.states() {
            // SAFETY: the vector outlives the call, which returns when it is done with it.
            let into = unsafe {
                tensorswap::io::Tensor::new(values.as_mut_ptr().cast(), numel, Dtype::F32)
            };
            let read = optimizer.read_state(id, name, &into.map_err(other)?);
            read.map_err(other)?;
            if values[0].to_bits() != 2 || values[1..].iter().any(|value| *value != 0.0) {
                return Err(other(format!("{name} of record {id} is wrong")));
            }
        }
    }
    Ok(())
}

fn print(options: &Options, count: u64, lines: &[(String, f64)], memory: [f64; 2]) {
    println!("{count} records of three states\n");
    let line = |cells: [String; 3]| {
        if options.common.markdown {
            println!("| {} |", cells.join(" | "));
        } else {
            println!("{:<28} {:>10} {:>14}", cells[0], cells[1], cells[2]);
        }
    };
    line(["phase", "s", "us per record"].map(str::to_owned));
    if options.common.markdown {
        println!("|---|---:|---:|");
    }
    for (name, seconds) in lines {
        let each = seconds / count as f64 * 1e6;
        line([name.clone(), format!("{seconds:.3}"), format!("{each:.2}")]);
    }
    for (name, bytes) in ["registered", "opened and attached"].iter().zip(memory) {
        let each = bytes / count as f64;
        println!("\nresident memory, {name}: {each:.0} bytes per record");
    }
}
