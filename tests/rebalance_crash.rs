//! Killed at any moment, `rebalance` leaves a store that opens where it was or where it is to be, or
//! is still being moved; the same call moves it to the end, and no record has changed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod support;
mod training;

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use support::*;
use tensorswap::base::config::Directory;
use tensorswap::base::error::{Result, Status};
use tensorswap::store::{RebalanceOptions, Rebalanced, rebalance};
use training::*;

/// Tell a process which store it is to move: the directory above, and a number of `PLACEMENTS`.
const DIRECTORY: &str = "TSW_TEST_REBALANCE_DIRECTORY";
const FROM: &str = "TSW_TEST_REBALANCE_FROM";
/// Whether it is to stop in the middle of the copy until it is killed.
const STOP: &str = "TSW_TEST_REBALANCE_STOP";

/// Where the store lies, one after the other, with weights.
const PLACEMENTS: [&[&str]; 5] = [
    &["a=1", "b=1"],
    &["b=1", "c=2"],
    &["c=1"],
    &["c=1", "a=1"],
    &["a=2", "c=1"],
];
const NUMELS: [usize; 8] = [1, 30_000, 3, 1025, 70_000, 5000, 20_000, 7];
const KILLS: u64 = 8;

fn directories(root: &Path, placement: usize) -> Vec<Directory> {
    let places = PLACEMENTS[placement % PLACEMENTS.len()].iter();
    let places = places.map(|place| place.split_once('=').unwrap());
    let directories = places.map(|(name, weight)| Directory {
        path: root.join(name),
        weight: Some(weight.parse().unwrap()),
    });
    directories.collect()
}

fn paths(root: &Path, placement: usize) -> Vec<PathBuf> {
    let directories = directories(root, placement).into_iter();
    directories.map(|directory| directory.path).collect()
}

/// A placement as the configuration has it.
fn list(root: &Path, placement: usize) -> String {
    let paths = paths(root, placement);
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(",")
}

/// Moves the store to the placement after `from`.
fn run(root: &Path, from: usize, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebalanced> {
    let options = RebalanceOptions {
        rank: 0,
        from: paths(root, from),
        to: directories(root, from + 1),
    };
    rebalance(&config(&[]), &options, progress)
}

#[test]
fn child() {
    let Ok(root) = std::env::var(DIRECTORY) else {
        return;
    };
    let from = std::env::var(FROM).unwrap().parse().unwrap();
    let stops = std::env::var_os(STOP).is_some();
    // The line before is the test harness's own.
    println!("\nbegun");
    run(Path::new(&root), from, &mut |_, _| {
        if stops {
            println!("stopped");
            std::thread::sleep(Duration::MAX);
        }
    })
    .unwrap();
    println!("moved");
}

/// A process that moves the store.
struct Mover {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Mover {
    fn start(root: &Path, from: usize, stops: bool) -> Mover {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["child", "--exact", "--nocapture"])
            .env(DIRECTORY, root)
            .env(FROM, from.to_string())
            .stdout(Stdio::piped());
        if stops {
            command.env(STOP, "1");
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut mover = Mover { child, lines };
        assert!(mover.says("begun"));
        mover
    }

    /// Waits until it says so; false where it ends before.
    fn says(&mut self, what: &str) -> bool {
        self.lines.by_ref().any(|line| line.unwrap() == what)
    }

    /// Kills it, unless it has ended; says whether it was killed.
    fn kill(mut self) -> bool {
        self.child.kill().unwrap();
        let ended = self.child.wait().unwrap();
        assert!(ended.success() || ended.code().is_none(), "{ended}");
        !ended.success()
    }
}

/// Compares every record; false where the store does not open there.
fn is_at(root: &Path, placement: usize, model: &Model) -> bool {
    let path = list(root, placement);
    let settings = [
        ("path", path.as_str()),
        ("store", "existing"),
        ("checksum", "verify"),
    ];
    match try_open(&engine(&[]), root, &settings, &F32) {
        Ok(optimizer) => {
            for (id, record) in &model.records {
                let numel = record.numel as u64;
                optimizer.add_parameter(*id, None, numel).unwrap();
            }
            assert_eq!(optimizer.parameters_len(), model.records.len());
            verify(&optimizer, model, "moved");
            true
        }
        Err(error) => {
            let refused = [Status::Locked, Status::Corrupt, Status::NotFound];
            assert!(refused.contains(&error.status()), "{error}");
            false
        }
    }
}

/// What is in the directories.
fn names(root: &Path) -> Vec<String> {
    let all = ["a", "b", "c"].iter().flat_map(|place| {
        let entries = fs::read_dir(root.join(place)).unwrap();
        entries.map(move |entry| format!("{place}/{}", entry.unwrap().file_name().display()))
    });
    let mut all: Vec<String> = all.collect();
    all.sort();
    all
}

#[test]
fn a_store_whose_move_is_killed_is_whole_and_is_moved_to_the_end() {
    let directory = directory();
    let root = directory.path();
    for name in ["a", "b", "c"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let mut model = Model::new(&F32);
    for (id, numel) in (0..).zip(NUMELS) {
        model.add(id, numel);
    }
    {
        let path = list(root, 0);
        let optimizer = open(&engine(&[]), root, &[("path", path.as_str())], &model);
        initialize(&optimizer, &mut model, 3);
        step(&optimizer, &mut model, None, 1, &|_| false);
        optimizer.commit().unwrap();
    }
    let mut random = Random(7);
    let (mut kills, mut struck, mut between) = (0, 0, 0);
    let mut placement = 0;
    // How long it takes alone.
    let mut duration = Duration::ZERO;
    while kills < KILLS * scale() {
        if duration.is_zero() {
            let mut mover = Mover::start(root, placement, false);
            let begun = Instant::now();
            assert!(mover.says("moved"));
            duration = begun.elapsed();
            mover.kill();
        } else {
            // Somebody may be killed who goes on for somebody who was killed.
            for _ in 0..=random.below(3) {
                let stops = kills == 0;
                let mut mover = Mover::start(root, placement, stops);
                match stops {
                    true => assert!(mover.says("stopped")),
                    false => std::thread::sleep(duration.mul_f64(random.below(1000) as f64 / 1e3)),
                }
                struck += u64::from(mover.kill());
                kills += 1;
                let opened = [placement, placement + 1].map(|place| is_at(root, place, &model));
                assert_ne!(opened, [true, true], "{kills}");
                between += u64::from(opened == [false, false]);
            }
            run(root, placement, &mut |_, _| {}).unwrap();
        }
        placement += 1;
        assert!(is_at(root, placement, &model), "{placement}");
        let there: Vec<String> = names(root);
        assert!(
            there.iter().all(|name| name.ends_with("/rank0")),
            "{there:?}"
        );
        assert_eq!(there.len(), PLACEMENTS[placement % PLACEMENTS.len()].len());
    }
    println!("{kills} kills, {struck} of them before the end, {between} with neither to be opened");
    assert!(struck > 0);
}
