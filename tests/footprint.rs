//! What is computed before there is an optimizer is what the optimizer comes to.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;
mod training;

use support::*;
use tensorswap::base::config::OptimizerOptions;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::optimizer::{Footprint, Optimizer};
use training::*;

/// Trains for three steps; says what was computed, and the figures after each step.
fn compare(settings: &[(&str, &str)], types: &[State; 3], numels: &[usize]) {
    let place = directory();
    let engine = engine(&[]);
    let mut model = Model::new(types);
    for (id, numel) in (0..).zip(numels) {
        model.add(id, *numel);
    }
    let mut config = config(settings);
    config.set("path", place.path().to_str().unwrap()).unwrap();
    let options = OptimizerOptions::from_config(&config).unwrap();
    let pairs = types.map(|(_, memory, disk)| (memory, disk));
    let lengths = numels.iter().map(|numel| *numel as u64);
    let computed = Footprint::compute(&options, &pairs, lengths).unwrap();
    assert_eq!(computed.parameters_count, numels.len() as u64);
    assert_eq!(computed.elements_count, numels.iter().sum::<usize>() as u64);

    let optimizer = open(&engine, place.path(), settings, &model);
    initialize(&optimizer, &mut model, 1);
    for round in 0..3 {
        for (id, numel) in (0..).zip(numels) {
            let slope = rounded(&values(*numel, id + model.step), types[0].1);
            give_gradient(&optimizer, &mut model, id, 0, (&slope, Dtype::F32), false);
        }
        step(&optimizer, &mut model, None, 1, &|_| false);
        optimizer.commit().unwrap();
        let stats = optimizer.stats();
        assert_eq!(
            stats.pinned_computed_bytes, computed.pinned_bytes,
            "{settings:?}"
        );
        assert_eq!(stats.store_bytes, computed.storage_bytes);
        // Residents are written by the explicit commits as well, which came after each step.
        let written = computed.step_written_bytes.max(computed.storage_bytes / 2);
        assert!(
            stats.step_written_bytes <= written,
            "{settings:?} {stats:?}"
        );
        assert!(
            stats.step_read_bytes <= computed.step_read_bytes,
            "{settings:?} {stats:?}"
        );
        if settings.contains(&("views_max", "1")) {
            // Nothing but one record stays in memory. The first step reads no moments: all zero.
            let largest = computed.pinned_bytes;
            assert!(round == 0 || stats.step_read_bytes + largest >= computed.step_read_bytes);
            assert_eq!(stats.step_written_bytes, computed.step_written_bytes);
        }
    }
    let data = std::fs::metadata(place.path().join("rank0/data")).unwrap();
    assert!(data.len() >= computed.storage_bytes);
}

#[test]
fn the_optimizer_comes_to_what_was_computed() {
    let numels = [1, 5000, 20_000, 1024, 7000, 270_000];
    compare(&[], &F32, &numels);
    compare(&[("cache_bytes", "1MiB")], &BF16_MOMENTS, &numels);
    compare(
        &[("cache_bytes", "1GiB"), ("sync", "none")],
        &MIXED,
        &numels,
    );
    let alone = [
        ("views_max", "1"),
        ("pipeline_read", "false"),
        ("pipeline_write", "false"),
    ];
    compare(&alone, &F16, &numels);
    compare(
        &[("pinned_bytes", "16MiB"), ("read_ahead", "3")],
        &F32,
        &numels,
    );
}

#[test]
fn what_the_optimizer_would_refuse_is_refused() {
    let with = |settings: &[(&str, &str)]| {
        let mut config = config(settings);
        config.set("path", "/nowhere").unwrap();
        OptimizerOptions::from_config(&config).unwrap()
    };
    let f32_twice = [(Dtype::F32, Dtype::F32); 2];
    let small = with(&[("pinned_bytes", "4096")]);
    let error = Footprint::compute(&small, &f32_twice, [1 << 20]).unwrap_err();
    assert_eq!(error.status(), Status::Budget);
    let plain = with(&[]);
    let refused = |states: &[(Dtype, Dtype)], numels: &[u64]| {
        Footprint::compute(&plain, states, numels.iter().copied()).unwrap_err()
    };
    assert!(matches!(
        refused(&f32_twice, &[0]),
        Error::InvalidArgument(_)
    ));
    assert!(matches!(
        refused(&f32_twice, &[u64::MAX]),
        Error::InvalidArgument(_)
    ));
    assert!(matches!(refused(&[], &[1]), Error::InvalidArgument(_)));
    assert!(matches!(
        refused(&[(Dtype::F32, Dtype::F32); 9], &[1]),
        Error::InvalidArgument(_)
    ));
    let master = [(Dtype::I32, Dtype::I32)];
    assert_eq!(refused(&master, &[1]).status(), Status::Unsupported);
    let converted = [(Dtype::F32, Dtype::F32), (Dtype::F32, Dtype::I8)];
    assert_eq!(refused(&converted, &[1]).status(), Status::Unsupported);
    // A terabyte of state is arithmetic only.
    let many = Footprint::compute(&plain, &f32_twice, (0..1000).map(|_| 1 << 27)).unwrap();
    assert_eq!(
        many.storage_bytes,
        (64 << 10) + 2 * 1000 * 2 * ((4 << 27) + 12288)
    );
    let none = Footprint::compute(&plain, &f32_twice, []).unwrap();
    assert_eq!((none.pinned_bytes, none.step_read_bytes), (0, 0));
}

/// The types that the test above relies on.
#[test]
fn an_optimizer_refuses_the_same_types() {
    let place = directory();
    let engine = engine(&[]);
    let mut config = config(&[]);
    config.set("path", place.path().to_str().unwrap()).unwrap();
    let optimizer = Optimizer::new(&engine, &config).unwrap();
    let refused = optimizer.add_state("master", Dtype::I32, Dtype::I32);
    assert_eq!(refused.unwrap_err().status(), Status::Unsupported);
}
