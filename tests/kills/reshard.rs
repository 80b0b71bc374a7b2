//! Killed at any moment, a process that cuts the snapshots of two ranks anew for three leaves all of
//! the new ones, whole, or none; and whoever comes next makes them, whatever it left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tensorswap::optimizer::Optimizer;
use tensorswap::snapshot::{ReshardOptions, Resharding, Snapshot};

use crate::child::{Kills, Task, doing, run_and_kill, wait_below};
use crate::support::*;
use crate::training::*;

/// Elements of the parameters, all ranks together; the id is the index.
const NUMELS: [usize; 4] = [1, 200_003, 70_000, 2];
const RANKS: [usize; 2] = [2, 3];
const TYPES: [State; 3] = BF16_MOMENTS;
const KILLS: u64 = 8;
/// What a child does, and how much later it is killed at most than it has said so.
const DOINGS: [&str; 3] = ["copying", "comparing", "publishing"];
const DELAYS_MAX: [Duration; 3] = [
    Duration::from_millis(40),
    Duration::from_millis(40),
    Duration::from_millis(2),
];

/// A state of a parameter, all of it.
fn content(id: usize, state: usize) -> Vec<f32> {
    values(NUMELS[id], (id * TYPES.len() + state) as u64)
}

/// The snapshots of the first number of ranks, each with as many consecutive elements.
fn make_sources(directory: &Path) {
    let engine = engine(&[]);
    for rank in 0..RANKS[0] {
        let store = tempfile::tempdir_in(directory).unwrap();
        let optimizer = try_open(&engine, store.path(), &[], &TYPES).unwrap();
        for id in 0..NUMELS.len() {
            give_piece(&optimizer, id, rank);
        }
        optimizer.commit().unwrap();
        let snapshot = directory.join(format!("from/rank{rank}"));
        let ticket = optimizer.snapshot(&snapshot).unwrap();
        wait(&engine, ticket).outcome.unwrap();
    }
}

fn give_piece(optimizer: &Optimizer, id: usize, rank: usize) {
    let len = NUMELS[id].div_ceil(RANKS[0]);
    let (from, to) = (rank * len, NUMELS[id].min((rank + 1) * len));
    if from >= to {
        return;
    }
    let numel = (to - from) as u64;
    optimizer.add_parameter(id as u64, None, numel).unwrap();
    for (state, (name, dtype, _)) in TYPES.into_iter().enumerate() {
        let mut bytes = to_bytes(&content(id, state)[from..to], dtype);
        let piece = elements(&mut bytes, dtype);
        optimizer.write_state(id as u64, name, &piece).unwrap();
    }
}

/// Makes `to` of what [`make_sources`] made. `tell` hears what is done.
fn reshard(directory: &Path, to: &Path, tell: &dyn Fn(&str)) {
    let sources = (0..RANKS[0]).map(|rank| directory.join(format!("from/rank{rank}")));
    let sources: Vec<_> = sources.map(|path| Snapshot::open(&path).unwrap()).collect();
    let options = ReshardOptions {
        ranks_count: RANKS[1] as u32,
        ..ReshardOptions::default()
    };
    tell(DOINGS[0]);
    let resharding = Resharding::begin(&sources, to, &options).unwrap();
    let half = resharding.total_bytes() / 2;
    let mut done = 0;
    let made = resharding.run(&mut |bytes| {
        done += bytes;
        if done == half {
            tell(DOINGS[1]);
        }
    });
    let made = made.unwrap();
    tell(DOINGS[2]);
    made.publish().unwrap();
}

/// What the new snapshots hold, read as `docs/FORMAT.md` has it, is what it was, element by element.
fn check(to: &Path) {
    let mut joined = vec![vec![Vec::<u8>::new(); TYPES.len()]; NUMELS.len()];
    for rank in 0..RANKS[1] {
        let rank = to.join(format!("rank{rank}"));
        let manifest = fs::read(rank.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let data = fs::read(rank.join("data")).unwrap();
        for parameter in manifest["parameters"].as_array().unwrap() {
            let number = |value: &Value| value.as_u64().unwrap() as usize;
            let states = &mut joined[number(&parameter["id"])];
            for (state, (_, _, stored)) in TYPES.into_iter().enumerate() {
                let from = number(&parameter["states"][state][0]);
                let len = number(&parameter["numel"]) * stored.size_bytes() as usize;
                states[state].extend(&data[from..from + len]);
            }
        }
    }
    for (id, states) in joined.iter().enumerate() {
        for (state, found) in states.iter().enumerate() {
            let expected = to_bytes(&content(id, state), TYPES[state].2);
            assert!(*found == expected, "parameter {id}, state {state}");
        }
    }
}

/// Makes one after the other until it is killed.
#[test]
fn child() {
    let Some(task) = Task::told() else {
        return;
    };
    for number in 0_u64.. {
        let to = task.place.join(format!("to{number}"));
        reshard(&task.place, &to, &doing);
    }
}

#[test]
fn a_kill_while_snapshots_are_cut_anew_leaves_all_of_them_or_none() {
    let place = directory();
    make_sources(place.path());
    let mut random = Random(5);
    let (mut kills, mut whole_count) = (Kills::default(), 0);
    for _ in 0..KILLS * scale() {
        let mut chance = Random(random.next());
        let aim = chance.below(DOINGS.len());
        let said = run_and_kill(
            "reshard::child",
            (place.path(), ""),
            &mut random,
            (&|line| line.ends_with(DOINGS[aim]), 1),
            &mut || wait_below(DELAYS_MAX[aim], &mut chance),
        );
        kills.note(&said);
        let left = fs::read_dir(place.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
        for made in left {
            if made.ends_with("from") {
                continue;
            }
            let whole = made.with_extension("");
            if made == whole {
                whole_count += 1;
            } else {
                // The next one takes away what is half made.
                reshard(place.path(), &whole, &|_| {});
                assert!(!made.exists());
            }
            check(&whole);
            fs::remove_dir_all(whole).unwrap();
        }
    }
    println!("{kills}; {whole_count} were whole");
    kills.assert_all(&DOINGS);
}
