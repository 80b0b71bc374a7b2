//! Killed at any moment, a training process leaves a store that opens at one committed step: every
//! record and the caller's own data are of exactly that step, and it is none before the last that
//! was acknowledged.
//!
//! What a record holds follows from its id and the step, so that it can be told without a model.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;
mod training;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::*;
use tensorswap::base::error::Status;
use tensorswap::optimizer::{Optimizer, ParameterView};
use training::*;

/// Tells a process that it is to train in the directory that it names.
const DIRECTORY: &str = "TSW_TEST_CRASH_DIRECTORY";
/// How the child trains: a word that holds the settings, and a seed.
const SYNC: &str = "TSW_TEST_CRASH_SYNC";
const SEED: &str = "TSW_TEST_CRASH_SEED";

/// Lengths of the parameters; the id is the index.
const NUMELS: [usize; 12] = [
    1, 3, 900, 1024, 1025, 5000, 9000, 13_333, 20_000, 30_000, 7, 60_000,
];
/// Kills of one way of syncing.
const KILLS: u64 = 12;
/// A child is killed so many milliseconds at most after it has begun to commit some steps.
const DELAY_MAX_MS: usize = 60;

/// One state of one record at the end of a step.
fn content(id: u64, state: usize, step: u64) -> Vec<f32> {
    let seed = (id << 40) ^ ((state as u64) << 36) ^ step;
    values(NUMELS[id as usize], seed)
}

/// Whether a view holds what the step before left. Before the first one all is zero.
fn check(view: &ParameterView, step: u64) {
    for (state, found) in view.states().enumerate() {
        let expected = match step {
            0 => vec![0.0; NUMELS[view.id as usize]],
            _ => content(view.id, state, step),
        };
        let found = load(found);
        let is_of = |step: &u64| found == content(view.id, state, *step);
        assert!(
            found == expected,
            "parameter {}, state {state}: of step {:?}, not {step}",
            view.id,
            (1..step + 3).find(is_of)
        );
    }
}

fn settings(sync: &str, random: &mut Random) -> Vec<(&'static str, &'static str)> {
    vec![
        ("sync", if sync == "none" { "none" } else { "commit" }),
        ("cache_bytes", *random.pick(&["0", "1MiB", "1GiB"])),
        ("pipeline_read", *random.pick(&["true", "false"])),
        ("pipeline_write", *random.pick(&["true", "false"])),
        ("checksum", "verify"),
    ]
}

/// Below `directory` lie those of the store, and the snapshots.
const PLACES: [&str; 2] = ["a=2", "b"];
const SNAPSHOTS: &str = "snapshots";

fn start(directory: &Path, settings: &[(&str, &str)]) -> Optimizer {
    let engine = engine(&[("block_bytes", "64KiB")]);
    let path = PLACES.map(|place| directory.join(place).display().to_string());
    let path = path.join(",");
    let settings = [settings, &[("path", path.as_str())]].concat();
    let optimizer = try_open(&engine, directory, &settings, &F32).unwrap();
    for (id, numel) in (0..).zip(NUMELS) {
        optimizer.add_parameter(id, None, numel as u64).unwrap();
    }
    optimizer
}

/// Trains until it is killed, and says what may be durable (`begun`) and what is (`durable`).
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let sync = std::env::var(SYNC).unwrap();
    let mut random = Random(std::env::var(SEED).unwrap().parse().unwrap());
    let optimizer = start(Path::new(&directory), &settings(&sync, &mut random));
    // The line before is the test harness's own.
    println!();
    let mut snapshot = None;
    loop {
        let step = optimizer.step_number() + 1;
        if snapshot.is_none() && step > 2 && random.one_in(3) {
            let place = Path::new(&directory).join(SNAPSHOTS).join(step.to_string());
            snapshot = optimizer.snapshot(&place).ok();
        } else if let Some(ticket) = snapshot.take_if(|_| random.one_in(3)) {
            let ended = optimizer.engine().wait(ticket, None).unwrap();
            ended.outcome.unwrap();
        }
        optimizer.step_begin(None).unwrap();
        drain(&optimizer, 1, &|view| {
            check(view, step - 1);
            for (state, to) in view.states().enumerate() {
                store(to, &content(view.id, state, step));
            }
            true
        });
        optimizer.set_user_data(&step.to_le_bytes()).unwrap();
        if sync != "none" {
            println!("begun {step}");
        }
        if random.one_in(10) {
            match optimizer.step_abort() {
                Ok(()) => continue,
                // Without syncing, records of the step may be written already.
                Err(error) => assert_eq!(error.status(), Status::Unsupported),
            }
        }
        optimizer.step_end().unwrap();
        println!("durable {}", optimizer.stats().durable_step);
        if random.one_in(4) {
            println!("begun {step}");
            optimizer.commit().unwrap();
            println!("durable {step}");
        }
    }
}

/// What a child said before it was killed.
#[derive(Default)]
struct Said {
    begun: Vec<u64>,
    durable: Option<u64>,
}

impl Said {
    fn note(&mut self, line: &str) {
        let number = |text: &str| text.parse().unwrap();
        match line.split_once(' ') {
            Some(("begun", step)) => self.begun.push(number(step)),
            Some(("durable", step)) => self.durable = Some(number(step)),
            _ => {}
        }
    }
}

/// Lets a child train in `directory` until it has begun to commit some steps, and kills it at some
/// moment soon after.
fn train_and_kill(directory: &Path, sync: &str, random: &mut Random) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(SYNC, sync)
        .env(SEED, random.next().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    let mut said = Said::default();
    let awaited = random.below(4);
    while said.begun.len() < awaited {
        let line = lines.next();
        said.note(&line.expect("the child met an error"));
    }
    let delay_ms = random.below(DELAY_MAX_MS) as u64;
    std::thread::sleep(Duration::from_millis(delay_ms));
    let ended = child.try_wait().unwrap();
    assert_eq!(ended, None, "the child met an error");
    child.kill().unwrap();
    child.wait().unwrap();
    lines.for_each(|line| said.note(&line));
    said
}

/// Opens the store, and checks that everything in it is of one step, which is returned.
fn step_of(directory: &Path) -> u64 {
    check_step(&start(directory, &[("checksum", "verify")]))
}

/// Restores every snapshot that is there, and removes it; returns how many there were.
fn check_snapshots(directory: &Path) -> u64 {
    let Ok(snapshots) = fs::read_dir(directory.join(SNAPSHOTS)) else {
        return 0;
    };
    let mut count = 0;
    for snapshot in snapshots {
        let snapshot = snapshot.unwrap().path();
        // What was half made is left for the next one of that name, or for whoever removes it.
        if snapshot.extension().is_none() {
            let store = tempfile::tempdir_in(directory).unwrap();
            let engine = engine(&[]);
            let optimizer = try_open(&engine, store.path(), &[], &F32).unwrap();
            optimizer.restore(&snapshot).unwrap();
            assert!(check_step(&optimizer) > 0);
            count += 1;
        }
        fs::remove_dir_all(&snapshot).unwrap();
    }
    count
}

/// Checks that everything is of one step, which is returned.
fn check_step(optimizer: &Optimizer) -> u64 {
    let step = optimizer.step_number();
    let user_data = optimizer.user_data();
    match step {
        0 => assert!(user_data.is_empty()),
        _ => assert_eq!(user_data, step.to_le_bytes()),
    }
    let mut model = Model::new(&F32);
    (0..)
        .zip(NUMELS)
        .for_each(|(id, numel)| model.add(id, numel));
    for id in 0..NUMELS.len() as u64 {
        for state in 0..F32.len() {
            if step > 0 {
                model.set(id, state, &content(id, state, step));
            }
        }
    }
    model.step = step;
    verify(optimizer, &model, "after a kill");
    step
}

fn kill_often(sync: &str) {
    let directory = directory();
    let mut random = Random(sync.len() as u64);
    let (mut last, mut advanced, mut snapshots) = (0, 0, 0);
    for kill in 0..KILLS * scale() {
        let said = train_and_kill(directory.path(), sync, &mut random);
        let step = step_of(directory.path());
        let acknowledged = said.durable.unwrap_or(last).max(last);
        assert!(step >= acknowledged, "kill {kill}: {step} < {acknowledged}");
        let is_possible = step == acknowledged || said.begun.contains(&step);
        assert!(is_possible, "kill {kill}: {step}, begun {:?}", said.begun);
        advanced += u64::from(step > last);
        last = step;
        snapshots += check_snapshots(directory.path());
    }
    println!("{sync}: {snapshots} snapshots");
    assert!(advanced > 0, "no child came as far as a step");
}

#[test]
fn a_kill_with_every_step_committed_leaves_the_last_durable_step() {
    kill_often("commit");
}

#[test]
fn a_kill_without_syncing_leaves_the_last_explicit_commit() {
    kill_often("none");
}
