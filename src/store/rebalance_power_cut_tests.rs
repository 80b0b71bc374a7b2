//! The power fails after every single change of storage that moving a store makes, and whatever the
//! disks may have kept: it opens where it was or where it is to be, as it was, or is still being
//! moved, and the same call moves it to the end.

use std::fs;
use std::path::Path;

use super::rebalance::Rebalanced;
use super::rebalance_tests::{Held, filled, held, names, root, run, try_held};
use crate::base::error::Error;
use crate::sys::{Event, Recording};

/// Elements of records that make some more than a chunk.
const NUMELS: [u64; 7] = [1, 70_000, 5, 2000, 20_000, 1025, 3];

/// How many times as many cuts are made as by default.
fn scale() -> usize {
    let told = std::env::var("TSW_TEST_SCALE").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Checks what a power cut left of a store on its way, and moves it to the end; says whether it
/// could be opened nowhere before.
fn check(root: &Path, from: &[&str], to: &[&str], before: &Held, place: &str) -> bool {
    let places: Vec<&str> = to.iter().map(|place| &place[..1]).collect();
    let mut opened = Vec::new();
    for list in [from, &places] {
        match try_held(root, list) {
            Ok(found) => {
                assert_eq!(&found, before, "{place}: {list:?}");
                opened.push(list);
            }
            // Being moved, or there with some of its directories, or not there.
            Err(Error::Locked(_) | Error::Corrupt(_) | Error::Io(_)) => {}
            Err(error) => panic!("{place}: {error}"),
        }
    }
    assert!(opened.len() <= 1, "{place}: {opened:?}");
    let moved = run(root, from, to).unwrap_or_else(|error| panic!("{place}: {error}"));
    let is_whole = opened == [&places];
    assert!(
        !is_whole
            || matches!(
                moved,
                Rebalanced::AlreadyThere | Rebalanced::Moved { copied_bytes: 0 }
            ),
        "{place}: {moved:?}"
    );
    assert_eq!(&held(root, &places), before, "{place}");
    let names = names(root, &["a", "b", "c"]);
    assert_eq!(names.len(), to.len(), "{place}: {names:?}");
    assert!(
        names.iter().all(|name| name.ends_with("/rank0")),
        "{place}: {names:?}"
    );
    opened.is_empty()
}

/// Cuts one in `stride` of the moments, and every one after something was renamed.
fn cut(from: &[&str], to: &[&str], stride: usize) {
    let directory = root(&["a", "b", "c"]);
    let root = directory.path();
    filled(root, from, NUMELS);
    let before = held(root, from);
    let disk = Recording::of(root).unwrap();
    let begun = disk.events_len();
    let moved = run(root, from, to).unwrap();
    assert!(matches!(moved, Rebalanced::Moved { copied_bytes } if copied_bytes > 1 << 19));
    disk.stop();
    let events = disk.events();
    let is_renamed = |events_len: usize| {
        let last = &events[events_len - 1];
        matches!(last, Event::Rename { .. } | Event::Exchange { .. })
    };
    let mut seen_between = false;
    for events_len in begun..=events.len() {
        for seed in [0, 1, 2 + events_len as u64, 1 << 40 | events_len as u64] {
            let number = 4 * (events_len - begun) + seed as usize % 4;
            if number.is_multiple_of(stride) || seed == 1 && is_renamed(events_len) {
                clear(root);
                disk.power_cut(events_len, seed, root).unwrap();
                let place = format!("{from:?} to {to:?}, {events_len} events, seed {seed}");
                seen_between |= check(root, from, to, &before, &place);
            }
        }
    }
    assert!(seen_between);
    // Killed, gone on with, and then without power: what was left unsynced was synced.
    for killed_after in (begun..=events.len()).rev().step_by(stride.div_ceil(4)) {
        clear(root);
        let disk = disk.kill(killed_after, root).unwrap();
        run(root, from, to).unwrap();
        disk.stop();
        let after = disk.events_len();
        for events_len in [after, killed_after.midpoint(after)] {
            clear(root);
            disk.power_cut(events_len, 0, root).unwrap();
            let place = format!("{from:?} to {to:?}, {killed_after} and {events_len} events");
            check(root, from, to, &before, &place);
        }
    }
}

fn clear(root: &Path) {
    for place in ["a", "b", "c"] {
        fs::remove_dir_all(root.join(place)).unwrap();
    }
}

#[test]
fn a_power_cut_at_any_moment_of_moving_a_store_leaves_it_whole_and_to_be_moved_on() {
    cut(&["a", "b"], &["b=1", "c=1"], (160 / scale()).max(1));
    if scale() > 1 {
        cut(&["a"], &["b=1", "a=1"], (160 / scale()).max(1));
        cut(&["a", "b"], &["c"], (160 / scale()).max(1));
    }
}
