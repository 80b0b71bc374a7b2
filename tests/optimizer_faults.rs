//! What goes wrong on storage is told by the call that it concerns, harms no other record, and
//! never turns into data: full disks, failing transfers and syncs, flipped bits, lost power, and a
//! second process.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;
mod training;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, FaultPlan, StoreCall, StoreFaults};
use tensorswap::optimizer::Optimizer;
use tensorswap::sys::Recording;
use training::*;

/// Names a directory whose store another process is to open.
const DIRECTORY: &str = "TSW_TEST_LOCKED_DIRECTORY";
const NUMELS: [usize; 8] = [1, 700, 1024, 5000, 20_001, 33_000, 3, 60_000];

fn model_of(numels: &[usize]) -> Model {
    let mut model = Model::new(&F32);
    (0..)
        .zip(numels)
        .for_each(|(id, numel)| model.add(id, *numel));
    model
}

/// A store of these parameters after some committed steps, closed, and what it holds.
fn trained(engine: &Engine, directory: &Path, numels: &[usize], steps: usize) -> Model {
    let mut model = model_of(numels);
    let optimizer = open(engine, directory, &[], &model);
    initialize(&optimizer, &mut model, 1);
    (0..steps).for_each(|_| train(&optimizer, &mut model));
    optimizer.commit().unwrap();
    model
}

/// Gradients for every second parameter, then a step.
fn train(optimizer: &Optimizer, model: &mut Model) {
    let ids: Vec<u64> = model.records.keys().copied().step_by(2).collect();
    for id in ids {
        let slope = values(model.records[&id].numel, model.step * 100 + id);
        give_gradient(optimizer, model, id, 0, (&slope, Dtype::F32), false);
    }
    let number = model.step + 1;
    optimizer.set_user_data(&number.to_le_bytes()).unwrap();
    step(optimizer, model, None, 1, &|_| false);
}

/// The file of a store whose name contains `part`.
fn file_of(directory: &Path, part: &str) -> PathBuf {
    let entries = std::fs::read_dir(directory.join("rank0")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.is_file() && name.contains(part)
    };
    paths.find(is_it).unwrap()
}

fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

fn names(error: &Error, id: u64) -> bool {
    error.to_string().contains(&format!("parameter {id},"))
}

/// What is left of a step in which records may fail; they are returned, and the others are as they
/// should be.
fn failing_step(optimizer: &Optimizer, model: &Model) -> Vec<(u64, Error)> {
    let mut failed = Vec::new();
    loop {
        match optimizer.step_next() {
            Ok(Some(view)) => {
                for (state, found) in view.states().enumerate() {
                    let expected = &model.records[&view.id].states[state];
                    assert!(load(found) == *expected, "{} {state}", view.id);
                }
                update(&view, model.step + 1);
                optimizer.step_done(view.id, true).unwrap();
            }
            Ok(None) => return failed,
            Err(failure) => match failure.id {
                Some(id) => failed.push((id, failure.error)),
                // The step before was lost, and this one with it.
                None => return vec![(u64::MAX, failure.error)],
            },
        }
    }
}

#[test]
fn a_flipped_bit_of_a_record_is_a_checksum_error_that_names_the_parameter() {
    let directory = directory();
    let engine = engine(&[]);
    let model = trained(&engine, directory.path(), &NUMELS, 3);
    let data = file_of(directory.path(), "data");
    let extent = |numel: &usize| 2 * 3 * (4 * *numel as u64).next_multiple_of(4096);
    let extents: u64 = NUMELS.iter().map(extent).sum();
    let mut random = Random(1);
    let mut hits = 0;
    for _ in 0..40 * scale() {
        // The header is another matter.
        let bit = 8 * 65_536 + random.next() % (8 * extents);
        flip(&data, bit);
        let optimizer = open(&engine, directory.path(), &[], &model);
        let mut bad = None;
        for (id, record) in &model.records {
            for (state, expected) in record.states.iter().enumerate() {
                match read_state(&optimizer, &model, *id, state) {
                    Ok(found) => assert!(found == *expected, "bit {bit} of {id}"),
                    Err(error) => {
                        assert_eq!(error.status(), Status::Checksum, "{error}");
                        assert!(names(&error, *id), "{error}");
                        assert!(bad.is_none_or(|other| other == *id));
                        bad = Some(*id);
                    }
                }
            }
        }
        optimizer.step_begin(None).unwrap();
        let failed = failing_step(&optimizer, &model);
        let ids: Vec<u64> = failed.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, bad.into_iter().collect::<Vec<_>>(), "bit {bit}");
        for (id, error) in &failed {
            assert_eq!(error.status(), Status::Checksum, "{error}");
            assert!(names(error, *id), "{error}");
            assert_eq!(optimizer.step_end().unwrap_err().status(), Status::Checksum);
        }
        optimizer.step_abort().unwrap();
        assert_eq!(optimizer.step_number(), model.step);
        hits += failed.len();
        drop(optimizer);
        flip(&data, bit);
    }
    assert!(hits > 10, "{hits}");
}

#[test]
fn a_damaged_record_can_be_initialized_anew() {
    let directory = directory();
    let engine = engine(&[]);
    let mut model = trained(&engine, directory.path(), &[50_000, 50_000], 2);
    // Both slots of both records, so that the durable one is among them.
    let data = file_of(directory.path(), "data");
    let extent = 3 * 50_000_u64.next_multiple_of(1024) * 4;
    for slot in 0..2 {
        flip(&data, 8 * (65_536 + slot * extent + 1000));
    }
    let optimizer = open(&engine, directory.path(), &[], &model);
    optimizer.step_begin(None).unwrap();
    let failed = failing_step(&optimizer, &model);
    assert_eq!(failed.len(), 1, "{failed:?}");
    let id = failed[0].0;
    assert!(optimizer.step_end().is_err());
    optimizer.step_abort().unwrap();
    let fresh = values(50_000, 9);
    let mut bytes = to_bytes(&fresh, Dtype::F32);
    let source = elements(&mut bytes, Dtype::F32);
    optimizer.initialize_parameters(&[id], &[source]).unwrap();
    model.set(id, 0, &fresh);
    for moment in [1, 2] {
        model.set(id, moment, &vec![0.0; 50_000]);
    }
    train(&optimizer, &mut model);
    optimizer.commit().unwrap();
    drop(optimizer);
    let optimizer = open(&engine, directory.path(), &[], &model);
    verify(&optimizer, &model, "repaired");
}

#[test]
fn a_flipped_bit_of_the_log_is_corruption_or_a_step_that_was_committed() {
    let directory = directory();
    let engine = engine(&[]);
    let mut model = model_of(&NUMELS);
    let optimizer = open(&engine, directory.path(), &[("sync", "none")], &model);
    initialize(&optimizer, &mut model, 1);
    let mut history = Vec::new();
    let mut lengths = Vec::new();
    for _ in 0..4 {
        train(&optimizer, &mut model);
        optimizer.commit().unwrap();
        history.push(model.clone());
        lengths.push(
            std::fs::metadata(file_of(directory.path(), "log"))
                .unwrap()
                .len(),
        );
    }
    drop(optimizer);
    let log = file_of(directory.path(), "log");
    let content = std::fs::read(&log).unwrap();
    let mut random = Random(2);
    let mut corrupt = 0;
    for _ in 0..150 * scale() {
        let bit = random.next() % (lengths[3].min(content.len() as u64) * 8);
        flip(&log, bit);
        match try_open(&engine, directory.path(), &[("store", "existing")], &F32) {
            Err(error) => {
                let status = error.status();
                assert!(
                    matches!(status, Status::Corrupt | Status::Unsupported),
                    "{error}"
                );
                corrupt += 1;
            }
            Ok(optimizer) => {
                // Only what could be the torn end of the last commit.
                assert!(bit / 8 >= lengths[1], "bit {bit} of {lengths:?}");
                let step = optimizer.step_number();
                let found = history.iter().find(|model| model.step == step).unwrap();
                for (id, record) in &found.records {
                    optimizer
                        .add_parameter(*id, None, record.numel as u64)
                        .unwrap();
                }
                verify(&optimizer, found, "torn");
            }
        }
        std::fs::write(&log, &content).unwrap();
    }
    assert!(corrupt > 50, "{corrupt}");
    let optimizer = open(&engine, directory.path(), &[], &model);
    verify(&optimizer, &model, "unharmed");
}

#[test]
fn a_data_file_cut_short_is_never_read_as_data() {
    let directory = directory();
    let engine = engine(&[]);
    let model = trained(&engine, directory.path(), &NUMELS, 2);
    let data = file_of(directory.path(), "data");
    let len = std::fs::metadata(&data).unwrap().len();
    for kept in [len - 4096, len / 2, 70_000, 10] {
        let file = File::options().write(true).open(&data).unwrap();
        file.set_len(kept).unwrap();
        let optimizer = match try_open(&engine, directory.path(), &[], &F32) {
            Err(error) => {
                assert_eq!(error.status(), Status::Corrupt, "{error}");
                continue;
            }
            Ok(optimizer) => optimizer,
        };
        for (id, record) in &model.records {
            optimizer
                .add_parameter(*id, None, record.numel as u64)
                .unwrap();
            for (state, expected) in record.states.iter().enumerate() {
                match read_state(&optimizer, &model, *id, state) {
                    Ok(found) => assert!(found == *expected, "{kept}: {id}"),
                    Err(error) => assert!(
                        matches!(
                            error.status(),
                            Status::Checksum | Status::SizeMismatch | Status::Corrupt
                        ),
                        "{kept}: {error}"
                    ),
                }
            }
        }
    }
}

/// A store whose calls can be made to fail, and what it does to storage.
struct Watched {
    directory: tempfile::TempDir,
    disk: Recording,
    faults: Arc<StoreFaults>,
    optimizer: Optimizer,
    model: Model,
}

impl Watched {
    fn new(settings: &[(&str, &str)], plan: FaultPlan) -> Watched {
        let directory = directory();
        let disk = Recording::of(directory.path()).unwrap();
        let faults = Arc::new(StoreFaults::new());
        let engine_config = config(&[("block_bytes", "64KiB")]);
        let engine = Engine::with_store_faults(&engine_config, plan, Arc::clone(&faults)).unwrap();
        let mut model = model_of(&NUMELS);
        let optimizer = open(&engine, directory.path(), settings, &model);
        initialize(&optimizer, &mut model, 1);
        Watched {
            directory,
            disk,
            faults,
            optimizer,
            model,
        }
    }

    /// The store holds the model for another process too.
    fn verify_reopened(self) {
        drop(self.optimizer);
        let optimizer = open(&engine(&[]), self.directory.path(), &[], &self.model);
        verify(&optimizer, &self.model, "reopened");
    }
}

#[test]
fn a_failed_sync_fails_this_commit_and_every_later_one_and_leaves_the_last() {
    for call in [StoreCall::SyncData, StoreCall::SyncLog] {
        let mut store = Watched::new(&[("sync", "none")], FaultPlan::default());
        store.optimizer.commit().unwrap();
        train(&store.optimizer, &mut store.model);
        store.optimizer.commit().unwrap();
        let committed = store.model.clone();
        train(&store.optimizer, &mut store.model);
        store.faults.fail(call, 0, 1, libc::EIO);
        for _ in 0..3 {
            let error = store.optimizer.commit().unwrap_err();
            assert_eq!(error.status(), Status::Io, "{call:?}: {error}");
            assert_eq!(error.os_error(), libc::EIO);
        }
        // What is in memory is still there to be saved elsewhere.
        verify(&store.optimizer, &store.model, "in memory");
        assert_eq!(store.optimizer.stats().durable_step, committed.step);
        let after = store.model.clone();
        store.model = committed;
        let steps = [store.model.step, after.step];
        let optimizer = {
            drop(store.optimizer);
            open(&engine(&[]), store.directory.path(), &[], &store.model)
        };
        // A commit whose sync failed may have reached storage all the same.
        let step = optimizer.step_number();
        assert!(steps.contains(&step), "{call:?}: {step}");
        let found = if step == after.step {
            &after
        } else {
            &store.model
        };
        verify(&optimizer, found, "reopened");
    }
}

#[test]
fn a_log_without_space_fails_the_commit_and_a_later_one_succeeds() {
    for call in [StoreCall::Append, StoreCall::AppendInPart] {
        let mut store = Watched::new(&[("sync", "none")], FaultPlan::default());
        train(&store.optimizer, &mut store.model);
        store.faults.fail(call, 0, 1, libc::ENOSPC);
        let error = store.optimizer.commit().unwrap_err();
        assert_eq!(error.status(), Status::NoSpace, "{call:?}: {error}");
        train(&store.optimizer, &mut store.model);
        store.optimizer.commit().unwrap();
        store.verify_reopened();
    }
}

#[test]
fn a_disk_too_small_for_a_record_is_told_when_it_is_registered() {
    // More than is reserved in advance.
    const LARGE: u64 = 3 << 20;
    let store = Watched::new(&[], FaultPlan::default());
    // Once for growing ahead, once for what is needed.
    store.faults.fail(StoreCall::Reserve, 0, 2, libc::ENOSPC);
    let error = store.optimizer.add_parameter(99, None, LARGE).unwrap_err();
    assert_eq!(error.status(), Status::NoSpace, "{error}");
    assert_eq!(store.optimizer.parameters_len(), NUMELS.len());
    // With room again it is registered, and nothing of the first attempt is in the way.
    store.optimizer.add_parameter(99, None, LARGE).unwrap();
    store.optimizer.commit().unwrap();
    verify(&store.optimizer, &store.model, "registered");
}

#[test]
fn a_background_commit_that_failed_is_told_and_no_later_step_becomes_durable() {
    let mut store = Watched::new(&[("sync", "commit")], FaultPlan::default());
    train(&store.optimizer, &mut store.model);
    store.optimizer.commit().unwrap();
    let committed = store.model.clone();
    store.faults.fail(StoreCall::SyncData, 0, 1, libc::EIO);
    let mut told = None;
    for _ in 0..4 {
        if let Err(error) = try_step(&store.optimizer) {
            told = Some(error);
            break;
        }
    }
    let error = told.unwrap_or_else(|| store.optimizer.commit().unwrap_err());
    assert_eq!(error.os_error(), libc::EIO, "{error}");
    // A step that is open is taken back; else that has happened already.
    if let Err(error) = store.optimizer.step_abort() {
        assert_eq!(error.status(), Status::Busy, "{error}");
    }
    verify(&store.optimizer, &committed, "taken back");
    assert_eq!(store.optimizer.stats().durable_step, committed.step);
    assert_eq!(try_commit_of_a_change(&store.optimizer), libc::EIO);
    drop(store.optimizer);
    let optimizer = open(&engine(&[]), store.directory.path(), &[], &committed);
    verify(&optimizer, &committed, "the last durable step");
}

/// A step in which every record is changed.
fn try_step(optimizer: &Optimizer) -> Result<(), Error> {
    optimizer.step_begin(None)?;
    let number = optimizer.step_number() + 1;
    while let Some(view) = optimizer.step_next().map_err(|failed| failed.error)? {
        update(&view, number);
        optimizer.step_done(view.id, true)?;
    }
    optimizer.step_end()
}

/// The errno with which nothing becomes durable any more.
fn try_commit_of_a_change(optimizer: &Optimizer) -> i32 {
    optimizer.set_user_data(b"changed").unwrap();
    optimizer.commit().unwrap_err().os_error()
}

#[test]
fn failing_writes_are_told_by_the_step_and_an_abort_restores_all() {
    for (eio, enospc) in [(15, 0), (0, 30)] {
        let plan = FaultPlan {
            seed: 4,
            eio_per_mille: eio,
            enospc_per_mille: enospc,
            delay_per_mille: 100,
            ..FaultPlan::default()
        };
        let mut store = Watched::new(&[("views_max", "2")], plan);
        // What was never committed would be lost with the first step.
        while store.optimizer.commit().is_err() {}
        let mut history = vec![store.model.clone()];
        let (mut failed, mut ended) = (0, 0);
        for round in 0..80 {
            begin_again(&store.optimizer, &mut store.model, &history);
            let bad = failing_step(&store.optimizer, &store.model);
            match store.optimizer.step_end() {
                Ok(()) => {
                    assert!(bad.is_empty(), "{round}: {bad:?}");
                    (0..NUMELS.len() as u64).for_each(|id| store.model.update(id));
                    store.model.step += 1;
                    history.retain(|model| model.step < store.model.step);
                    history.push(store.model.clone());
                    ended += 1;
                }
                Err(error) => {
                    let expected = if eio > 0 { Status::Io } else { Status::NoSpace };
                    assert_eq!(error.status(), expected, "{round}: {error}");
                    assert_eq!(store.optimizer.step_number(), store.model.step);
                    // As if the step had not begun, nor the one before if that was lost.
                    store.optimizer.step_abort().unwrap();
                    let step = store.optimizer.step_number();
                    let before = history.iter().find(|model| model.step == step);
                    store.model.clone_from(before.unwrap());
                    failed += 1;
                }
            }
        }
        assert!(failed > 3 && ended > 3, "{failed} failed, {ended} ended");
        while store.optimizer.commit().is_err() {}
        let step = store.optimizer.step_number();
        store.model = history
            .into_iter()
            .find(|model| model.step == step)
            .unwrap();
        store.verify_reopened();
    }
}

/// What was acknowledged when storage had changed so many times.
struct Acknowledged {
    events_len: usize,
    step: u64,
}

fn survives_power_cuts(sync: &str, cache: &str) {
    let settings = [("sync", sync), ("cache_bytes", cache)];
    let mut store = Watched::new(&settings, FaultPlan::default());
    let mut random = Random(5);
    let mut history = vec![store.model.clone()];
    let mut acknowledged = vec![];
    let acknowledge = |store: &Watched, list: &mut Vec<Acknowledged>| {
        // In this order: what is durable now was so with these events.
        let stats = store.optimizer.stats();
        let (step, events_len) = (stats.durable_step, store.disk.events_len());
        if stats.commits_count > 0 {
            list.push(Acknowledged { events_len, step });
        }
    };
    for number in 0..6_u64 {
        train(&store.optimizer, &mut store.model);
        history.push(store.model.clone());
        acknowledge(&store, &mut acknowledged);
        if number % 3 == 1 {
            store.optimizer.commit().unwrap();
            acknowledge(&store, &mut acknowledged);
            assert_eq!(acknowledged.last().unwrap().step, store.model.step);
        }
    }
    store.optimizer.commit().unwrap();
    acknowledge(&store, &mut acknowledged);
    let events_len = store.disk.events_len();
    let Watched {
        directory: _directory,
        disk,
        optimizer,
        ..
    } = store;
    disk.stop();
    drop(optimizer);
    let plain = engine(&[]);
    for cut in 0..40 * scale() {
        let at = match cut {
            0 => events_len,
            _ => random.below(events_len + 1),
        };
        let seed = if cut % 8 < 2 { cut % 8 } else { random.next() };
        let after = directory();
        disk.power_cut(at, seed, after.path()).unwrap();
        let known = acknowledged.iter().filter(|known| known.events_len <= at);
        let last = known.map(|known| known.step).max();
        let optimizer = try_open(&plain, after.path(), &[], &F32)
            .unwrap_or_else(|error| panic!("cut at {at} of {events_len}, seed {seed}: {error}"));
        let step = optimizer.step_number();
        assert!(
            Some(step) >= last,
            "cut at {at}, seed {seed}: {step} {last:?}"
        );
        if optimizer.parameters_len() == 0 {
            assert_eq!((step, last), (0, None), "cut at {at}");
            continue;
        }
        let found = history.iter().find(|model| model.step == step).unwrap();
        for (id, record) in &found.records {
            optimizer
                .add_parameter(*id, None, record.numel as u64)
                .unwrap();
        }
        verify(&optimizer, found, &format!("cut at {at}, seed {seed}"));
        if step > 0 {
            assert_eq!(optimizer.user_data(), step.to_le_bytes());
        }
        // And it can be trained further.
        let mut onward = found.clone();
        step_once(&optimizer, &mut onward);
    }
}

fn step_once(optimizer: &Optimizer, model: &mut Model) {
    step(optimizer, model, None, 1, &|_| false);
    optimizer.commit().unwrap();
    verify(optimizer, model, "trained further");
}

#[test]
fn lost_power_leaves_a_committed_step_with_every_step_synced() {
    survives_power_cuts("commit", "0");
    survives_power_cuts("commit", "1GiB");
}

#[test]
fn lost_power_leaves_the_last_commit_without_syncing() {
    survives_power_cuts("none", "200KiB");
}

/// Tries to open a store that another process holds.
#[test]
fn second_process() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let opened = try_open(&engine(&[]), Path::new(&directory), &[], &F32);
    let status = opened.as_ref().map_or_else(Error::status, |_| Status::Ok);
    println!("\nstatus {}", status.name());
}

#[test]
fn a_second_process_is_locked_out_until_the_first_is_gone() {
    let directory = directory();
    let model = model_of(&NUMELS);
    let optimizer = open(&engine(&[]), directory.path(), &[], &model);
    let other = || {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["second_process", "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        let told = lines.find_map(|line| line.strip_prefix("status "));
        told.unwrap().to_owned()
    };
    assert_eq!(other(), "TSW_ERR_LOCKED");
    drop(optimizer);
    assert_eq!(other(), "TSW_OK");
}
