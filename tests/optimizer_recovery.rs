//! After something went wrong: what is told, what is kept, and what can be done next.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;
mod training;

use std::sync::Arc;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, FaultPlan, StoreCall, StoreFaults};
use tensorswap::optimizer::{Optimizer, Partition};
use training::*;

fn equal_parameters(count: u64, numel: usize) -> Model {
    let mut model = Model::new(&F32);
    (0..count).for_each(|id| model.add(id, numel));
    model
}

fn train(optimizer: &Optimizer, model: &mut Model) {
    let ids: Vec<u64> = model.records.keys().copied().collect();
    for id in ids {
        let slope = values(model.records[&id].numel, model.step * 100 + id);
        give_gradient(optimizer, model, id, 0, (&slope, Dtype::F32), false);
    }
    step(optimizer, model, None, 1, &|_| false);
}

fn faulty(plan: FaultPlan) -> (Arc<StoreFaults>, Engine) {
    let faults: Arc<StoreFaults> = Arc::default();
    let engine = Engine::with_store_faults(&config(&[]), plan, Arc::clone(&faults)).unwrap();
    (faults, engine)
}

fn is_eio(outcome: Result<(), Error>) -> bool {
    outcome.is_err_and(|error| error.os_error() == libc::EIO)
}

#[test]
fn after_a_failed_sync_of_the_log_nothing_goes_over_what_it_vouches_for() {
    for sync in ["none", "commit"] {
        let (faults, engine) = faulty(FaultPlan::default());
        let directory = directory();
        let mut model = equal_parameters(6, 5000);
        let optimizer = open(&engine, directory.path(), &[("sync", sync)], &model);
        initialize(&optimizer, &mut model, 1);
        train(&optimizer, &mut model);
        optimizer.commit().unwrap();
        let mut history = vec![model.clone()];
        faults.fail(StoreCall::SyncLog, 0, 1, libc::EIO);
        train(&optimizer, &mut model);
        history.push(model.clone());
        assert!(is_eio(optimizer.commit()), "{sync}");
        // Nothing can be changed any more, whatever is tried.
        assert!(is_eio(optimizer.step_begin(None)), "{sync}");
        let mut bytes = to_bytes(&values(5000, 9), Dtype::F32);
        let source = elements(&mut bytes, Dtype::F32);
        assert!(is_eio(optimizer.initialize_parameters(&[3], &[source])));
        assert!(is_eio(optimizer.swap_in_state(3, None).map(drop)), "{sync}");
        drop(optimizer);
        let reopened = open(&support::engine(&[]), directory.path(), &[], &model);
        let step = reopened.step_number();
        let of_step = history.iter().find(|model| model.step == step).unwrap();
        verify(&reopened, of_step, sync);
    }
}

#[test]
fn an_aborted_step_leaves_room_for_every_record() {
    let model = &mut equal_parameters(20, 4096);
    let directory = directory();
    // Four records of three states: 16 KiB each.
    let settings = [("pinned_bytes", "196608"), ("views_max", "2")];
    let engine = engine(&[]);
    let optimizer = open(&engine, directory.path(), &settings, model);
    initialize(&optimizer, model, 3);
    optimizer.commit().unwrap();
    for round in 0..3 {
        optimizer.step_begin(None).unwrap();
        let view = optimizer.step_next().unwrap().unwrap();
        optimizer.step_done(view.id, false).unwrap();
        optimizer.step_abort().unwrap();
        for id in 0..20 {
            optimizer.swap_in_state(id, None).unwrap();
            optimizer.release_state(id).unwrap();
        }
        optimizer.step_begin(None).unwrap();
        optimizer.step_abort().unwrap();
        optimizer.step_begin(Some(&[round * 9 + 1])).unwrap();
        while let Some(view) = optimizer.step_next().unwrap() {
            optimizer.step_done(view.id, false).unwrap();
        }
        optimizer.step_end().unwrap();
    }
    model.step = 3;
    verify(&optimizer, model, "unchanged");
}

#[test]
fn an_initialization_that_fails_leaves_the_parameter_as_it_was() {
    let directory = directory();
    let engine = engine(&[]);
    let mut model = equal_parameters(4, 3000);
    // The newest versions are in memory only.
    let settings = [("sync", "none"), ("cache_bytes", "1GiB")];
    let optimizer = open(&engine, directory.path(), &settings, &model);
    initialize(&optimizer, &mut model, 5);
    train(&optimizer, &mut model);
    let missing = path(directory.path(), "no such file");
    let mut nothing = vec![0; 3000 * 4];
    let piece = Partition {
        parameter_id: 2,
        offset: 0,
        tensor: elements(&mut nothing, Dtype::F32),
        path: Some(&missing),
    };
    let error = optimizer.initialize_from_swapped(&[piece]).unwrap_err();
    assert_eq!(error.status(), Status::NotFound, "{error}");
    verify(&optimizer, &model, "in memory");
    optimizer.commit().unwrap();
    drop(optimizer);
    let reopened = open(&engine, directory.path(), &[], &model);
    verify(&reopened, &model, "reopened");
}

/// Swaps parameter 0 in and marks its master; what the mark was before.
fn mark(optimizer: &Optimizer, with: f32) -> Result<f32, Error> {
    let view = optimizer.swap_in_state(0, None)?;
    let master = view.state(0).unwrap();
    let before = load(master)[0];
    store(master, &vec![with; 2000]);
    Ok(before)
}

#[test]
fn a_lost_write_is_told_before_the_version_from_before_is_given_out() {
    let plan = FaultPlan {
        seed: 11,
        eio_per_mille: 60,
        delay_per_mille: 300,
        ..FaultPlan::default()
    };
    let engine = Engine::with_faults(&config(&[]), plan).unwrap();
    let directory = directory();
    let model = equal_parameters(1, 2000);
    let optimizer = open(&engine, directory.path(), &[], &model);
    let (mut expected, mut lost_count) = (0.0, 0);
    let mut after_loss = false;
    for round in 1..300_u16 {
        match mark(&optimizer, f32::from(round)) {
            Ok(before) => {
                // Nothing was committed: what is left after a loss is zero.
                assert_eq!(before, if after_loss { 0.0 } else { expected }, "{round}");
                after_loss = false;
            }
            Err(error) => {
                assert_eq!(error.os_error(), libc::EIO, "{error}");
                // A read that failed lost nothing; a write did.
                if error.to_string().starts_with("swap_out") {
                    after_loss = true;
                    lost_count += 1;
                }
                continue;
            }
        }
        optimizer.swap_out_state(0, true).unwrap();
        expected = f32::from(round);
    }
    assert!(lost_count > 3, "{lost_count}");
}

#[test]
fn a_commit_that_fails_behind_the_callers_back_is_told_once_also_by_an_abort() {
    for _ in 0..10 {
        let (faults, engine) = faulty(FaultPlan::default());
        let directory = directory();
        let mut model = equal_parameters(3, 1000);
        let optimizer = open(&engine, directory.path(), &[], &model);
        initialize(&optimizer, &mut model, 1);
        optimizer.commit().unwrap();
        let committed = model.clone();
        // A failed append can be tried again; nothing else stands in the way.
        faults.fail(StoreCall::Append, 0, 1, libc::ENOSPC);
        train(&optimizer, &mut model);
        let told = match optimizer.step_begin(None) {
            Err(error) => error,
            Ok(()) => optimizer.step_abort().unwrap_err(),
        };
        assert_eq!(told.status(), Status::NoSpace, "{told}");
        assert_eq!(optimizer.step_number(), committed.step);
        verify(&optimizer, &committed, "taken back");
        model = committed;
        train(&optimizer, &mut model);
        optimizer.commit().unwrap();
        verify(&optimizer, &model, "going on");
    }
}
