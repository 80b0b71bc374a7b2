//! The failures of others that concern an optimizer swapper, one test each: every one of these
//! would have caught one.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;
mod training;

use std::collections::BTreeSet;
use std::path::Path;

use support::*;
use tempfile::TempDir;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::{Engine, FaultPlan};
use tensorswap::optimizer::Optimizer;
use tensorswap::store::StoreReader;
use training::*;

/// A store of some parameters with masters initialized and nothing committed.
fn setup(settings: &[(&str, &str)], numels: &[usize]) -> (TempDir, Engine, Optimizer, Model) {
    let (directory, engine) = (directory(), engine(&[]));
    let mut model = Model::new(&F32);
    (0..)
        .zip(numels)
        .for_each(|(id, numel)| model.add(id, *numel));
    let optimizer = open(&engine, directory.path(), settings, &model);
    initialize(&optimizer, &mut model, 1);
    (directory, engine, optimizer, model)
}

/// Gradients of all of a parameter's elements, new each time.
fn give_whole(optimizer: &Optimizer, model: &mut Model, ids: &[u64], seed: u64) {
    for id in ids {
        let slope = values(model.records[id].numel, seed * 1000 + id);
        give_gradient(optimizer, model, *id, 0, (&slope, Dtype::F32), false);
    }
}

/// Every record of a step is changed.
fn skips_none(_: u64) -> bool {
    false
}

/// Files below a directory.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.to_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn files_of_earlier_runs_do_not_pile_up() {
    for gradients in ["memory", "disk"] {
        let settings = [("gradients", gradients), ("sync", "none")];
        let (directory, engine, optimizer, mut model) = setup(&settings, &[70_000, 300_000, 5]);
        give_whole(&optimizer, &mut model, &[0, 1, 2], 1);
        optimizer.flush_gradients().unwrap();
        step(&optimizer, &mut model, None, 1, &skips_none);
        optimizer.commit().unwrap();
        // A run that ends in the middle of a step, with gradients on storage.
        give_whole(&optimizer, &mut model, &[0, 1, 2], 2);
        optimizer.flush_gradients().unwrap();
        drop(optimizer);
        model.end_gradients();
        let optimizer = open(&engine, directory.path(), &settings, &model);
        let first = files(directory.path());
        drop(optimizer);
        for round in 0..4 {
            let optimizer = open(&engine, directory.path(), &settings, &model);
            verify(&optimizer, &model, "again");
            give_whole(&optimizer, &mut model, &[0, 1], round);
            optimizer.flush_gradients().unwrap();
            drop(optimizer);
            model.end_gradients();
            let optimizer = open(&engine, directory.path(), &settings, &model);
            assert_eq!(files(directory.path()), first, "{gradients} round {round}");
            drop(optimizer);
        }
        // A new store leaves nothing of the old one.
        let fresh = [&settings[..], &[("store", "new")]].concat();
        let empty = Model::new(&F32);
        let optimizer = open(&engine, directory.path(), &fresh, &empty);
        assert_eq!(
            (optimizer.parameters_len(), optimizer.step_number()),
            (0, 0)
        );
        assert!(files(directory.path()).len() <= first.len());
    }
}

#[test]
fn what_was_not_committed_is_not_published() {
    let (directory, engine, optimizer, mut model) = setup(&[("sync", "none")], &[5000, 90_000]);
    optimizer.commit().unwrap();
    let committed = model.clone();
    for round in 0..3 {
        give_whole(&optimizer, &mut model, &[0, 1], round);
        step(&optimizer, &mut model, None, 1, &skips_none);
        optimizer.set_user_data(b"later").unwrap();
    }
    verify(&optimizer, &model, "in this process the steps are done");
    drop(optimizer);
    let optimizer = open(&engine, directory.path(), &[], &committed);
    verify(&optimizer, &committed, "as committed");
    assert!(optimizer.user_data().is_empty());
}

#[test]
fn two_processes_in_one_directory_are_told_apart() {
    let (directory, engine, optimizer, model) = setup(&[], &[1000]);
    // Another object of this process is no better than one of another.
    let error = try_open(&engine, directory.path(), &[], &F32).unwrap_err();
    assert_eq!(error.status(), Status::Locked, "{error}");
    assert!(error.to_string().contains("rank0"), "{error}");
    assert!(error.status().is_retryable());
    // Nor may it remove what is in use.
    let error = try_open(&engine, directory.path(), &[("store", "new")], &F32).unwrap_err();
    assert_eq!(error.status(), Status::Locked, "{error}");
    // Another rank has a place of its own.
    let other = try_open(&engine, directory.path(), &[("rank", "1")], &F32).unwrap();
    assert_eq!(other.parameters_len(), 0);
    optimizer.commit().unwrap();
    verify(&optimizer, &model, "unharmed");
    drop(optimizer);
    let optimizer = open(&engine, directory.path(), &[], &model);
    verify(&optimizer, &model, "the lock went with the object");
}

#[test]
fn a_child_process_does_not_keep_the_store_locked() {
    let (directory, engine, optimizer, model) = setup(&[], &[1000]);
    optimizer.commit().unwrap();
    // As the workers that a runtime forks: the child has every descriptor of its parent.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        loop {
            unsafe { libc::pause() };
        }
    }
    drop(optimizer);
    let opened = try_open(&engine, directory.path(), &[], &F32);
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    drop(opened.unwrap());
    let optimizer = open(&engine, directory.path(), &[], &model);
    verify(&optimizer, &model, "opened again");
}

#[test]
fn a_parameter_larger_than_all_others_together_needs_no_larger_buffers_for_the_others() {
    let mut numels = vec![2_000_003];
    numels.extend([100; 50]);
    let (_directory, _engine, optimizer, mut model) = setup(&[], &numels);
    for round in 0..3 {
        give_whole(&optimizer, &mut model, &[0, 7, 50], round);
        step(&optimizer, &mut model, None, 1, &skips_none);
    }
    verify(&optimizer, &model, "large and small");
    let stats = optimizer.stats();
    assert!(stats.pinned_peak_bytes <= stats.pinned_computed_bytes);
    // Slots as large as the largest for everybody would take fifty times that.
    assert!(stats.pinned_computed_bytes < 8 * 3 * 4 * 2_000_003);
}

#[test]
fn a_budget_that_is_too_small_is_told_before_training() {
    let (directory, engine) = (directory(), engine(&[]));
    let mut model = Model::new(&F32);
    model.add(0, 100);
    model.add(1, 300_000);
    let settings = [("pinned_bytes", "64KiB")];
    let optimizer = open(&engine, directory.path(), &settings, &model);
    let mut bytes = to_bytes(&values(100, 1), Dtype::F32);
    let source = elements(&mut bytes, Dtype::F32);
    optimizer.initialize_parameters(&[0], &[source]).unwrap();
    // Both ways of updating, before anything has moved.
    let errors = [
        optimizer.step_begin(None).unwrap_err(),
        optimizer.swap_in_state(0, None).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.status(), Status::Budget, "{error}");
        // The bytes needed, at least the large record's.
        let numbers = error.to_string();
        let needed = numbers
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|number| number.parse::<u64>().ok())
            .max();
        assert!(needed >= Some(3 * 4 * 300_000), "{error}");
    }
}

#[test]
fn a_budget_that_was_enough_at_first_stays_enough() {
    let numels: Vec<usize> = (0..40).map(|number| 1 + (number * 7919) % 60_000).collect();
    let (directory, engine, optimizer, mut model) = setup(&[], &numels);
    step(&optimizer, &mut model, None, 1, &skips_none);
    let needed = optimizer.stats().pinned_computed_bytes;
    optimizer.commit().unwrap();
    drop(optimizer);
    for views_max in ["1", "2"] {
        let budget = needed.to_string();
        let settings = [("pinned_bytes", &budget[..]), ("views_max", views_max)];
        let optimizer = open(&engine, directory.path(), &settings, &model);
        for round in 0..8 {
            give_whole(&optimizer, &mut model, &[3, 39], round);
            step(&optimizer, &mut model, None, 1, &skips_none);
            let stats = optimizer.stats();
            assert!(stats.pinned_peak_bytes <= stats.pinned_computed_bytes);
            assert!(stats.pinned_computed_bytes <= needed);
        }
        verify(&optimizer, &model, views_max);
        optimizer.commit().unwrap();
    }
}

#[test]
fn memory_is_given_back_by_the_swap_out() {
    let numels = [200_000; 24];
    let record_bytes = 3 * 4 * 200_000;
    for (pipeline, cache) in [("true", "0"), ("false", "0"), ("true", "5MiB")] {
        let settings = [
            ("pipeline_read", pipeline),
            ("pipeline_write", pipeline),
            ("read_ahead", "2"),
            ("write_behind", "2"),
            ("cache_bytes", cache),
        ];
        let (_directory, engine, optimizer, mut model) = setup(&settings, &numels);
        for _ in 0..3 {
            step(&optimizer, &mut model, None, 1, &skips_none);
            optimizer.commit().unwrap();
        }
        let stats = optimizer.stats();
        assert!(stats.pinned_peak_bytes <= stats.pinned_computed_bytes);
        // Views, read-ahead and write-behind, never all of the state.
        let most = if pipeline == "true" { 8 } else { 4 } * record_bytes + (5 << 20);
        assert!(
            stats.pinned_peak_bytes < most,
            "{pipeline} {cache} {stats:?}"
        );
        assert!(engine.stats().pinned_bytes < 2 * most, "{pipeline} {cache}");
    }
}

#[test]
fn the_set_of_directories_is_not_changed_unnoticed() {
    let (directory, engine, optimizer, model) = setup(&[], &[1000]);
    optimizer.commit().unwrap();
    drop(optimizer);
    // The same store elsewhere: nothing is there, and that is said.
    let elsewhere = support::directory();
    let existing = [("store", "existing")];
    let error = try_open(&engine, elsewhere.path(), &existing, &F32).unwrap_err();
    assert_eq!(error.status(), Status::NotFound, "{error}");
    // Moved as a whole it opens.
    let moved = elsewhere.path().join("rank0");
    std::fs::rename(directory.path().join("rank0"), moved).unwrap();
    let optimizer = open(&engine, elsewhere.path(), &existing, &model);
    verify(&optimizer, &model, "moved");
}

#[test]
fn data_of_another_store_is_not_taken_for_its_own() {
    let (directory, engine, optimizer, mut model) = setup(&[], &[1000, 1000]);
    let (other_directory, _other_engine, other, _) = setup(&[], &[1000, 1000]);
    give_whole(&optimizer, &mut model, &[0, 1], 1);
    step(&optimizer, &mut model, None, 1, &skips_none);
    optimizer.commit().unwrap();
    other.commit().unwrap();
    drop((optimizer, other));
    let names: Vec<String> = files(&directory.path().join("rank0"))
        .into_iter()
        .map(|path| path.rsplit('/').next().unwrap().to_owned())
        .collect();
    let data = names.iter().find(|name| name.contains("data")).unwrap();
    std::fs::copy(
        other_directory.path().join("rank0").join(data),
        directory.path().join("rank0").join(data),
    )
    .unwrap();
    match try_open(&engine, directory.path(), &[("store", "existing")], &F32) {
        Err(error) => assert_eq!(error.status(), Status::Corrupt, "{error}"),
        Ok(_) => panic!("opened with the data of another store"),
    }
}

#[test]
fn every_update_reaches_the_record_it_was_made_for_in_either_direction() {
    // Records of one size, which could be taken for each other; orders alternate between steps.
    for cache in ["0", "300KiB", "1GiB"] {
        let (_directory, _engine, optimizer, mut model) =
            setup(&[("cache_bytes", cache)], &[4096; 20]);
        let mut orders = BTreeSet::new();
        for number in 0..6_u64 {
            optimizer.step_begin(None).unwrap();
            let order = drain(&optimizer, 1, &|view| {
                let mark = (view.id * 100 + number) as f32;
                for (state, to) in view.states().enumerate() {
                    let before = load(to);
                    let expected = &model.records[&view.id].states[state];
                    assert!(before == *expected, "{} {state}", view.id);
                    store(to, &vec![mark + state as f32 / 4.0; 4096]);
                }
                true
            });
            optimizer.step_end().unwrap();
            model.step += 1;
            for id in &order {
                let mark = (id * 100 + number) as f32;
                for state in 0..3 {
                    model.set(*id, state, &vec![mark + state as f32 / 4.0; 4096]);
                }
            }
            orders.insert(order);
        }
        verify(&optimizer, &model, cache);
        assert!(cache == "0" || orders.len() > 1, "the order never turned");
    }
}

#[test]
fn a_write_back_and_the_next_steps_read_ahead_of_one_record_do_not_race() {
    for sync in ["none", "commit"] {
        for reads in ["1", "8"] {
            let settings = [("sync", sync), ("read_ahead", reads), ("write_behind", "8")];
            let (_directory, _engine, optimizer, mut model) = setup(&settings, &[30_000; 6]);
            for round in 0..12 {
                // Steps of one or two records: what was just written back is read at once.
                let ids: Vec<u64> = (0..1 + round % 2).map(|at| (round + at) % 3).collect();
                give_whole(&optimizer, &mut model, &ids, round);
                step(&optimizer, &mut model, Some(&ids), 1, &skips_none);
            }
            verify(&optimizer, &model, sync);
            // One by one, the same record again and again.
            for round in 0..6 {
                let next = Some((round + 1) % 2);
                let view = optimizer.swap_in_state(round % 2, next).unwrap();
                update(&view, model.step + 1);
                optimizer.swap_out_state(round % 2, true).unwrap();
                model.update(round % 2);
            }
            optimizer.release_state(0).unwrap();
            optimizer.commit().unwrap();
            model.step += 1;
            verify(&optimizer, &model, "one by one");
        }
    }
}

#[test]
fn a_commit_while_the_swapper_is_busy_takes_all_that_is_done() {
    let (directory, engine, optimizer, mut model) = setup(&[("sync", "none")], &[100_000; 8]);
    for id in 0..8 {
        let view = optimizer.swap_in_state(id, None).unwrap();
        update(&view, 1);
        optimizer.swap_out_state(id, true).unwrap();
        model.update(id);
    }
    // Its write-backs may still be under way.
    optimizer.commit().unwrap();
    model.step = 1;
    drop(optimizer);
    let optimizer = open(&engine, directory.path(), &[], &model);
    verify(&optimizer, &model, "reopened");
}

#[test]
fn values_never_come_back_wrong_without_an_error() {
    for cache in ["0", "1MiB"] {
        let plan = FaultPlan {
            seed: 32,
            short_per_mille: 100,
            eio_per_mille: 10,
            retry_per_mille: 100,
            delay_per_mille: 200,
            ..FaultPlan::default()
        };
        let directory = directory();
        let engine = Engine::with_faults(&config(&[("block_bytes", "64KiB")]), plan).unwrap();
        let mut model = Model::new(&F32);
        (0..10).for_each(|id| model.add(id, 50_000));
        let optimizer = open(&engine, directory.path(), &[("cache_bytes", cache)], &model);
        initialize(&optimizer, &mut model, 1);
        // What was never committed would be lost with the first step.
        while optimizer.commit().is_err() {}
        let mut history = vec![model.clone()];
        let (mut failed, mut ended) = (0, 0);
        // Which transfers a fault strikes depends on their order, and so on the threads.
        while failed + ended < 60 || failed <= 3 || ended <= 3 {
            assert!(failed + ended < 3000, "{failed} failed, {ended} ended");
            begin_again(&optimizer, &mut model, &history);
            let mut is_bad = false;
            loop {
                match optimizer.step_next() {
                    Ok(Some(view)) => {
                        for (state, found) in view.states().enumerate() {
                            assert!(load(found) == model.records[&view.id].states[state]);
                        }
                        update(&view, model.step + 1);
                        optimizer.step_done(view.id, true).unwrap();
                    }
                    Ok(None) => break,
                    Err(failure) => {
                        assert_eq!(failure.error.status(), Status::Io);
                        is_bad = true;
                        // The step before was lost, and this one with it.
                        if failure.id.is_none() {
                            break;
                        }
                    }
                }
            }
            match optimizer.step_end() {
                Ok(()) => {
                    assert!(!is_bad, "a record was lost without an error");
                    (0..10).for_each(|id| model.update(id));
                    model.step += 1;
                    history.retain(|earlier| earlier.step < model.step);
                    history.push(model.clone());
                    ended += 1;
                }
                Err(error) => {
                    assert_eq!(error.status(), Status::Io, "{error}");
                    optimizer.step_abort().unwrap();
                    let step = optimizer.step_number();
                    let before = history.iter().find(|model| model.step == step);
                    model.clone_from(before.unwrap());
                    failed += 1;
                }
            }
        }
    }
}

#[test]
fn a_gradient_at_an_odd_element_offset_is_exact() {
    for place in ["memory", "disk"] {
        let settings = [("gradients", place)];
        let (_directory, _engine, optimizer, mut model) = setup(&settings, &[600_064, 600_064]);
        for (dtype, offset) in [
            (Dtype::F32, 300_050),
            (Dtype::Bf16, 300_051),
            (Dtype::F32, 300_032),
            (Dtype::F16, 1),
        ] {
            let numel = 600_064 - offset;
            let slope = rounded(&values(numel.min(300_000), offset as u64), dtype);
            give_gradient(&optimizer, &mut model, 0, offset, (&slope, dtype), false);
            let head = rounded(&values(offset.min(300_000), 2), dtype);
            give_gradient(&optimizer, &mut model, 1, 0, (&head, dtype), false);
            optimizer.flush_gradients().unwrap();
            // The step compares what it is given with what was swapped out.
            step(&optimizer, &mut model, None, 1, &skips_none);
        }
        verify(&optimizer, &model, place);
    }
}

#[test]
fn a_parameter_without_a_gradient_never_sees_the_one_of_the_step_before() {
    for place in ["memory", "disk"] {
        let settings = [("gradients", place)];
        let (_directory, _engine, optimizer, mut model) = setup(&settings, &[70_000, 70_000, 300]);
        for round in 0..6 {
            give_whole(&optimizer, &mut model, &[round % 3], round);
            if round % 2 == 0 {
                // Only a part: the rest is zero, not what the buffer held before.
                let id = (round + 1) % 3;
                let part = values(100, round);
                give_gradient(&optimizer, &mut model, id, 50, (&part, Dtype::F32), false);
            }
            step(&optimizer, &mut model, None, 1, &skips_none);
        }
        // Discarded and aborted ones are gone as well.
        give_whole(&optimizer, &mut model, &[0], 7);
        optimizer.discard_gradients().unwrap();
        model.end_gradients();
        step(&optimizer, &mut model, None, 1, &skips_none);
        give_whole(&optimizer, &mut model, &[1], 8);
        optimizer.step_begin(None).unwrap();
        optimizer.step_abort().unwrap();
        model.end_gradients();
        step(&optimizer, &mut model, None, 1, &skips_none);
        verify(&optimizer, &model, place);
    }
}

#[test]
fn a_resumed_run_keeps_step_and_moments_and_goes_on_as_if_never_stopped() {
    let settings = [("sync", "commit")];
    let (directory, engine, optimizer, mut model) = setup(&settings, &[40_000, 7, 123_456]);
    let mut optimizer = Some(optimizer);
    for round in 0..6_u64 {
        let current = optimizer.take().unwrap();
        give_whole(&current, &mut model, &[0, 1, 2], round);
        current
            .set_user_data(format!("round {round}").as_bytes())
            .unwrap();
        step(&current, &mut model, None, 1, &skips_none);
        current.commit().unwrap();
        drop(current);
        let resumed = open(&engine, directory.path(), &settings, &model);
        verify(&resumed, &model, "resumed");
        assert_eq!(resumed.user_data(), format!("round {round}").as_bytes());
        assert_eq!(resumed.step_number(), round + 1);
        for moment in [1, 2] {
            let values = read_state(&resumed, &model, 0, moment).unwrap();
            assert!(values.iter().any(|value| *value != 0.0));
        }
        optimizer = Some(resumed);
    }
}

#[test]
fn a_record_that_is_given_back_unchanged_is_not_written() {
    for pipeline in ["on", "off"] {
        let settings = [("cache_bytes", "0"), ("pipeline_write", pipeline)];
        let (directory, _engine, optimizer, mut model) = setup(&settings, &[5000, 90_000, 700]);
        optimizer.commit().unwrap();
        let rank = directory.path().join("rank0");
        let generations = || -> Vec<u32> {
            let reader = StoreReader::open(&[&rank]).unwrap();
            let parameters = reader.parameters();
            parameters.map(|parameter| parameter.generation).collect()
        };
        let (before, old) = (optimizer.stats(), generations());
        step(&optimizer, &mut model, None, 1, &|_| true);
        optimizer.commit().unwrap();
        let after = optimizer.stats();
        assert_eq!(after.written_bytes, before.written_bytes);
        assert_eq!(after.store_written_bytes, before.store_written_bytes);
        assert_eq!(generations(), old);
        // Of one that is changed only its own bytes are.
        step(&optimizer, &mut model, None, 1, &|id| id != 1);
        optimizer.commit().unwrap();
        let written = optimizer.stats().written_bytes - before.written_bytes;
        assert!(
            (90_000 * 12..90_000 * 12 + 3 * 16384).contains(&written),
            "{written}"
        );
        assert_eq!(generations(), [old[0], old[1] + 1, old[2]]);
        let reader = StoreReader::open(&[&rank]).unwrap();
        assert_eq!(
            reader.written_bytes(),
            optimizer.stats().store_written_bytes
        );
        verify(&optimizer, &model, pipeline);
    }
}
