//! Killed at any moment, `rebalance` leaves a store that opens where it was or where it is to be, or
//! is still being moved; the same call moves it to the end, and no record has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tensorswap::base::config::Directory;
use tensorswap::base::error::Status;
use tensorswap::store::{RebalanceOptions, rebalance};

use crate::child::{Kills, Task, doing, run_and_kill, wait_below};
use crate::support::*;
use crate::training::*;

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
const DELAY_MAX: Duration = Duration::from_millis(80);
const DOINGS: [&str; 2] = ["copying or going on", "putting the copy in its place"];
/// What a child says when the store has reached the next placement.
const MOVED: &str = "moved";

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

/// Moves the store to the placement after `from`. `tell` hears what is done.
fn move_on(root: &Path, from: usize, tell: &dyn Fn(&str)) {
    let options = RebalanceOptions {
        rank: 0,
        from: paths(root, from),
        to: directories(root, from + 1),
    };
    tell(DOINGS[0]);
    let mut progress = |done, total| {
        if done == total {
            tell(DOINGS[1]);
        }
    };
    rebalance(&config(&[]), &options, &mut progress).unwrap();
}

/// Moves the store on and on until it is killed.
#[test]
fn child() {
    let Some(task) = Task::told() else {
        return;
    };
    for from in task.how.parse().unwrap().. {
        move_on(&task.place, from, &doing);
        println!("{MOVED}");
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
    let (mut kills, mut between) = (Kills::default(), 0);
    let mut placement = 0;
    for _ in 0..KILLS * scale() {
        let mut chance = Random(random.next());
        let said = run_and_kill(
            "rebalance::child",
            (root, &placement.to_string()),
            &mut random,
            (&|line| line.starts_with("doing "), 1),
            &mut || wait_below(DELAY_MAX, &mut chance),
        );
        let last = kills.note(&said);
        placement += said.iter().filter(|line| *line == MOVED).count();
        let opened = [placement, placement + 1].map(|place| is_at(root, place, &model));
        assert_ne!(opened, [true, true], "{last}");
        between += u64::from(opened == [false, false]);
        // Or somebody else may be killed who goes on.
        if random.one_in(2) {
            move_on(root, placement, &|_| {});
            placement += 1;
            assert!(is_at(root, placement, &model), "{last}");
            let there = names(root);
            assert!(
                there.iter().all(|name| name.ends_with("/rank0")),
                "{there:?}"
            );
            assert_eq!(there.len(), PLACEMENTS[placement % PLACEMENTS.len()].len());
        }
    }
    println!("{kills}; {between} with neither place to be opened");
    kills.assert_all(&DOINGS);
}
