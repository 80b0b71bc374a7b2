//! Threads that call everything at once, on one engine, one swapper and one optimizer: each call is
//! done or refused, nothing is torn, and in the end all is as usable as at the beginning.
//!
//! A second or two in `cargo test`; `tests/long` has it go on for longer, under ThreadSanitizer.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;
mod training;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::Engine;
use tensorswap::optimizer::{Optimizer, ParameterView};
use tensorswap::swapper::Swapper;
use training::*;

/// Lengths of the parameters; the id is the index.
const NUMELS: [usize; 9] = [1, 3, 1024, 1025, 5000, 9001, 20_000, 33_333, 50_000];

/// What all threads work on.
struct Shared {
    engine: Engine,
    swapper: Swapper,
    optimizer: Optimizer,
    directory: tempfile::TempDir,
    until: Instant,
    values: AtomicU64,
    outcomes: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Shared {
    fn note<T>(&self, call: &'static str, result: Result<T, Error>, may: &[Status]) -> Option<T> {
        let status = result.as_ref().map_or_else(Error::status, |_| Status::Ok);
        let text = result.as_ref().err().map(ToString::to_string);
        assert!(
            status == Status::Ok || may.contains(&status),
            "{call}: {status:?} {text:?}"
        );
        *self
            .outcomes
            .lock()
            .unwrap()
            .entry((call, status.name()))
            .or_default() += 1;
        result.ok()
    }

    /// A value that no other record, state or time has.
    fn value(&self) -> f32 {
        self.values.fetch_add(1, Ordering::Relaxed) as f32
    }
}

/// Every write writes one value all over, so whatever is read is one value all over, or torn.
fn assert_uniform(values: &[f32], what: &str) {
    let first = values[0].to_bits();
    assert!(
        values.iter().all(|value| value.to_bits() == first),
        "{what} is torn"
    );
}

fn change(shared: &Shared, view: &ParameterView, changes: bool) {
    for state in view.states() {
        let found = load(state);
        assert_uniform(&found, "a view");
        if changes {
            store(state, &vec![shared.value(); found.len()]);
        }
    }
    if let Some(gradient) = view.gradient() {
        assert_uniform(&load(gradient), "a gradient");
    }
}

fn requests(shared: &Shared, thread: u64) {
    let mut random = Random(thread);
    let name = path(shared.directory.path(), &format!("own{thread}"));
    let mut round = 0;
    while Instant::now() < shared.until {
        round += 1;
        let len = 1 + random.below(200_000);
        let written = pattern(len, round);
        assert_eq!(write(&shared.engine, &name, &written, 0).outcome, Ok(()));
        let (back, done) = read(&shared.engine, &name, len, 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == written);
        // One that is withdrawn, or not; its memory is ours again after the wait.
        let mut bytes = written;
        let ticket = shared.engine.swap_out(&[tensor(&mut bytes, 0)], &[&name]);
        let ticket = ticket.unwrap();
        let _ = shared.engine.progress(ticket);
        let cancelled = shared.engine.cancel(ticket);
        shared.note(
            "cancel",
            cancelled,
            &[Status::Busy, Status::InvalidArgument],
        );
        let outcome = wait(&shared.engine, ticket).outcome;
        shared.note("withdrawn", outcome, &[Status::Cancelled]);
        match random.below(6) {
            0 => _ = shared.engine.prometheus(),
            1 => _ = shared.engine.describe(),
            2 => _ = shared.engine.event_fd().unwrap(),
            3 => drop(shared.engine.allocate_buffer(100_000).unwrap()),
            4 => {
                let waited = shared.engine.wait_all(Some(Duration::ZERO));
                shared.note("wait_all", waited, &[Status::TimedOut, Status::Cancelled]);
            }
            _ => _ = shared.engine.stats(),
        }
    }
}

fn staging(shared: &Shared, thread: u64) {
    let mut random = Random(thread);
    let name = path(shared.directory.path(), &format!("staged{thread}"));
    let busy = [Status::Busy];
    while Instant::now() < shared.until {
        let mut bytes = random.bytes(1 + thread as usize * 30_000);
        let out = [tensor(&mut bytes, 0)];
        let swapped = shared.swapper.swap_out(&out, &[&name]);
        if shared.note("stage", swapped, &busy).is_some() {
            let mut back = vec![0; bytes.len()];
            let into = [tensor(&mut back, 0)];
            let swapped = shared.swapper.swap_in(&into, &[&name]);
            if shared.note("unstage", swapped, &busy).is_some() {
                assert!(back == bytes);
            }
        }
        let may = [Status::Busy, Status::TimedOut];
        let flushed = shared.swapper.flush(Some(Duration::ZERO));
        shared.note("flush", flushed, &may);
        shared.note("submit", shared.swapper.submit(), &busy);
        let _ = (shared.swapper.stats(), shared.swapper.timer_names());
    }
}

/// Views that this thread holds: of the open step, and one by one.
#[derive(Default)]
struct Held {
    of_step: Vec<ParameterView>,
    single: Vec<ParameterView>,
}

/// Every call of the optimizer, at random; whatever another thread is in the middle of.
fn everything(shared: &Shared, thread: u64) {
    let optimizer = &shared.optimizer;
    let mut random = Random(thread);
    let mut held = Held::default();
    let busy = [Status::Busy];
    while Instant::now() < shared.until {
        let id = random.below(NUMELS.len()) as u64;
        let numel = NUMELS[id as usize];
        let mut bytes = to_bytes(&vec![shared.value(); numel], Dtype::F32);
        let tensor = elements(&mut bytes, Dtype::F32);
        match random.below(26) {
            0 => _ = shared.note("step_begin", optimizer.step_begin(None), &busy),
            1..=8 => {
                let may = [Status::Busy, Status::NoBuffers, Status::Cancelled];
                let next = optimizer.step_next().map_err(|failed| failed.error);
                if let Some(Some(view)) = shared.note("step_next", next, &may) {
                    change(shared, &view, false);
                    held.of_step.push(view);
                }
            }
            9..=15 => {
                if let Some(view) = held.of_step.pop() {
                    change(shared, &view, true);
                    let done = optimizer.step_done(view.id, true);
                    shared.note("step_done", done, &[]);
                }
            }
            16 => _ = shared.note("step_end", optimizer.step_end(), &busy),
            17 if random.one_in(10) => {
                shared.note("step_abort", optimizer.step_abort(), &busy);
            }
            17 => _ = shared.note("step_end", optimizer.step_end(), &busy),
            18 => {
                let next = random.one_in(2).then_some((id + 1) % NUMELS.len() as u64);
                let may = [Status::Busy, Status::NoBuffers];
                let view = optimizer.swap_in_state(id, next);
                if let Some(view) = shared.note("swap_in_state", view, &may) {
                    change(shared, &view, true);
                    held.single.push(view);
                }
            }
            19 => {
                if let Some(view) = held.single.pop() {
                    let out = optimizer.swap_out_state(view.id, random.one_in(2));
                    // Another thread is inside; it is still ours.
                    if shared.note("swap_out_state", out, &busy).is_none() {
                        held.single.push(view);
                    }
                }
            }
            20 => _ = shared.note("commit", optimizer.commit(), &busy),
            21 => {
                let given = optimizer.swap_out_gradients(id, &[0], &[tensor]);
                shared.note("swap_out_gradients", given, &busy);
            }
            22 => {
                let may = [Status::Busy, Status::NoBuffers];
                let done = optimizer.initialize_parameters(&[id], &[tensor]);
                shared.note("initialize", done, &may);
            }
            23 => {
                let may = [Status::Busy, Status::NoBuffers];
                let done = optimizer.read_state(id, "exp_avg", &tensor);
                if shared.note("read_state", done, &may).is_some() {
                    assert_uniform(&from_bytes(&bytes, Dtype::F32), "a state");
                }
            }
            24 => {
                let may = [Status::Busy, Status::NoBuffers];
                let done = optimizer.write_state(id, "exp_avg_sq", &tensor);
                shared.note("write_state", done, &may);
            }
            _ => {
                let _ = (
                    optimizer.stats(),
                    optimizer.timer_names(),
                    optimizer.user_data(),
                );
                let _ = (optimizer.parameter_at(3), optimizer.step_number());
                shared.note("set_user_data", optimizer.set_user_data(b"any"), &busy);
                shared.note("gradient_norm", optimizer.gradient_norm(id), &busy);
                shared.note("flush_gradients", optimizer.flush_gradients(), &busy);
                shared.note("post_backward", optimizer.post_backward(), &busy);
                if random.one_in(4) {
                    shared.note("discard", optimizer.discard_gradients(), &busy);
                    shared.note("purge_state", optimizer.purge_state(), &busy);
                }
                let late = optimizer.add_state("late", Dtype::F32, Dtype::F32);
                shared.note("add_state", late, &[Status::Busy, Status::InvalidArgument]);
            }
        }
    }
    give_back(shared, held);
}

/// What a thread still holds in the end; others may be inside.
fn give_back(shared: &Shared, held: Held) {
    for view in held.of_step {
        shared.optimizer.step_done(view.id, false).unwrap();
    }
    for view in held.single {
        while let Err(error) = shared.optimizer.release_state(view.id) {
            assert_eq!(error.status(), Status::Busy, "{error}");
            std::thread::yield_now();
        }
    }
}

fn at_once(backend: &str, gradients: &str) {
    let directory = directory();
    let engine = engine(&[("backend", backend), ("block_bytes", "64KiB")]);
    let swapper = Swapper::new(&engine, None).unwrap();
    let buffers = [1 << 20, 1 << 18].map(|len| engine.allocate_buffer(len).unwrap());
    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
    let mut model = Model::new(&F32);
    (0..)
        .zip(NUMELS)
        .for_each(|(id, numel)| model.add(id, numel));
    let settings = [("views_max", "4"), ("gradients", gradients)];
    let optimizer = open(&engine, &directory.path().join("store"), &settings, &model);
    let shared = Shared {
        until: Instant::now() + duration(),
        values: AtomicU64::new(1),
        outcomes: Mutex::default(),
        engine,
        swapper,
        optimizer,
        directory,
    };
    let shared = &shared;
    std::thread::scope(|scope| {
        for thread in 1..=2 {
            scope.spawn(move || requests(shared, thread));
            scope.spawn(move || staging(shared, thread));
        }
        for thread in 1..=4 {
            scope.spawn(move || everything(shared, thread));
        }
    });
    println!("{:?}", shared.outcomes.lock().unwrap());
    let _ = shared.optimizer.step_abort();
    for id in 0..NUMELS.len() as u64 {
        // Only what was prefetched is still held.
        let _ = shared.optimizer.release_state(id);
    }
    // What was swapped out one by one counts as a step with the next commit.
    shared.optimizer.commit().unwrap();
    step(
        &shared.optimizer,
        &mut as_found(&shared.optimizer, model),
        None,
        4,
        &|_| false,
    );
    shared.optimizer.commit().unwrap();
    shared.swapper.flush(PATIENCE).unwrap();
    shared.engine.quiesce(PATIENCE).unwrap();
    let stats = shared.engine.stats();
    assert_eq!(
        (stats.in_flight_count, stats.requests_in_flight_count),
        (0, 0)
    );
}

/// What the threads have left: each state of a record one value all over.
fn as_found(optimizer: &Optimizer, mut model: Model) -> Model {
    optimizer.discard_gradients().unwrap();
    model.step = optimizer.step_number();
    for id in 0..NUMELS.len() as u64 {
        for state in 0..F32.len() {
            let found = read_state(optimizer, &model, id, state).unwrap();
            assert_uniform(&found, "a state");
            model.set(id, state, &found);
        }
    }
    model
}

#[test]
fn threads_that_call_everything_at_once_on_a_ring() {
    at_once("auto", "memory");
}

#[test]
fn threads_that_call_everything_at_once_on_threads() {
    at_once("threads", "disk");
}
