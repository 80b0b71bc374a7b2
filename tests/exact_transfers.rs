//! Every length, address and offset comes back exact, and so does the length of the file.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;

use support::*;

#[test]
fn misaligned_tensors_come_back_exact() {
    for backend in ["io_uring", "threads"] {
        let directory = directory();
        let engine = engine(&[("backend", backend)]);
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
                    let done = wait(&engine, engine.swap_out(&[out], &[&name]).unwrap());
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
                    let done = wait(&engine, engine.swap_in(&[into], &[&name]).unwrap());
                    assert_eq!(done.outcome, Ok(()));
                    assert!(back[skew..skew + len] == memory[skew..]);
                    assert!(back[skew + len..].iter().all(|byte| *byte == 0xAA));
                }
            }
            let _ = std::fs::remove_file(directory.path().join("t"));
        }
    }
}
