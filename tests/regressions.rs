//! How other engines failed, each failure as a test of ours, named after it.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, FaultPlan, Tensor};

const ON_DISK: [&str; 2] = ["io_uring", "threads"];

/// Memory of its own pages, the first and the last of which cannot be touched.
struct Fenced {
    start: *mut u8,
    len: usize,
}

impl Fenced {
    const PAGE: usize = 4096;

    fn new(pages: usize) -> Fenced {
        let len = (pages + 2) * Fenced::PAGE;
        let start = map(
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            None,
        );
        let inner = start.wrapping_add(Fenced::PAGE);
        // SAFETY: inside the mapping made above.
        let done = unsafe {
            libc::mprotect(
                inner.cast(),
                len - 2 * Fenced::PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        assert_eq!(done, 0);
        Fenced { start, len }
    }

    /// The last `len` bytes before the fence, or those `skew` before.
    fn tail(&mut self, len: usize, skew: usize) -> &mut [u8] {
        let end = self.len - Fenced::PAGE - skew;
        // SAFETY: inside the part that can be touched, borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(end - len), len) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn map(len: usize, protection: i32, flags: i32, fd: i32, at: Option<*mut u8>) -> *mut u8 {
    let at = at.unwrap_or(std::ptr::null_mut());
    // SAFETY: a new mapping, or one over a range that the caller has reserved.
    let start = unsafe { libc::mmap(at.cast(), len, protection, flags, fd, 0) };
    assert_ne!(
        start,
        libc::MAP_FAILED,
        "{}",
        std::io::Error::last_os_error()
    );
    start.cast()
}

/// Pages of a file that the page cache holds.
fn cached_pages(file: &std::path::Path) -> usize {
    let file = std::fs::File::open(file).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let start = map(
        len,
        libc::PROT_READ,
        libc::MAP_SHARED,
        file.as_raw_fd(),
        None,
    );
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    // SAFETY: the mapping made above, and one byte for each of its pages.
    let done = unsafe { libc::mincore(start.cast(), len, pages.as_mut_ptr()) };
    assert_eq!(done, 0);
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(start.cast(), len) };
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn a_short_write_is_not_success() {
    for backend in ON_DISK {
        let directory = directory();
        let plan = FaultPlan {
            seed: 1,
            short_per_mille: 500,
            ..FaultPlan::default()
        };
        let engine = Engine::with_faults(&config(&[("backend", backend)]), plan).unwrap();
        for len in [600, 5600, (1 << 20) + 100, 3 << 20] {
            let name = path(directory.path(), &format!("t{len}"));
            let bytes = pattern(len, len as u64);
            let done = write(&engine, &name, &bytes, 0);
            assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
            let file = std::fs::read(directory.path().join(format!("t{len}"))).unwrap();
            assert!(file == bytes, "{backend} {len}");
        }
        assert!(engine.stats().swap_out.short_transfers_count > 0);
    }
}

#[test]
fn a_file_shorter_than_the_tensor_is_found_on_reading() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        let bytes = pattern(1 << 20, 5);
        assert_eq!(write(&engine, &name, &bytes, 0).outcome, Ok(()));
        let file = std::fs::File::options()
            .write(true)
            .open(directory.path().join("t"))
            .unwrap();
        for cut in [(1 << 20) - 1, 1 << 19, 4097, 4096, 1, 0] {
            file.set_len(cut).unwrap();
            let (_, done) = read(&engine, &name, 1 << 20, 0);
            let error = done.outcome.unwrap_err();
            assert_eq!(error.status(), Status::SizeMismatch, "{cut}: {error}");
            assert!(error.to_string().contains(name.to_str().unwrap()));
        }
    }
}

/// Memory of `windows` times `WINDOW` bytes that is the same `WINDOW` over and over.
fn windows(windows: usize) -> *mut u8 {
    // SAFETY: makes a descriptor, which lives until the end of the process.
    let memory = unsafe { libc::memfd_create(c"window".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(memory >= 0);
    // SAFETY: the descriptor made above.
    assert_eq!(unsafe { libc::ftruncate(memory, WINDOW as i64) }, 0);
    let total = WINDOW * windows;
    let reserved = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = map(total, libc::PROT_NONE, reserved, -1, None);
    for window in 0..windows {
        let at = start.wrapping_add(window * WINDOW);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        map(WINDOW, protection, flags, memory, Some(at));
    }
    start
}

const WINDOW: usize = 32 << 20;

/// One request of more than 4 GiB, out of a file that is one hole.
#[test]
fn a_request_larger_than_a_system_call_moves_is_not_cut_short() {
    const WINDOWS: usize = 130;
    let directory = directory();
    let name = path(directory.path(), "t");
    let len = (WINDOWS - 1) * WINDOW + 4196;
    let file = std::fs::File::create(directory.path().join("t")).unwrap();
    let start = windows(WINDOWS);
    for backend in ON_DISK {
        file.set_len(len as u64).unwrap();
        let engine = engine(&[("backend", backend), ("block_bytes", "1GiB")]);
        // SAFETY: the mapping lives until the end of the process.
        let all = || unsafe { Tensor::new(start, len as u64, Dtype::Bytes) }.unwrap();
        let done = wait(&engine, engine.swap_in(&[all()], &[&name]).unwrap());
        assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
        assert_eq!(engine.stats().swap_in.bytes, len as u64);
        file.set_len(len as u64 - 1).unwrap();
        let done = wait(&engine, engine.swap_in(&[all()], &[&name]).unwrap());
        assert_eq!(done.outcome.unwrap_err().status(), Status::SizeMismatch);
    }
}

/// One request of more than 4 GiB, from and to memory that is the same 32 MiB over and over.
#[test]
fn a_tensor_beyond_four_gibibytes_overflows_nothing() {
    const WINDOWS: usize = 129;
    if !is_long() {
        println!("skipped: writes 4 GiB; TSW_TEST_LONG=1 runs it");
        return;
    }
    let directory = directory();
    let total = WINDOW * WINDOWS;
    let start = windows(WINDOWS);
    // SAFETY: the first window; the engine is not at work.
    let window = unsafe { std::slice::from_raw_parts_mut(start, WINDOW) };
    Random(6).fill(window);
    let content = window.to_vec();
    let len = total - WINDOW + 4096 + 100;
    let engine = engine(&[("block_bytes", "4MiB")]);
    let name = path(directory.path(), "t");
    // SAFETY: the mapping lives until the end of the process.
    let all = || unsafe { Tensor::new(start, len as u64, Dtype::Bytes) }.unwrap();
    let ticket = engine.swap_out(&[all()], &[&name]).unwrap();
    let done = engine.wait(ticket, None).unwrap();
    assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
    let file = std::fs::File::open(directory.path().join("t")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), len as u64);
    let mut part = vec![0; 8192];
    for at in [0, (2 << 30) - 4096, (4 << 30) - 4096, len - 8192] {
        file.read_exact_at(&mut part, at as u64).unwrap();
        let expected: Vec<u8> = (at..at + 8192).map(|at| content[at % WINDOW]).collect();
        assert!(part == expected, "at {at}");
    }
    window.fill(0);
    let ticket = engine.swap_in(&[all()], &[&name]).unwrap();
    let done = engine.wait(ticket, None).unwrap();
    assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
    assert!(window == content);
}

#[test]
fn an_offset_beyond_four_gibibytes_does_not_wrap() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        let low = pattern(10_000, 1);
        assert_eq!(write(&engine, &name, &low, 0).outcome, Ok(()));
        let mut end = 10_000;
        for offset in [(4 << 30) - 5, (4 << 30) + 4096, (6_u64 << 30) + 123] {
            let bytes = pattern(9_000, offset);
            assert_eq!(write(&engine, &name, &bytes, offset).outcome, Ok(()));
            end = offset + 9_000;
            let (back, done) = read(&engine, &name, 9_000, offset);
            assert_eq!(done.outcome, Ok(()));
            assert!(back == bytes);
        }
        assert!(
            read(&engine, &name, 10_000, 0).0 == low,
            "the low end changed"
        );
        let status = std::fs::metadata(directory.path().join("t")).unwrap();
        assert_eq!(status.len(), end);
        assert!(status.blocks() * 512 < 1 << 20, "holes take space");
        let beyond = tensor(&mut [0; 9], 0).at(u64::MAX - 3);
        assert_eq!(beyond.unwrap_err().status(), Status::InvalidArgument);
    }
}

#[test]
fn a_late_completion_is_not_credited_to_the_next_request() {
    for backend in ["io_uring", "threads", "memory"] {
        let directory = directory();
        let plan = FaultPlan {
            seed: 11,
            eio_per_mille: 250,
            short_per_mille: 250,
            delay_per_mille: 900,
            ..FaultPlan::default()
        };
        let settings = config(&[("backend", backend), ("queue_depth", "3")]);
        let engine = Engine::with_faults(&settings, plan).unwrap();
        let (mut failed, mut right) = (0, 0);
        for round in 0..60 {
            let mut content: Vec<Vec<u8>> = (0..4)
                .map(|index| pattern(9000, round * 4 + index))
                .collect();
            let expected = content.clone();
            let names: Vec<CString> = (0..4)
                .map(|index| path(directory.path(), &format!("{round}-{index}")))
                .collect();
            let tickets: Vec<_> = content
                .iter_mut()
                .zip(&names)
                .map(|(bytes, name)| engine.swap_out(&[tensor(bytes, 0)], &[name]).unwrap())
                .collect();
            for ((ticket, expected), name) in tickets.into_iter().zip(expected).zip(&names) {
                let done = wait(&engine, ticket);
                if done.outcome.is_err() {
                    failed += 1;
                    continue;
                }
                right += 1;
                assert_eq!(done.bytes_done, 9000);
                if backend != "memory" {
                    assert!(std::fs::read(name.to_str().unwrap()).unwrap() == expected);
                }
            }
        }
        assert!(failed > 0 && right > 0, "{failed} {right}");
    }
}

/// Registers memory and counts in its release hook the bytes that are not `expected`.
fn registered(
    engine: &Engine,
    memory: *mut u8,
    len: usize,
    expected: u8,
) -> (
    tensorswap::memory::Buffer,
    Arc<AtomicUsize>,
    Arc<AtomicUsize>,
) {
    let wrong = Arc::new(AtomicUsize::new(0));
    let runs = Arc::new(AtomicUsize::new(0));
    let (counted, run) = (Arc::clone(&wrong), Arc::clone(&runs));
    let hook = move |start: *mut u8, len: u64| {
        // SAFETY: the engine has let go of the memory, which the test keeps.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, len as usize) };
        let differ = bytes.iter().filter(|byte| **byte != expected).count();
        counted.fetch_add(differ, Ordering::SeqCst);
        bytes.fill(0xDD);
        run.fetch_add(1, Ordering::SeqCst);
    };
    // SAFETY: the test keeps the memory until after the hook.
    let buffer =
        unsafe { engine.register_buffer(memory, len as u64, Some(Box::new(hook))) }.unwrap();
    (buffer, wrong, runs)
}

fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE.unwrap();
    while !what() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_buffer_is_not_given_back_while_the_kernel_writes_into_it() {
    const LEN: usize = 8 << 20;
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend), ("block_bytes", "64KiB")]);
        let name = path(directory.path(), "t");
        assert_eq!(write(&engine, &name, &vec![7; LEN], 0).outcome, Ok(()));
        for cancels in [false, true] {
            for _ in 0..5 {
                let mut memory = vec![0_u8; LEN + 4096];
                let skew = memory.as_ptr().align_offset(4096);
                let start = memory[skew..].as_mut_ptr();
                let (buffer, wrong, runs) = registered(&engine, start, LEN, 7);
                let into = tensor(&mut memory[skew..skew + LEN], 0);
                let ticket = engine.swap_in(&[into], &[&name]).unwrap();
                drop(buffer);
                if cancels {
                    engine.cancel(ticket).unwrap();
                }
                let done = wait(&engine, ticket);
                until(|| runs.load(Ordering::SeqCst) == 1);
                match done.outcome {
                    Ok(()) => assert_eq!(wrong.load(Ordering::SeqCst), 0, "given back early"),
                    Err(error) => assert!(cancels && error.status() == Status::Cancelled),
                }
                std::thread::sleep(Duration::from_millis(5));
                assert!(memory[skew..skew + LEN].iter().all(|byte| *byte == 0xDD));
                assert_eq!(runs.load(Ordering::SeqCst), 1);
            }
        }
    }
}

#[test]
fn no_tensor_of_a_long_list_is_forgotten() {
    const TENSORS: usize = 3000;
    const FILES: usize = 150;
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[
            ("backend", backend),
            ("queue_depth", "4"),
            ("open_files_max", "7"),
        ]);
        let names: Vec<CString> = (0..FILES)
            .map(|file| path(directory.path(), &format!("f{file}")))
            .collect();
        let mut content: Vec<Vec<u8>> = (0..TENSORS)
            .map(|index| pattern(200 + index % 50, index as u64))
            .collect();
        let place = |index: usize| ((index * 7919 % TENSORS / FILES) * 300) as u64;
        let list: Vec<_> = content
            .iter_mut()
            .enumerate()
            .map(|(index, bytes)| tensor(bytes, place(index)))
            .collect();
        let file_of = |index: usize| index * 7919 % TENSORS % FILES;
        let paths: Vec<_> = (0..TENSORS)
            .map(|index| names[file_of(index)].as_c_str())
            .collect();
        let done = wait(&engine, engine.swap_out(&list, &paths).unwrap());
        let total: usize = content.iter().map(Vec::len).sum();
        assert_eq!((done.outcome, done.bytes_done), (Ok(()), total as u64));
        let mut back: Vec<Vec<u8>> = content.iter().map(|bytes| vec![0; bytes.len()]).collect();
        let list: Vec<_> = back
            .iter_mut()
            .enumerate()
            .map(|(index, bytes)| tensor(bytes, place(index)))
            .collect();
        let done = wait(&engine, engine.swap_in(&list, &paths).unwrap());
        assert_eq!((done.outcome, done.bytes_done), (Ok(()), total as u64));
        assert!(back == content);
        assert!(engine.stats().open_files_count <= 7);
    }
}

#[test]
fn an_error_belongs_to_the_request_that_met_it() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let good = path(directory.path(), "good");
        assert_eq!(write(&engine, &good, &[5; 5000], 0).outcome, Ok(()));
        let missing = path(directory.path(), "missing");
        let nowhere = path(directory.path(), "no/such/directory");
        let short = path(directory.path(), "good");
        let mut memory = vec![vec![0_u8; 5000]; 400];
        let mut tickets = Vec::new();
        for (index, bytes) in memory.iter_mut().enumerate() {
            let (name, offset, status) = match index % 4 {
                0 => (&good, 0, None),
                1 => (&missing, 0, Some(Status::NotFound)),
                2 => (&nowhere, 0, Some(Status::NotFound)),
                _ => (&short, 4000, Some(Status::SizeMismatch)),
            };
            let into = tensor(bytes, offset).tagged(index as u64);
            let ticket = engine.swap_in(&[into], &[name]).unwrap();
            tickets.push((ticket, status, name));
        }
        for (index, (ticket, status, name)) in tickets.into_iter().enumerate() {
            let done = wait(&engine, ticket);
            assert_eq!(done.user_tag, index as u64);
            assert_eq!(done.outcome.as_ref().err().map(Error::status), status);
            if let Err(error) = done.outcome {
                assert_eq!(done.failed_index, Some(0));
                assert!(
                    error.to_string().contains(name.to_str().unwrap()),
                    "{error}"
                );
            }
        }
        let stats = engine.stats();
        assert_eq!(
            (stats.swap_in.errors_count, stats.swap_out.errors_count),
            (300, 0)
        );
    }
}

#[test]
fn the_source_of_a_failed_write_is_there_for_the_next_try() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let deep = directory.path().join("later");
        let name = path(&deep, "t");
        let mut source = pattern(70_001, 2);
        let kept = source.clone();
        let start = source.as_mut_ptr();
        let runs = Arc::new(AtomicUsize::new(0));
        let run = Arc::clone(&runs);
        let hook = Box::new(move |_: *mut u8, _: u64| {
            run.fetch_add(1, Ordering::SeqCst);
        });
        // SAFETY: the source is kept until after the hook.
        let buffer = unsafe { engine.register_buffer(start, 70_001, Some(hook)) }.unwrap();
        let out = tensor(&mut source, 0);
        let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
        assert_eq!(done.outcome.unwrap_err().status(), Status::NotFound);
        assert_eq!(runs.load(Ordering::SeqCst), 0, "freed all the same");
        assert!(source == kept);
        std::fs::create_dir(&deep).unwrap();
        let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
        assert_eq!(done.outcome, Ok(()));
        assert!(std::fs::read(deep.join("t")).unwrap() == kept);
        drop(buffer);
        until(|| runs.load(Ordering::SeqCst) == 1);
    }
}

#[test]
fn waiting_for_a_read_does_not_wait_for_writes() {
    const PIECES: usize = 24;
    const LEN: usize = 4 << 20;
    for backend in ON_DISK {
        let directory = directory();
        let settings = [("backend", backend), ("queue_depth", "4"), ("threads", "4")];
        let engine = engine(&settings);
        let small = path(directory.path(), "small");
        assert_eq!(write(&engine, &small, &[3; 4096], 0).outcome, Ok(()));
        let buffer = engine.allocate_buffer(LEN as u64).unwrap();
        let mut tickets = Vec::new();
        for index in 0..PIECES {
            // SAFETY: the buffer is kept; all writes only read it.
            let out = unsafe { Tensor::new(buffer.as_ptr(), LEN as u64, Dtype::Bytes) }.unwrap();
            let name = path(directory.path(), &format!("large{index}"));
            tickets.push(engine.swap_out(&[out], &[&name]).unwrap());
        }
        let (bytes, done) = read(&engine, &small, 4096, 0);
        assert_eq!(done.outcome, Ok(()));
        assert_eq!(bytes, [3; 4096]);
        let left = tickets.iter().any(|ticket| {
            let (moved, total) = engine.progress(*ticket).unwrap();
            moved < total
        });
        assert!(left, "{backend}: every write was over before the read");
        for ticket in tickets {
            assert_eq!(wait(&engine, ticket).outcome, Ok(()));
        }
    }
}

#[test]
fn direct_io_accepted_at_the_open_and_refused_at_the_transfer_falls_back() {
    for backend in ON_DISK {
        let plan = FaultPlan {
            refuse_direct: true,
            ..FaultPlan::default()
        };
        let directory = directory();
        let settings = config(&[("backend", backend)]);
        let engine = Engine::with_faults(&settings, plan).unwrap();
        for file in 0..5 {
            let name = path(directory.path(), &format!("t{file}"));
            let bytes = pattern(300_001, file);
            assert_eq!(write(&engine, &name, &bytes, 0).outcome, Ok(()));
            assert_eq!(write(&engine, &name, &[1; 100], 5000).outcome, Ok(()));
            let (back, done) = read(&engine, &name, bytes.len(), 0);
            assert_eq!(done.outcome, Ok(()));
            assert!(back[..5000] == bytes[..5000] && back[5000..5100] == [1; 100]);
            assert!(back[5100..] == bytes[5100..]);
        }
        assert_eq!(engine.stats().swap_out.fallbacks_count, 5, "each is told");
        // Where it is required, it is an error and never silently something else.
        let settings = config(&[("backend", backend), ("direct_io", "require")]);
        let engine = Engine::with_faults(&settings, plan).unwrap();
        let name = path(directory.path(), "required");
        let error = write(&engine, &name, &[1; 8192], 0).outcome.unwrap_err();
        assert_eq!(error.os_error(), libc::EINVAL, "{error}");
    }
}

#[test]
fn with_direct_io_on_the_page_cache_does_not_grow() {
    const LEN: usize = (16 << 20) + 100;
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        let buffer = engine.allocate_buffer(LEN as u64 + 4096).unwrap();
        // SAFETY: inside the buffer, which is kept.
        let tensor = unsafe { Tensor::new(buffer.as_ptr(), LEN as u64, Dtype::Bytes) }.unwrap();
        for _ in 0..2 {
            let done = wait(&engine, engine.swap_out(&[tensor], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            let done = wait(&engine, engine.swap_in(&[tensor], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
        }
        let stats = engine.stats();
        if stats.swap_out.fallbacks_count > 0 {
            println!("skipped: the file system refuses direct I/O");
            return;
        }
        // The page in which a file's odd end lies may be read by the kernel when it is cut.
        let cached = cached_pages(&directory.path().join("t"));
        assert!(cached <= 1, "{backend}: {cached} pages");
        assert!(stats.bounced_bytes < 4 * 8192, "{}", stats.bounced_bytes);
    }
}

#[test]
fn a_read_of_whole_blocks_does_not_run_over_the_callers_memory() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        let bytes = pattern(50_000, 8);
        assert_eq!(write(&engine, &name, &bytes, 0).outcome, Ok(()));
        let mut memory = Fenced::new(16);
        for len in [1, 100, 511, 512, 513, 4095, 4096, 4097, 5600, 20_000] {
            for offset in [0, 1, 511, 4096, 4097, 29_999] {
                for skew in [0, 1, 512] {
                    memory.tail(len + skew, 0).fill(0xEE);
                    let into = tensor(memory.tail(len, skew), offset as u64);
                    let done = wait(&engine, engine.swap_in(&[into], &[&name]).unwrap());
                    assert_eq!(done.outcome, Ok(()));
                    assert!(*memory.tail(len, skew) == bytes[offset..offset + len]);
                    assert!(memory.tail(skew, 0).iter().all(|byte| *byte == 0xEE));
                }
            }
        }
    }
}

#[test]
fn an_aligned_length_at_a_misaligned_address_is_exact() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        for skew in [1, 2, 3, 4, 7, 8, 64, 511, 512, 513, 2048, 4095] {
            let mut memory = pattern(4 * 65_536, skew as u64);
            let aligned = memory.as_ptr().align_offset(4096);
            let slice = &mut memory[aligned + skew..aligned + skew + 2 * 65_536];
            let kept = slice.to_vec();
            let out = tensor(slice, 0);
            let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            assert!(std::fs::read(directory.path().join("t")).unwrap() == kept);
            slice.fill(0);
            let done = wait(&engine, engine.swap_in(&[out], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            assert!(*slice == kept, "{backend} {skew}");
        }
    }
}

#[test]
fn a_full_disk_is_told_as_one_and_the_engine_goes_on() {
    for backend in ["io_uring", "threads", "memory"] {
        let directory = directory();
        let plan = FaultPlan {
            seed: 4,
            enospc_per_mille: 1000,
            ..FaultPlan::default()
        };
        let engine = Engine::with_faults(&config(&[("backend", backend)]), plan).unwrap();
        let name = path(directory.path(), "t");
        for _ in 0..20 {
            let done = write(&engine, &name, &pattern(300_000, 1), 0);
            let error = done.outcome.unwrap_err();
            assert_eq!(error.status(), Status::NoSpace);
            assert!(error.status().is_retryable());
            let text = error.to_string();
            let start = format!("swap_out {} at ", name.to_str().unwrap());
            assert!(
                text.starts_with(&start) && text.contains("ENOSPC"),
                "{text}"
            );
            let (_, done) = read(&engine, &name, 300_000, 0);
            assert_eq!(
                done.outcome.unwrap_err().status(),
                Status::NoSpace,
                "stays told"
            );
        }
    }
}

#[test]
fn no_descriptor_is_leaked_by_an_operation() {
    let _alone = DESCRIPTORS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend), ("open_files_max", "10")]);
        let round = |files: usize| {
            for file in 0..files {
                let name = path(directory.path(), &format!("t{file}"));
                assert_eq!(write(&engine, &name, &[1; 700], 0).outcome, Ok(()));
                assert_eq!(read(&engine, &name, 700, 0).1.outcome, Ok(()));
                let missing = path(directory.path(), "missing");
                assert!(read(&engine, &missing, 700, 0).1.outcome.is_err());
            }
        };
        round(60);
        // Closing goes on beside.
        until(|| own_descriptors(directory.path()) <= 10);
        (0..5).for_each(|_| round(60));
        until(|| own_descriptors(directory.path()) <= 10);
        assert!(engine.stats().open_files_count <= 10);
        engine.shutdown(PATIENCE).unwrap();
        drop(engine);
        assert_eq!(own_descriptors(directory.path()), 0);
    }
}

static DESCRIPTORS: Mutex<()> = Mutex::new(());

/// Descriptors of this process for files below a directory.
fn own_descriptors(directory: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(directory))
        .count()
}

#[test]
fn waiting_with_nothing_queued_returns_at_once() {
    for backend in ["io_uring", "threads", "memory"] {
        let engine = engine(&[("backend", backend)]);
        let before = Instant::now();
        assert_eq!(engine.wait_all(None), Ok(()));
        assert_eq!(engine.poll(8, &mut |_| {}), Ok(0));
        assert_eq!(engine.quiesce(None), Ok(()));
        // An empty list is a request that is over at once.
        let ticket = engine.swap_out(&[], &[]).unwrap();
        assert_eq!(wait(&engine, ticket).outcome, Ok(()));
        assert_eq!(engine.wait_all(None), Ok(()));
        assert_eq!(engine.shutdown(None), Ok(()));
        assert!(before.elapsed() < Duration::from_secs(5));
        let refused = engine.swap_out(&[], &[]).unwrap_err();
        assert_eq!(refused.status(), Status::ShutDown);
    }
}

#[test]
fn a_name_too_long_for_the_file_system_is_an_error_of_the_ticket() {
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        for name in ["x".repeat(256), "x".repeat(10_000), "d/".repeat(5000)] {
            let name = path(directory.path(), &name);
            let error = write(&engine, &name, &[1; 100], 0).outcome.unwrap_err();
            assert_eq!(error.os_error(), libc::ENAMETOOLONG);
            assert_eq!(error.status(), Status::InvalidArgument);
            assert!(read(&engine, &name, 100, 0).1.outcome.is_err());
        }
        let longest = path(directory.path(), &"x".repeat(255));
        assert_eq!(write(&engine, &longest, &[1; 100], 0).outcome, Ok(()));
    }
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_blocking() {
    let directory = directory();
    let fifo = path(directory.path(), "fifo");
    // SAFETY: makes a file at a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    for backend in ON_DISK {
        let engine = engine(&[("backend", backend)]);
        for name in [
            fifo.clone(),
            path(directory.path(), ""),
            c"/dev/null".to_owned(),
        ] {
            assert!(write(&engine, &name, &[1; 10], 0).outcome.is_err());
            assert!(read(&engine, &name, 10, 0).1.outcome.is_err());
        }
    }
}

#[test]
fn a_pointer_inside_a_registered_region_counts_as_registered() {
    const LEN: usize = 4 << 20;
    for backend in ON_DISK {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
        let name = path(directory.path(), "t");
        let mut memory = vec![9_u8; LEN + 4096];
        let aligned = memory.as_ptr().align_offset(4096);
        let start = memory[aligned..].as_mut_ptr();
        let (buffer, wrong, runs) = registered(&engine, start, LEN, 9);
        let inside = &mut memory[aligned + 8192..aligned + LEN - 4096];
        let len = inside.len();
        let ticket = engine.swap_out(&[tensor(inside, 0)], &[&name]).unwrap();
        // The request alone holds the region now: it must have been recognized.
        drop(buffer);
        let done = wait(&engine, ticket);
        assert_eq!((done.outcome, done.bytes_done), (Ok(()), len as u64));
        until(|| runs.load(Ordering::SeqCst) == 1);
        assert_eq!(wrong.load(Ordering::SeqCst), 0);
        assert!(std::fs::read(directory.path().join("t")).unwrap() == vec![9; len]);
        if engine.stats().swap_out.fallbacks_count == 0 {
            assert_eq!(engine.stats().bounced_bytes, 0, "copied though aligned");
        }
    }
}

#[test]
fn the_configured_queue_depth_is_reached() {
    const LEN: usize = 32 << 20;
    let directory = directory();
    for backend in ON_DISK {
        for depth in [1_u64, 8, 32] {
            let text = depth.to_string();
            let settings = [
                ("backend", backend),
                ("queue_depth", text.as_str()),
                ("block_bytes", "256KiB"),
            ];
            let engine = engine(&settings);
            let name = path(directory.path(), "t");
            let buffer = engine.allocate_buffer(LEN as u64).unwrap();
            // SAFETY: the buffer is kept.
            let tensor = unsafe { Tensor::new(buffer.as_ptr(), LEN as u64, Dtype::Bytes) }.unwrap();
            wait(&engine, engine.swap_out(&[tensor], &[&name]).unwrap())
                .outcome
                .unwrap();
            let stats = engine.stats();
            assert_eq!(stats.swap_out.in_flight_peak_count, depth, "{backend}");
            wait(&engine, engine.swap_in(&[tensor], &[&name]).unwrap())
                .outcome
                .unwrap();
            let stats = engine.stats();
            assert_eq!(stats.swap_in.in_flight_peak_count, depth, "{backend}");
            assert_eq!(
                (stats.in_flight_peak_count, stats.in_flight_count),
                (depth, 0)
            );
        }
    }
}

#[test]
fn every_bit_pattern_of_every_type_comes_back() {
    let directory = directory();
    for backend in ["io_uring", "threads", "memory"] {
        let engine = engine(&[("backend", backend)]);
        for (index, dtype) in Dtype::ALL.iter().copied().enumerate() {
            let numel = 10_007 + index as u64;
            let len = dtype.bytes_of(numel).unwrap() as usize;
            // Random bits: infinities, quiet and signalling NaNs, denormals and all.
            let mut memory = pattern(len, index as u64);
            let kept = memory.clone();
            // SAFETY: the memory is kept until the request is over.
            let tensor = unsafe { Tensor::new(memory.as_mut_ptr(), numel, dtype) }.unwrap();
            let name = path(directory.path(), &format!("t{index}"));
            let done = wait(&engine, engine.swap_out(&[tensor], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            memory.fill(0);
            let done = wait(&engine, engine.swap_in(&[tensor], &[&name]).unwrap());
            assert_eq!(done.outcome, Ok(()));
            assert!(memory == kept, "{dtype:?}");
        }
    }
}

#[test]
fn one_list_that_names_a_file_in_two_ways_loses_neither_part() {
    for backend in ON_DISK {
        for (first, second) in [("t", "./t"), ("./t", "t"), ("t", "link"), ("link", "t")] {
            let directory = directory();
            std::fs::write(directory.path().join("t"), vec![9; 40_000]).unwrap();
            std::fs::hard_link(directory.path().join("t"), directory.path().join("link")).unwrap();
            let engine = engine(&[("backend", backend)]);
            let (mut head, mut tail) = (pattern(5000, 1), pattern(7000, 2));
            let names = [
                path(directory.path(), first),
                path(directory.path(), second),
            ];
            let list = [tensor(&mut head, 0), tensor(&mut tail, 20_000)];
            let ticket = engine.swap_out(&list, &[&names[0], &names[1]]).unwrap();
            assert_eq!(wait(&engine, ticket).outcome, Ok(()));
            let file = std::fs::read(directory.path().join("t")).unwrap();
            assert_eq!(file.len(), 27_000, "{first} {second}");
            assert!(file[..5000] == head && file[20_000..] == tail);
        }
    }
}

#[test]
fn space_is_taken_for_what_is_written_and_not_for_holes() {
    let directory = directory();
    let engine = engine(&[]);
    let name = path(directory.path(), "t");
    let (mut low, mut high) = (pattern(5000, 1), pattern(5000, 2));
    let list = [tensor(&mut low, 0), tensor(&mut high, 1 << 40)];
    let ticket = engine.swap_out(&list, &[&name, &name]).unwrap();
    assert_eq!(wait(&engine, ticket).outcome, Ok(()));
    let empty = tensor(&mut [], 2 << 40);
    let ticket = engine.swap_out(&[empty], &[&name]).unwrap();
    assert_eq!(wait(&engine, ticket).outcome, Ok(()));
    let status = std::fs::metadata(directory.path().join("t")).unwrap();
    assert_eq!(status.len(), 2 << 40);
    assert!(status.blocks() * 512 < 1 << 20);
    assert!(read(&engine, &name, 5000, 1 << 40).0 == high);
}
