//! What a snapshot costs the steps beside it, and how long it takes alone.

use std::fs::File;
use std::io::Result;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;
use tensorswap::snapshot::Snapshot;

use crate::common::figures::{GIB, median};
use crate::model::{other, scratch, shape, state_bytes, synced, text, timed, train_at};
use crate::mount::{self, Mount, is_root};
use crate::options::Options;
use crate::table::{Row, Turn, print};
use crate::training::Training;

/// A store that stays open.
struct Open {
    training: Training,
    optimizer: Optimizer,
    engine: Engine,
}

impl Open {
    fn new(options: &Options, training: Training) -> Result<Open> {
        let sync = ("sync", "commit".to_owned());
        let (engine, optimizer) = training.open(&[sync])?;
        let mut open = Open {
            training,
            optimizer,
            engine,
        };
        // Warms up, and makes everything durable.
        open.steps(options.steps.get())?;
        Ok(open)
    }

    /// Some steps; seconds of one, the commit of the last one included.
    fn steps(&mut self, count: usize) -> Result<f64> {
        let threads = synced()?.threads;
        let mut seconds = 0.0;
        for _ in 0..count {
            self.training.give_gradients(&self.optimizer)?;
            seconds += self.training.step(&self.optimizer, threads)?;
            self.training.follow();
        }
        seconds += timed(|| self.optimizer.commit().map_err(other))?.0;
        Ok(seconds / count as f64)
    }

    /// Steps as above, with the bytes of one.
    fn turn(&mut self, count: usize) -> Result<Turn> {
        let bytes = |open: &Open| {
            let stats = open.optimizer.stats();
            stats.read_bytes + stats.written_bytes
        };
        let before = bytes(self);
        let seconds = self.steps(count)?;
        Ok(Turn {
            seconds,
            bytes: (bytes(self) - before) as f64 / count as f64,
            depth: self.engine.stats().in_flight_peak_count,
        })
    }

    /// A snapshot, waited for.
    fn snapshot(&self, directory: &Path) -> Result<f64> {
        let (seconds, ()) = timed(|| {
            let ticket = self.optimizer.snapshot(directory).map_err(other)?;
            let done = self.engine.wait(ticket, None).map_err(other)?;
            done.outcome.map_err(other)
        })?;
        Ok(seconds)
    }

    /// Closes the store, and looks whether it holds what was trained.
    fn verify(self) -> Result<()> {
        drop((self.optimizer, self.engine));
        self.training.verify()
    }
}

/// Compares a snapshot with its checksums, past the page cache's memory.
fn verify(directory: &Path) -> Result<()> {
    let snapshot = Snapshot::open(directory).map_err(other)?;
    snapshot.verify(&mut |_| {}).map_err(other)?;
    forget_cached(&directory.join("data"))
}

/// Has the kernel drop what it keeps of a file.
fn forget_cached(file: &Path) -> Result<()> {
    let file = File::open(file)?;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// A plain copy, synced.
fn copy(from: &Path, to: &Path) -> Result<()> {
    mount::run(Command::new("cp").arg("--reflink=never").arg(from).arg(to))?;
    File::open(to)?.sync_all()
}

/// Steps without and with a snapshot beside them, and the snapshot without them, in turns.
pub(crate) fn run(options: &Options) -> Result<()> {
    let shape = shape(options, 200);
    let directory = scratch(&options.directory())?;
    let at = |name: &str| directory.path().join(name);
    let training = train_at(options, &shape, &text(&at("store"))?)?;
    let mut open = Open::new(options, training)?;
    let mut rows = ["step", "step beside a snapshot"].map(Row::new);
    let mut copies = ["cp and fsync", "snapshot alone"].map(Row::new);
    let mut shares = Vec::new();
    for round in 0..options.common.rounds(5) {
        let mut turns = [None; 2];
        for place in [round % 2, 1 - round % 2] {
            if place == 0 {
                turns[0] = Some(open.turn(options.steps.get())?);
                continue;
            }
            let ticket = open.optimizer.snapshot(&at("beside")).map_err(other)?;
            turns[1] = Some(open.turn(options.steps.get())?);
            let (done, all) = open.engine.progress(ticket).map_err(other)?;
            shares.push(done as f64 / all as f64);
            let done = open.engine.wait(ticket, None).map_err(other)?;
            done.outcome.map_err(other)?;
            verify(&at("beside"))?;
            std::fs::remove_dir_all(at("beside"))?;
            // What the third slots held goes back into place before the next turn.
            open.steps(2)?;
        }
        if let [Some(without), Some(with)] = turns {
            rows[0].push(without, 1.0);
            rows[1].push(with, with.seconds / without.seconds);
        }
        let seconds = open.snapshot(&at("alone"))?;
        forget_cached(&at("alone/data"))?;
        let copied = timed(|| copy(&at("alone/data"), &at("copy")))?.0;
        let bytes = 2.0 * std::fs::metadata(at("copy"))?.len() as f64;
        std::fs::remove_file(at("copy"))?;
        verify(&at("alone"))?;
        std::fs::remove_dir_all(at("alone"))?;
        for (row, seconds) in copies.iter_mut().zip([copied, seconds]) {
            row.push_whole(seconds, bytes, seconds / copied);
        }
    }
    open.verify()?;
    let gib = state_bytes(&shape) as f64 / GIB;
    let title = format!("Snapshots: {}, {gib:.2} GiB of state", shape.name);
    print(options, &title, "x without", &rows);
    println!(
        "copied by the end of the steps: {:.2} of the snapshot\n",
        median(shares)
    );
    print(options, &title, "x cp", &copies);
    Ok(())
}

/// Snapshots where the file system shares blocks between files.
pub(crate) fn run_reflink(options: &Options) -> Result<()> {
    if !is_root("reflink") {
        return Ok(());
    }
    let shape = shape(options, 400);
    let gib = state_bytes(&shape) as f64 / GIB;
    // The image stays sparse: only what is written takes room on the drive.
    let len_bytes = u64::try_from(state_bytes(&shape)).unwrap_or(u64::MAX) * 4 + (2 << 30);
    let mut rows = Vec::new();
    for kind in ["xfs", "btrfs"] {
        let mount = Mount::new(kind, len_bytes, &options.directory())?;
        let training = train_at(options, &shape, &text(&mount.point.join("store"))?)?;
        let mut open = Open::new(options, training)?;
        let mut row = Row::new(kind);
        for _ in 0..options.common.rounds(5) {
            let directory = mount.point.join("snapshot");
            let seconds = open.snapshot(&directory)?;
            let bytes = state_bytes(&shape) as f64;
            row.push_whole(seconds, bytes, seconds * 10.0 / gib);
            verify(&directory)?;
            std::fs::remove_dir_all(&directory)?;
            open.steps(1)?;
        }
        open.verify()?;
        rows.push(row);
    }
    let title = format!(
        "Snapshots that share blocks: {}, {gib:.2} GiB of state",
        shape.name
    );
    print(options, &title, "s for 10 GiB", &rows);
    Ok(())
}
