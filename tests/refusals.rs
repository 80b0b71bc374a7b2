//! What a file system may refuse: direct I/O at the open, reserving space, writing.
//!
//! A filter on system calls would strike the whole test process, so each test runs once more,
//! alone, in a process of its own that was born with it.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use support::*;
use tensorswap::base::error::Status;
use tensorswap::io::Engine;

const ON_DISK: [&str; 2] = ["io_uring", "threads"];
/// Names the test that a process was started for.
const CHILD: &str = "TSW_TEST_CHILD";

/// Runs the calling test again in a process that `prepare` was called in before it began; `body`
/// is what it does there.
fn in_child(
    test: &str,
    prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    body: impl FnOnce(),
) {
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        body();
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, test);
    // SAFETY: what runs between fork and exec makes system calls and nothing else.
    let output = unsafe { command.pre_exec(prepare) }.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{text}\n{errors}",
        output.status
    );
    assert!(text.contains("1 passed"), "{text}");
    for line in text.lines().filter(|line| line.contains("skipped (")) {
        println!("{line}");
    }
}

fn checked(result: i32) -> std::io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error())
}

/// Makes a system call fail with `errno`; where `flag` is given, only with that bit in the third
/// argument.
fn forbid(call: libc::c_long, flag: Option<i32>, errno: i32) -> std::io::Result<()> {
    // KERNEL: seccomp(2); offsets in `struct seccomp_data` (little endian).
    const NUMBER: u32 = 0;
    const THIRD_ARGUMENT: u32 = 16 + 2 * 8;
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let has_bits = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let finish = libc::BPF_RET | libc::BPF_K;
    let bits = flag.map_or(u32::MAX, |flag| u32::try_from(flag).unwrap_or(0));
    let mut filter = [
        statement(load, NUMBER),
        jump(equal, u32::try_from(call).unwrap_or(0), 0, 3),
        statement(load, THIRD_ARGUMENT),
        // Without a flag every call is meant, so both ways lead to the errno.
        jump(has_bits, bits, 0, u8::from(flag.is_some())),
        statement(
            finish,
            libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap_or(0),
        ),
        statement(finish, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: numbers, and a program that outlives the call.
    unsafe {
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        checked(libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        ))
    }
}

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Odd and even lengths, offsets and addresses, written, compared with the file, and read back.
fn exact(engine: &Engine, directory: &Path) {
    for (index, (len, offset, skew)) in [
        (0, 0, 0),
        (1, 0, 0),
        (5600, 0, 0),
        (4096, 0, 1),
        (100, 511, 3),
        (100_000, 4095, 512),
        ((1 << 20) + 100, 0, 0),
        (3_000_001, 513, 7),
    ]
    .into_iter()
    .enumerate()
    {
        let name = path(directory, &format!("exact{index}"));
        let mut memory = pattern(len + skew, index as u64);
        let out = tensor(&mut memory[skew..], offset);
        let done = wait(engine, engine.swap_out(&[out], &[&name]).unwrap());
        assert_eq!(done.outcome, Ok(()));
        let file = std::fs::read(name.to_str().unwrap()).unwrap();
        assert_eq!(file.len() as u64, offset + len as u64);
        assert!(file[offset as usize..] == memory[skew..]);
        // A neighbour in the same block.
        assert_eq!(
            write(engine, &name, b"neighbour", offset + len as u64).outcome,
            Ok(())
        );
        let (back, done) = read(engine, &name, len + 9, offset);
        assert_eq!(done.outcome, Ok(()));
        assert!(back[..len] == memory[skew..] && back[len..] == *b"neighbour");
    }
}

#[test]
fn a_file_system_without_fallocate_is_written_all_the_same() {
    in_child(
        "a_file_system_without_fallocate_is_written_all_the_same",
        || forbid(libc::SYS_fallocate, None, libc::EOPNOTSUPP),
        || {
            for backend in ON_DISK {
                let directory = directory();
                let engine = engine(&[("backend", backend)]);
                exact(&engine, directory.path());
                // Many writers make one file longer at the same time; none cuts another.
                let name = path(directory.path(), "grows");
                for round in 0..20_u64 {
                    let mut pieces: Vec<Vec<u8>> = (0..16)
                        .map(|piece| pattern(9_000, round * 16 + piece))
                        .collect();
                    let tickets: Vec<_> = pieces
                        .iter_mut()
                        .enumerate()
                        .rev()
                        .map(|(piece, bytes)| {
                            let place = (round * 16 + piece as u64) * 12_288 + 1;
                            engine.swap_out(&[tensor(bytes, place)], &[&name]).unwrap()
                        })
                        .collect();
                    for ticket in tickets {
                        assert_eq!(wait(&engine, ticket).outcome, Ok(()));
                    }
                    let file = std::fs::read(name.to_str().unwrap()).unwrap();
                    assert_eq!(file.len() as u64, (round * 16 + 15) * 12_288 + 1 + 9_000);
                    for (piece, bytes) in pieces.iter().enumerate() {
                        let place = ((round * 16 + piece as u64) * 12_288 + 1) as usize;
                        assert!(file[place..place + 9_000] == *bytes);
                    }
                }
            }
        },
    );
}

#[test]
fn a_file_system_that_refuses_direct_io_at_the_open_is_told_and_used() {
    in_child(
        "a_file_system_that_refuses_direct_io_at_the_open_is_told_and_used",
        || forbid(libc::SYS_openat, Some(libc::O_DIRECT), libc::EINVAL),
        || {
            for backend in ON_DISK {
                let directory = directory();
                let engine = engine(&[("backend", backend)]);
                exact(&engine, directory.path());
                assert_eq!(engine.stats().swap_out.fallbacks_count, 8);
                let settings = config(&[("backend", backend), ("direct_io", "require")]);
                let engine = Engine::new(&settings).unwrap();
                let name = path(directory.path(), "required");
                let error = write(&engine, &name, &[1; 4096], 0).outcome.unwrap_err();
                assert_eq!(error.status(), Status::Unsupported, "{error}");
            }
        },
    );
}

#[test]
fn a_file_that_may_only_be_read_is_never_taken_for_writable() {
    in_child(
        "a_file_that_may_only_be_read_is_never_taken_for_writable",
        || forbid(libc::SYS_openat, Some(libc::O_DIRECT), libc::EINVAL),
        || {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("t");
            std::fs::write(&file, [7; 5000]).unwrap();
            let allow = |path: &Path, mode| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
                std::fs::set_permissions(path, mode).unwrap();
            };
            allow(directory.path(), 0o755);
            allow(&file, 0o444);
            let was_root = is_root();
            if was_root {
                // SAFETY: a number; the process is nobody until the end of the test.
                assert_eq!(unsafe { libc::seteuid(65534) }, 0);
            }
            for backend in ON_DISK {
                let engine = engine(&[("backend", backend)]);
                let name = path(directory.path(), "t");
                assert_eq!(read(&engine, &name, 5000, 0).0, [7; 5000]);
                let error = write(&engine, &name, &[1; 100], 0).outcome.unwrap_err();
                assert_eq!(error.status(), Status::Permission, "{error}");
                assert_eq!(error.os_error(), libc::EACCES);
            }
            if was_root {
                // SAFETY: a number.
                assert_eq!(unsafe { libc::seteuid(0) }, 0);
            }
        },
    );
}
