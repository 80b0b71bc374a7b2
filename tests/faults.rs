//! Faults seeded through every operation: each ticket ends once, success is never wrong, failure
//! says where, what failed reads as failed until it is rewritten, and nothing is lost.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stderr
)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Completion, Engine, FaultPlan, Tensor};

const FILES: usize = 3;
/// Requests of one seed.
const REQUESTS: usize = 40;
/// Requests in flight before all are waited for.
const ROUND: usize = 10;
/// Seeds for each backend.
const SEEDS: u64 = 24;

/// The tests look at the descriptors of the whole process, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// What is known of a byte on storage.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Byte {
    Known(u8),
    /// Anything may be there, and it may be read.
    Unknown,
    /// A write of it failed: reading it must fail.
    Failed,
}

#[derive(Default, Clone)]
struct File {
    bytes: Vec<Byte>,
    /// The length is that of `bytes`.
    len_is_known: bool,
}

struct Spot {
    file: usize,
    offset: usize,
    keeps: bool,
    tag: u64,
    content: Vec<u8>,
    memory: Arc<Memory>,
}

/// Memory that is taken away as soon as the engine lets go of it.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    start: usize,
    len: usize,
    /// What was there when it was let go of.
    last: Mutex<Option<Vec<u8>>>,
    hooks_run: AtomicUsize,
    is_registered: bool,
}

impl Memory {
    fn pointer(&self) -> *mut u8 {
        self.bytes.lock().unwrap()[self.start..].as_mut_ptr()
    }

    fn content(&self) -> Vec<u8> {
        if self.is_registered {
            return self.last.lock().unwrap().clone().unwrap();
        }
        self.bytes.lock().unwrap()[self.start..self.start + self.len].to_vec()
    }
}

struct Request {
    reads: bool,
    spots: Vec<Spot>,
    ticket: u64,
    completion: Option<Completion>,
}

struct World {
    engine: Engine,
    random: Random,
    paths: Vec<std::ffi::CString>,
    files: Vec<File>,
    requests: Vec<Request>,
    errors_count: usize,
}

impl World {
    fn memory(&mut self, content: &[u8]) -> Arc<Memory> {
        let skew = *self.random.pick(&[0, 0, 3, 512]);
        let mut bytes = vec![0; content.len() + 2 * 4096];
        let start = bytes.as_ptr().align_offset(4096) + skew;
        bytes[start..start + content.len()].copy_from_slice(content);
        let is_registered = !content.is_empty() && self.random.one_in(4);
        Arc::new(Memory {
            bytes: Mutex::new(bytes),
            start,
            len: content.len(),
            last: Mutex::new(None),
            hooks_run: AtomicUsize::new(0),
            is_registered,
        })
    }

    fn spots(&mut self, reads: bool) -> Vec<Spot> {
        let mut spots: Vec<Spot> = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let file = self.random.below(FILES);
            let offset = *self.random.pick(&[0, 0, 0, 100, 4096, 5000, 8192, 30_000]);
            let len = match self.random.below(4) {
                0 => self.random.below(500),
                1 => 4096 * self.random.below(5),
                2 => self.random.below(200_000),
                _ => self.random.below(9000),
            };
            let overlaps = spots.iter().any(|other| {
                other.file == file
                    && other.offset < offset + len
                    && offset < other.offset + other.content.len()
            });
            if overlaps && !reads {
                continue;
            }
            let content = if reads {
                vec![0x5A; len]
            } else {
                self.random.bytes(len)
            };
            let memory = self.memory(&content);
            spots.push(Spot {
                file,
                offset,
                keeps: self.random.one_in(2),
                tag: self.random.next(),
                content,
                memory,
            });
        }
        spots
    }

    fn submit(&mut self) {
        let reads = self.random.one_in(2);
        let spots = self.spots(reads);
        let mut buffers = Vec::new();
        let mut tensors = Vec::new();
        for spot in &spots {
            let memory = Arc::clone(&spot.memory);
            let pointer = memory.pointer();
            if memory.is_registered {
                let hook = move |start: *mut u8, len: u64| {
                    // SAFETY: the engine gives back what it was given, and uses it no more.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(start, len as usize) };
                    *memory.last.lock().unwrap() = Some(bytes.to_vec());
                    bytes.fill(0xDD);
                    memory.hooks_run.fetch_add(1, Ordering::SeqCst);
                };
                let len = spot.content.len() as u64;
                // SAFETY: `requests` keeps the memory longer than the engine lives.
                let buffer = unsafe {
                    self.engine
                        .register_buffer(pointer, len, Some(Box::new(hook)))
                };
                buffers.push(buffer.unwrap());
            }
            let len = spot.content.len() as u64;
            // SAFETY: as above.
            let tensor = unsafe { Tensor::new(pointer, len, Dtype::Bytes) }.unwrap();
            let tensor = tensor.at(spot.offset as u64).unwrap().tagged(spot.tag);
            tensors.push(if spot.keeps { keep(tensor) } else { tensor });
        }
        let paths: Vec<_> = spots
            .iter()
            .map(|spot| self.paths[spot.file].as_c_str())
            .collect();
        let ticket = if reads {
            self.engine.swap_in(&tensors, &paths)
        } else {
            self.engine.swap_out(&tensors, &paths)
        }
        .unwrap();
        // The request alone keeps them now.
        drop(buffers);
        self.requests.push(Request {
            reads,
            spots,
            ticket,
            completion: None,
        });
    }

    /// Waits for everything, then replays it in the order of submission.
    fn settle(&mut self, on_disk: bool) {
        let first = self
            .requests
            .iter()
            .position(|request| request.completion.is_none())
            .unwrap_or(self.requests.len());
        for request in &mut self.requests[first..] {
            let completion = self.engine.wait(request.ticket, PATIENCE).unwrap();
            assert_eq!(completion.ticket, request.ticket);
            request.completion = Some(completion);
            let again = self.engine.wait(request.ticket, PATIENCE);
            assert_eq!(again, Err(Error::BadTicket(request.ticket)));
        }
        assert_eq!(self.engine.poll(9, &mut |_| panic!("twice")), Ok(0));
        let requests = std::mem::take(&mut self.requests);
        for request in &requests[first..] {
            self.check_error(request);
            for spot in request
                .spots
                .iter()
                .filter(|spot| spot.memory.is_registered)
            {
                let deadline = std::time::Instant::now() + PATIENCE.unwrap();
                while spot.memory.hooks_run.load(Ordering::SeqCst) == 0 {
                    assert!(std::time::Instant::now() < deadline, "a buffer is lost");
                    std::thread::yield_now();
                }
            }
            if request.reads {
                self.replay_read(request);
            } else {
                self.replay_write(request);
            }
        }
        self.requests = requests;
        if on_disk {
            self.compare();
        }
    }

    fn check_error(&mut self, request: &Request) {
        let completion = request.completion.as_ref().unwrap();
        let total: usize = request.spots.iter().map(|spot| spot.content.len()).sum();
        let Err(error) = &completion.outcome else {
            assert_eq!(completion.failed_index, None);
            assert_eq!(completion.bytes_done, total as u64);
            assert_eq!(completion.user_tag, request.spots[0].tag);
            return;
        };
        self.errors_count += 1;
        assert!(completion.bytes_done <= total as u64);
        let index = completion.failed_index.unwrap() as usize;
        assert_eq!(completion.user_tag, request.spots[index].tag, "{error}");
        match error {
            Error::Io(failure) => {
                let own = if request.reads { "swap_in" } else { "swap_out" };
                // A read may meet the failure of an earlier write.
                assert!(
                    failure.operation == own || (request.reads && failure.operation == "swap_out")
                );
                let path = self.paths[request.spots[index].file].to_str().unwrap();
                assert_eq!(failure.path, path);
                assert!(
                    [
                        libc::EIO,
                        libc::ENOSPC,
                        libc::EACCES,
                        libc::EINTR,
                        libc::EAGAIN,
                        libc::ENOENT
                    ]
                    .contains(&failure.errno),
                    "{error}"
                );
                assert!(error.to_string().contains(path));
            }
            Error::SizeMismatch(_) => assert!(request.reads),
            other => panic!("{other:?}"),
        }
    }

    fn replay_write(&mut self, request: &Request) {
        let failed = request.completion.as_ref().unwrap().outcome.is_err();
        for file in 0..FILES {
            let list: Vec<_> = request
                .spots
                .iter()
                .filter(|spot| spot.file == file)
                .collect();
            let Some(end) = list
                .iter()
                .map(|spot| spot.offset + spot.content.len())
                .max()
            else {
                continue;
            };
            let exact = list.iter().any(|spot| spot.offset == 0 && !spot.keeps);
            let completion = request.completion.as_ref().unwrap();
            let failed_file = completion
                .failed_index
                .map(|index| request.spots[index as usize].file);
            let state = &mut self.files[file];
            let old_len = state.bytes.len();
            if failed {
                // Where another file of the list failed, this one was written and cut, or not.
                for byte in state.bytes.iter_mut().skip(end) {
                    if exact && (*byte != Byte::Failed || failed_file != Some(file)) {
                        *byte = Byte::Unknown;
                    }
                }
                state.len_is_known = false;
                state.bytes.resize(old_len.max(end), Byte::Unknown);
            } else {
                let hole = if state.len_is_known {
                    Byte::Known(0)
                } else {
                    Byte::Unknown
                };
                state.bytes.resize(old_len.max(end), hole);
                if exact {
                    state.bytes.truncate(end);
                    state.len_is_known = true;
                }
            }
            for spot in list {
                for (index, byte) in spot.content.iter().enumerate() {
                    state.bytes[spot.offset + index] = match (failed, failed_file == Some(file)) {
                        (false, _) => Byte::Known(*byte),
                        (true, true) => Byte::Failed,
                        (true, false) => Byte::Unknown,
                    };
                }
            }
        }
    }

    fn replay_read(&mut self, request: &Request) {
        if request.completion.as_ref().unwrap().outcome.is_err() {
            return;
        }
        for spot in &request.spots {
            let content = spot.memory.content();
            let known = &self.files[spot.file];
            for (index, byte) in content.iter().enumerate() {
                match known.bytes.get(spot.offset + index) {
                    Some(Byte::Known(expected)) => assert_eq!(byte, expected, "wrong success"),
                    Some(Byte::Unknown) => {}
                    Some(Byte::Failed) => panic!("read what was never written"),
                    None => assert!(!known.len_is_known, "read beyond the end"),
                }
            }
        }
    }

    fn compare(&self) {
        for (file, path) in self.files.iter().zip(&self.paths) {
            let Ok(got) = std::fs::read(path.to_str().unwrap()) else {
                assert!(!file.bytes.iter().any(|byte| matches!(byte, Byte::Known(_))));
                continue;
            };
            if file.len_is_known {
                assert_eq!(got.len(), file.bytes.len(), "length");
            }
            for (index, byte) in file.bytes.iter().enumerate() {
                if let Byte::Known(expected) = byte {
                    assert_eq!(got.get(index), Some(expected), "byte {index}");
                }
            }
        }
    }

    /// After all that: each file can still be rewritten and read, if tried often enough.
    fn recover(&mut self) {
        for file in 0..FILES {
            let content = self.random.bytes(10_000 + file);
            let path = self.paths[file].clone();
            let written =
                (0..2000).any(|_| write(&self.engine, &path, &content, 0).outcome.is_ok());
            assert!(written);
            let read = (0..2000).find_map(|_| {
                let (bytes, done) = read(&self.engine, &path, content.len(), 0);
                done.outcome.is_ok().then_some(bytes)
            });
            assert!(read.unwrap() == content);
        }
    }
}

fn plan(seed: u64) -> FaultPlan {
    let mut random = Random(!seed);
    let mut rate = |rates: &[u16]| *random.pick(rates);
    FaultPlan {
        seed,
        short_per_mille: rate(&[0, 50, 400]),
        eio_per_mille: rate(&[0, 0, 10, 80]),
        enospc_per_mille: rate(&[0, 0, 20, 100]),
        retry_per_mille: rate(&[0, 50, 400]),
        delay_per_mille: rate(&[0, 200, 700]),
        metadata_per_mille: rate(&[0, 0, 20, 150]),
        refuse_direct: rate(&[0, 0, 1]) == 1,
        refuse_reserve: rate(&[0, 0, 1]) == 1,
    }
}

/// Runs one seed; returns how many requests failed.
fn run(backend: &str, seed: u64, plan: FaultPlan) -> usize {
    let directory = directory();
    let mut random = Random(seed);
    let depth = (*random.pick(&[1, 3, 32])).to_string();
    let block = *random.pick(&["4096", "64KiB", "1MiB"]);
    let files = *random.pick(&["1", "2", "0"]);
    let settings = [
        ("backend", backend),
        ("queue_depth", depth.as_str()),
        ("block_bytes", block),
        ("open_files_max", files),
        ("threads", "2"),
    ];
    let mut world = World {
        engine: Engine::with_faults(&config(&settings), plan).unwrap(),
        random,
        paths: (0..FILES)
            .map(|file| path(directory.path(), &format!("f{file}")))
            .collect(),
        files: vec![
            File {
                bytes: Vec::new(),
                len_is_known: true,
            };
            FILES
        ],
        requests: Vec::new(),
        errors_count: 0,
    };
    for step in 1..=REQUESTS {
        world.submit();
        if step % ROUND == 0 {
            world.settle(backend != "memory");
        }
    }
    let fails_always = plan.eio_per_mille == 1000 || plan.retry_per_mille == 1000;
    if !fails_always {
        world.recover();
    }
    assert_eq!(world.engine.wait_all(PATIENCE), Ok(()));
    let stats = world.engine.stats();
    assert_eq!(stats.requests_in_flight_count, 0);
    assert_eq!(stats.in_flight_count, 0);
    assert_eq!(stats.pinned_bytes, 0, "a buffer is still held");
    drop(world.engine);
    for spot in world.requests.iter().flat_map(|request| &request.spots) {
        let memory = &spot.memory;
        if memory.is_registered {
            assert_eq!(memory.hooks_run.load(Ordering::SeqCst), 1);
            let bytes = memory.bytes.lock().unwrap();
            let bytes = &bytes[memory.start..memory.start + memory.len];
            assert!(bytes.iter().all(|byte| *byte == 0xDD), "touched afterwards");
        }
    }
    world.errors_count
}

fn sweep(backend: &str) {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // What the first engine opens for good is not a leak.
    run(backend, 0, FaultPlan::default());
    let before = open_descriptors();
    let mut errors_count = 0;
    for seed in 0..SEEDS * scale() {
        let plan = FaultPlan {
            // Files in memory know no direct I/O that could be refused.
            refuse_direct: plan(seed).refuse_direct && backend != "memory",
            ..plan(seed)
        };
        let told = std::panic::catch_unwind(|| run(backend, seed, plan));
        match told {
            Ok(count) => errors_count += count,
            Err(panic) => {
                eprintln!("{backend} {plan:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(errors_count > 0, "no fault struck");
    assert_eq!(open_descriptors(), before, "descriptors leak");
}

#[test]
fn faults_under_io_uring() {
    sweep("io_uring");
}

#[test]
fn faults_under_threads() {
    sweep("threads");
}

#[test]
fn faults_under_memory() {
    sweep("memory");
}

#[test]
fn a_disk_that_always_fails_or_never_proceeds_ends_every_request_with_an_error() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let dead = FaultPlan {
        eio_per_mille: 1000,
        ..FaultPlan::default()
    };
    let busy = FaultPlan {
        retry_per_mille: 1000,
        ..FaultPlan::default()
    };
    for backend in ["io_uring", "threads"] {
        assert!(run(backend, 1, dead) > 0);
        assert!(run(backend, 2, busy) > 0);
    }
}

#[test]
fn only_short_transfers_lose_nothing() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let short = FaultPlan {
        seed: 3,
        short_per_mille: 700,
        ..FaultPlan::default()
    };
    for backend in ["io_uring", "threads", "memory"] {
        let directory = directory();
        let engine = Engine::with_faults(&config(&[("backend", backend)]), short).unwrap();
        let name = path(directory.path(), "a");
        let content = pattern(5_000_123, 4);
        assert_eq!(write(&engine, &name, &content, 0).outcome, Ok(()));
        let (got, done) = read(&engine, &name, content.len(), 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(got == content);
        let (_, done) = read(&engine, &name, content.len() + 1, 0);
        assert_eq!(done.outcome.unwrap_err().status(), Status::SizeMismatch);
        assert!(engine.stats().swap_in.short_transfers_count > 0);
        assert!(engine.stats().swap_out.short_transfers_count > 0);
    }
}

#[test]
fn what_failed_reads_as_failed_until_it_is_rewritten_range_by_range() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for backend in ["io_uring", "threads", "memory"] {
        // Seeds until a write of both ranges failed.
        let mut seen = 0;
        for seed in 0..200 {
            let plan = FaultPlan {
                seed,
                eio_per_mille: 300,
                ..FaultPlan::default()
            };
            let directory = directory();
            let engine = Engine::with_faults(&config(&[("backend", backend)]), plan).unwrap();
            let name = path(directory.path(), "a");
            let content = pattern(4096, seed);
            let put = |offset: u64| {
                let mut bytes = content.clone();
                let out = keep(tensor(&mut bytes, offset));
                let ticket = engine.swap_out(&[out], &[&name]).unwrap();
                wait(&engine, ticket).outcome.is_ok()
            };
            let get = |offset| read(&engine, &name, 4096, offset).1.outcome;
            let (first, far) = (0, 1 << 20);
            if put(first) || put(far) {
                continue;
            }
            seen += 1;
            for _ in 0..20 {
                assert!(get(first).is_err() && get(far).is_err());
            }
            while !put(first) {}
            assert!(
                (0..200).any(|_| get(first).is_ok()),
                "rewritten, and still failed"
            );
            assert!((0..20).all(|_| get(far).is_err()));
            while !put(far) {}
            assert!((0..200).any(|_| get(far).is_ok()));
            if seen == 3 {
                break;
            }
        }
        assert!(seen > 0);
    }
}
