//! What the system refuses: forbidden calls, low limits, full file systems of several kinds.
//!
//! Limits and filters would strike the whole test process, so each such test runs once more, alone,
//! in a process of its own that was born with them. File systems on loop devices need root.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
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

fn limit(resource: libc::__rlimit_resource_t, value: u64) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the structure outlives the call.
    checked(unsafe { libc::setrlimit(resource, &raw const limit) })
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

fn without_io_uring(test: &'static str, errno: i32, name: &str) {
    in_child(
        test,
        move || forbid(libc::SYS_io_uring_setup, None, errno),
        || {
            let directory = directory();
            let engine = engine(&[("backend", "auto")]);
            let told = engine.describe();
            assert!(told.contains("\"backend\":\"threads\""), "{told}");
            assert!(
                told.contains(name) && told.contains("io_uring_setup"),
                "{told}"
            );
            exact(&engine, directory.path());
            let refused = Engine::new(&config(&[("backend", "io_uring")])).unwrap_err();
            assert_eq!(refused.status(), Status::Unsupported);
            assert_eq!(refused.os_error(), errno);
            assert!(refused.to_string().contains("seccomp"), "{refused}");
        },
    );
}

#[test]
fn io_uring_forbidden_with_eperm_falls_back_to_threads_and_says_so() {
    let test = "io_uring_forbidden_with_eperm_falls_back_to_threads_and_says_so";
    without_io_uring(test, libc::EPERM, "EPERM");
}

#[test]
fn io_uring_forbidden_with_enosys_falls_back_to_threads_and_says_so() {
    let test = "io_uring_forbidden_with_enosys_falls_back_to_threads_and_says_so";
    without_io_uring(test, libc::ENOSYS, "ENOSYS");
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

#[test]
fn with_little_memory_to_lock_it_goes_on_unlocked_and_unregistered_and_says_so() {
    const CAP_IPC_LOCK: u64 = 14;
    in_child(
        "with_little_memory_to_lock_it_goes_on_unlocked_and_unregistered_and_says_so",
        || {
            limit(libc::RLIMIT_MEMLOCK, 64 << 10)?;
            if is_root() {
                // SAFETY: numbers. The program begun next has the capability no more.
                checked(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) })?;
            }
            Ok(())
        },
        || {
            for backend in ON_DISK {
                let directory = directory();
                let engine = engine(&[("backend", backend)]);
                let buffer = engine.allocate_buffer(4 << 20).unwrap();
                assert!(!buffer.is_locked());
                let told = engine.describe();
                assert!(told.contains("\"locked\":false"), "{told}");
                assert!(told.contains("\"memlock_limit_bytes\":65536"), "{told}");
                if backend == "io_uring" {
                    assert!(told.contains("\"registered\":false"), "{told}");
                }
                let name = path(directory.path(), "t");
                // SAFETY: the buffer is kept.
                let slice = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), 4 << 20) };
                Random(1).fill(slice);
                let kept = slice.to_vec();
                let all = tensor(slice, 0);
                let done = wait(&engine, engine.swap_out(&[all], &[&name]).unwrap());
                assert_eq!(done.outcome, Ok(()));
                slice.fill(0);
                let done = wait(&engine, engine.swap_in(&[all], &[&name]).unwrap());
                assert_eq!(done.outcome, Ok(()));
                assert!(*slice == kept);
                exact(&engine, directory.path());
                let strict = Engine::new(&config(&[("backend", backend), ("pin", "require")]));
                let refused = strict.unwrap().allocate_buffer(4 << 20).unwrap_err();
                assert_eq!(refused.status(), Status::Memlock, "{refused}");
            }
        },
    );
}

#[test]
fn few_descriptors_are_enough_for_many_files() {
    in_child(
        "few_descriptors_are_enough_for_many_files",
        || limit(libc::RLIMIT_NOFILE, 32),
        || {
            const FILES: usize = 300;
            for (backend, open_files_max) in ON_DISK
                .iter()
                .flat_map(|backend| [(backend, "0"), (backend, "1000")])
            {
                let directory = directory();
                let settings = [("backend", *backend), ("open_files_max", open_files_max)];
                let engine = engine(&settings);
                let names: Vec<CString> = (0..FILES)
                    .map(|file| path(directory.path(), &format!("t{file}")))
                    .collect();
                let paths: Vec<_> = names.iter().map(CString::as_c_str).collect();
                for round in 0..3 {
                    let mut memory: Vec<_> = (0..FILES as u64)
                        .map(|file| pattern(3000, round * 1000 + file))
                        .collect();
                    let kept = memory.clone();
                    let list: Vec<_> = memory.iter_mut().map(|bytes| tensor(bytes, 0)).collect();
                    let out = engine.swap_out(&list, &paths).unwrap();
                    let done = wait(&engine, out);
                    assert_eq!(done.outcome, Ok(()), "{backend} {open_files_max}");
                    memory.iter_mut().for_each(|bytes| bytes.fill(0));
                    let singles: Vec<_> = list
                        .iter()
                        .zip(&paths)
                        .map(|(one, path)| engine.swap_in(&[*one], &[path]).unwrap())
                        .collect();
                    for ticket in singles {
                        assert_eq!(wait(&engine, ticket).outcome, Ok(()));
                    }
                    assert!(memory == kept);
                }
            }
        },
    );
}

#[test]
fn a_file_size_limit_is_an_error_and_does_not_kill_the_process() {
    in_child(
        "a_file_size_limit_is_an_error_and_does_not_kill_the_process",
        || limit(libc::RLIMIT_FSIZE, 1 << 20),
        || {
            for backend in ON_DISK {
                for direct in ["prefer", "off"] {
                    let directory = directory();
                    let engine = engine(&[("backend", backend), ("direct_io", direct)]);
                    let name = path(directory.path(), "t");
                    for offset in [0, 1 << 20, 5 << 20] {
                        let done = write(&engine, &name, &pattern(3 << 20, 1), offset);
                        let error = done.outcome.unwrap_err();
                        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
                    }
                    let small = pattern(900_001, 2);
                    assert_eq!(write(&engine, &name, &small, 0).outcome, Ok(()));
                    assert!(std::fs::read(name.to_str().unwrap()).unwrap() == small);
                }
            }
        },
    );
}

/// Fills a file system through an engine, empties it, and uses it again.
fn fill(settings: &[(&str, &str)], directory: &Path) {
    const LEN: usize = (3 << 20) + 100;
    let engine = engine(settings);
    let mut written = Vec::new();
    let error = loop {
        let name = path(directory, &format!("fill{}", written.len()));
        let bytes = pattern(LEN, written.len() as u64);
        match write(&engine, &name, &bytes, 0).outcome {
            Ok(()) => written.push(name),
            Err(error) => {
                let (_, done) = read(&engine, &name, LEN, 0);
                assert!(done.outcome.is_err(), "what failed reads as failed");
                std::fs::remove_file(name.to_str().unwrap()).unwrap();
                break error;
            }
        }
        assert!(written.len() < 1000, "it never gets full");
    };
    assert_eq!(error.status(), Status::NoSpace, "{error}");
    assert!(error.to_string().contains("ENOSPC"), "{error}");
    assert!(!written.is_empty());
    // To the last block.
    let mut small = 0;
    while write(
        &engine,
        &path(directory, &format!("small{small}")),
        &[1; 4096],
        0,
    )
    .outcome
    .is_ok()
    {
        small += 1;
        assert!(small < 100_000);
    }
    for (index, name) in written.iter().enumerate() {
        let (back, done) = read(&engine, name, LEN, 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == pattern(LEN, index as u64));
    }
    // Rewriting in place needs no new space where files are not copied on write.
    for file in std::fs::read_dir(directory).unwrap() {
        let file = file.unwrap().path();
        if file.is_file() {
            std::fs::remove_file(file).unwrap();
        }
    }
    // SAFETY: no arguments. What was removed is freed behind the caller's back on some.
    unsafe { libc::sync() };
    let name = path(directory, "again");
    let deadline = std::time::Instant::now() + PATIENCE.unwrap();
    while write(&engine, &name, &pattern(LEN, 9), 0).outcome.is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "the space is not used again"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(read(&engine, &name, LEN, 0).0 == pattern(LEN, 9));
}

#[test]
fn tmpfs() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return skip("tmpfs", "/dev/shm cannot be written");
    };
    for backend in ON_DISK {
        for direct in ["prefer", "off"] {
            let engine = engine(&[("backend", backend), ("direct_io", direct)]);
            exact(&engine, directory.path());
            for file in std::fs::read_dir(directory.path()).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
    }
}

/// A mounted file system, gone when dropped.
struct Mounted {
    point: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    /// Makes and mounts one; says why not.
    fn new(kind: &str, size: &str) -> Result<Mounted, String> {
        let directory = directory();
        let point = directory.path().join("mounted");
        std::fs::create_dir(&point).map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        if kind == "tmpfs" {
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
        } else {
            let image = directory.path().join("image");
            run(Command::new("truncate").args(["-s", size]).arg(&image))?;
            let quiet = if kind == "ext4" { "-F" } else { "-f" };
            run(Command::new(format!("mkfs.{kind}"))
                .args(["-q", quiet])
                .arg(&image))?;
            mount.args(["-t", kind, "-o", "loop"]).arg(&image);
        }
        run(mount.arg(&point))?;
        Ok(Mounted {
            point,
            _directory: directory,
        })
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.point));
    }
}

fn on_file_system(kind: &str, size: &str) {
    if !is_root() {
        return skip(kind, "mounting a file system needs root");
    }
    let mounted = match Mounted::new(kind, size) {
        Ok(mounted) => mounted,
        Err(reason) => return skip(kind, &reason),
    };
    for backend in ON_DISK {
        for direct in ["prefer", "off"] {
            let settings = [("backend", backend), ("direct_io", direct)];
            let directory = tempfile::tempdir_in(&mounted.point).unwrap();
            exact(&engine(&settings), directory.path());
        }
    }
    let directory = tempfile::tempdir_in(&mounted.point).unwrap();
    fill(&[("backend", "io_uring")], directory.path());
    drop(directory);
    let directory = tempfile::tempdir_in(&mounted.point).unwrap();
    fill(&[("backend", "threads")], directory.path());
}

#[test]
fn ext4_to_the_last_block() {
    on_file_system("ext4", "64M");
}

#[test]
fn xfs_to_the_last_block() {
    on_file_system("xfs", "320M");
}

#[test]
fn btrfs_to_the_last_block() {
    on_file_system("btrfs", "160M");
}

#[test]
fn tmpfs_to_the_last_block() {
    on_file_system("tmpfs", "48M");
}
