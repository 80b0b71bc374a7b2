use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::measure::part;
use super::rebalance::{Plan, RebalanceOptions, Rebalanced, rebalance};
use super::store::Store;
use super::store_tests::{config_of, engine, options, state};
use super::{STATES_MAX, StoreReader, Version};
use crate::base::checksum::crc32c;
use crate::base::config::{Directory, StoreMode};
use crate::base::error::{Error, Result, Status};
use crate::io::{Direction, Engine, Priority, Waiting};

/// Elements of the records; the longest ones lie in several chunks, in several parts, with padding.
const NUMELS: [u64; 7] = [1, 1_100_001, 5, 270_000, 70_000, 1025, 3];
/// Some more than one chunk of them.
const SHORT: [u64; 7] = [1, 270_000, 5, 2000, 70_000, 1025, 3];

fn path(root: &Path, places: &[&str]) -> String {
    let paths: Vec<String> = places
        .iter()
        .map(|place| root.join(place).display().to_string())
        .collect();
    paths.join(",")
}

fn open(engine: &Engine, root: &Path, places: &[&str], mode: StoreMode) -> Result<Store> {
    Store::open(engine, &options(Path::new(&path(root, places)), mode))
}

fn moving(root: &Path, from: &[&str], to: &[&str]) -> RebalanceOptions {
    let name = |place: &str| place.split('=').next().unwrap().to_owned();
    let places = to.iter().map(|place| Directory {
        path: root.join(name(place)),
        weight: place
            .split_once('=')
            .map(|(_, weight)| weight.parse().unwrap()),
    });
    RebalanceOptions {
        rank: 0,
        from: from.iter().map(|place| root.join(name(place))).collect(),
        to: places.collect(),
    }
}

pub(super) fn run(root: &Path, from: &[&str], to: &[&str]) -> Result<Rebalanced> {
    rebalance(
        &config_of("threads"),
        &moving(root, from, to),
        &mut |_, _| {},
    )
}

/// Gives a record new values in a slot, and says which version that is.
fn write(engine: &Engine, store: &Store, index: u32, slot: u8, generation: u32) -> Version {
    let record = store.record(index).unwrap();
    let layout = store.layout();
    let mut version = Version {
        slot,
        zero_states: 0,
        checked: true,
        generation,
        checksums: [0; STATES_MAX],
    };
    for number in 0..layout.states.len() {
        if record.id.is_multiple_of(3) && number == 1 {
            version.zero_states |= 1 << number;
            continue;
        }
        let image = layout.image(number, record.numel);
        let len_bytes = layout.image_bytes(number, record.numel);
        let image_bytes = len_bytes.next_multiple_of(4096);
        let buffer = engine.allocate_buffer(image_bytes).unwrap();
        let seed = u64::from(generation) * 8 + record.id;
        let bytes: Vec<u8> = (0..len_bytes / 4)
            .flat_map(|at| ((at + seed).wrapping_mul(2_654_435_761) as u32).to_le_bytes())
            .collect();
        buffer.range().copy_into(0, &bytes).unwrap();
        version.checksums[number] = crc32c(&bytes);
        let (area, start) = layout.slot(record.offset, slot, record.numel);
        let striping = store.striping();
        let (mut tensors, mut paths) = (Vec::new(), Vec::new());
        for piece in striping.pieces(area, start + image.start, image_bytes) {
            let tensor = part(
                &buffer,
                piece.before_bytes,
                piece.len_bytes,
                piece.file_offset,
            );
            tensors.push(tensor.unwrap());
            paths.push(store.path(area, piece.place));
        }
        let waiting = std::sync::Arc::<Waiting>::default();
        waiting
            .begin(
                engine,
                Direction::Out,
                Priority::Foreground,
                &tensors,
                &paths,
            )
            .unwrap();
        waiting.end().unwrap();
        store.note_written(image_bytes);
    }
    version
}

/// A store at step 5, whose second record has no version.
pub(super) fn filled(root: &Path, places: &[&str], numels: [u64; 7]) {
    let engine = engine();
    let store = open(&engine, root, places, StoreMode::New).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    for (id, numel) in (10..).zip(numels) {
        store
            .add_record(id, Some(&format!("layer.{id}")), numel)
            .unwrap();
    }
    let changes: Vec<_> = [0, 2, 3, 4, 5, 6, 1]
        .map(|index| (index, write(&engine, &store, index, 1, 1)))
        .to_vec();
    store.commit(5, &changes[..6], Some(b"seed 7")).unwrap();
    store.commit(5, &changes[6..], None).unwrap();
}

/// What a store holds, wherever it lies: all that another one must have to be the same.
#[derive(Debug, PartialEq)]
pub(super) struct Held {
    step: u64,
    user_data: Vec<u8>,
    written_bytes: u64,
    records: Vec<(u64, Option<String>, u64, Option<Version>)>,
    /// Bytes that were compared with their checksums.
    compared_bytes: u64,
}

pub(super) fn held(root: &Path, places: &[&str]) -> Held {
    try_held(root, places).unwrap()
}

/// `Err` where the store does not open; what is in it is as it was written.
pub(super) fn try_held(root: &Path, places: &[&str]) -> Result<Held> {
    let engine = engine();
    let store = open(&engine, root, places, StoreMode::Existing)?;
    let ranks: Vec<PathBuf> = places
        .iter()
        .map(|place| root.join(place).join("rank0"))
        .collect();
    let reader = StoreReader::open(&ranks).unwrap();
    let compared = (0..reader.parameters().len()).map(|index| reader.verify(index).unwrap());
    let compared_bytes = compared.sum();
    assert!(compared_bytes > 0);
    let committed = store.committed();
    let records = committed.records.into_iter().map(|record| {
        let version = record.durable.map(|version| Version { slot: 0, ..version });
        let name = record.name.map(String::from);
        (record.id, name, record.numel, version)
    });
    Ok(Held {
        step: committed.step,
        user_data: committed.user_data,
        written_bytes: store.written_bytes(),
        records: records.collect(),
        compared_bytes,
    })
}

/// The names in directories, except for what a store has.
pub(super) fn names(root: &Path, places: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for place in places {
        for entry in fs::read_dir(root.join(place)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            names.push(format!("{place}/{name}"));
        }
    }
    names.sort();
    names
}

pub(super) fn root(places: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for place in places {
        fs::create_dir(root.path().join(place)).unwrap();
    }
    root
}

#[test]
fn a_store_moves_between_lists_of_directories_and_stays_the_same() {
    let all = ["a", "b", "c"];
    let directory = root(&all);
    let root = directory.path();
    filled(root, &["a"], NUMELS);
    let before = held(root, &["a"]);
    let lists: [&[&str]; 9] = [
        &["b"],
        &["a=1", "b=1"],
        &["a=1", "b=3"],
        &["b=1", "a=3"],
        &["a=1", "b=1", "c=2"],
        &["c=1", "b=1"],
        &["a=2", "c=1"],
        &["c"],
        &["a", "b"],
    ];
    let mut from: Vec<&str> = vec!["a"];
    for to in lists {
        let moved = run(root, &from, to).unwrap();
        assert!(matches!(moved, Rebalanced::Moved { copied_bytes } if copied_bytes > 9 << 20));
        let places: Vec<&str> = to.iter().map(|place| &place[..1]).collect();
        let expected: Vec<String> = {
            let mut names: Vec<String> = places
                .iter()
                .map(|place| format!("{place}/rank0"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(root, &all), expected, "{to:?}");
        assert_eq!(held(root, &places), before, "{to:?}");
        if to.iter().any(|place| place.contains('=')) {
            // Once more changes nothing.
            assert_eq!(run(root, &from, to), Ok(Rebalanced::AlreadyThere), "{to:?}");
        }
        from = places;
    }
}

#[test]
fn whoever_was_stopped_after_any_step_of_the_last_part_is_followed_by_one_that_ends_it() {
    let lists: [(&[&str], &[&str]); 6] = [
        (&["a"], &["b"]),
        (&["a"], &["b=1", "a=1"]),
        (&["a", "b"], &["a=2", "b=1"]),
        (&["a", "b"], &["b=1", "a=2"]),
        (&["a", "b"], &["c"]),
        (&["a", "b", "c"], &["c=1", "d=1"]),
    ];
    for (from, to) in lists {
        let all = ["a", "b", "c", "d"];
        let directory = root(&all);
        let root = directory.path();
        let places: Vec<&str> = to.iter().map(|place| &place[..1]).collect();
        filled(root, from, SHORT);
        let before = held(root, from);
        for stop_after in 0.. {
            let plan = Plan::new(&moving(root, from, to)).unwrap();
            let (identity, _) = plan.copy(&config_of("threads"), &mut |_, _| {}).unwrap();
            let mut steps = 0;
            let stopped = plan.last_part(identity).finish(&mut || {
                steps += 1;
                match steps > stop_after {
                    true => Err(Error::Cancelled("killed".to_owned())),
                    false => Ok(()),
                }
            });
            let was_last = stop_after + 1 == 2 * to.len() + from.len() + 1;
            assert!(stopped.is_err());
            // Neither list opens before the end, and none of them changes anything.
            let engine = engine();
            for list in [from, &places] {
                let opened = open(&engine, root, list, StoreMode::Existing);
                let is_whole = was_last && list == places;
                assert_eq!(
                    opened.is_ok(),
                    is_whole,
                    "{list:?} after {stop_after}: {opened:?}"
                );
                let refused = [Status::Locked, Status::Corrupt, Status::NotFound];
                assert!(opened.is_ok() || refused.contains(&opened.unwrap_err().status()));
            }
            drop(engine);
            if !was_last {
                let other = run(root, from, &["d=1", "b=7"]).unwrap_err();
                assert!(
                    [
                        Status::Locked,
                        Status::Corrupt,
                        Status::NotFound,
                        Status::Io
                    ]
                    .contains(&other.status()),
                    "{other}"
                );
                let moved = run(root, from, to).unwrap();
                assert_eq!(moved, Rebalanced::Moved { copied_bytes: 0 });
            }
            assert_eq!(held(root, &places), before);
            for name in names(root, &places) {
                assert!(name.ends_with("/rank0"), "{name} after {stop_after}");
            }
            if was_last {
                break;
            }
            // And back, to be stopped one step later.
            let back: Vec<String> = from.iter().map(|place| format!("{place}=1")).collect();
            let back: Vec<&str> = back.iter().map(String::as_str).collect();
            run(root, &places, &back).unwrap();
            assert_eq!(held(root, from), before);
        }
    }
}

#[test]
fn what_was_copied_is_not_copied_again_unless_it_changed() {
    let directory = root(&["a", "b", "c"]);
    let root = directory.path();
    filled(root, &["a"], NUMELS);
    let copy = |to: &[&str]| {
        let plan = Plan::new(&moving(root, &["a"], to)).unwrap();
        let copied = plan.copy(&config_of("threads"), &mut |_, _| {}).unwrap().1;
        // As if it had not come to this.
        fs::remove_file(root.join("a/rank0/moving")).unwrap();
        copied
    };
    let all = copy(&["b=1", "c=1"]);
    assert!(all > 9 << 20, "{all}");
    assert_eq!(copy(&["b=1", "c=1"]), 0);
    // The store is used in between.
    let engine = engine();
    let store = open(&engine, root, &["a"], StoreMode::Existing).unwrap();
    let id = store.records_len() as u32;
    store.add_record(99, None, 2000).unwrap();
    let changes = [
        (5, write(&engine, &store, 5, 0, 2)),
        (id, write(&engine, &store, id, 0, 1)),
    ];
    store.commit(6, &changes, Some(b"seed 8")).unwrap();
    drop(store);
    let before = held(root, &["a"]);
    assert_eq!(copy(&["b=1", "c=1"]), 8192 + 8192);
    // Other shares, and others directories, begin anew.
    assert_eq!(copy(&["b=1", "c=2"]), all + 8192);
    assert_eq!(copy(&["b"]), all + 8192);
    assert_eq!(copy(&["b=1", "c=1"]), all + 8192);
    assert_eq!(
        run(root, &["a"], &["b=1", "c=1"]),
        Ok(Rebalanced::Moved { copied_bytes: 0 })
    );
    assert_eq!(held(root, &["b", "c"]), before);
}

#[test]
fn a_directory_that_a_failed_opening_left_is_not_in_the_way() {
    let directory = root(&["a", "b"]);
    let root = directory.path();
    filled(root, &["a"], SHORT);
    let before = held(root, &["a"]);
    let attempt = || {
        let opened = open(&engine(), root, &["b", "a"], StoreMode::Auto);
        assert_eq!(opened.unwrap_err().status(), Status::Corrupt);
        assert!(root.join("b/rank0").exists());
    };
    attempt();
    let options = moving(root, &["a"], &["b=1", "a=1"]);
    let plan = Plan::new(&options).unwrap();
    let copied = plan.copy(&config_of("threads"), &mut |_, _| {}).unwrap();
    attempt();
    assert_eq!(plan.copied(), Ok(Some(copied.0)));
    let moved = run(root, &["a"], &["b=1", "a=1"]);
    assert_eq!(moved, Ok(Rebalanced::Moved { copied_bytes: 0 }));
    assert_eq!(held(root, &["b", "a"]), before);
    assert_eq!(names(root, &["a", "b"]), ["a/rank0", "b/rank0"]);
}

#[test]
fn third_slots_are_copied_too() {
    let directory = root(&["a", "b", "c"]);
    let root = directory.path();
    filled(root, &["a", "b"], NUMELS);
    let engine = engine();
    let store = open(&engine, root, &["a", "b"], StoreMode::Existing).unwrap();
    store.add_spare().unwrap();
    let changes = [1, 3, 4].map(|index| (index, write(&engine, &store, index, 2, 2)));
    store.commit(6, &changes, None).unwrap();
    drop(store);
    assert!(root.join("b/rank0/spare").exists());
    let before = held(root, &["a", "b"]);
    run(root, &["a", "b"], &["b=1", "c=1"]).unwrap();
    assert_eq!(held(root, &["b", "c"]), before);
    assert_eq!(names(root, &["a", "b", "c"]), ["b/rank0", "c/rank0"]);
    assert!(!root.join("b/rank0/spare").exists());
}

#[test]
fn what_cannot_be_moved_stays_as_it_is() {
    let directory = root(&["a", "b", "c"]);
    let root = directory.path();
    filled(root, &["a"], NUMELS);
    let before = held(root, &["a"]);
    let refused = |from: &[&str], to: &[&str], status, part: &str| {
        let error = run(root, from, to).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(&["a"], &["gone"], Status::NotFound, "/gone");
    refused(&["b"], &["c"], Status::NotFound, "/b/rank0");
    refused(&["a", "b"], &["c"], Status::NotFound, "/b/rank0");
    refused(&["a"], &["b", "b"], Status::Locked, "/b/.rebalance/rank0");
    fs::remove_dir_all(root.join("b/.rebalance")).unwrap();
    // Another store is there.
    filled(root, &["c"], NUMELS);
    refused(&["a"], &["b", "c"], Status::Io, "/c/rank0");
    // Somebody uses it.
    let engine = engine();
    let used = open(&engine, root, &["a"], StoreMode::Existing).unwrap();
    refused(&["a"], &["b"], Status::Locked, "uses the store");
    drop(used);
    std::os::unix::fs::symlink("../c", root.join("b/.rebalance")).unwrap();
    refused(&["a"], &["b"], Status::NotFound, "/b/.rebalance: ENOTDIR");
    fs::remove_file(root.join("b/.rebalance")).unwrap();
    assert_eq!(names(root, &["b"]), [""; 0]);
    // A record that is damaged.
    let data = fs::File::options()
        .write(true)
        .open(root.join("a/rank0/data"))
        .unwrap();
    let store = open(&engine, root, &["a"], StoreMode::Existing).unwrap();
    let record = store.record(0).unwrap();
    let at = record.offset + store.layout().extent_bytes(record.numel);
    drop(store);
    let mut byte = [0];
    use std::os::unix::fs::FileExt;
    fs::File::open(root.join("a/rank0/data"))
        .unwrap()
        .read_at(&mut byte, at)
        .unwrap();
    data.write_at(&[byte[0] ^ 1], at).unwrap();
    refused(&["a"], &["b"], Status::Checksum, "master of parameter 10");
    data.write_at(&byte, at).unwrap();
    data.sync_all().unwrap();
    assert_eq!(held(root, &["a"]), before);
    assert!(matches!(
        run(root, &["a"], &["b"]),
        Ok(Rebalanced::Moved { .. })
    ));
    assert_eq!(held(root, &["b"]), before);
    assert_eq!(held(root, &["c"]).step, before.step);
}

#[test]
fn files_of_others_stay_in_directories_that_a_store_leaves() {
    let directory = root(&["a", "b"]);
    let root = directory.path();
    filled(root, &["a"], NUMELS);
    fs::write(root.join("a/rank0/notes"), "mine").unwrap();
    fs::write(root.join("a/other"), "mine").unwrap();
    run(root, &["a"], &["b"]).unwrap();
    assert_eq!(names(root, &["a", "b"]), ["a/other", "a/rank0", "b/rank0"]);
    assert_eq!(names(root, &["a/rank0"]), ["a/rank0/notes"]);
    let mode = fs::metadata(root.join("b/rank0/data")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}
