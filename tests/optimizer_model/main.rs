//! Random calls, valid and invalid, against a model in plain vectors that tells the status of each
//! and all data: whatever is called in whatever order, the object answers, stays usable, and holds
//! what it should, also after it was dropped and the store opened again.
//!
//! The same on a file system that fails, dawdles and lies by a plan (`fuse/`): every value that is
//! given is right, or there is an error, and the store opens at a step that was committed. Snapshots
//! that are made there are whole or gone, and what is restored from them is right or refused.
//!
//! `TSW_TEST_SEED=N` runs one seed alone, `TSW_TEST_CALLS=N` only its first calls.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../fuse/mod.rs"]
mod fuse;
mod gradients;
mod one_by_one;
mod records;
mod reopening;
mod snapshots;
mod stepping;
#[path = "../support/mod.rs"]
mod support;
#[path = "../training/mod.rs"]
mod training;
mod world;

use std::collections::BTreeMap;

use fuse::Mount;
use support::*;
use world::World;

const CALLS: usize = 400;
const SEEDS: u64 = 8;
/// Seeds of each plan of faults.
const FAULT_SEEDS: u64 = 1;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What struck, and how often a call was met by it.
#[derive(Default)]
struct Outcome {
    struck: BTreeMap<String, u64>,
    troubles: u64,
    /// Snapshots that were begun, and how often one was restored: each twice at most.
    snapshots: usize,
    restored: usize,
}

fn run(seed: u64, backend: &'static str, mount: Option<Mount>) -> Outcome {
    let mut world = World::new(seed, backend, mount);
    let calls = number("TSW_TEST_CALLS").map_or(CALLS, |calls| calls as usize);
    let what = format!("{backend}: seed {seed}");
    trial(
        &what,
        &mut world,
        |world| &world.log,
        |world| {
            (0..calls).for_each(|_| world.call());
            world.reopen();
        },
    );
    let struck = world.mount.as_mut().map_or_else(Vec::new, Mount::struck);
    Outcome {
        struck: struck.into_iter().collect(),
        troubles: world.troubles,
        snapshots: world.snapshots_count,
        restored: world.restored_count,
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match number("TSW_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

fn sweep(backend: &'static str) {
    for seed in seeds(SEEDS * scale()) {
        run(seed, backend, None);
    }
}

/// The same on a file system with this plan, with these backends in turn.
fn sweep_with(plan: &str, backends: &[&'static str]) -> Outcome {
    let plan = std::env::var("TSW_TEST_PLAN").unwrap_or(plan.to_owned());
    let mut all = Outcome::default();
    for seed in seeds(FAULT_SEEDS * scale()) {
        let Some(mount) = Mount::new(seed, &plan) else {
            break;
        };
        let backend = backends[seed as usize % backends.len()];
        let outcome = run(seed, backend, Some(mount));
        all.troubles += outcome.troubles;
        all.snapshots += outcome.snapshots;
        all.restored += outcome.restored;
        for (fault, count) in outcome.struck {
            *all.struck.entry(fault).or_default() += count;
        }
    }
    println!(
        "{plan}: {:?}, {} calls failed, {} snapshots, restored {} times",
        all.struck, all.troubles, all.snapshots, all.restored
    );
    all
}

const BACKENDS: [&str; 2] = ["io_uring", "threads"];

#[test]
fn short_and_slow_transfers_are_no_failures() {
    let outcome = sweep_with(
        "* read 200 short, * write 200 short, * read 100 delay, * write 100 delay, * sync 100 delay",
        &["threads"],
    );
    assert_eq!(outcome.troubles, 0);
}

#[test]
fn short_transfers_that_a_ring_continues_wrongly_are_errors_and_never_values() {
    sweep_with("data read 200 short, data write 200 short", &["io_uring"]);
}

#[test]
fn failing_transfers_lose_nothing_that_was_committed() {
    sweep_with("* read 30 EIO, * write 30 EIO", &BACKENDS);
}

#[test]
fn a_full_disk_loses_nothing_that_was_committed() {
    sweep_with("* write 30 ENOSPC, * reserve 200 ENOSPC", &BACKENDS);
}

#[test]
fn failing_syncs_lengths_names_and_openings_lose_nothing_that_was_committed() {
    sweep_with(
        "* sync 50 EIO, * length 50 EIO, * open 50 EIO, * rename 300 EIO",
        &BACKENDS,
    );
}

#[test]
fn lost_writes_are_errors_and_never_values() {
    sweep_with(
        "data write 50 lost, log write 50 lost, manifest write 50 lost",
        &BACKENDS,
    );
}

#[test]
fn torn_writes_are_errors_and_never_values() {
    sweep_with(
        "data write 50 torn, log write 50 torn, manifest write 50 torn",
        &BACKENDS,
    );
}

#[test]
fn stale_reads_are_errors_and_never_values() {
    sweep_with(
        "data read 50 stale, log read 50 stale, manifest read 50 stale",
        &BACKENDS,
    );
}

#[test]
fn all_faults_at_once_are_errors_and_never_values() {
    sweep_with(
        "* read 5 EIO, * write 5 EIO, * reserve 50 ENOSPC, * sync 10 EIO, * read 20 delay, \
         * write 20 delay, data write 10 lost, data write 10 torn, \
         data read 10 stale, log write 10 torn, log write 10 lost",
        &BACKENDS,
    );
}

#[test]
fn io_uring_does_what_the_model_does() {
    sweep("io_uring");
}

#[test]
fn threads_do_what_the_model_does() {
    sweep("threads");
}

#[test]
fn memory_does_what_the_model_does() {
    sweep("memory");
}
