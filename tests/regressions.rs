//! The failures of others, one test each: every one of these would have caught one.
//!
//! Faults come from a seed, so that a run can be repeated. No test depends on how long something
//! takes.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod common;
mod support;

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::*;
use tempfile::TempDir;
use tensorswap::base::config::EngineOptions;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::{Completion, Engine, FaultPlan, Tensor};
use tensorswap::memory::{Buffer, ReleaseHook};
use tensorswap::swapper::Swapper;

const BACKENDS: [&str; 2] = ["io_uring", "threads"];
const MIB: usize = 1 << 20;
const GUARD: u8 = 0xA5;

/// An empty directory, and an engine of the backend with some further settings.
fn setup(backend: &str, settings: &[(&str, &str)]) -> (TempDir, Engine) {
    let settings = [settings, &[("backend", backend)]].concat();
    (directory(), engine(&settings))
}

/// The same, with an engine on which faults strike.
fn setup_with_faults(
    backend: &str,
    settings: &[(&str, &str)],
    plan: FaultPlan,
) -> (TempDir, Engine) {
    let settings = [settings, &[("backend", backend)]].concat();
    let engine = Engine::with_faults(&config(&settings), plan).unwrap();
    (directory(), engine)
}

fn swapper(engine: &Engine, buffers: usize, len_bytes: u64) -> Swapper {
    let swapper = Swapper::new(engine, None).unwrap();
    let buffers: Vec<_> = (0..buffers)
        .map(|_| engine.allocate_buffer(len_bytes).unwrap())
        .collect();
    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
    swapper
}

/// The bytes of a buffer. No request uses it meanwhile.
#[allow(clippy::mut_from_ref)]
fn bytes_of(buffer: &Buffer) -> &mut [u8] {
    unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), buffer.len_bytes() as usize) }
}

fn stored(directory: &Path, name: &str) -> Vec<u8> {
    std::fs::read(directory.join(name)).unwrap()
}

fn status(completion: &Completion) -> Status {
    match &completion.outcome {
        Ok(()) => Status::Ok,
        Err(error) => error.status(),
    }
}

/// Whether files in `directory` go past the page cache; says so where they do not.
fn has_direct_io(directory: &Path) -> bool {
    let engine = engine(&[("direct_io", "require")]);
    let direct = write(&engine, &path(directory, "probe"), &[1; 4096], 0);
    if direct.outcome.is_err() {
        common::skip("direct_io", &format!("{:?}", direct.outcome));
    }
    direct.outcome.is_ok()
}

/// Descriptors of this process for files in a directory: other tests run beside this one.
fn descriptors_in(directory: &Path) -> usize {
    let directory = directory.canonicalize().unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(&directory))
        .count()
}

/// Untouched memory that takes no room until it is written.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> Mapping {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast();
        Mapping { start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[test]
fn a_short_transfer_is_never_reported_as_success() {
    for backend in BACKENDS {
        for direct in ["prefer", "off"] {
            let plan = FaultPlan {
                seed: 11,
                short_per_mille: 1000,
                ..FaultPlan::default()
            };
            let (directory, engine) = setup_with_faults(
                backend,
                &[("block_bytes", "64KiB"), ("direct_io", direct)],
                plan,
            );
            for len in [1, 511, 4096, 5600, 200_000, MIB + 100] {
                let name = path(directory.path(), "short");
                let bytes = pattern(len, len as u64);
                let done = write(&engine, &name, &bytes, 0);
                assert_eq!(done.outcome, Ok(()), "{backend} {direct} {len}");
                assert_eq!(done.bytes_done, len as u64);
                assert!(stored(directory.path(), "short") == bytes, "{len}");
                let (back, done) = read(&engine, &name, len, 0);
                assert_eq!(done.outcome, Ok(()), "{backend} {direct} {len}");
                assert!(back == bytes, "{backend} {direct} {len}");
                // What is not there cannot be read, by however little.
                let (_, done) = read(&engine, &name, len + 1, 0);
                assert_eq!(status(&done), Status::SizeMismatch, "{len}");
            }
            let stats = engine.stats();
            assert!(stats.swap_out.short_transfers_count > 0);
            assert!(stats.swap_in.short_transfers_count > 0);
        }
    }
}

#[test]
fn a_file_cut_behind_the_engine_is_an_error_of_the_read() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        let name = path(directory.path(), "cut");
        assert_eq!(
            write(&engine, &name, &pattern(300_000, 1), 0).outcome,
            Ok(())
        );
        let file = std::fs::File::options()
            .write(true)
            .open(directory.path().join("cut"))
            .unwrap();
        file.set_len(299_999).unwrap();
        let (_, done) = read(&engine, &name, 300_000, 0);
        assert_eq!(status(&done), Status::SizeMismatch, "{backend}");
        let error = done.outcome.unwrap_err().to_string();
        assert!(error.contains("cut"), "{error}");
    }
}

#[test]
fn a_tensor_longer_than_one_system_call_moves_is_cut_into_several() {
    // No operation can reach the 2 GiB less a page where the kernel cuts silently.
    let mut large = config(&[]);
    let refused = large.set("block_bytes", "2GiB").is_err();
    assert!(refused || EngineOptions::from_config(&large).is_err());
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[("block_bytes", "256KiB")]);
        let buffer = engine.allocate_buffer(4 * MIB as u64).unwrap();
        Random(2).fill(bytes_of(&buffer));
        let name = path(directory.path(), "cut");
        let out = tensor(bytes_of(&buffer), 0);
        let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
        assert_eq!(done.outcome, Ok(()));
        assert_eq!(engine.stats().swap_out.operations_count, 16, "{backend}");
        assert!(stored(directory.path(), "cut") == bytes_of(&buffer));
    }
    if !is_long() {
        common::skip(
            "long",
            "a tensor of more than 2 GiB, without TSW_TEST_LONG=1",
        );
        return;
    }
    for backend in BACKENDS {
        huge_tensor(backend, "1GiB", (2 << 30) + 3 * 4096 + 5);
    }
}

#[test]
fn offsets_and_lengths_beyond_4_gib_do_not_overflow() {
    const FAR: u64 = 5 << 30;
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        let far = path(directory.path(), "far");
        let bytes = pattern(MIB, 3);
        let done = write(&engine, &far, &bytes, FAR);
        assert_eq!(done.outcome, Ok(()));
        let (back, done) = read(&engine, &far, MIB, FAR);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == bytes);

        // Through staging buffers, at an offset that no alignment helps.
        let swapper = swapper(&engine, 2, 128 << 10);
        let mut other = pattern(300_001, 4);
        let out = tensor(&mut other, FAR + 2 * MIB as u64 + 77);
        swapper.swap_out(&[out], &[&far]).unwrap();
        let mut back = vec![0; other.len()];
        let into = tensor(&mut back, FAR + 2 * MIB as u64 + 77);
        swapper.swap_in(&[into], &[&far]).unwrap();
        assert!(back == other);
        swapper.flush(PATIENCE).unwrap();

        let file = std::fs::File::open(directory.path().join("far")).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), FAR + 2 * MIB as u64 + 77 + 300_001);
        assert!(metadata.blocks() * 512 < 16 << 20, "the hole was filled");
        let mut stored = vec![0; MIB];
        file.read_exact_at(&mut stored, FAR).unwrap();
        assert!(stored == bytes);
        // Nothing landed where an offset cut to 32 bits would have put it.
        file.read_exact_at(&mut stored, FAR % (1 << 32)).unwrap();
        assert!(stored.iter().all(|byte| *byte == 0));
    }
    if !is_long() {
        common::skip(
            "long",
            "a tensor of more than 4 GiB, without TSW_TEST_LONG=1",
        );
        return;
    }
    huge_tensor("io_uring", "1MiB", (4 << 30) + 8192 + 3);
}

/// Moves a tensor that is nearly all zeros, with marks where arithmetic could go wrong.
fn huge_tensor(backend: &str, block_bytes: &str, len: usize) {
    let (directory, engine) = setup(backend, &[("block_bytes", block_bytes)]);
    let name = path(directory.path(), "huge");
    let mut source = Mapping::new(len);
    let marks: Vec<usize> = [0, 1 << 30, 0x7FFF_F000, 1 << 31, 1 << 32, len - 9]
        .into_iter()
        .filter(|at| at + 8 < len)
        .collect();
    for (number, at) in marks.iter().enumerate() {
        source.bytes()[*at..*at + 8].copy_from_slice(&pattern(8, number as u64));
    }
    let patience = Some(Duration::from_secs(600));
    let out = tensor(source.bytes(), 0);
    let ticket = engine.swap_out(&[out], &[&name]).unwrap();
    let done = engine.wait(ticket, patience).unwrap();
    assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
    let file = directory.path().join("huge");
    assert_eq!(std::fs::metadata(file).unwrap().len(), len as u64);
    let mut back = Mapping::new(len);
    let into = tensor(back.bytes(), 0);
    let ticket = engine.swap_in(&[into], &[&name]).unwrap();
    let done = engine.wait(ticket, patience).unwrap();
    assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
    for (number, at) in marks.iter().enumerate() {
        let expected = pattern(8, number as u64);
        assert_eq!(back.bytes()[*at..*at + 8], expected, "at {at}");
    }
    assert!(back.bytes() == source.bytes());
}

#[test]
fn a_completion_of_a_failed_batch_is_not_credited_to_the_next() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 4,
            eio_per_mille: 60,
            delay_per_mille: 500,
            ..FaultPlan::default()
        };
        let (directory, engine) = setup_with_faults(
            backend,
            &[("block_bytes", "4096"), ("queue_depth", "4")],
            plan,
        );
        let (mut failed, mut succeeded) = (0, 0);
        for round in 0..60_u64 {
            // Many operations of the first are in flight when one of them fails.
            let mut first = pattern(64 << 10, 2 * round);
            let mut second = pattern(16 << 10, 2 * round + 1);
            let names = [
                path(directory.path(), "first"),
                path(directory.path(), &format!("second{round}")),
            ];
            let out = tensor(&mut first, 0).tagged(1000 + round);
            let a = engine.swap_out(&[out], &[&names[0]]).unwrap();
            let out = tensor(&mut second, 0).tagged(2000 + round);
            let b = engine.swap_out(&[out], &[&names[1]]).unwrap();
            let done = wait(&engine, b);
            assert_eq!((done.ticket, done.user_tag), (b, 2000 + round));
            match done.outcome {
                Ok(()) => {
                    assert_eq!(done.bytes_done, second.len() as u64);
                    let name = format!("second{round}");
                    assert!(stored(directory.path(), &name) == second, "{round}");
                    succeeded += 1;
                }
                Err(error) => {
                    assert!(done.bytes_done < second.len() as u64);
                    assert!(error.to_string().contains("second"), "{error}");
                }
            }
            let done = wait(&engine, a);
            assert_eq!((done.ticket, done.user_tag), (a, 1000 + round));
            match done.outcome {
                Ok(()) => assert!(stored(directory.path(), "first") == first),
                Err(error) => {
                    assert!(error.to_string().contains("first"), "{error}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0 && succeeded > 0, "{failed} {succeeded}");
        assert_eq!(engine.stats().in_flight_count, 0);
    }
}

#[test]
fn a_staging_buffer_is_not_given_out_again_while_it_is_being_written() {
    for backend in BACKENDS {
        for buffers in [1, 2] {
            // Transfers that are done again or continued later take from the buffer once more.
            let plan = FaultPlan {
                seed: 5 + buffers as u64,
                short_per_mille: 300,
                retry_per_mille: 300,
                delay_per_mille: 500,
                ..FaultPlan::default()
            };
            let (directory, engine) = setup_with_faults(
                backend,
                &[("block_bytes", "8KiB"), ("queue_depth", "4")],
                plan,
            );
            let swapper = swapper(&engine, buffers, 64 << 10);
            let mut random = Random(5);
            let mut expected = Vec::new();
            for number in 0..100 {
                let len = 1 + random.below(100_000);
                let mut bytes = random.bytes(len);
                let name = format!("t{number}");
                let out = tensor(&mut bytes, 0);
                let at = path(directory.path(), &name);
                swapper.swap_out(&[out], &[&at]).unwrap();
                expected.push((name, bytes.clone()));
                // Staged: the memory is the caller's again.
                bytes.fill(0xEE);
            }
            swapper.flush(PATIENCE).unwrap();
            for (name, bytes) in &expected {
                assert!(stored(directory.path(), name) == *bytes, "{backend} {name}");
            }
        }
    }
}

#[test]
fn memory_of_a_cancelled_read_is_not_written_after_its_end() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 6,
            short_per_mille: 300,
            retry_per_mille: 300,
            delay_per_mille: 500,
            ..FaultPlan::default()
        };
        let (directory, engine) = setup_with_faults(
            backend,
            &[("block_bytes", "4096"), ("queue_depth", "8")],
            plan,
        );
        let name = path(directory.path(), "read");
        let content = vec![7; 256 << 10];
        assert_eq!(write(&engine, &name, &content, 0).outcome, Ok(()));
        for skew in [0, 1] {
            for _ in 0..20 {
                let mut memory = Mapping::new(content.len() + 4096);
                let into = tensor(&mut memory.bytes()[skew..skew + content.len()], 0);
                let ticket = engine.swap_in(&[into], &[&name]).unwrap();
                engine.cancel(ticket).unwrap();
                let done = wait(&engine, ticket);
                assert!(matches!(status(&done), Status::Ok | Status::Cancelled));
                memory.bytes().fill(GUARD);
                // Whatever was still under way would land now.
                assert_eq!(read(&engine, &name, 64 << 10, 0).1.outcome, Ok(()));
                engine.quiesce(PATIENCE).unwrap();
                assert!(memory.bytes().iter().all(|byte| *byte == GUARD));
            }
        }
    }
}

#[test]
fn a_list_is_taken_whole_or_not_at_all() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 7,
            retry_per_mille: 300,
            delay_per_mille: 300,
            ..FaultPlan::default()
        };
        // Far more operations and files than there is room for at once.
        let (directory, engine) = setup_with_faults(
            backend,
            &[
                ("block_bytes", "4096"),
                ("queue_depth", "2"),
                ("open_files_max", "3"),
                ("tickets_max", "1"),
            ],
            plan,
        );
        let mut random = Random(7);
        let mut memory: Vec<Vec<u8>> = (0..120).map(|_| random.bytes(9000)).collect();
        let names: Vec<CString> = (0..120)
            .map(|number| path(directory.path(), &format!("t{}", number / 3)))
            .collect();
        let paths: Vec<&CStr> = names.iter().map(CString::as_c_str).collect();
        let tensors: Vec<Tensor> = memory
            .iter_mut()
            .enumerate()
            .map(|(number, bytes)| tensor(bytes, 9000 * (number as u64 % 3)))
            .collect();
        let ticket = engine.swap_out(&tensors, &paths).unwrap();
        // All tickets are alive: the next list is refused, and leaves nothing behind.
        let mut more = vec![1; 5000];
        let refused = path(directory.path(), "refused");
        let error = engine
            .swap_out(&[tensor(&mut more, 0)], &[&refused])
            .unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        let done = wait(&engine, ticket);
        assert_eq!((done.outcome, done.bytes_done), (Ok(()), 120 * 9000));
        for file in 0..40 {
            let content = stored(directory.path(), &format!("t{file}"));
            assert!(content == memory[3 * file..3 * file + 3].concat(), "{file}");
        }
        // One bad tensor at the end: none of those before it is written either.
        let fine = tensor(&mut more, 0);
        let overlap = fine.at(100).unwrap();
        let other = path(directory.path(), "other");
        let error = engine
            .swap_out(&[fine, fine, overlap], &[&refused, &other, &other])
            .unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        engine.quiesce(PATIENCE).unwrap();
        assert!(!directory.path().join("refused").exists());
        assert!(!directory.path().join("other").exists());
    }
}

#[test]
fn an_error_of_one_request_is_not_reported_by_another() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        for round in 0..50 {
            let mut good = pattern(50_000, round);
            let mut bad = pattern(50_000, round + 1000);
            let fine = path(directory.path(), "fine");
            let lost = path(directory.path(), "missing/lost");
            let list = [tensor(&mut bad, 0)];
            // In both orders; the list that fails names its own second tensor.
            let first = tensor(&mut good, 0);
            let (ok, failing) = if round % 2 == 0 {
                let ok = engine.swap_out(&[first], &[&fine]).unwrap();
                (ok, engine.swap_out(&list, &[&lost]).unwrap())
            } else {
                let failing = engine.swap_out(&list, &[&lost]).unwrap();
                (engine.swap_out(&[first], &[&fine]).unwrap(), failing)
            };
            let done = wait(&engine, failing);
            assert_eq!(status(&done), Status::NotFound);
            assert_eq!(done.failed_index, Some(0));
            assert!(done.outcome.unwrap_err().to_string().contains("lost"));
            let done = wait(&engine, ok);
            assert_eq!((done.outcome, done.failed_index), (Ok(()), None));
            assert!(stored(directory.path(), "fine") == good);
        }
        // Within one list the tensor that failed is named.
        let mut bytes = pattern(3000, 1);
        let one = tensor(&mut bytes, 0);
        let names = ["a", "missing/b", "c"].map(|name| path(directory.path(), name));
        let paths: Vec<&CStr> = names.iter().map(CString::as_c_str).collect();
        let done = wait(&engine, engine.swap_out(&[one, one, one], &paths).unwrap());
        assert_eq!(
            (status(&done), done.failed_index),
            (Status::NotFound, Some(1))
        );
    }
}

#[test]
fn memory_of_a_write_is_not_released_before_its_end_nor_lost_when_it_fails() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 8,
            eio_per_mille: 20,
            short_per_mille: 200,
            retry_per_mille: 300,
            delay_per_mille: 500,
            ..FaultPlan::default()
        };
        let (directory, engine) = setup_with_faults(
            backend,
            &[("block_bytes", "4096"), ("queue_depth", "4")],
            plan,
        );
        let mut failed = 0;
        for round in 0..40 {
            let content = pattern(64 << 10, round);
            let mut memory = Mapping::new(content.len());
            memory.bytes().copy_from_slice(&content);
            let hooks = Arc::new(AtomicUsize::new(0));
            let seen = Arc::clone(&hooks);
            // What the hook is given is free: from then on it holds something else.
            let hook: ReleaseHook = Box::new(move |start: *mut u8, len: u64| {
                unsafe { std::slice::from_raw_parts_mut(start, len as usize) }.fill(0xEE);
                seen.fetch_add(1, Ordering::SeqCst);
            });
            let len_bytes = content.len() as u64;
            let buffer =
                unsafe { engine.register_buffer(memory.start, len_bytes, Some(hook)) }.unwrap();
            let name = path(directory.path(), "source");
            let out = tensor(memory.bytes(), 0);
            // While the caller holds the buffer a failed write takes nothing away.
            let ticket = engine.swap_out(&[out], &[&name]).unwrap();
            if wait(&engine, ticket).outcome.is_err() {
                failed += 1;
            }
            engine.fence();
            assert_eq!(hooks.load(Ordering::SeqCst), 0);
            assert!(memory.bytes() == content);
            // Given up while the write is under way, it lasts as long as the write does.
            let ticket = engine.swap_out(&[out], &[&name]).unwrap();
            drop(buffer);
            let done = wait(&engine, ticket);
            match done.outcome {
                Ok(()) => assert!(stored(directory.path(), "source") == content),
                Err(_) => failed += 1,
            }
            engine.fence();
            assert_eq!(hooks.load(Ordering::SeqCst), 1, "{backend} {round}");
        }
        assert!(failed > 0);
    }
}

#[test]
fn waiting_for_reads_does_not_wait_for_writes() {
    // The read overtakes a long write in every round, unless this thread is held up for longer
    // than thousands of operations take; a defect would hold it back in all of them.
    const ROUNDS_MAX: usize = 10;
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[("block_bytes", "4096"), ("queue_depth", "1")]);
        let small = path(directory.path(), "small");
        let large = path(directory.path(), "large");
        let content = pattern(8192, 1);
        assert_eq!(write(&engine, &small, &content, 0).outcome, Ok(()));
        let mut source = pattern(16 * MIB, 2);
        let overtaken = (0..ROUNDS_MAX).any(|_| {
            let mut back = vec![0; content.len()];
            let out = tensor(&mut source, 0);
            let writing = engine.swap_out(&[out], &[&large]).unwrap();
            let into = tensor(&mut back, 0);
            let reading = engine.swap_in(&[into], &[&small]).unwrap();
            assert_eq!(wait(&engine, reading).outcome, Ok(()));
            let (done, total) = engine.progress(writing).unwrap();
            assert!(back == content);
            engine.cancel(writing).unwrap();
            wait(&engine, writing);
            done < total
        });
        assert!(overtaken, "{backend}: engine");

        let swapper = swapper(&engine, 2, 20 * MIB as u64);
        let overtaken = (0..ROUNDS_MAX).any(|_| {
            swapper
                .swap_out(&[tensor(&mut source, 0)], &[&large])
                .unwrap();
            swapper.submit().unwrap();
            let mut back = vec![0; content.len()];
            let into = tensor(&mut back, 0);
            swapper.swap_in(&[into], &[&small]).unwrap();
            assert!(back == content);
            let is_writing = swapper.stats().in_flight_bytes > 0;
            swapper.flush(PATIENCE).unwrap();
            is_writing
        });
        assert!(overtaken, "{backend}: swapper");
    }
}

#[test]
fn direct_io_accepted_at_the_open_and_refused_at_the_write_falls_back() {
    let plan = FaultPlan {
        seed: 10,
        refuse_direct: true,
        ..FaultPlan::default()
    };
    for backend in BACKENDS {
        let (directory, engine) = setup_with_faults(backend, &[], plan);
        if !has_direct_io(directory.path()) {
            return;
        }
        let bytes = pattern(3 * MIB + 100, 10);
        let name = path(directory.path(), "t");
        assert_eq!(write(&engine, &name, &bytes, 0).outcome, Ok(()));
        assert_eq!(engine.stats().swap_out.fallbacks_count, 1);
        assert!(stored(directory.path(), "t") == bytes);
        let (back, done) = read(&engine, &name, bytes.len(), 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == bytes);

        let (_, strict) = setup_with_faults(backend, &[("direct_io", "require")], plan);
        let done = write(&strict, &path(directory.path(), "strict"), &bytes, 0);
        let error = done.outcome.unwrap_err();
        assert_eq!(error.os_error(), libc::EINVAL);
        assert!(error.to_string().contains("strict"), "{error}");
        assert_eq!(strict.stats().swap_out.fallbacks_count, 0);
    }
}

/// Pages of a file that are in the page cache.
fn cached_pages(file: &Path) -> usize {
    let file = std::fs::File::open(file).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    let resident = unsafe {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        let start = libc::mmap(
            std::ptr::null_mut(),
            len,
            access,
            flags,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        let resident = libc::mincore(start, len, pages.as_mut_ptr());
        libc::munmap(start, len);
        resident
    };
    assert_eq!(resident, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn the_page_cache_does_not_grow_with_direct_io() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[("direct_io", "require")]);
        if !has_direct_io(directory.path()) {
            return;
        }
        // Also where memory must be copied to be aligned.
        for skew in [0, 1] {
            let mut memory = Mapping::new(8 * MIB + 4096);
            let name = path(directory.path(), "t");
            let part = &mut memory.bytes()[skew..skew + 8 * MIB];
            Random(11).fill(part);
            let out = tensor(part, 0);
            let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            let done = wait(&engine, engine.swap_in(&[out], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            let file = directory.path().join("t");
            assert_eq!(cached_pages(&file), 0, "{backend} {skew}");
        }
        let swapper = swapper(&engine, 2, MIB as u64);
        let name = path(directory.path(), "staged");
        let mut bytes = pattern(4 * MIB, 12);
        swapper
            .swap_out(&[tensor(&mut bytes, 0)], &[&name])
            .unwrap();
        swapper.flush(PATIENCE).unwrap();
        assert_eq!(cached_pages(&directory.path().join("staged")), 0);
        // The measure itself works.
        let buffered = support::engine(&[("backend", backend), ("direct_io", "off")]);
        let name = path(directory.path(), "cached");
        assert_eq!(write(&buffered, &name, &bytes, 0).outcome, Ok(()));
        assert!(cached_pages(&directory.path().join("cached")) > 0);
    }
}

#[test]
fn a_read_does_not_run_over_the_memory_it_was_given() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        let content = pattern(200_000, 13);
        let name = path(directory.path(), "t");
        assert_eq!(write(&engine, &name, &content, 0).outcome, Ok(()));
        // Registered memory and other; the file goes on behind what is read.
        let buffer = engine.allocate_buffer(256 << 10).unwrap();
        let mut heap = Mapping::new(256 << 10);
        for memory in [bytes_of(&buffer), heap.bytes()] {
            for len in [1, 100, 511, 513, 4095, 4096, 4097, 5600, 65_537] {
                for (skew, offset) in [(0, 0), (1, 0), (512, 512), (0, 4096), (4096, 8191)] {
                    memory.fill(GUARD);
                    let start = 8192 + skew;
                    let into = tensor(&mut memory[start..start + len], offset as u64);
                    let done = wait(&engine, engine.swap_in(&[into], &[&name]).unwrap());
                    assert_eq!(done.outcome, Ok(()));
                    assert!(memory[start..start + len] == content[offset..offset + len]);
                    let (before, rest) = memory.split_at(start);
                    let around = before.iter().chain(&rest[len..]);
                    assert!(
                        around.copied().all(|byte| byte == GUARD),
                        "{backend} {len} {skew}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_aligned_length_at_a_misaligned_address_is_moved() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[("direct_io", "require")]);
        if !has_direct_io(directory.path()) {
            return;
        }
        // Falling back to the page cache is not the way out.
        for skew in [1, 8, 64, 511] {
            let len = 2 * MIB;
            let name = path(directory.path(), "t");
            let mut memory = Mapping::new(len + 4096);
            let part = &mut memory.bytes()[skew..skew + len];
            Random(skew as u64).fill(part);
            let content = part.to_vec();
            let both = tensor(part, 0);
            let done = wait(&engine, engine.swap_out(&[both], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()), "{backend} {skew}");
            assert!(stored(directory.path(), "t") == content);
            memory.bytes().fill(0);
            let done = wait(&engine, engine.swap_in(&[both], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()), "{backend} {skew}");
            assert!(memory.bytes()[skew..skew + len] == content);
        }
    }
}

#[test]
fn full_storage_is_told_as_such_and_the_engine_goes_on() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 14,
            enospc_per_mille: 1000,
            ..FaultPlan::default()
        };
        let (directory, full) = setup_with_faults(backend, &[], plan);
        let bytes = pattern(300_000, 14);
        let done = write(&full, &path(directory.path(), "full"), &bytes, 0);
        let error = done.outcome.unwrap_err();
        assert_eq!(error.status(), Status::NoSpace);
        assert!(error.status().is_retryable());
        assert_eq!(error.os_error(), libc::ENOSPC);
        let text = error.to_string();
        assert!(text.contains("full") && text.contains("ENOSPC"), "{text}");
        assert_eq!(full.stats().swap_out.errors_count, 1);
        // What is stored can still be read.
        std::fs::write(directory.path().join("old"), &bytes).unwrap();
        let (back, done) = read(&full, &path(directory.path(), "old"), bytes.len(), 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == bytes);
        let swapper = swapper(&full, 2, MIB as u64);
        let mut source = bytes.clone();
        let name = path(directory.path(), "staged");
        swapper
            .swap_out(&[tensor(&mut source, 0)], &[&name])
            .unwrap();
        let error = swapper.flush(PATIENCE).unwrap_err();
        assert_eq!(error.status(), Status::NoSpace);

        // Once there is room again the same write succeeds.
        let plan = FaultPlan {
            seed: 15,
            enospc_per_mille: 500,
            ..FaultPlan::default()
        };
        let (_, nearly) = setup_with_faults(backend, &[("block_bytes", "128KiB")], plan);
        let name = path(directory.path(), "nearly");
        let mut refused = 0;
        while write(&nearly, &name, &bytes, 0).outcome.is_err() {
            refused += 1;
            assert!(refused < 1000);
        }
        assert!(refused > 0);
        assert!(stored(directory.path(), "nearly") == bytes);
    }
}

#[test]
fn a_file_system_without_fallocate_is_written_all_the_same() {
    let plan = FaultPlan {
        seed: 15,
        refuse_reserve: true,
        ..FaultPlan::default()
    };
    for backend in BACKENDS {
        for direct in ["prefer", "off"] {
            let (directory, engine) = setup_with_faults(backend, &[("direct_io", direct)], plan);
            for len in [0, 1, 4096, 5600, 3 * MIB + 7] {
                for offset in [0, 513, 100_000] {
                    let file = format!("t{len}-{offset}");
                    let name = path(directory.path(), &file);
                    let bytes = pattern(len, 16);
                    let done = write(&engine, &name, &bytes, offset);
                    assert_eq!(done.outcome, Ok(()), "{backend} {direct} {len}");
                    let content = stored(directory.path(), &file);
                    let start = if len == 0 { 0 } else { offset as usize };
                    let (hole, written) = content.split_at(start.min(content.len()));
                    assert!(hole.iter().all(|byte| *byte == 0));
                    if len > 0 {
                        assert!(written == bytes, "{backend} {direct} {len} {offset}");
                    }
                }
            }
        }
    }
}

#[test]
fn no_descriptor_is_leaked_by_any_operation() {
    const OPEN_FILES_MAX: usize = 8;
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[("open_files_max", "8")]);
        let swapper = swapper(&engine, 2, 64 << 10);
        let mut bytes = pattern(600, 16);
        for number in 0..1000 {
            let name = path(directory.path(), &format!("t{number}"));
            match number % 4 {
                0 | 1 => assert_eq!(write(&engine, &name, &bytes, 0).outcome, Ok(())),
                2 => {
                    swapper
                        .swap_out(&[tensor(&mut bytes, 0)], &[&name])
                        .unwrap();
                    swapper.flush(PATIENCE).unwrap();
                }
                // What fails leaves nothing open either.
                _ => {
                    let (_, done) = read(&engine, &name, 600, 0);
                    assert_eq!(status(&done), Status::NotFound);
                    let last = path(directory.path(), &format!("t{}", number - 1));
                    let (_, done) = read(&engine, &last, 601, 0);
                    assert_eq!(status(&done), Status::SizeMismatch);
                }
            }
            if number % 50 == 49 {
                engine.quiesce(PATIENCE).unwrap();
                assert!(engine.stats().open_files_count <= OPEN_FILES_MAX as u64);
                // One more may be on its way to a thread that closes it.
                let open = descriptors_in(directory.path());
                assert!(open <= OPEN_FILES_MAX + 1, "{backend} {number}: {open}");
            }
        }
        drop(swapper);
        drop(engine);
        assert_eq!(descriptors_in(directory.path()), 0, "{backend}");
    }
}

#[test]
fn waiting_with_nothing_queued_returns_at_once() {
    let nothing = Some(Duration::ZERO);
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        let swapper = swapper(&engine, 1, 64 << 10);
        let name = path(directory.path(), "t");
        let mut bytes = pattern(5000, 17);
        for _ in 0..2 {
            engine.wait_all(nothing).unwrap();
            engine.wait_all(None).unwrap();
            engine.quiesce(nothing).unwrap();
            engine.quiesce(None).unwrap();
            assert_eq!(engine.poll(8, &mut |_| unreachable!()).unwrap(), 0);
            swapper.submit().unwrap();
            swapper.flush(nothing).unwrap();
            swapper.flush(None).unwrap();
            swapper.swap_in(&[], &[]).unwrap();
            swapper.swap_out(&[], &[]).unwrap();
            // An empty list has an end too.
            let empty = engine.swap_out(&[], &[]).unwrap();
            assert_eq!(wait(&engine, empty).outcome, Ok(()));
            // And again when there was something, and it is over.
            let done = write(&engine, &name, &bytes, 0);
            assert_eq!(done.outcome, Ok(()));
            let again = engine.wait(done.ticket, None).unwrap_err();
            assert_eq!(again.status(), Status::BadTicket);
            let into = tensor(&mut bytes, 0);
            swapper.swap_in(&[into], &[&name]).unwrap();
            swapper
                .swap_out(&[tensor(&mut bytes, 0)], &[&name])
                .unwrap();
            swapper.flush(PATIENCE).unwrap();
            engine.quiesce(PATIENCE).unwrap();
        }
        let (buffers, flushed) = swapper.release_buffers();
        assert_eq!((buffers.len(), flushed), (1, Ok(())));
        swapper.flush(nothing).unwrap();
    }
}

#[test]
fn a_name_too_long_for_the_file_system_is_an_error_and_no_more() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        let swapper = swapper(&engine, 1, 64 << 10);
        let mut bytes = pattern(5000, 18);
        let fits = path(directory.path(), &"n".repeat(255));
        for (too_long, name) in [
            ("name", "n".repeat(256)),
            ("path", "directory/".repeat(500)),
        ] {
            let name = path(directory.path(), &name);
            let done = write(&engine, &name, &bytes, 0);
            let error = done.outcome.unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument, "{too_long}");
            assert_eq!(error.os_error(), libc::ENAMETOOLONG, "{too_long}");
            let (_, done) = read(&engine, &name, 5000, 0);
            assert_eq!(done.outcome.unwrap_err().os_error(), libc::ENAMETOOLONG);
            swapper
                .swap_out(&[tensor(&mut bytes, 0)], &[&name])
                .unwrap();
            let error = swapper.flush(PATIENCE).unwrap_err();
            assert_eq!(error.os_error(), libc::ENAMETOOLONG, "{too_long}");
            // The longest name that fits is none the worse for it.
            assert_eq!(write(&engine, &fits, &bytes, 0).outcome, Ok(()));
            let mut back = vec![0; bytes.len()];
            let into = tensor(&mut back, 0);
            swapper.swap_in(&[into], &[&fits]).unwrap();
            assert!(back == bytes);
        }
    }
}

#[test]
fn a_pointer_inside_a_registered_region_is_recognized() {
    for backend in BACKENDS {
        let (directory, engine) = setup(backend, &[]);
        if !has_direct_io(directory.path()) {
            return;
        }
        let owned = engine.allocate_buffer(4 * MIB as u64).unwrap();
        let foreign = Mapping::new(4 * MIB);
        let registered =
            unsafe { engine.register_buffer(foreign.start, 4 * MIB as u64, None) }.unwrap();
        let swapper = swapper(&engine, 1, 64 << 10);
        let mut expected = 0;
        for buffer in [&owned, &registered] {
            for (offset, len) in [(0, 4096), (4096, MIB), (3 * MIB, MIB)] {
                Random(len as u64).fill(bytes_of(buffer));
                let name = path(directory.path(), "t");
                let part = &mut bytes_of(buffer)[offset..offset + len];
                let content = part.to_vec();
                let both = tensor(part, 0);
                let done = wait(&engine, engine.swap_out(&[both], &[&name]).unwrap());
                assert_eq!(done.outcome, Ok(()));
                bytes_of(buffer).fill(0);
                let done = wait(&engine, engine.swap_in(&[both], &[&name]).unwrap());
                assert_eq!(done.outcome, Ok(()));
                assert!(bytes_of(buffer)[offset..offset + len] == content);
                // The swapper reads straight into it and says so.
                bytes_of(buffer).fill(0);
                swapper.swap_in(&[both], &[&name]).unwrap();
                assert!(bytes_of(buffer)[offset..offset + len] == content);
                expected += 1;
                assert_eq!(swapper.stats().copies_avoided_count, expected);
            }
            // One byte beyond the region is outside.
            let end = buffer.address() + 4 * MIB;
            assert!(buffer.contains(end - 1, 1) && !buffer.contains(end - 1, 2));
        }
        assert_eq!(engine.stats().bounced_bytes, 0, "{backend}");
        let mut plain = vec![0; 4096];
        let name = path(directory.path(), "t");
        swapper.swap_in(&[tensor(&mut plain, 0)], &[&name]).unwrap();
        assert_eq!(swapper.stats().copies_avoided_count, expected);
        // The regions go before their memory does.
        let released = registered.released_latch();
        drop(registered);
        engine.fence();
        released.wait();
        drop(foreign);
    }
}

#[test]
fn the_queue_depth_that_is_configured_is_reached() {
    for backend in BACKENDS {
        for depth in ["1", "7", "32"] {
            let (directory, engine) =
                setup(backend, &[("queue_depth", depth), ("block_bytes", "64KiB")]);
            let buffer = engine.allocate_buffer(8 * MIB as u64).unwrap();
            Random(25).fill(bytes_of(&buffer));
            let content = bytes_of(&buffer).to_vec();
            let both = tensor(bytes_of(&buffer), 0);
            let name = path(directory.path(), "t");
            let done = wait(&engine, engine.swap_out(&[both], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            let done = wait(&engine, engine.swap_in(&[both], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            assert!(bytes_of(&buffer) == content);
            let stats = engine.stats();
            let depth: u64 = depth.parse().unwrap();
            assert_eq!(stats.swap_out.in_flight_peak_count, depth, "{backend}");
            assert_eq!(stats.swap_in.in_flight_peak_count, depth, "{backend}");
            assert_eq!(stats.in_flight_peak_count, depth, "{backend}");
        }
    }
}

#[test]
fn a_tensor_larger_than_any_buffer_is_swapped() {
    for backend in BACKENDS {
        for (buffers, len_bytes) in [(1, 4096), (1, 70_000), (3, 100_001)] {
            let (directory, engine) = setup(backend, &[]);
            let swapper = swapper(&engine, buffers, len_bytes);
            let mut bytes = pattern(600_000 + 13, len_bytes);
            for offset in [0, 777] {
                let name = path(directory.path(), &format!("t{offset}"));
                let out = tensor(&mut bytes, offset);
                swapper.swap_out(&[out], &[&name]).unwrap();
                let mut back = vec![0; bytes.len()];
                let into = tensor(&mut back, offset);
                swapper.swap_in(&[into], &[&name]).unwrap();
                assert!(back == bytes, "{backend} {buffers} {offset}");
            }
            swapper.flush(PATIENCE).unwrap();
            assert!(stored(directory.path(), "t0") == bytes);
            assert!(stored(directory.path(), "t777")[777..] == bytes);
        }
    }
}

#[test]
fn buffers_that_run_out_in_the_middle_are_waited_for() {
    for backend in BACKENDS {
        let plan = FaultPlan {
            seed: 27,
            delay_per_mille: 700,
            ..FaultPlan::default()
        };
        let (directory, engine) = setup_with_faults(backend, &[], plan);
        let swapper = swapper(&engine, 1, 16 << 10);
        let mut memory: Vec<Vec<u8>> = (0..64).map(|seed| pattern(5000, seed)).collect();
        let names: Vec<CString> = (0..64)
            .map(|number| path(directory.path(), &format!("t{number}")))
            .collect();
        let paths: Vec<&CStr> = names.iter().map(CString::as_c_str).collect();
        // One list that needs twenty times the room there is, then one tensor at a time.
        for step in 0..3_u8 {
            let mut tensors: Vec<Tensor> =
                memory.iter_mut().map(|bytes| tensor(bytes, 0)).collect();
            if step == 0 {
                swapper.swap_out(&tensors, &paths).unwrap();
            } else {
                for (out, path) in tensors.drain(..).zip(&paths) {
                    swapper.swap_out(&[out], &[path]).unwrap();
                }
            }
            for (number, bytes) in memory.iter_mut().enumerate() {
                let mut back = vec![0; bytes.len()];
                let into = tensor(&mut back, 0);
                swapper.swap_in(&[into], &[paths[number]]).unwrap();
                assert!(back == *bytes, "{backend} {step} {number}");
                bytes[0] ^= 1 + step;
            }
        }
        swapper.flush(PATIENCE).unwrap();
        let stats = swapper.stats();
        assert_eq!((stats.buffers_count, stats.errors_count), (1, 0));
        assert_eq!(stats.buffers_in_flight_count, 0);
        assert_eq!(stats.in_flight_bytes, 0);
    }
}

#[test]
fn values_never_come_back_wrong_without_an_error() {
    const FILES: usize = 24;
    for backend in BACKENDS {
        for direct in ["prefer", "off"] {
            let plan = FaultPlan {
                seed: 32,
                short_per_mille: 100,
                eio_per_mille: 5,
                retry_per_mille: 100,
                delay_per_mille: 300,
                ..FaultPlan::default()
            };
            let (directory, engine) = setup_with_faults(
                backend,
                &[("direct_io", direct), ("block_bytes", "16KiB")],
                plan,
            );
            let swapper = swapper(&engine, 3, 50_000);
            let mut random = Random(32);
            // What a file holds; nothing where a write of it has failed.
            let mut model: Vec<Option<Vec<u8>>> = vec![None; FILES];
            let mut verified = 0;
            for step in 0..400 {
                let file = random.below(FILES);
                let name = path(directory.path(), &format!("t{file}"));
                let Some(expected) = model[file].clone().filter(|_| !random.one_in(3)) else {
                    let len = 1 + random.below(60_000);
                    let mut bytes = random.bytes(len);
                    let out = tensor(&mut bytes, 0);
                    swapper.swap_out(&[out], &[&name]).unwrap();
                    model[file] = Some(bytes);
                    continue;
                };
                let mut back = vec![0xAA; expected.len()];
                let into = tensor(&mut back, 0);
                if swapper.swap_in(&[into], &[&name]).is_ok() {
                    assert!(back == expected, "{backend} {direct} {step}");
                    verified += 1;
                } else if random.one_in(2) {
                    model[file] = None;
                }
            }
            assert!(verified > 100, "{verified}");
            // A failure is told, and after it what was told to be there is there.
            let told = swapper.flush(PATIENCE).is_err();
            let mut wrong = 0;
            for (file, expected) in model.iter().enumerate() {
                let Some(expected) = expected else { continue };
                let name = format!("t{file}");
                let name = directory.path().join(name);
                if std::fs::read(name).ok().as_ref() != Some(expected) {
                    wrong += 1;
                }
            }
            assert!(told || wrong == 0, "{backend} {direct}: {wrong} files");
        }
    }
}
