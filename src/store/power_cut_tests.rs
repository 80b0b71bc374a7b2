//! The power fails after every single change of storage, and whatever the disk may have kept of
//! what was not synced, the store opens at the last commit or at the one that was being made.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::store::Store;
use super::store_tests::{engine, faulty, open, open_places, state, version};
use super::{DATA_SLOTS, SLOTS, Version};
use crate::base::dtype::Dtype;
use crate::io::tensor::KEEP_LENGTH;
use crate::io::{Engine, Tensor};
use crate::sys::{Event, Recording};

/// What the store held after a commit.
#[derive(Debug, Clone, PartialEq)]
struct Snapshot {
    /// Events noted when the commit began and when it had returned.
    events: (usize, usize),
    step: u64,
    user_data: Vec<u8>,
    /// By id.
    versions: HashMap<u64, Option<Version>>,
}

fn snapshot(store: &Store, events: (usize, usize)) -> Snapshot {
    let records = (0..store.records_len()).map(|index| u32::try_from(index).unwrap());
    Snapshot {
        events,
        step: store.step(),
        user_data: store.user_data(),
        versions: records
            .map(|index| store.record(index).unwrap())
            .map(|record| (record.id, record.durable))
            .collect(),
    }
}

/// The bytes of one version of a record.
fn content(id: u64, generation: u32, len_bytes: u64) -> Vec<u8> {
    let salt = u8::try_from((id * 31 + u64::from(generation) * 7) % 251).unwrap();
    (0..len_bytes)
        .map(|at| salt ^ u8::try_from(at % 253).unwrap())
        .collect()
}

/// Writes a version of each record into the slot that is not durable; returns the versions.
#[expect(unsafe_code, reason = "tensors are made of the test's own memory")]
fn write_versions(engine: &Engine, store: &Store, indices: &[u32]) -> Vec<(u32, Version)> {
    let (mut memory, mut paths) = (Vec::new(), Vec::new());
    let mut changes = Vec::new();
    for index in indices {
        let record = store.record(*index).unwrap();
        let next = record.durable.map_or(version(0, 1), |durable| {
            let slot = (durable.slot + 1) % if store.has_spare() { SLOTS } else { DATA_SLOTS };
            version(slot, durable.generation + 1)
        });
        let (layout, striping) = (store.layout(), store.striping());
        let extent_bytes = layout.extent_bytes(record.numel);
        let (area, address) = layout.slot(record.offset, next.slot, record.numel);
        let bytes = content(record.id, next.generation, extent_bytes);
        for piece in striping.pieces(area, address, extent_bytes) {
            let start = usize::try_from(piece.before_bytes).unwrap();
            let end = start + usize::try_from(piece.len_bytes).unwrap();
            paths.push(store.path(area, piece.place));
            memory.push((piece.file_offset, bytes[start..end].to_vec()));
        }
        changes.push((*index, next));
    }
    let tensors: Vec<Tensor> = memory
        .iter_mut()
        .map(|(offset, bytes)| {
            // SAFETY: the bytes stay as they are until the request has been waited for below.
            let tensor =
                unsafe { Tensor::new(bytes.as_mut_ptr(), bytes.len() as u64, Dtype::Bytes) };
            tensor
                .unwrap()
                .at(*offset)
                .unwrap()
                .with_flags(KEEP_LENGTH)
                .unwrap()
        })
        .collect();
    if !tensors.is_empty() {
        let ticket = engine.swap_out(&tensors, &paths).unwrap();
        let done = engine.wait(ticket, None).unwrap();
        done.outcome.unwrap();
    }
    changes
}

/// Opens what a power cut left, and checks that it is one of two commits, data and all.
fn check_image(image: &Path, places: &[&str], commits: &[Snapshot], events_len: usize, seed: u64) {
    let plain = engine();
    let place = format!("{events_len} events, seed {seed}");
    let opened = open_places(&plain, image, places);
    let store = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
    let returned = commits
        .iter()
        .rev()
        .find(|commit| commit.events.1 <= events_len);
    let begun = commits
        .iter()
        .rev()
        .find(|commit| commit.events.0 < events_len);
    let found = snapshot(&store, (0, 0));
    let matches = |commit: Option<&Snapshot>| match commit {
        Some(commit) => {
            Snapshot {
                events: (0, 0),
                ..commit.clone()
            } == found
        }
        None => (found.step, found.versions.len()) == (0, 0),
    };
    assert!(
        matches(returned) || matches(begun),
        "{place}: step {} was found, after {:?} and {:?}",
        found.step,
        returned.map(|commit| commit.step),
        begun.map(|commit| commit.step)
    );
    for index in 0..store.records_len() {
        let record = store.record(u32::try_from(index).unwrap()).unwrap();
        let Some(durable) = record.durable else {
            continue;
        };
        let (layout, striping) = (store.layout(), store.striping());
        let extent_bytes = layout.extent_bytes(record.numel);
        let (area, address) = layout.slot(record.offset, durable.slot, record.numel);
        let mut bytes = vec![0; usize::try_from(extent_bytes).unwrap()];
        for piece in striping.pieces(area, address, extent_bytes) {
            let start = usize::try_from(piece.before_bytes).unwrap();
            let end = start + usize::try_from(piece.len_bytes).unwrap();
            let path = store.path(area, piece.place).to_str().unwrap();
            let file = fs::File::open(path).unwrap();
            file.read_exact_at(&mut bytes[start..end], piece.file_offset)
                .unwrap();
        }
        let expected = content(record.id, durable.generation, extent_bytes);
        assert!(
            bytes == expected,
            "{place}: parameter {} is torn",
            record.id
        );
    }
    // It is a store as any other.
    store.commit(found.step + 1, &[], None).unwrap();
    drop(store);
    let again = open_places(&plain, image, places).unwrap();
    assert_eq!(again.step(), found.step + 1);
}

fn cut(disk: &Recording, places: &[&str], commits: &[Snapshot], events_len: usize, seed: u64) {
    let image = tempfile::tempdir().unwrap();
    disk.power_cut(events_len, seed, image.path()).unwrap();
    check_image(image.path(), places, commits, events_len, seed);
}

/// Kills the process instead. Another one opens the store, and what it commits survives the power.
fn kill(disk: &Recording, places: &[&str], events_len: usize) {
    let [image, left] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let disk = disk.kill(events_len, image.path()).unwrap();
    let store = open_places(&engine(), image.path(), places).unwrap();
    store.commit(100, &[], None).unwrap();
    disk.power_cut(disk.events_len(), 0, left.path()).unwrap();
    let store = open_places(&engine(), left.path(), places).unwrap();
    assert_eq!(store.step(), 100, "killed after {events_len} events");
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_last_commit_or_the_one_under_way() {
    let place = tempfile::tempdir().unwrap();
    let disk = Recording::of(place.path()).unwrap();
    let engine = engine();
    let mut commits = Vec::new();
    let mut store = open(&engine, place.path()).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    for id in 1..=3 {
        store.add_record(id, Some("layer"), id * 700).unwrap();
    }
    for step in 0..7_u64 {
        if step == 3 {
            // More than one sector of entries.
            for id in 10..24 {
                store.add_record(id, Some(&"n".repeat(100)), 1).unwrap();
            }
        }
        if step == 5 {
            drop(store);
            store = open(&engine, place.path()).unwrap();
        }
        let indices: Vec<u32> = (0..3)
            .filter(|index| (step + index) % 3 != 2)
            .map(|index| index as u32)
            .collect();
        let changes = write_versions(&engine, &store, &indices);
        let begun = disk.events_len();
        let user_data = vec![u8::try_from(step).unwrap(); 700];
        store.commit(step, &changes, Some(&user_data)).unwrap();
        commits.push(snapshot(&store, (begun, disk.events_len())));
    }
    for events_len in 0..=disk.events_len() {
        for seed in [0, 1, 2 + events_len as u64, 1 << 40 | events_len as u64] {
            cut(&disk, &["."], &commits, events_len, seed);
        }
    }
}

#[test]
fn a_power_cut_of_several_drives_and_third_slots_leaves_one_commit_in_all_of_them() {
    let place = tempfile::tempdir().unwrap();
    let disk = Recording::of(place.path()).unwrap();
    let engine = engine();
    let places = ["a=2", "b"];
    let mut commits = Vec::new();
    let mut store = open_places(&engine, place.path(), &places).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    // The slots of the first one lie in three chunks.
    for (id, numel) in [(1, 280_000), (2, 700), (3, 900)] {
        store.add_record(id, None, numel).unwrap();
    }
    for step in 0..9_u64 {
        match step {
            2 => store.add_spare().unwrap(),
            4 => {
                drop(store);
                store = open_places(&engine, place.path(), &places).unwrap();
            }
            // Every third slot has been left by now.
            7 => drop(store.remove_spare()),
            _ => {}
        }
        let indices: Vec<u32> = if step % 2 == 0 {
            vec![0, 1]
        } else {
            vec![1, 2]
        };
        let changes = write_versions(&engine, &store, &indices);
        let begun = disk.events_len();
        store.commit(step, &changes, Some(b"data")).unwrap();
        commits.push(snapshot(&store, (begun, disk.events_len())));
    }
    for events_len in (0..=disk.events_len()).step_by(3) {
        let seed = 3 + events_len as u64;
        cut(&disk, &places, &commits, events_len, seed);
    }
    // The directories are made by the first ones.
    for events_len in (0..24).chain((24..=disk.events_len()).step_by(60)) {
        kill(&disk, &places, events_len);
    }
}

#[test]
fn a_power_cut_while_the_log_is_replaced_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let disk = Recording::of(place.path()).unwrap();
    let engine = engine();
    let store = open(&engine, place.path()).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    store.add_record(5, None, 3000).unwrap();
    let mut commits: Vec<Snapshot> = Vec::new();
    for step in 1..=7_u64 {
        let changes = write_versions(&engine, &store, &[0]);
        let begun = disk.events_len();
        let big = 1 << if step < 6 { 20 } else { 10 };
        let user_data = vec![u8::try_from(step).unwrap(); big];
        store.commit(step, &changes, Some(&user_data)).unwrap();
        commits.push(snapshot(&store, (begun, disk.events_len())));
    }
    let replaced = disk
        .events()
        .iter()
        .rposition(|event| matches!(event, Event::Rename { .. }))
        .unwrap();
    assert!(replaced > commits[2].events.1, "the log was not replaced");
    for events_len in replaced - 6..=disk.events_len() {
        for seed in [0, 1, 77 + events_len as u64] {
            cut(&disk, &["."], &commits, events_len, seed);
        }
        kill(&disk, &["."], events_len);
    }
}

#[test]
fn a_power_cut_after_a_failed_append_leaves_no_mixture_of_two_attempts() {
    let place = tempfile::tempdir().unwrap();
    let disk = Recording::of(place.path()).unwrap();
    let (engine, faults) = faulty();
    let store = open(&engine, place.path()).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    store.add_record(1, None, 100).unwrap();
    let mut commits = Vec::new();
    for step in 1..=4_u64 {
        let changes = write_versions(&engine, &store, &[0]);
        for id in 0..9 {
            store
                .add_record(step * 100 + id, Some(&"n".repeat(90)), 1)
                .unwrap();
        }
        let begun = disk.events_len();
        faults.fail(crate::io::StoreCall::AppendInPart, 0, 1, libc::ENOSPC);
        store
            .commit(90 + step, &changes, Some(&[9; 600]))
            .unwrap_err();
        store.commit(step, &changes, Some(&[7; 500])).unwrap();
        commits.push(snapshot(&store, (begun, disk.events_len())));
    }
    for events_len in commits[0].events.0..=disk.events_len() {
        for seed in [0, 1, 5 + events_len as u64, 1 << 33 | events_len as u64] {
            cut(&disk, &["."], &commits, events_len, seed);
        }
    }
}
