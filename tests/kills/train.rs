//! Killed at any moment, a training process leaves a store that opens at one committed step: every
//! record and the caller's own data are of exactly that step, and it is none before the last that
//! was acknowledged. Snapshots are there whole, or not at all.
//!
//! What a record holds follows from its id and the step, so that it can be told without a model.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::Tensor;
use tensorswap::optimizer::{Optimizer, ParameterView};

use crate::child::{Kills, Task, doing, run_and_kill, wait_below};
use crate::support::*;
use crate::training::*;

/// Lengths of the parameters; the id is the index.
const NUMELS: [usize; 12] = [
    1, 3, 900, 1024, 1025, 5000, 9000, 13_333, 20_000, 30_000, 7, 60_000,
];
/// Kills of one way of syncing.
const KILLS: u64 = 14;
/// One in so many begins with nothing, and is killed soon; one in so many during a compaction, if
/// there is one before long.
const FRESH: usize = 4;
const COMPACTED: usize = 10;
const PATIENCE_MAX: Duration = Duration::from_millis(500);
/// A child is killed so much later at most, after it has said what is awaited.
const DELAYS_MAX: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(60)];

/// What a child does, and what others of its threads do beside that. Registering and
/// aborts are over in no time, and hit by chance.
const MAKING: &str = "making the store";
const DOINGS: [&str; 6] = [
    MAKING,
    "initializing them",
    "in a step",
    "committing",
    COMPACTING,
    COPYING,
];
const COMPACTING: &str = "beside a compaction of the log";
const COPYING: &str = "beside the copy of a snapshot";

/// One state of one record at the end of a step; of step 0, what it was initialized with.
fn content(id: u64, state: usize, step: u64) -> Vec<f32> {
    let seed = (id << 40) ^ ((state as u64) << 36) ^ step;
    match (step, state) {
        (0, 1..) => vec![0.0; NUMELS[id as usize]],
        _ => values(NUMELS[id as usize], seed),
    }
}

/// The caller's data of a step: long, so that the log is made shorter every few commits.
fn user_data(step: u64) -> Vec<u8> {
    let mut random = Random(step);
    let len = *random.pick(&[0, 1000, 300_000, 1_000_000]);
    [&step.to_le_bytes()[..], &random.bytes(len)].concat()
}

/// Whether a view holds what the step before left.
fn check(view: &ParameterView, step: u64) {
    for (state, found) in view.states().enumerate() {
        let found = load(found);
        let is_of = |step: &u64| found == content(view.id, state, *step);
        assert!(
            is_of(&step),
            "parameter {}, state {state}: of step {:?}, not {step}",
            view.id,
            (0..step + 3).find(is_of)
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
const PLACES: [&str; 2] = ["a=2", "b=1"];
const SNAPSHOTS: &str = "snapshots";

fn make(directory: &Path, settings: &[(&str, &str)]) -> Optimizer {
    let engine = engine(&[("block_bytes", "64KiB")]);
    let path = PLACES.map(|place| directory.join(place).display().to_string());
    let path = path.join(",");
    let settings = [settings, &[("path", path.as_str())]].concat();
    try_open(&engine, directory, &settings, &F32).unwrap()
}

fn register(optimizer: &Optimizer) {
    for (id, numel) in (0..).zip(NUMELS) {
        optimizer.add_parameter(id, None, numel as u64).unwrap();
    }
}

/// The first commit: masters, all at once, and the caller's data with them.
fn initialize_all(optimizer: &Optimizer) {
    let ids: Vec<u64> = (0..NUMELS.len() as u64).collect();
    let masters = ids.iter().map(|id| content(*id, 0, 0));
    let mut memory: Vec<Vec<u8>> = masters.map(|m| to_bytes(&m, Dtype::F32)).collect();
    let sources: Vec<Tensor> = memory
        .iter_mut()
        .map(|bytes| elements(bytes, Dtype::F32))
        .collect();
    optimizer.initialize_parameters(&ids, &sources).unwrap();
    optimizer.set_user_data(&user_data(0)).unwrap();
}

/// Trains until it is killed, and says what may be durable (`begun`) and what is (`durable`), in
/// commits: the first one is that of the values it begins with.
#[test]
fn child() {
    let Some(Task {
        place,
        how: sync,
        mut random,
    }) = Task::told()
    else {
        return;
    };
    doing(MAKING);
    let optimizer = make(&place, &settings(&sync, &mut random));
    doing("registering parameters");
    register(&optimizer);
    let commit = |commits: u64| {
        println!("begun {commits}");
        doing("committing");
        optimizer.commit().unwrap();
        println!("durable {commits}");
    };
    if optimizer.user_data().is_empty() {
        doing("initializing them");
        initialize_all(&optimizer);
        commit(1);
    }
    let mut snapshot = None;
    loop {
        doing("in a step");
        let step = optimizer.step_number() + 1;
        if snapshot.is_none() && random.one_in(3) {
            let place = place.join(SNAPSHOTS).join(step.to_string());
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
        optimizer.set_user_data(&user_data(step)).unwrap();
        if sync != "none" {
            println!("begun {}", step + 1);
        }
        if random.one_in(10) {
            doing("aborting a step");
            match optimizer.step_abort() {
                Ok(()) => continue,
                // Without syncing, records of the step may be written already.
                Err(error) => assert_eq!(error.status(), Status::Unsupported),
            }
        }
        optimizer.step_end().unwrap();
        println!("durable {}", optimizer.stats().durable_step + 1);
        if random.one_in(4) {
            commit(step + 1);
        }
    }
}

/// The numbers that a child said behind a word.
fn numbers(said: &[String], word: &str) -> Vec<u64> {
    let words = said.iter().filter_map(|line| line.split_once(' '));
    let found = words.filter(|(found, _)| *found == word);
    found.map(|(_, number)| number.parse().unwrap()).collect()
}

/// Opens the store, and checks that everything in it is of one commit; which one.
fn commits_of(directory: &Path) -> u64 {
    let optimizer = make(directory, &[("checksum", "verify")]);
    register(&optimizer);
    check_commit(&optimizer)
}

/// Restores every snapshot that is there, and removes it; whether one was half made.
fn check_snapshots(directory: &Path) -> bool {
    let Ok(snapshots) = fs::read_dir(directory.join(SNAPSHOTS)) else {
        return false;
    };
    let mut was_copying = false;
    for snapshot in snapshots {
        let snapshot = snapshot.unwrap().path();
        // What was half made is left for the next one of that name, or for whoever removes it.
        if snapshot.extension().is_some() {
            was_copying = true;
        } else {
            let store = tempfile::tempdir_in(directory).unwrap();
            let optimizer = try_open(&engine(&[]), store.path(), &[], &F32).unwrap();
            optimizer.restore(&snapshot).unwrap();
            assert!(check_commit(&optimizer) > 0);
        }
        fs::remove_dir_all(&snapshot).unwrap();
    }
    was_copying
}

/// Checks that everything is of one commit, which is returned; 0 where there was none.
fn check_commit(optimizer: &Optimizer) -> u64 {
    let step = optimizer.step_number();
    let found = optimizer.user_data();
    let mut model = Model::new(&F32);
    (0..)
        .zip(NUMELS)
        .for_each(|(id, numel)| model.add(id, numel));
    model.step = step;
    if found.is_empty() {
        verify(optimizer, &model, "before anything was committed");
        assert_eq!(step, 0);
        return 0;
    }
    assert!(found == user_data(step), "user data is not of step {step}");
    for id in 0..NUMELS.len() as u64 {
        for state in 0..F32.len() {
            model.set(id, state, &content(id, state, step));
        }
    }
    verify(optimizer, &model, "after a kill");
    step + 1
}

/// Whether a log that was to take the place of the store's is there.
fn has_new_log(directory: &Path) -> bool {
    let mut names = PLACES.iter().map(|place| place.split('=').next().unwrap());
    names.any(|place| directory.join(place).join("rank0/log.new").exists())
}

fn kill_often(sync: &str) {
    let mut random = Random(sync.len() as u64);
    let mut kills = Kills::default();
    let mut place = directory();
    let (mut last, mut advanced) = (0, 0);
    for kill in 0..KILLS * scale() {
        let is_fresh = random.one_in(FRESH);
        let (word, awaited) = if is_fresh {
            (place, last) = (directory(), 0);
            ("doing ", 1 + random.below(3))
        } else {
            ("begun ", random.below(4))
        };
        let awaits_compaction = !is_fresh && random.one_in(COMPACTED);
        let mut chance = Random(random.next());
        let mut wait = || {
            let started = Instant::now();
            while awaits_compaction
                && !has_new_log(place.path())
                && started.elapsed() < PATIENCE_MAX
            {
                std::thread::yield_now();
            }
            let is_close = awaits_compaction || chance.one_in(3);
            wait_below(DELAYS_MAX[usize::from(!is_close)], &mut chance);
        };
        let said = run_and_kill(
            "train::child",
            (place.path(), sync),
            &mut random,
            (&|line| line.starts_with(word), awaited),
            &mut wait,
        );
        let was_doing = kills.note(&said);
        if was_doing != MAKING && has_new_log(place.path()) {
            kills.note_beside(COMPACTING);
        }
        let found = commits_of(place.path());
        let durable = numbers(&said, "durable").pop().unwrap_or(last).max(last);
        assert!(found >= durable, "kill {kill}: {found} < {durable}");
        let begun = numbers(&said, "begun");
        let is_possible = found == durable || begun.contains(&found);
        assert!(is_possible, "kill {kill}: {found}, begun {begun:?}");
        advanced += u64::from(found > last);
        last = found;
        if check_snapshots(place.path()) {
            kills.note_beside(COPYING);
        }
    }
    println!("{sync}: {kills}");
    kills.assert_all(&DOINGS);
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
