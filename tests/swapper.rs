//! The swapper against a model of files, over every backend.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;

use std::collections::HashMap;

use support::*;
use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::{Engine, FaultPlan, Tensor};
use tensorswap::swapper::Swapper;

fn small_blocks(backend: &str) -> Engine {
    engine(&[("backend", backend), ("block_bytes", "64KiB")])
}

fn with_buffers(engine: &Engine, count: usize, len_bytes: u64) -> Swapper {
    let swapper = Swapper::new(engine, None).unwrap();
    let buffers: Vec<_> = (0..count)
        .map(|_| engine.allocate_buffer(len_bytes).unwrap())
        .collect();
    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
    swapper
}

/// Random swap-outs and swap-ins give what a map of byte vectors gives.
fn random_walk(backend: &str, seed: u64, steps: usize) {
    let directory = directory();
    let engine = small_blocks(backend);
    let mut random = Random(seed);
    let swapper = with_buffers(
        &engine,
        1 + random.below(3),
        20_000 + random.below(300_000) as u64,
    );
    let mut files: HashMap<usize, Vec<u8>> = HashMap::new();
    for step in 0..steps {
        let file = random.below(6);
        let name = path(directory.path(), &format!("f{file}"));
        match random.below(10) {
            0..=5 => {
                let len = [0, 1, 100, 4096, 5600, 65_536, 700_000][random.below(7)];
                let offset = [0, 0, 0, 513, 4096, 100_000][random.below(6)];
                let keeps = random.one_in(4);
                let mut bytes = random.bytes(len);
                let out = tensor(&mut bytes, offset);
                let out = if keeps { keep(out) } else { out };
                swapper.swap_out(&[out], &[&name]).unwrap();
                let content = files.entry(file).or_default();
                let end = offset as usize + len;
                if content.len() < end || (offset == 0 && !keeps) {
                    content.resize(end, 0);
                }
                content[offset as usize..end].copy_from_slice(&bytes);
                // The memory is the caller's again.
                bytes.fill(0xEE);
            }
            6..=8 => {
                let Some(content) = files.get(&file) else {
                    continue;
                };
                let offset = random.below(content.len() + 1);
                let len = random.below(content.len() - offset + 1);
                let mut back = vec![0xAA; len];
                let into = tensor(&mut back, offset as u64);
                swapper.swap_in(&[into], &[&name]).unwrap();
                assert!(
                    back == content[offset..offset + len],
                    "{backend} {seed} step {step}"
                );
            }
            _ => match random.below(3) {
                0 => swapper.flush(None).unwrap(),
                1 => swapper.submit().unwrap(),
                _ => {
                    let (buffers, flushed) = swapper.release_buffers();
                    flushed.unwrap();
                    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
                }
            },
        }
    }
    swapper.flush(None).unwrap();
    for (file, content) in &files {
        if backend != "memory" {
            let stored = std::fs::read(directory.path().join(format!("f{file}"))).unwrap();
            assert!(stored == *content, "{backend} {seed} file {file}");
        }
    }
    assert_eq!(swapper.stats().in_flight_bytes, 0);
    assert_eq!(swapper.stats().buffers_in_flight_count, 0);
}

#[test]
fn random_swaps_equal_a_model_of_files() {
    for backend in ["io_uring", "threads", "memory"] {
        for seed in 0..6 {
            random_walk(backend, seed * 7919 + 3, 150);
        }
    }
}

#[test]
fn a_tensor_larger_than_all_buffers_is_split_over_them() {
    let directory = directory();
    let engine = small_blocks("io_uring");
    let swapper = with_buffers(&engine, 2, 1 << 20);
    let mut bytes = Random(5).bytes((9 << 20) + 100);
    let name = path(directory.path(), "large");
    for _ in 0..2 {
        swapper
            .swap_out(&[tensor(&mut bytes, 0)], &[&name])
            .unwrap();
    }
    let mut back = vec![0; bytes.len()];
    swapper.swap_in(&[tensor(&mut back, 0)], &[&name]).unwrap();
    assert!(back == bytes);
    swapper.flush(None).unwrap();
    assert!(std::fs::read(directory.path().join("large")).unwrap() == bytes);
    assert_eq!(swapper.timer("swap_out").unwrap().count, 2);
}

#[test]
fn a_failed_write_is_reported_by_flush_and_by_later_reads_and_the_buffers_come_back() {
    let directory = directory();
    let plan = FaultPlan {
        seed: 1,
        eio_per_mille: 1000,
        ..FaultPlan::default()
    };
    let engine = Engine::with_faults(&Config::new(), plan).unwrap();
    let swapper = with_buffers(&engine, 2, 1 << 20);
    let mut bytes = vec![7; 100_000];
    let name = path(directory.path(), "bad");
    swapper
        .swap_out(&[tensor(&mut bytes, 0)], &[&name])
        .unwrap();
    let error = swapper.flush(None).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.to_string().contains("bad"), "{error}");
    assert!(swapper.swap_in(&[tensor(&mut bytes, 0)], &[&name]).is_err());
    assert_eq!(swapper.flush(None), Ok(()));
    let (buffers, flushed) = swapper.release_buffers();
    assert_eq!((buffers.len(), flushed), (2, Ok(())));
    assert!(!swapper.has_buffers());
}

#[test]
fn misuse_is_refused_and_leaves_the_swapper_usable() {
    let directory = directory();
    let engine = small_blocks("io_uring");
    let swapper = Swapper::new(&engine, None).unwrap();
    let name = path(directory.path(), "t");
    let mut bytes = vec![1_u8; 4096];
    let out = tensor(&mut bytes, 0);
    let status = |result: Result<(), tensorswap::base::error::Error>| result.unwrap_err().status();
    assert_eq!(
        status(swapper.swap_out(&[out], &[&name])),
        Status::NoBuffers
    );
    assert_eq!(status(swapper.swap_in(&[out], &[&name])), Status::NoBuffers);
    let buffer = engine.allocate_buffer(1 << 20).unwrap();
    let twice = [buffer.clone(), buffer.clone()];
    assert_eq!(
        status(swapper.add_buffers(&twice, Dtype::F32)),
        Status::InvalidArgument
    );
    assert_eq!(
        status(swapper.add_buffers(&[], Dtype::F32)),
        Status::InvalidArgument
    );
    let other = Engine::new(&Config::new())
        .unwrap()
        .allocate_buffer(4096)
        .unwrap();
    assert_eq!(
        status(swapper.add_buffers(&[other], Dtype::F32)),
        Status::InvalidArgument
    );
    swapper
        .add_buffers(std::slice::from_ref(&buffer), Dtype::F32)
        .unwrap();
    assert_eq!(
        status(swapper.add_buffers(&[buffer], Dtype::F32)),
        Status::Busy
    );
    assert_eq!(
        status(swapper.swap_out(&[out], &[&name])),
        Status::DtypeMismatch
    );
    let floats = unsafe { Tensor::new(bytes.as_mut_ptr(), 1024, Dtype::F32) }.unwrap();
    let overlap = floats.at(100).unwrap();
    let both = swapper.swap_out(&[floats, overlap], &[&name, &name]);
    assert_eq!(status(both), Status::InvalidArgument);
    assert_eq!(
        status(swapper.swap_out(&[floats], &[])),
        Status::InvalidArgument
    );
    assert_eq!(swapper.stats().swap_out_tensors_count, 0);
    swapper.swap_out(&[], &[]).unwrap();
    swapper.swap_out(&[floats], &[&name]).unwrap();
    swapper.flush(None).unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("t")).unwrap(),
        vec![1_u8; 4096]
    );
}
