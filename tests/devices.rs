//! Files on several devices in one engine.
#![allow(unsafe_code, reason = "tensors are made of memory that the test owns")]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use support::{PATIENCE, Random};
use tensorswap::base::dtype::Dtype;
use tensorswap::io::Tensor;

/// Each on a file system of its own on most machines; what holds for two holds for one as well.
fn places() -> [tempfile::TempDir; 2] {
    let memory = Path::new("/dev/shm");
    let second = if memory.is_dir() {
        tempfile::tempdir_in(memory).expect("a directory")
    } else {
        support::directory()
    };
    [support::directory(), second]
}

#[test]
fn one_request_on_two_devices_moves_its_bytes_and_counts_them_for_each() {
    const TENSORS: usize = 24;
    const LEN_BYTES: usize = 400_000;
    for backend in ["io_uring", "threads"] {
        let places = places();
        let engine = support::engine(&[
            ("backend", backend),
            ("queue_depth", "4"),
            ("block_bytes", "64KiB"),
        ]);
        assert_eq!(engine.devices(), []);
        let mut random = Random(7);
        let mut written = vec![0; TENSORS * LEN_BYTES];
        random.fill(&mut written);
        let names: Vec<_> = (0..TENSORS)
            .map(|index| support::path(places[index % 2].path(), &format!("t{index}")))
            .collect();
        let paths: Vec<_> = names.iter().map(|name| name.as_c_str()).collect();
        let mut read = vec![0; written.len()];
        for (bytes, out) in [(&mut written, true), (&mut read, false)] {
            let tensors: Vec<Tensor> = bytes
                .chunks_mut(LEN_BYTES)
                .map(|chunk| {
                    // SAFETY: nothing touches the bytes until the request is over.
                    unsafe { Tensor::new(chunk.as_mut_ptr(), LEN_BYTES as u64, Dtype::Bytes) }
                        .unwrap()
                })
                .collect();
            let ticket = match out {
                true => engine.swap_out(&tensors, &paths),
                false => engine.swap_in(&tensors, &paths),
            };
            let completion = engine.wait(ticket.unwrap(), PATIENCE).unwrap();
            assert_eq!(completion.outcome, Ok(()));
        }
        assert!(read == written, "{backend}");

        let mut numbers: Vec<u64> = places
            .iter()
            .map(|place| place.path().metadata().unwrap().dev())
            .collect();
        numbers.dedup();
        let mut devices = engine.devices();
        devices.sort_by_key(|device| numbers.iter().position(|it| *it == device.device));
        let found: Vec<u64> = devices.iter().map(|device| device.device).collect();
        assert_eq!(found, numbers);
        let text = engine.prometheus();
        for device in devices {
            let moved = (written.len() / numbers.len()) as u64;
            assert!(device.read_bytes >= moved && device.written_bytes >= moved);
            // Blocks are whole and padded tails are few.
            assert!(device.read_bytes + device.written_bytes < 3 * moved);
            assert!(device.busy > Duration::ZERO);
            let number = device.device;
            let (major, minor) = (libc::major(number), libc::minor(number));
            let line = format!(
                "tensorswap_device_written_bytes_total{{device=\"{major}:{minor}\"}} {}\n",
                device.written_bytes
            );
            assert!(text.contains(&line), "{text}");
        }
    }
}
