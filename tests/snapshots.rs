//! Snapshots of the committed step, made while training goes on, and restored elsewhere.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod support;
mod training;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use support::*;
use tempfile::TempDir;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Result, Status};
use tensorswap::io::{Engine, FaultPlan, StoreCall, StoreFaults, Ticket};
use tensorswap::optimizer::Optimizer;
use training::*;

/// Records of some megabytes, so that a snapshot takes a while, and small ones between them.
const NUMELS: [usize; 6] = [170_000, 3, 400_000, 40_000, 262_144, 225_001];

struct Run {
    directory: TempDir,
    engine: Engine,
    model: Model,
    optimizer: Optimizer,
}

impl Run {
    /// An initialized and committed store.
    fn new(engine: Engine, types: &[State], settings: &[(&str, &str)]) -> Run {
        let directory = directory();
        let mut model = Model::new(types);
        for (id, numel) in (10..).zip(NUMELS) {
            model.add(id, numel);
        }
        let optimizer = open(&engine, &directory.path().join("store"), settings, &model);
        initialize(&optimizer, &mut model, 5);
        optimizer.commit().unwrap();
        Run {
            directory,
            engine,
            model,
            optimizer,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn step(&mut self) {
        step(&self.optimizer, &mut self.model, None, 2, &|_| false);
    }

    fn snapshot(&self, name: &str) -> Result<Ticket> {
        self.optimizer.snapshot(&self.path(name))
    }

    fn end(&self, ticket: Ticket) -> Result<()> {
        self.engine.wait(ticket, None).unwrap().outcome
    }

    /// A new store with what a snapshot holds.
    fn restored(&self, name: &str, types: &[State], settings: &[(&str, &str)]) -> Optimizer {
        let store = self.path(&format!("from-{name}"));
        let settings = [&[("store", "new")], settings].concat();
        let optimizer = try_open(&self.engine, &store, &settings, types).unwrap();
        optimizer.restore(&self.path(name)).unwrap();
        optimizer
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn same(optimizer: &Optimizer, model: &Model) {
    verify(optimizer, model, "");
}

#[test]
fn training_goes_on_while_a_snapshot_is_made_and_both_are_right() {
    for (sync, places) in [("commit", 1), ("none", 1), ("commit", 3)] {
        let engine = engine(&[]);
        let place = directory();
        let places: Vec<String> = (0..places)
            .map(|number| place.path().join(number.to_string()).display().to_string())
            .collect();
        let path = places.join(",");
        let mut run = Run::new(engine, &F32, &[("sync", sync), ("path", &path)]);
        for round in 0..3 {
            run.step();
            run.optimizer.commit().unwrap();
            let taken = run.model.clone();
            let name = format!("s{round}");
            let ticket = run.snapshot(&name).unwrap();
            // Each record is written over twice at least before the copy can be through.
            for _ in 0..4 {
                run.step();
            }
            run.end(ticket).unwrap();
            same(&run.restored(&name, &F32, &[]), &taken);
            same(&run.optimizer, &run.model);
        }
        run.optimizer.commit().unwrap();
        let (directory, model, engine) = (run.path("store"), run.model.clone(), run.engine.clone());
        drop(run.optimizer);
        let again = open(
            &engine,
            &directory,
            &[("sync", sync), ("path", &path)],
            &model,
        );
        same(&again, &model);
        // Third slots are gone once nothing lies in them.
        again.commit().unwrap();
        for place in &places {
            let place = Path::new(place).join("rank0");
            assert!(
                !is_there(&place.join("spare")) || sync == "none",
                "{sync} {place:?}"
            );
        }
    }
}

#[test]
fn a_snapshot_comes_back_in_other_types_directories_and_memory() {
    let mut run = Run::new(engine(&[]), &F32, &[]);
    run.step();
    run.optimizer.set_user_data(b"cursor").unwrap();
    run.step();
    run.optimizer.commit().unwrap();
    let ticket = run.snapshot("s").unwrap();
    run.end(ticket).unwrap();
    let other = directory();
    let path = format!("{0}/a=3,{0}/b", other.path().display());
    let whole = run.restored(
        "s",
        &F32,
        &[("path", &path), ("rank", "7"), ("views_max", "1")],
    );
    same(&whole, &run.model);
    assert_eq!(
        (whole.step_number(), whole.user_data()),
        (2, b"cursor".to_vec())
    );
    // It is committed: the store opens as it is.
    drop(whole);
    let settings = [
        ("path", path.as_str()),
        ("rank", "7"),
        ("store", "existing"),
    ];
    same(
        &open(&run.engine, other.path(), &settings, &run.model),
        &run.model,
    );

    let narrow = run.restored("s", &BF16_MOMENTS, &[]);
    let mut rounded_model = run.model.clone();
    rounded_model.types = BF16_MOMENTS.to_vec();
    for record in rounded_model.records.values_mut() {
        for state in &mut record.states[1..] {
            *state = rounded(state, Dtype::Bf16);
        }
    }
    same(&narrow, &rounded_model);
    // And goes on as any other store.
    let mut narrow_run = Run {
        optimizer: narrow,
        model: rounded_model,
        ..run
    };
    narrow_run.step();
    same(&narrow_run.optimizer, &narrow_run.model);
}

#[test]
fn a_snapshot_of_zeros_takes_no_space() {
    let run = Run::new(engine(&[]), &F32, &[]);
    let ticket = run.snapshot("s").unwrap();
    run.end(ticket).unwrap();
    let bytes: usize = NUMELS.iter().map(|numel| numel * 4).sum();
    let data = fs::metadata(run.path("s/data")).unwrap();
    assert!(data.len() < bytes as u64 * 5 / 4, "{}", data.len());
    same(&run.restored("s", &F32, &[]), &run.model);
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let mut run = Run::new(engine(&[]), &F32, &[]);
    run.step();
    let refused = |run: &Run, name: &str| run.snapshot(name).unwrap_err();
    fs::create_dir_all(run.path("taken/own")).unwrap();
    std::os::unix::fs::symlink("nowhere", run.path("link")).unwrap();
    fs::write(run.path("file"), b"mine").unwrap();
    for name in ["taken", "link", "file"] {
        let error = refused(&run, name);
        assert_eq!(error.os_error(), libc::EEXIST, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(refused(&run, "..").status(), Status::InvalidArgument);
    let below_a_file = refused(&run, "file/s");
    assert_eq!(below_a_file.os_error(), libc::ENOTDIR, "{below_a_file}");
    // Pins of a snapshot that never began are gone: many steps go on without third slots.
    (0..4).for_each(|_| run.step());
    run.optimizer.commit().unwrap();
    assert!(!is_there(&run.path("store/rank0/spare")));
    let ticket = run.snapshot("good").unwrap();
    run.end(ticket).unwrap();

    let empty = try_open(&run.engine, &run.path("empty"), &[], &F32).unwrap();
    let error = empty.snapshot(&run.path("nothing")).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    assert!(!is_there(&run.path("nothing.partial")));
    // Restoring: where there is nothing, other states, parameters that are there already.
    let error = empty.restore(&run.path("nowhere")).unwrap_err();
    assert_eq!(error.status(), Status::NotFound, "{error}");
    empty.restore(&run.path("good")).unwrap();
    let error = empty.restore(&run.path("good")).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    let two = [F32[0], F32[1]];
    let other = try_open(&run.engine, &run.path("other"), &[], &two).unwrap();
    let error = other.restore(&run.path("good")).unwrap_err();
    assert_eq!(error.status(), Status::SizeMismatch, "{error}");
    assert!(error.to_string().contains("exp_avg_sq"), "{error}");
    // Of a refusal nothing stays.
    other.add_state(F32[2].0, F32[2].1, F32[2].2).unwrap();
    other.restore(&run.path("good")).unwrap();
    same(&other, &run.model);
}

#[test]
fn one_snapshot_at_a_time_and_cancelling_it_leaves_nothing() {
    let mut run = Run::new(engine(&[]), &F32, &[]);
    run.step();
    run.optimizer.commit().unwrap();
    let (mut cancelled, mut busy) = (0, 0);
    for round in 0..20 {
        let name = format!("s{round}");
        let ticket = run.snapshot(&name).unwrap();
        match run.snapshot("second") {
            Err(error) => {
                assert_eq!(error.status(), Status::Busy, "{error}");
                busy += 1;
            }
            Ok(ticket) => run.end(ticket).unwrap(),
        }
        run.engine.cancel(ticket).unwrap();
        match run.end(ticket) {
            Ok(()) => same(&run.restored(&name, &F32, &[]), &run.model),
            Err(error) => {
                assert_eq!(error.status(), Status::Cancelled, "{error}");
                assert!(!is_there(&run.path(&name)));
                cancelled += 1;
            }
        }
        assert!(!is_there(&run.path(&format!("{name}.partial"))));
        let _ = fs::remove_dir_all(run.path("second"));
    }
    assert!(cancelled > 0 && busy > 0, "{cancelled} {busy}");
    // An optimizer that goes away takes its snapshot along.
    let ticket = run.snapshot("last").unwrap();
    drop(run.optimizer);
    let ended = run.engine.wait(ticket, None).unwrap().outcome;
    assert_eq!(ended.is_ok(), is_there(&run.directory.path().join("last")));
}

#[test]
fn a_record_that_is_not_what_was_written_ends_the_snapshot() {
    let mut run = Run::new(engine(&[]), &F32, &[("cache_bytes", "0")]);
    run.step();
    run.optimizer.commit().unwrap();
    let data = fs::File::options()
        .read(true)
        .write(true)
        .open(run.path("store/rank0/data"))
        .unwrap();
    // Both slots of the third record, in its last state.
    let mut damaged = 0;
    for at in (0..data.metadata().unwrap().len() - 70_001).step_by(1 << 20) {
        let mut byte = [0];
        data.read_exact_at(&mut byte, at + 70_000).unwrap();
        if byte != [0] {
            data.write_all_at(&[!byte[0]], at + 70_000).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 3);
    data.sync_all().unwrap();
    let ticket = run.snapshot("s").unwrap();
    let error = run.end(ticket).unwrap_err();
    assert_eq!(error.status(), Status::Checksum, "{error}");
    assert!(error.to_string().contains("of parameter"), "{error}");
    assert!(!is_there(&run.path("s")) && !is_there(&run.path("s.partial")));
}

#[test]
fn without_space_for_third_slots_steps_wait_for_the_copy() {
    let faults = Arc::new(StoreFaults::new());
    let plan = FaultPlan::default();
    let engine = Engine::with_store_faults(&config(&[]), plan, Arc::clone(&faults)).unwrap();
    let mut run = Run::new(engine, &F32, &[]);
    for round in 0..3 {
        run.step();
        run.optimizer.commit().unwrap();
        let taken = run.model.clone();
        faults.fail(StoreCall::Reserve, 0, 2, libc::ENOSPC);
        let name = format!("s{round}");
        let ticket = run.snapshot(&name).unwrap();
        (0..3).for_each(|_| run.step());
        run.end(ticket).unwrap();
        faults.forgive();
        assert!(!is_there(&run.path("store/rank0/spare")));
        same(&run.restored(&name, &F32, &[]), &taken);
        same(&run.optimizer, &run.model);
    }
}

/// A run of some steps, and its snapshot `s`.
fn with_snapshot() -> Run {
    let mut run = Run::new(engine(&[]), &F32, &[]);
    run.step();
    run.step();
    run.optimizer.commit().unwrap();
    let ticket = run.snapshot("s").unwrap();
    run.end(ticket).unwrap();
    run
}

#[test]
fn a_snapshot_comes_back_with_room_for_one_record_or_for_all() {
    let run = with_snapshot();
    let mut narrow = run.model.clone();
    narrow.types = BF16_MOMENTS.to_vec();
    for record in narrow.records.values_mut() {
        for state in &mut record.states[1..] {
            *state = rounded(state, Dtype::Bf16);
        }
    }
    let all = [
        ("pinned_bytes", "64000000"),
        ("pinned_bytes", "4096"),
        ("pinned_bytes", "4096"),
        ("read_ahead", "1"),
        ("pipeline_read", "false"),
        ("checksum", "off"),
    ];
    let models = [&run.model, &narrow].into_iter().cycle();
    for (setting, model) in all.into_iter().zip(models) {
        let store = directory();
        let optimizer = try_open(&run.engine, store.path(), &[setting], &model.types).unwrap();
        optimizer.restore(&run.path("s")).unwrap();
        drop(optimizer);
        let again = open(&run.engine, store.path(), &[], model);
        verify(&again, model, &format!("{setting:?}"));
    }
    // A store in memory takes it from storage too.
    let memory = engine(&[("backend", "memory")]);
    let optimizer = try_open(&memory, &run.path("none"), &[], &F32).unwrap();
    optimizer.restore(&run.path("s")).unwrap();
    same(&optimizer, &run.model);
}

/// After a restore that failed: no read is under way, and the parameters can be given other values,
/// which storage has then.
fn goes_on(engine: &Engine, optimizer: Optimizer, store: &Path, run: &Run) {
    assert_eq!(engine.stats().swap_in.in_flight_count, 0);
    let mut model = Model::new(&F32);
    for id in run.model.records.keys() {
        model.add(*id, run.model.records[id].numel);
    }
    initialize(&optimizer, &mut model, 99);
    optimizer.commit().unwrap();
    drop(optimizer);
    same(&open(&run.engine, store, &[], &model), &model);
}

#[test]
fn a_restore_that_fails_while_later_records_are_read_leaves_no_read_under_way() {
    let run = with_snapshot();
    let delays = FaultPlan {
        delay_per_mille: 500,
        ..FaultPlan::default()
    };
    let mut failed = 0;
    for seed in 0..6 * scale() {
        let plan = FaultPlan {
            seed,
            eio_per_mille: 20,
            ..delays
        };
        let faulty = Engine::with_faults(&config(&[]), plan).unwrap();
        let store = directory();
        let optimizer = try_open(&faulty, store.path(), &[], &F32).unwrap();
        match optimizer.restore(&run.path("s")) {
            Ok(()) => {
                drop(optimizer);
                same(
                    &open(&run.engine, store.path(), &[], &run.model),
                    &run.model,
                );
            }
            Err(error) => {
                assert_eq!(error.status(), Status::Io, "{error}");
                goes_on(&faulty, optimizer, store.path(), &run);
                failed += 1;
            }
        }
    }
    assert!(failed > 0);

    // A wrong checksum in the third record; those behind it are being read when it is found.
    let before = NUMELS[..2].iter().map(|numel| 3 * numel * 4 + 3 * 4096);
    let at = before.sum::<usize>() as u64 + 100_000;
    let data = fs::File::options().write(true).open(run.path("s/data"));
    data.unwrap().write_all_at(&[0x55; 8], at).unwrap();
    for pinned_bytes in ["4096", "64000000"] {
        let delayed = Engine::with_faults(&config(&[]), delays).unwrap();
        let store = directory();
        let settings = [("pinned_bytes", pinned_bytes)];
        let optimizer = try_open(&delayed, store.path(), &settings, &F32).unwrap();
        let error = optimizer.restore(&run.path("s")).unwrap_err();
        assert_eq!(error.status(), Status::Checksum, "{error}");
        assert!(error.to_string().contains("parameter 12"), "{error}");
        goes_on(&delayed, optimizer, store.path(), &run);
    }
}

#[test]
fn a_damaged_snapshot_is_never_restored() {
    let mut run = Run::new(engine(&[]), &F32, &[]);
    run.step();
    run.optimizer.commit().unwrap();
    let ticket = run.snapshot("s").unwrap();
    run.end(ticket).unwrap();
    let data = fs::File::options()
        .read(true)
        .write(true)
        .open(run.path("s/data"))
        .unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, 3_000_000).unwrap();
    data.write_all_at(&[byte[0] ^ 4], 3_000_000).unwrap();
    for types in [F32, BF16_MOMENTS] {
        let store = directory();
        let optimizer = try_open(&run.engine, store.path(), &[], &types).unwrap();
        let error = optimizer.restore(&run.path("s")).unwrap_err();
        assert_eq!(error.status(), Status::Checksum, "{error}");
        assert!(error.to_string().contains("parameter"), "{error}");
        drop(optimizer);
        // Nothing of it was committed.
        let optimizer = try_open(&run.engine, store.path(), &[], &types).unwrap();
        assert_eq!(optimizer.parameters_len(), 0);
    }
}

#[test]
fn a_snapshot_is_never_made_of_what_took_the_place_of_the_store() {
    for checksum in ["off", "verify"] {
        let settings = [("checksum", checksum)];
        let run = Run::new(engine(&[]), &F32, &settings);
        let other = Run::new(engine(&[]), &F32, &settings);
        let (own, away) = (run.path("store"), run.path("away"));
        fs::rename(&own, &away).unwrap();
        fs::rename(other.path("store"), &own).unwrap();
        let error = run.end(run.snapshot("made").unwrap()).unwrap_err();
        assert!(error.to_string().contains("ESTALE"), "{error}");
        assert!(!is_there(&run.path("made")) && !is_there(&run.path("made.partial")));
        // Once it is back, it goes on.
        fs::rename(&own, other.path("store")).unwrap();
        fs::rename(&away, &own).unwrap();
        run.end(run.snapshot("made").unwrap()).unwrap();
        same(&run.restored("made", &F32, &settings), &run.model);
    }
}

#[test]
fn an_engine_that_is_shut_down_waits_until_a_snapshot_has_ended() {
    let run = Run::new(engine(&[]), &F32, &[]);
    let ticket = run.snapshot("made").unwrap();
    run.engine.shutdown(None).unwrap();
    let ended = run.engine.wait(ticket, Some(Duration::ZERO)).unwrap();
    match ended.outcome {
        Ok(()) => assert!(is_there(&run.path("made"))),
        Err(error) => {
            assert_eq!(error.status(), Status::ShutDown, "{error}");
            assert!(!is_there(&run.path("made")) && !is_there(&run.path("made.partial")));
        }
    }
}

#[test]
fn files_are_closed_when_their_snapshot_export_or_store_is_done_with() {
    let run = Run::new(engine(&[]), &F32, &[]);
    let open_files = || {
        run.engine.fence();
        run.engine.stats().open_files_count
    };
    let own = open_files();
    assert!(own > 0);
    for round in 0..3 {
        run.end(run.snapshot("made").unwrap()).unwrap();
        assert_eq!(open_files(), own, "snapshot {round}");
        let restored = run.restored("made", &F32, &[]);
        assert!(open_files() > own);
        drop(restored);
        assert_eq!(open_files(), own, "store {round}");
        fs::remove_dir_all(run.path("made")).unwrap();
        let exported = run.path("model.safetensors");
        run.optimizer.export_safetensors(&exported, 0).unwrap();
        assert_eq!(open_files(), own, "export {round}");
    }
    let engine = run.engine.clone();
    drop(run);
    engine.fence();
    assert_eq!(engine.stats().open_files_count, 0);
}
