//! An optimizer step over the store gives, bit for bit, what the same update in memory gives: for
//! every pipeline, cache, number of threads, backend, way of syncing, type on storage and checksum.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;
mod training;

use std::collections::BTreeMap;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::optimizer::Optimizer;
use training::*;

/// One way of training.
struct Variant {
    settings: Vec<(&'static str, &'static str)>,
    types: [State; 3],
    threads: usize,
}

impl Variant {
    /// Options drawn from all that there are.
    fn draw(random: &mut Random, backend: &'static str) -> Variant {
        let flag = ["true", "false"];
        let settings = vec![
            ("backend", backend),
            ("pipeline_read", *random.pick(&flag)),
            ("pipeline_write", *random.pick(&flag)),
            ("read_ahead", *random.pick(&["0", "1", "3"])),
            ("write_behind", *random.pick(&["0", "1", "3"])),
            (
                "cache_bytes",
                *random.pick(&["0", "100KiB", "1MiB", "1GiB"]),
            ),
            ("sync", *random.pick(&["none", "commit"])),
            ("checksum", *random.pick(&["off", "write", "verify"])),
            ("views_max", *random.pick(&["1", "2", "4"])),
            ("block_bytes", *random.pick(&["64KiB", "1MiB"])),
            ("gradients", *random.pick(&["memory", "disk", "auto"])),
            ("gradient_bytes", *random.pick(&["0", "64KiB"])),
        ];
        Variant {
            settings,
            types: *random.pick(&[F32, BF16_MOMENTS, F16, MIXED]),
            threads: *random.pick(&[1, 1, 2, 4]),
        }
    }

    fn name(&self) -> String {
        let types = self.types.map(|(_, memory, disk)| (memory, disk));
        format!("{:?} {types:?} threads={}", self.settings, self.threads)
    }

    /// No thread finds all views taken.
    fn threads(&self) -> usize {
        let (_, views) = self
            .settings
            .iter()
            .find(|(key, _)| *key == "views_max")
            .unwrap();
        self.threads.min(views.parse().unwrap())
    }
}

/// Lengths from one element to some hundreds of thousands, or hundreds of tiny ones and a large one.
fn shapes(random: &mut Random) -> BTreeMap<u64, usize> {
    let mut ids = (0..).map(|number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8);
    let numels: Vec<usize> = if random.one_in(3) {
        (0..150)
            .map(|_| 1 + random.below(200))
            .chain([150_001])
            .collect()
    } else {
        let longest = [1, 5, 1023, 1025, 9000, 70_000];
        (0..3 + random.below(12))
            .map(|_| {
                let longest = *random.pick(&longest);
                1 + random.below(longest)
            })
            .collect()
    };
    numels
        .into_iter()
        .map(|numel| (ids.next().unwrap(), numel))
        .collect()
}

/// Gradients for most parameters: whole, in pieces with gaps, accumulated, of 16 and 32 bits.
fn backward(optimizer: &Optimizer, model: &mut Model, random: &mut Random) {
    optimizer.pre_backward().unwrap();
    let ids: Vec<u64> = model.records.keys().copied().collect();
    let master = model.types[0].1;
    // What the master's memory type cannot express would be rounded.
    let kinds: &[Dtype] = match master {
        Dtype::F32 => &[Dtype::F32, Dtype::F16, Dtype::Bf16],
        Dtype::F16 => &[Dtype::F16],
        _ => &[Dtype::Bf16],
    };
    for id in ids {
        if random.one_in(6) {
            continue;
        }
        let numel = model.records[&id].numel;
        let dtype = *random.pick(kinds);
        let fresh = |len, random: &mut Random| rounded(&values(len, random.next()), dtype);
        if random.one_in(3) && numel > 3 {
            let (first, second) = (random.below(numel / 2), numel / 2 + random.below(numel / 4));
            let piece = fresh(1 + random.below(numel / 4), random);
            give_gradient(optimizer, model, id, second, (&piece, dtype), false);
            let piece = fresh(1 + random.below(numel / 2 - first), random);
            give_gradient(optimizer, model, id, first, (&piece, dtype), false);
        } else {
            let whole = fresh(numel, random);
            give_gradient(optimizer, model, id, 0, (&whole, dtype), false);
        }
        // Sums are exact in 32 bits only.
        if master == Dtype::F32 && random.one_in(2) {
            let more = values(numel, random.next());
            give_gradient(optimizer, model, id, 0, (&more, Dtype::F32), true);
        }
    }
    if random.one_in(2) {
        optimizer.flush_gradients().unwrap();
    }
    optimizer.post_backward().unwrap();
}

/// Some steps, with the store opened anew in the middle where there is one.
fn train(variant: &Variant, seed: u64) {
    let context = format!("seed {seed} {}", variant.name());
    let directory = directory();
    let is_stored = !variant.settings.contains(&("backend", "memory"));
    let mut random = Random(seed);
    let mut model = Model::new(&variant.types);
    for (id, numel) in shapes(&mut random) {
        model.add(id, numel);
    }
    let open = |model: &Model| {
        let engine = engine(&engine_settings(&variant.settings));
        open(&engine, directory.path(), &variant.settings, model)
    };
    let mut optimizer = open(&model);
    if !random.one_in(4) {
        initialize(&optimizer, &mut model, seed);
    }
    let ids: Vec<u64> = model.records.keys().copied().collect();
    for round in 0..5_u64 {
        backward(&optimizer, &mut model, &mut random);
        let some: Vec<u64> = ids.iter().copied().filter(|_| !random.one_in(3)).collect();
        let subset = (round == 2).then_some(&some[..]);
        let skips = |id: u64| round == 1 && id.is_multiple_of(3);
        step(&optimizer, &mut model, subset, variant.threads(), &skips);
        if round == 2 {
            verify(&optimizer, &model, &context);
        }
        if round == 3 && is_stored {
            optimizer.commit().unwrap();
            drop(optimizer);
            optimizer = open(&model);
            verify(&optimizer, &model, &format!("reopened, {context}"));
        }
    }
    verify(&optimizer, &model, &context);
}

/// The settings that an engine takes as well.
fn engine_settings<'a>(settings: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let keys = ["backend", "block_bytes"];
    let mut settings = settings.to_vec();
    settings.retain(|(key, _)| keys.contains(key));
    settings
}

fn sweep(backend: &'static str) {
    let mut random = Random(backend.len() as u64);
    for seed in 0..8 * scale() {
        train(&Variant::draw(&mut random, backend), seed);
    }
}

#[test]
fn io_uring_trains_as_memory_does() {
    sweep("io_uring");
}

#[test]
fn threads_train_as_memory_does() {
    sweep("threads");
}

#[test]
fn a_store_in_memory_trains_as_memory_does() {
    sweep("memory");
}

/// What the records hold after some steps with rounding by chance.
fn rounded_by_chance(settings: &[(&'static str, &'static str)], threads: usize) -> Vec<Vec<f32>> {
    let directory = directory();
    let engine = engine(&[("block_bytes", "64KiB")]);
    let mut model = Model::new(&BF16_MOMENTS);
    for (id, numel) in [1, 70, 5000, 10_001, 40_003].into_iter().enumerate() {
        model.add(id as u64, numel);
    }
    let fixed = [("rounding", "stochastic"), ("seed", "7")];
    let settings = [&fixed, settings].concat();
    let optimizer = open(&engine, directory.path(), &settings, &model);
    initialize(&optimizer, &mut model, 3);
    let ids: Vec<u64> = model.records.keys().copied().collect();
    for number in 1..=4 {
        for id in &ids {
            let slope = values(model.records[id].numel, id + 100 * number);
            give_gradient(&optimizer, &mut model, *id, 0, (&slope, Dtype::F32), false);
        }
        optimizer.step_begin(None).unwrap();
        drain(&optimizer, threads, &|view| {
            update(view, number);
            true
        });
        optimizer.step_end().unwrap();
    }
    ids.iter()
        .flat_map(|id| (0..3).map(|state| read_state(&optimizer, &model, *id, state).unwrap()))
        .collect()
}

#[test]
fn stochastic_rounding_depends_on_no_order_thread_or_cache() {
    let expected = rounded_by_chance(&[], 1);
    let others: [(&[_], usize); 5] = [
        (
            &[("pipeline_read", "false"), ("pipeline_write", "false")],
            1,
        ),
        (&[("cache_bytes", "1GiB"), ("sync", "none")], 1),
        (&[("cache_bytes", "100KiB")], 2),
        (&[("views_max", "4")], 4),
        (&[("checksum", "off"), ("read_ahead", "1")], 2),
    ];
    for (settings, threads) in others {
        let found = rounded_by_chance(settings, threads);
        assert!(found == expected, "{settings:?} {threads} threads");
    }
    // Moments were rounded, and neither to the nearest value nor as with another seed.
    let nearest = rounded_by_chance(&[("rounding", "nearest")], 1);
    let other = rounded_by_chance(&[("seed", "8")], 1);
    assert!(nearest != expected && other != expected);
    let is_bf16 = |value: &f32| rounded(&[*value], Dtype::Bf16) == [*value];
    assert!(expected[4 * 3 + 1].iter().all(is_bf16));
}

#[test]
fn a_parameter_of_some_hundred_mebibytes_trains_as_memory_does() {
    if !is_long() {
        skip("long", "a record of 600 MiB, without TSW_TEST_LONG=1");
        return;
    }
    let directory = directory();
    let engine = engine(&[]);
    let mut model = Model::new(&F32);
    model.add(1, 50 << 20);
    (2..300).for_each(|id| model.add(id, 1 + id as usize % 50));
    let optimizer = open(&engine, directory.path(), &[], &model);
    initialize(&optimizer, &mut model, 1);
    for number in 0..2 {
        let slope = values(50 << 20, number);
        give_gradient(&optimizer, &mut model, 1, 0, (&slope, Dtype::F32), false);
        step(&optimizer, &mut model, None, 2, &|_| false);
    }
    verify(&optimizer, &model, "large");
}
