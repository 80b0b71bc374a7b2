//! How fast a snapshot is brought back, beside what the drive gives.

use std::io::Result;
use std::path::Path;

use crate::common::figures::GIB;
use crate::limit::Limit;
use crate::model::{other, scratch, shape, state_bytes, text, timed};
use crate::options::Options;
use crate::table::{Row, Turn, print};
use crate::training::Training;

/// Restores into a new store, and compares what it holds.
fn restore(training: &Training, snapshot: &Path, store: &Path) -> Result<(f64, u64)> {
    let settings = [("path", text(store)?), ("store", "new".to_owned())];
    let (engine, optimizer) = training.open_empty(&settings)?;
    let (seconds, ()) = timed(|| optimizer.restore(snapshot).map_err(other))?;
    let depth = engine.stats().in_flight_peak_count;
    training.compare(&optimizer)?;
    drop((optimizer, engine));
    std::fs::remove_dir_all(store)?;
    Ok((seconds, depth))
}

/// The limits and the restores, in turns.
pub(crate) fn run(options: &Options) -> Result<()> {
    let shape = shape(options, 100);
    let directory = scratch(&options.directory())?;
    let memory = scratch(&options.memory)?;
    let at = |name: &str| directory.path().join(name);
    let mut limit = Limit::new(directory.path(), state_bytes(&shape))?;
    // The store's own path is left open: what is restored gets another one.
    let training = Training::new(options, &shape, crate::cases::Types::F32)?;
    {
        let (engine, optimizer) = training.open(&[])?;
        let ticket = optimizer.snapshot(&at("snapshot")).map_err(other)?;
        let done = engine.wait(ticket, None).map_err(other)?;
        done.outcome.map_err(other)?;
    }
    let bytes = state_bytes(&shape);
    let names = [
        "bare ring loop, reading",
        "restore to memory",
        "bare ring loop, reading and writing",
        "bare ring loop, reading and writing a new file",
        "restore to the same drive",
    ];
    let mut rows = names.map(Row::new);
    for round in 0..options.common.rounds(5) {
        let mut turns = [(0.0, 0); 5];
        let mut order = [0, 1, 2, 3, 4];
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            turns[place] = match place {
                0 => (limit.seconds(bytes, 0)?, 0),
                1 => restore(&training, &at("snapshot"), &memory.path().join("store"))?,
                2 => (limit.seconds(bytes, bytes)?, 0),
                3 => {
                    limit.renew()?;
                    (limit.seconds(bytes, bytes)?, 0)
                }
                _ => restore(&training, &at("snapshot"), &at("store"))?,
            };
        }
        for (place, row) in rows.iter_mut().enumerate() {
            let (seconds, depth) = turns[place];
            // Bytes of the drive.
            let bytes = bytes as f64 * if place < 2 { 1.0 } else { 2.0 };
            // The file of what is restored is new.
            let limit = [0, 0, 2, 2, 3][place];
            let ratio = turns[limit].0 / seconds;
            row.push(
                Turn {
                    seconds,
                    bytes,
                    depth,
                },
                ratio,
            );
        }
    }
    let gib = bytes as f64 / GIB;
    let title = format!("Restoring {}, {gib:.2} GiB of state", shape.name);
    print(options, &title, "x speed of the loop", &rows);
    Ok(())
}
