//! Every length, address and offset comes back exact, and so does the length of the file.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test"
)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Completion, Engine, Tensor};

fn config(backend: &str) -> Config {
    let mut config = Config::new();
    config.set("backend", backend).unwrap();
    config
}

fn path(directory: &Path, name: &str) -> CString {
    CString::new(directory.join(name).as_os_str().as_bytes()).unwrap()
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn tensor(bytes: &mut [u8], offset: u64) -> Tensor {
    unsafe { Tensor::new(bytes.as_mut_ptr(), bytes.len() as u64, Dtype::Bytes) }
        .unwrap()
        .at(offset)
        .unwrap()
}

fn run(engine: &Engine, ticket: tensorswap::io::Ticket) -> Completion {
    engine.wait(ticket, None).unwrap()
}

#[test]
fn misaligned_tensors_come_back_exact() {
    for backend in ["io_uring", "threads"] {
        let directory = tempfile::tempdir_in(".").unwrap();
        let engine = Engine::new(&config(backend)).unwrap();
        for len in [
            0,
            1,
            100,
            511,
            512,
            513,
            4095,
            4096,
            5600,
            (1 << 20) + 100,
            3_000_001,
        ] {
            for offset in [0, 1, 511, 512, 513, 4095, 1_000_003] {
                for skew in [0, 1, 511] {
                    let name = path(directory.path(), "t");
                    let mut memory = pattern(len + skew, len as u64 + offset);
                    let out = tensor(&mut memory[skew..], offset);
                    let done = run(&engine, engine.swap_out(&[out], &[&name]).unwrap());
                    assert_eq!(done.outcome, Ok(()), "{backend} {len} {offset} {skew}");
                    let file = std::fs::read(directory.path().join("t")).unwrap();
                    let end = offset as usize + len;
                    assert_eq!(
                        file.len(),
                        end.max(if offset == 0 { 0 } else { file.len() })
                    );
                    assert!(
                        file[offset as usize..end] == memory[skew..],
                        "{len} {offset} {skew}"
                    );
                    let mut back = vec![0xAA_u8; len + skew + 7];
                    let into = tensor(&mut back[skew..skew + len], offset);
                    let done = run(&engine, engine.swap_in(&[into], &[&name]).unwrap());
                    assert_eq!(done.outcome, Ok(()));
                    assert!(back[skew..skew + len] == memory[skew..]);
                    assert!(back[skew + len..].iter().all(|byte| *byte == 0xAA));
                }
            }
            let _ = std::fs::remove_file(directory.path().join("t"));
        }
        eprintln!("{:?}\n{}", engine.stats(), engine.describe());
    }
}
