//! A soak: engine, swapper and optimizer at random work for as long as `TSW_TEST_SECONDS` says (20
//! minutes in `tests/long`), with a fixed seed; snapshots are made, restored and removed, and the
//! store is moved to other directories. Nothing grows once it has warmed up: memory, descriptors,
//! locked bytes, files; and every ticket that was given out has ended once.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;
mod training;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::*;
use tensorswap::base::config::Directory;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::{Engine, Ticket};
use tensorswap::optimizer::Optimizer;
use tensorswap::store::{RebalanceOptions, Rebalanced, rebalance};
use tensorswap::swapper::Swapper;
use training::*;

const NUMELS: [usize; 8] = [1, 700, 1024, 5000, 20_001, 33_000, 3, 60_000];
const FILES: usize = 12;
const FILE_BYTES_MAX: usize = 300_000;
/// The directories of the store, before it is moved and after it: names, and shares.
const PLACES: [&[(&str, f64)]; 2] = [&[("a", 1.0)], &[("b", 2.0), ("c", 1.0)]];
/// Files of requests, of the store and of gradients.
const OPEN_FILES_MAX: u64 = 40;
/// Threads that the kernel adds for a ring, as it sees fit.
const RING_WORKERS_MAX: u64 = 16;
/// Samples in a whole run; the first third is for warming up.
const SAMPLES: u32 = 60;
/// What an allocator may keep more of than it needs, and what a log holds before it is compacted.
const SLACK_BYTES: u64 = 16 << 20;

/// What must not grow.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    resident_bytes: u64,
    locked_bytes: u64,
    /// Without those of the engine's files, which are bounded.
    descriptors: u64,
    stored_bytes: u64,
    threads: u64,
}

impl Sample {
    fn max(self, other: Sample) -> Sample {
        Sample {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            locked_bytes: self.locked_bytes.max(other.locked_bytes),
            descriptors: self.descriptors.max(other.descriptors),
            stored_bytes: self.stored_bytes.max(other.stored_bytes),
            threads: self.threads.max(other.threads),
        }
    }

    fn assert_no_growth_since(self, before: Sample) {
        let within = |now, before| now <= before + SLACK_BYTES;
        assert!(
            within(self.resident_bytes, before.resident_bytes)
                && within(self.stored_bytes, before.stored_bytes)
                // Bounce blocks are made when they are first needed.
                && within(self.locked_bytes, before.locked_bytes)
                && self.descriptors <= before.descriptors
                && self.threads <= before.threads + RING_WORKERS_MAX,
            "{before:?} grew to {self:?}"
        );
    }
}

/// Blocks of all files below a directory, and how many files there are for third slots. Those are
/// not counted: one in each place, as long as a record lies in its third slot.
fn stored_bytes(directory: &Path) -> (u64, u64) {
    let (mut bytes, mut spares) = (0, 0);
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.metadata().unwrap() {
            found if found.is_dir() => {
                let below = stored_bytes(&entry.path());
                (bytes, spares) = (bytes + below.0, spares + below.1);
            }
            _ if entry.file_name() == "spare" => spares += 1,
            found => bytes += found.blocks() * 512,
        }
    }
    (bytes, spares)
}

fn sample(directory: &Path, engine: &Engine) -> Sample {
    let open_files = engine.stats().open_files_count;
    assert!(open_files < OPEN_FILES_MAX, "{open_files}");
    let (stored_bytes, spares) = stored_bytes(directory);
    let places_max = PLACES.iter().map(|places| places.len()).max();
    assert!(
        spares <= places_max.unwrap() as u64,
        "{spares} files for third slots"
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let number = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line.unwrap().split_whitespace();
        words.next().unwrap().parse().unwrap()
    };
    Sample {
        resident_bytes: number("VmRSS:") << 10,
        locked_bytes: number("VmLck:") << 10,
        descriptors: open_descriptors() as u64 - open_files - spares,
        stored_bytes,
        threads: number("Threads:"),
    }
}

struct Soak {
    random: Random,
    directory: tempfile::TempDir,
    engine: Engine,
    swapper: Swapper,
    optimizer: Option<Optimizer>,
    model: Model,
    /// The last commit that was waited for.
    committed: Model,
    /// What the files hold.
    files: Vec<Vec<u8>>,
    names: Vec<CString>,
    /// Where the store is: in which of `PLACES`.
    at: usize,
    moves_count: u64,
    snapshots_count: u64,
    tickets_count: u64,
    ended_count: u64,
}

impl Soak {
    fn new() -> Soak {
        let directory = directory();
        let engine = engine(&[("block_bytes", "64KiB")]);
        let swapper = Swapper::new(&engine, None).unwrap();
        let buffers = [1 << 20, 1 << 18].map(|len| engine.allocate_buffer(len).unwrap());
        swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
        let mut model = Model::new(&BF16_MOMENTS);
        (0..)
            .zip(NUMELS)
            .for_each(|(id, numel)| model.add(id, numel));
        let names = (0..FILES).map(|file| path(directory.path(), &format!("f{file}")));
        let mut soak = Soak {
            random: Random(8),
            names: names.collect(),
            files: vec![Vec::new(); FILES],
            committed: model.clone(),
            model,
            optimizer: None,
            directory,
            engine,
            swapper,
            at: 0,
            moves_count: 0,
            snapshots_count: 0,
            tickets_count: 0,
            ended_count: 0,
        };
        soak.open();
        let optimizer = soak.optimizer.take().unwrap();
        initialize(&optimizer, &mut soak.model, 1);
        optimizer.commit().unwrap();
        soak.optimizer = Some(optimizer);
        soak.committed = soak.model.clone();
        soak
    }

    fn optimizer(&self) -> &Optimizer {
        self.optimizer.as_ref().unwrap()
    }

    /// Where the store is when it is in these of `PLACES`.
    fn places(&self, at: usize) -> Vec<Directory> {
        let named = |(name, weight): &(&str, f64)| Directory {
            path: self.directory.path().join(name),
            weight: Some(*weight),
        };
        PLACES[at].iter().map(named).collect()
    }

    fn open(&mut self) {
        let places = self.places(self.at).into_iter();
        let places =
            places.map(|place| format!("{}={}", place.path.display(), place.weight.unwrap()));
        let path = places.collect::<Vec<_>>().join(",");
        let cache = *self.random.pick(&["0", "200KiB", "1GiB"]);
        let gradients = *self.random.pick(&["memory", "disk"]);
        let settings = [
            ("cache_bytes", cache),
            ("gradients", gradients),
            ("sync", "none"),
            ("path", path.as_str()),
        ];
        let directory = self.directory.path();
        self.optimizer = Some(open(&self.engine, directory, &settings, &self.model));
    }

    /// Several requests under way at once, some of them withdrawn; each ends once.
    fn requests(&mut self) {
        let files: BTreeSet<usize> = (0..5).map(|_| self.random.below(FILES)).collect();
        let files: Vec<usize> = files.into_iter().collect();
        for file in &files {
            let len = 1 + self.random.below(FILE_BYTES_MAX);
            self.files[*file] = self.random.bytes(len);
        }
        let engine = &self.engine;
        let (names, contents) = (&self.names, &mut self.files);
        let out: Vec<Ticket> = files
            .iter()
            .map(|file| {
                engine
                    .swap_out(&[tensor(&mut contents[*file], 0)], &[&names[*file]])
                    .unwrap()
            })
            .collect();
        let mut back: Vec<Vec<u8>> = files
            .iter()
            .map(|file| vec![0; contents[*file].len()])
            .collect();
        let mut tickets = out;
        for (file, into) in files.iter().zip(&mut back) {
            tickets.push(
                engine
                    .swap_in(&[tensor(into, 0)], &[&names[*file]])
                    .unwrap(),
            );
        }
        // The last read may be withdrawn.
        let withdrawn = *tickets.last().unwrap();
        let is_withdrawn = self.random.one_in(3) && engine.cancel(withdrawn).is_ok();
        self.tickets_count += tickets.len() as u64;
        for ticket in tickets {
            match wait(engine, ticket).outcome {
                Ok(()) => {}
                Err(error) => {
                    assert!(is_withdrawn && ticket == withdrawn, "{error}");
                    assert_eq!(error.status(), Status::Cancelled);
                    back.pop();
                }
            }
            self.ended_count += 1;
            let again = engine.wait(ticket, Some(Duration::ZERO));
            assert_eq!(again.unwrap_err().status(), Status::BadTicket);
        }
        for (file, found) in files.iter().zip(&back) {
            assert!(*found == contents[*file], "file {file}");
        }
    }

    fn staged(&mut self) {
        let file = self.random.below(FILES);
        let len = 1 + self.random.below(FILE_BYTES_MAX);
        self.files[file] = self.random.bytes(len);
        let mut back = vec![0; len];
        let name = self.names[file].as_c_str();
        let out = tensor(&mut self.files[file], 0);
        self.swapper.swap_out(&[out], &[name]).unwrap();
        if self.random.one_in(2) {
            self.swapper.flush(PATIENCE).unwrap();
        }
        self.swapper
            .swap_in(&[tensor(&mut back, 0)], &[name])
            .unwrap();
        assert!(back == self.files[file], "file {file}");
        // Requests of the engine's own concern this file next.
        self.swapper.flush(PATIENCE).unwrap();
    }

    fn train(&mut self) {
        let optimizer = self.optimizer.take().unwrap();
        for id in 0..NUMELS.len() as u64 {
            if self.random.one_in(2) {
                let slope = values(NUMELS[id as usize], self.random.next());
                give_gradient(
                    &optimizer,
                    &mut self.model,
                    id,
                    0,
                    (&slope, Dtype::F32),
                    false,
                );
            }
        }
        let threads = 1 + self.random.below(2);
        step(&optimizer, &mut self.model, None, threads, &|_| false);
        if self.random.one_in(3) {
            optimizer
                .set_user_data(&self.model.step.to_le_bytes())
                .unwrap();
            optimizer.commit().unwrap();
            self.committed = self.model.clone();
        }
        self.optimizer = Some(optimizer);
    }

    /// A snapshot of the last commit is made beside training, or withdrawn; restored; removed.
    fn snapshot(&mut self) {
        let directory = self.directory.path().join("snapshot");
        let committed = self.committed.clone();
        let ticket = self.optimizer().snapshot(&directory).unwrap();
        self.tickets_count += 1;
        for _ in 0..self.random.below(3) {
            self.train();
        }
        let is_withdrawn = self.random.one_in(3) && self.engine.cancel(ticket).is_ok();
        let ended = wait(&self.engine, ticket).outcome;
        self.ended_count += 1;
        if let Err(error) = ended {
            assert!(is_withdrawn, "{error}");
            assert_eq!(error.status(), Status::Cancelled);
            assert!(!directory.exists());
            return;
        }
        self.snapshots_count += 1;
        let store = tempfile::tempdir_in(self.directory.path()).unwrap();
        let types = &committed.types;
        let restored = try_open(&self.engine, store.path(), &[], types).unwrap();
        restored.restore(&directory).unwrap();
        verify(&restored, &committed, "restored");
        std::fs::remove_dir_all(directory).unwrap();
    }

    /// The store goes to its other directories; nobody has it open.
    fn move_away(&mut self) {
        let to = self.places(1 - self.at);
        for place in &to {
            std::fs::create_dir_all(&place.path).unwrap();
        }
        let from = self.places(self.at).into_iter();
        let from: Vec<PathBuf> = from.map(|place| place.path).collect();
        let options = RebalanceOptions { rank: 0, from, to };
        let moved = rebalance(&config(&[]), &options, &mut |_, _| {}).unwrap();
        assert!(matches!(moved, Rebalanced::Moved { .. }));
        self.at = 1 - self.at;
        self.moves_count += 1;
    }

    /// The store is opened again, maybe elsewhere: at the last commit.
    fn reopen(&mut self, moves: bool) {
        self.optimizer = None;
        if moves {
            self.move_away();
        }
        self.model = self.committed.clone();
        self.open();
        verify(self.optimizer(), &self.model, "opened again");
    }

    fn round(&mut self) {
        match self.random.below(14) {
            0..=4 => self.requests(),
            5..=7 => self.staged(),
            8..=10 => self.train(),
            11 if self.random.one_in(2) => {
                let moves = self.random.one_in(2);
                self.reopen(moves);
            }
            12 if self.random.one_in(2) => self.snapshot(),
            _ => verify(self.optimizer(), &self.model, "looked at"),
        }
    }

    /// Nothing is under way, and all that was given out has ended.
    fn settle(&mut self) {
        self.optimizer().commit().unwrap();
        self.committed = self.model.clone();
        self.engine.quiesce(PATIENCE).unwrap();
        let stats = self.engine.stats();
        assert_eq!(
            (stats.in_flight_count, stats.requests_in_flight_count),
            (0, 0)
        );
        assert_eq!(self.tickets_count, self.ended_count);
        let mut left = 0;
        self.engine.poll(usize::MAX, &mut |_| left += 1).unwrap();
        assert_eq!(left, 0, "completions that nobody asked for");
    }
}

#[test]
fn nothing_grows_and_every_ticket_ends() {
    let mut soak = Soak::new();
    let whole = duration();
    let started = Instant::now();
    let (mut warm, mut rounds) = (Sample::default(), 0_u64);
    let mut last = Sample::default();
    // What it takes in each place is not growth.
    for _ in 0..2 * PLACES.len() {
        soak.snapshot();
        soak.settle();
        warm = warm.max(sample(soak.directory.path(), &soak.engine));
        soak.reopen(true);
        soak.settle();
        warm = warm.max(sample(soak.directory.path(), &soak.engine));
    }
    for index in 1..=SAMPLES {
        while started.elapsed() < whole * index / SAMPLES {
            soak.round();
            rounds += 1;
        }
        soak.settle();
        let now = sample(soak.directory.path(), &soak.engine);
        if index <= SAMPLES / 3 {
            warm = warm.max(now);
        } else {
            now.assert_no_growth_since(warm);
        }
        last = now;
    }
    println!(
        "{rounds} rounds, {} tickets, {} snapshots, {} moves; warm {warm:?}, in the end {last:?}",
        soak.tickets_count, soak.snapshots_count, soak.moves_count
    );
}
