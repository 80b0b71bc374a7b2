//! What files may be: many, strange, named in several ways, full of holes.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::Tensor;

const ON_DISK: [&str; 2] = ["io_uring", "threads"];

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
