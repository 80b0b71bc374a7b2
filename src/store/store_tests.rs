use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::store::Store;
use super::striping::Area;
use super::{STATES_MAX, StateSpec, Version};
use crate::base::config::{Config, OptimizerOptions, StoreMode};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Status};
use crate::io::{Engine, FaultPlan, StoreCall, StoreFaults};
use crate::sys::{Event, Recording};

pub(super) fn config_of(backend: &str) -> Config {
    let mut config = Config::new();
    config.set("backend", backend).unwrap();
    config
}

pub(super) fn engine() -> Engine {
    Engine::new(&config_of("threads")).unwrap()
}

pub(super) fn faulty() -> (Engine, Arc<StoreFaults>) {
    let faults = Arc::new(StoreFaults::new());
    let plan = FaultPlan::default();
    let engine = Engine::with_store_faults(&config_of("threads"), plan, Arc::clone(&faults));
    (engine.unwrap(), faults)
}

pub(super) fn options(path: &Path, store: StoreMode) -> OptimizerOptions {
    let mut config = Config::new();
    config.set("path", path.to_str().unwrap()).unwrap();
    let mut options = OptimizerOptions::from_config(&config).unwrap();
    options.store = store;
    options
}

pub(super) fn open(engine: &Engine, path: &Path) -> Result<Store, Error> {
    Store::open(engine, &options(path, StoreMode::Auto))
}

/// The same in directories below `root`, each with an optional weight.
pub(super) fn open_places(engine: &Engine, root: &Path, places: &[&str]) -> Result<Store, Error> {
    let list: Vec<String> = places
        .iter()
        .map(|place| root.join(place).display().to_string())
        .collect();
    open(engine, Path::new(&list.join(",")))
}

pub(super) fn state(name: &str) -> StateSpec {
    StateSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        disk_dtype: Dtype::F32,
    }
}

pub(super) fn version(slot: u8, generation: u32) -> Version {
    let mut checksums = [0; STATES_MAX];
    checksums[0] = generation.wrapping_mul(77);
    Version {
        slot,
        zero_states: 0b10,
        checked: true,
        generation,
        checksums,
    }
}

/// A store with two states and three parameters, at step 5.
fn filled(engine: &Engine, path: &Path) -> Store {
    let store = open(engine, path).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    for (id, numel) in [(30, 1), (10, 2000), (20, 100_000)] {
        let name = (id != 10).then(|| format!("layer.{id}"));
        store.add_record(id, name.as_deref(), numel).unwrap();
    }
    let changes = [(0, version(0, 1)), (2, version(1, 1))];
    store.commit(5, &changes, Some(b"rng")).unwrap();
    store
}

fn check_filled(store: &Store) {
    assert_eq!((store.step(), store.user_data()), (5, b"rng".to_vec()));
    assert_eq!(store.layout().states, [state("master"), state("exp_avg")]);
    assert_eq!(store.records_len(), 3);
    assert_eq!(store.find(20), Some(2));
    assert_eq!(store.find(21), None);
    let record = store.record(2).unwrap();
    assert_eq!((record.id, record.numel), (20, 100_000));
    assert_eq!(record.name.as_deref(), Some("layer.20"));
    assert_eq!(store.durable(2), Some(version(1, 1)));
    assert_eq!(store.record(1).unwrap().name, None);
    assert_eq!(store.durable(1), None);
    assert_eq!(store.record(3), None);
}

fn log_path(path: &Path) -> PathBuf {
    path.join("rank0/log")
}

fn data_path(path: &Path) -> PathBuf {
    path.join("rank0/data")
}

#[test]
fn a_store_opens_as_it_was_committed() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("not/yet/there");
    let engine = engine();
    let store = filled(&engine, &path);
    check_filled(&store);
    store.add_record(40, None, 7).unwrap();
    drop(store);

    let store = open(&engine, &path).unwrap();
    check_filled(&store);
    // What no commit followed is forgotten, and its place is given out again.
    assert_eq!(store.find(40), None);
    let index = store.add_record(41, None, 7).unwrap();
    let offset = store.record(index).unwrap().offset;
    let last = store.record(2).unwrap();
    let extent_bytes = store.layout().extent_bytes(last.numel);
    assert_eq!(offset, last.offset + 2 * extent_bytes);
    store.commit(6, &[(index, version(0, 1))], None).unwrap();
    drop(store);
    let store = Store::open(&engine, &options(&path, StoreMode::Existing)).unwrap();
    assert_eq!((store.step(), store.user_data()), (6, b"rng".to_vec()));
    assert_eq!(store.find(41), Some(index));
    assert!(data_path(&path).metadata().unwrap().len() >= offset + 2 * 8192);
    for file in [log_path(&path), data_path(&path), path.join("rank0/lock")] {
        assert_eq!(file.metadata().unwrap().mode() & 0o177, 0, "{file:?}");
    }
    assert_eq!(path.metadata().unwrap().mode() & 0o077, 0);
    assert_eq!(path.join("rank0").metadata().unwrap().mode() & 0o077, 0);
}

#[test]
fn the_mode_says_whether_a_store_may_or_must_be_there() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a");
    let engine = engine();
    let existing = options(&path, StoreMode::Existing);
    for _ in 0..2 {
        let error = Store::open(&engine, &existing).unwrap_err();
        assert_eq!(error.status(), Status::NotFound);
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        fs::create_dir_all(path.join("rank0")).unwrap();
    }
    drop(filled(&engine, &path));
    check_filled(&Store::open(&engine, &existing).unwrap());
    // Files that are not the store's stay.
    fs::write(path.join("rank0/notes"), b"mine").unwrap();
    let store = Store::open(&engine, &options(&path, StoreMode::New)).unwrap();
    assert_eq!((store.step(), store.records_len()), (0, 0));
    assert!(store.layout().states.is_empty());
    assert_eq!(fs::read(path.join("rank0/notes")).unwrap(), b"mine");
    drop(store);
    // A new store without a commit is one.
    Store::open(&engine, &existing).unwrap();
}

#[test]
fn each_rank_has_a_store_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let mut second = options(place.path(), StoreMode::Auto);
    second.rank = 1;
    let stores = (
        filled(&engine, place.path()),
        Store::open(&engine, &second).unwrap(),
    );
    assert_eq!(stores.1.records_len(), 0);
    let two = OptimizerOptions {
        directories: [&second.directories[..], &second.directories[..]].concat(),
        ..second
    };
    let error = Store::open(&engine, &two).unwrap_err();
    assert_eq!(error.status(), Status::Locked);
}

#[test]
fn a_second_opener_is_told_who_has_the_store() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = filled(&engine, place.path());
    for mode in [StoreMode::Auto, StoreMode::New, StoreMode::Existing] {
        let error = Store::open(&engine, &options(place.path(), mode)).unwrap_err();
        assert_eq!(error.status(), Status::Locked);
        let text = error.to_string();
        assert!(text.contains("rank0"), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
    }
    check_filled(&store);
    drop(store);
    check_filled(&open(&engine, place.path()).unwrap());
}

/// Runs in a process of its own, for the test below; does nothing without its variable.
#[test]
fn another_process_is_refused_a_store_that_is_in_use() {
    const CHILD: &str = "TENSORSWAP_STORE_OF_ANOTHER_PROCESS";
    if let Some(path) = std::env::var_os(CHILD) {
        let error = open(&engine(), Path::new(&path)).unwrap_err();
        assert_eq!(error.status(), Status::Locked);
        let holder = std::os::unix::process::parent_id().to_string();
        assert!(error.to_string().contains(&holder), "{error}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = filled(&engine, place.path());
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::store_tests::another_process_is_refused_a_store_that_is_in_use",
            ])
            .env(CHILD, place.path())
            .output()
            .unwrap()
    };
    let refused = child();
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    drop(store);
    // Now it is opened, which the child takes for a failure.
    assert!(!child().status.success());
}

#[test]
fn scratch_files_do_not_outlive_the_store_and_nothing_else_is_removed_for_them() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = open(&engine, place.path()).unwrap();
    let scratch = PathBuf::from(store.scratch_directory().to_str().unwrap());
    assert!(scratch.is_dir());
    fs::write(scratch.join("spill"), b"x").unwrap();
    drop(store);
    drop(open(&engine, place.path()).unwrap());
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);

    let elsewhere = place.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("kept"), b"x").unwrap();
    fs::remove_dir(&scratch).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &scratch).unwrap();
    assert!(open(&engine, place.path()).is_err());
    assert!(elsewhere.join("kept").exists());
}

#[test]
fn foreign_files_in_the_place_of_ours_are_refused_and_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    type Make<'a> = &'a dyn Fn(&Path);
    let foreign: [(&str, Make<'_>); 5] = [
        ("a text", &|path| fs::write(path, vec![b'x'; 9000]).unwrap()),
        ("nothing", &|path| fs::write(path, b"").unwrap()),
        ("a directory", &|path| fs::create_dir(path).unwrap()),
        ("a link", &|path| {
            std::os::unix::fs::symlink("lock", path).unwrap()
        }),
        ("the other file", &|path| {
            let other = match path.file_name().unwrap().to_str() {
                Some("log") => "data",
                _ => "log",
            };
            fs::copy(path.with_file_name(other), path).unwrap();
        }),
    ];
    for (index, (what, make)) in foreign.iter().enumerate() {
        for file in ["log", "data"] {
            let path = place.path().join(format!("{index}{file}"));
            drop(filled(&engine, &path));
            let file = path.join("rank0").join(file);
            fs::remove_file(&file).unwrap();
            make(&file);
            let before = file.symlink_metadata().unwrap().ino();
            let error = open(&engine, &path).unwrap_err();
            assert_eq!(error.status(), Status::Corrupt, "{what}: {error}");
            assert!(
                error.to_string().contains(file.to_str().unwrap()),
                "{error}"
            );
            assert_eq!(file.symlink_metadata().unwrap().ino(), before);
        }
    }
}

#[test]
fn a_missing_short_or_exchanged_file_is_damage() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let (a, b) = (place.path().join("a"), place.path().join("b"));
    drop(filled(&engine, &a));
    drop(filled(&engine, &b));
    let refused = |path: &Path| {
        let error = open(&engine, path).unwrap_err();
        assert_eq!(error.status(), Status::Corrupt, "{error}");
        error.to_string()
    };
    let kept = fs::read(data_path(&a)).unwrap();
    fs::copy(data_path(&b), data_path(&a)).unwrap();
    assert!(refused(&a).contains("another store"));
    fs::remove_file(data_path(&a)).unwrap();
    assert!(refused(&a).contains("data"));
    fs::write(data_path(&a), &kept[..100_000]).unwrap();
    assert!(refused(&a).contains("recorded in the log"));
    fs::write(data_path(&a), &kept).unwrap();
    check_filled(&open(&engine, &a).unwrap());
    // Without the log the records are lost, but not overwritten unasked.
    fs::remove_file(log_path(&a)).unwrap();
    assert!(refused(&a).contains("log is gone"));
    assert_eq!(fs::read(data_path(&a)).unwrap(), kept);
    Store::open(&engine, &options(&a, StoreMode::New)).unwrap();
}

#[test]
fn damage_to_the_log_is_told_with_its_place_and_a_torn_tail_is_cut_off() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    drop(filled(&engine, place.path()));
    let path = log_path(place.path());
    let log = fs::read(&path).unwrap();
    let mut damaged = log.clone();
    damaged[100] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let error = open(&engine, place.path()).unwrap_err();
    assert_eq!(error.status(), Status::Corrupt);
    assert!(error.to_string().contains("/log at 64"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), damaged);

    let mut torn = log.clone();
    torn.extend_from_slice(&log[64..200]);
    fs::write(&path, &torn).unwrap();
    check_filled(&open(&engine, place.path()).unwrap());
    assert_eq!(fs::read(&path).unwrap(), log);
    // The last seal was lost: it is written again.
    fs::write(&path, &log[..log.len() - 48]).unwrap();
    check_filled(&open(&engine, place.path()).unwrap());
    assert_eq!(fs::read(&path).unwrap(), log);
}

#[test]
fn wrong_registrations_and_commits_change_nothing() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = open(&engine, place.path()).unwrap();
    let refused = |outcome: Result<(), Error>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    };
    let add = |id, name: Option<&str>, numel| store.add_record(id, name, numel).map(drop);
    refused(add(1, None, 1));
    refused(store.add_state(state("")));
    refused(store.add_state(state(&"x".repeat(4097))));
    for index in 0..STATES_MAX {
        store.add_state(state(&format!("s{index}"))).unwrap();
        refused(store.add_state(state("s0")));
    }
    refused(store.add_state(state("ninth")));
    refused(add(1, None, 0));
    refused(add(1, None, u64::MAX));
    refused(add(1, None, 1 << 57));
    refused(add(u64::MAX, None, 1));
    refused(add(1, Some("a\0b"), 1));
    assert_eq!(store.records_len(), 0);
    add(1, None, 1).unwrap();
    refused(add(1, None, 1));
    refused(store.add_state(state("late")));
    refused(store.commit(1, &[(1, version(0, 1))], None));
    refused(store.commit(1, &[(0, version(3, 1))], None));
    refused(store.commit(1, &[(0, version(0, 1))], Some(&vec![0; (1 << 20) + 1])));
    assert_eq!((store.step(), store.durable(0)), (0, None));
    let most = vec![9; 1 << 20];
    store.commit(1, &[(0, version(0, 1))], Some(&most)).unwrap();
    drop(store);
    assert_eq!(open(&engine, place.path()).unwrap().user_data(), most);
}

#[test]
fn a_failed_sync_is_final_and_leaves_the_last_commit() {
    for call in [StoreCall::SyncData, StoreCall::SyncLog] {
        let place = tempfile::tempdir().unwrap();
        let disk = Recording::of(place.path()).unwrap();
        let (engine, faults) = faulty();
        let store = filled(&engine, place.path());
        faults.fail(call, 0, 1, libc::EIO);
        let error = store
            .commit(6, &[(1, version(0, 1))], Some(b"new"))
            .unwrap_err();
        assert_eq!((error.status(), error.os_error()), (Status::Io, libc::EIO));
        // The call would succeed now, and is not made.
        let noted = disk.events_len();
        assert_eq!(store.commit(7, &[], None), Err(error));
        assert_eq!(disk.events_len(), noted);
        check_filled(&store);
        drop(store);
        let step = open(&engine, place.path()).unwrap().step();
        // The log's bytes were written, only not known to be on storage.
        assert!(
            step == 5 || (call == StoreCall::SyncLog && step == 6),
            "{step}"
        );
    }
}

#[test]
fn a_failed_append_leaves_the_store_and_a_later_commit_succeeds() {
    for call in [StoreCall::Append, StoreCall::AppendInPart] {
        let place = tempfile::tempdir().unwrap();
        let (engine, faults) = faulty();
        let store = filled(&engine, place.path());
        let before = fs::read(log_path(place.path())).unwrap();
        store.add_record(99, Some("new"), 10).unwrap();
        faults.fail(call, 0, 2, libc::ENOSPC);
        for _ in 0..2 {
            let error = store
                .commit(6, &[(1, version(0, 1))], Some(b"new"))
                .unwrap_err();
            assert_eq!(error.status(), Status::NoSpace);
            assert_eq!((store.step(), store.durable(1)), (5, None));
            assert_eq!(fs::read(log_path(place.path())).unwrap(), before);
        }
        store
            .commit(6, &[(1, version(0, 1))], Some(b"new"))
            .unwrap();
        drop(store);
        let store = open(&engine, place.path()).unwrap();
        assert_eq!((store.step(), store.user_data()), (6, b"new".to_vec()));
        assert_eq!(store.durable(1), Some(version(0, 1)));
        assert_eq!(store.find(99), Some(3));
    }
}

#[test]
fn a_log_that_cannot_be_cut_after_a_failed_append_takes_no_commit() {
    let place = tempfile::tempdir().unwrap();
    let (engine, faults) = faulty();
    let store = filled(&engine, place.path());
    faults.fail(StoreCall::AppendInPart, 0, 1, libc::ENOSPC);
    faults.fail(StoreCall::SetLength, 0, 1, libc::EIO);
    let error = store.commit(6, &[], None).unwrap_err();
    assert_eq!(error.os_error(), libc::EIO);
    assert_eq!(store.commit(6, &[], None), Err(error));
    drop(store);
    check_filled(&open(&engine, place.path()).unwrap());
}

#[test]
fn a_full_disk_refuses_a_record_with_the_bytes_needed_and_free() {
    let place = tempfile::tempdir().unwrap();
    let (engine, faults) = faulty();
    let store = filled(&engine, place.path());
    // Growing ahead does not fit, what is needed does.
    faults.fail(StoreCall::Reserve, 0, 1, libc::ENOSPC);
    let numel = 20 << 20;
    store.add_record(50, None, numel).unwrap();
    let end = store.record(3).unwrap().offset + 2 * store.layout().extent_bytes(numel);
    assert_eq!(data_path(place.path()).metadata().unwrap().len(), end);
    // Nothing fits.
    faults.fail(StoreCall::Reserve, 0, 2, libc::ENOSPC);
    let error = store.add_record(60, None, 1).unwrap_err();
    assert_eq!(error.status(), Status::NoSpace);
    let text = error.to_string();
    assert!(
        text.contains("reserve") && text.contains("16384 bytes needed"),
        "{text}"
    );
    assert!(text.contains(" free"), "{text}");
    assert_eq!((store.records_len(), store.find(60)), (4, None));
    store.add_record(60, None, 1).unwrap();
    store.commit(6, &[], None).unwrap();
    drop(store);
    assert_eq!(open(&engine, place.path()).unwrap().find(60), Some(4));
}

#[test]
fn a_file_system_that_cannot_reserve_gets_the_length() {
    let place = tempfile::tempdir().unwrap();
    let (engine, faults) = faulty();
    let store = open(&engine, place.path()).unwrap();
    store.add_state(state("master")).unwrap();
    faults.fail(StoreCall::Reserve, 0, u32::MAX, libc::EOPNOTSUPP);
    store.add_record(1, None, 1000).unwrap();
    assert!(data_path(place.path()).metadata().unwrap().len() >= (64 << 10) + 2 * 4096);
    store.commit(1, &[(0, version(0, 1))], None).unwrap_err();
    let mut plain = version(0, 1);
    plain.zero_states = 0;
    store.commit(1, &[(0, plain)], None).unwrap();
    drop(store);
    assert_eq!(open(&engine, place.path()).unwrap().durable(0), Some(plain));
}

#[test]
fn what_a_killed_process_left_unsynced_is_on_storage_before_anything_builds_on_it() {
    let place = tempfile::tempdir().unwrap();
    let disk = Recording::of(place.path()).unwrap();
    let (engine, faults) = faulty();
    let store = filled(&engine, place.path());
    // Appended, and gone before it was known to be on storage.
    faults.fail(StoreCall::SyncLog, 0, 1, libc::EIO);
    store.commit(6, &[(0, version(1, 2))], None).unwrap_err();
    drop(store);
    let log_bytes = fs::read(log_path(place.path())).unwrap();
    let noted = disk.events_len();
    let store = open(&engine, place.path()).unwrap();
    assert_eq!((store.step(), store.durable(0)), (6, Some(version(1, 2))));
    // The kernel may take what it failed to write for written: it has to be given it again.
    let events = &disk.events()[noted..];
    let is_repair = |pair: &[Event]| match pair {
        [
            Event::Write {
                file,
                offset_bytes,
                bytes,
            },
            Event::Sync { node },
        ] => file == node && log_bytes[*offset_bytes as usize..] == bytes[..],
        _ => false,
    };
    assert!(events.windows(2).any(is_repair), "{events:?}");
    // From here on the slot of step 5 may be written, so step 6 must survive the power.
    let image = tempfile::tempdir().unwrap();
    let events_len = disk.events_len();
    disk.power_cut(events_len, 0, image.path()).unwrap();
    let plain = Engine::new(&config_of("threads")).unwrap();
    assert_eq!(open(&plain, image.path()).unwrap().step(), 6);
}

/// Commits that each add a megabyte to the log.
fn grow(store: &Store, steps: std::ops::Range<u64>) {
    for step in steps {
        let data = vec![u8::try_from(step).unwrap(); 1 << 20];
        store
            .commit(step, &[(1, version(0, 1))], Some(&data))
            .unwrap();
    }
}

fn check_grown(store: &Store, step: u64) {
    assert_eq!(store.step(), step);
    assert_eq!(
        store.user_data(),
        vec![u8::try_from(step).unwrap(); 1 << 20]
    );
    assert_eq!(store.durable(1), Some(version(0, 1)));
    assert_eq!(store.durable(2), Some(version(1, 1)));
    assert_eq!(store.find(20), Some(2));
}

#[test]
fn a_log_grown_long_is_replaced_by_a_short_one_that_says_the_same() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = filled(&engine, place.path());
    let mut longest = 0;
    for step in 6..26 {
        grow(&store, step..step + 1);
        longest = longest.max(log_path(place.path()).metadata().unwrap().len());
    }
    assert!(longest <= 6 << 20, "{longest}");
    check_grown(&store, 25);
    drop(store);
    let store = open(&engine, place.path()).unwrap();
    check_grown(&store, 25);
    store.commit(26, &[], Some(b"short")).unwrap();
    drop(store);
    assert_eq!(open(&engine, place.path()).unwrap().user_data(), b"short");
    assert!(!place.path().join("rank0/log.new").exists());
}

#[test]
fn a_log_that_cannot_be_replaced_goes_on_being_used() {
    for call in [StoreCall::SyncNewLog, StoreCall::Rename] {
        let place = tempfile::tempdir().unwrap();
        let (engine, faults) = faulty();
        let store = filled(&engine, place.path());
        faults.fail(call, 0, 1, libc::EIO);
        grow(&store, 6..12);
        assert!(log_path(place.path()).metadata().unwrap().len() > 5 << 20);
        assert!(!place.path().join("rank0/log.new").exists());
        check_grown(&store, 11);
        grow(&store, 12..20);
        assert!(log_path(place.path()).metadata().unwrap().len() < 11 << 20);
        drop(store);
        check_grown(&open(&engine, place.path()).unwrap(), 19);
    }
}

#[test]
fn no_commit_follows_a_replaced_log_whose_directory_was_not_synced() {
    let place = tempfile::tempdir().unwrap();
    let (engine, faults) = faulty();
    let store = filled(&engine, place.path());
    faults.fail(StoreCall::SyncDirectory, 0, 1, libc::EIO);
    // The commit that replaces the log is itself on storage, in both logs.
    let mut step = 6;
    while grows(&store, step) {
        step += 1;
    }
    let error = store.commit(step, &[], None).unwrap_err();
    assert_eq!(error.os_error(), libc::EIO);
    assert_eq!(store.step(), step - 1);
    drop(store);
    check_grown(&open(&engine, place.path()).unwrap(), step - 1);
}

/// Grows the store by one step; false when that is refused.
fn grows(store: &Store, step: u64) -> bool {
    let data = vec![u8::try_from(step).unwrap(); 1 << 20];
    store
        .commit(step, &[(1, version(0, 1))], Some(&data))
        .is_ok()
}

#[test]
fn with_the_memory_backend_no_storage_is_touched() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("never");
    let engine = Engine::new(&config_of("memory")).unwrap();
    let store = filled(&engine, &path);
    check_filled(&store);
    assert!(!path.exists());
    // Nobody else can have it, so there is no lock, and two stores share no file.
    let other = open(&engine, &path).unwrap();
    assert_eq!(other.records_len(), 0);
    assert_ne!(other.path(Area::Data, 0), store.path(Area::Data, 0));
    assert_ne!(other.scratch_directory(), store.scratch_directory());
    let error = Store::open(&engine, &options(&path, StoreMode::Existing)).unwrap_err();
    assert_eq!(error.status(), Status::NotFound);
}

#[test]
fn a_hundred_thousand_records_are_kept_in_little_memory() {
    let place = tempfile::tempdir().unwrap();
    let engine = engine();
    let store = open(&engine, place.path()).unwrap();
    store.add_state(state("master")).unwrap();
    store.add_state(state("exp_avg")).unwrap();
    for id in 0..100_000 {
        store.add_record(id * 3, None, 1 + id % 50).unwrap();
    }
    let changes: Vec<(u32, Version)> = (0..100_000).map(|record| (record, version(0, 1))).collect();
    store.commit(1, &changes, None).unwrap();
    drop(store);
    let store = open(&engine, place.path()).unwrap();
    assert_eq!(store.records_len(), 100_000);
    assert_eq!(store.find(299_997), Some(99_999));
    assert_eq!(store.durable(99_999), Some(version(0, 1)));
    let bytes_each = store.memory_bytes() / 100_000;
    assert!(bytes_each <= 130, "{bytes_each} bytes");
    // Neither slots nor extents of different records overlap.
    let last = store.record(99_999).unwrap();
    let extent_bytes = store.layout().extent_bytes(last.numel);
    let file = fs::File::open(data_path(place.path())).unwrap();
    assert!(file.metadata().unwrap().len() >= last.offset + 2 * extent_bytes);
    let mut byte = [1];
    file.read_exact_at(&mut byte, last.offset + 2 * extent_bytes - 1)
        .unwrap();
    assert_eq!(byte, [0]);
}
