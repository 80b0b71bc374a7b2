//! Limits and filters of a process. They cannot be taken back, so each is set in a process of its
//! own: this program runs itself for one ignored test.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::base::units::{KIB, MIB};
use tensorswap::io::Engine;

use crate::common;
use crate::mounts::*;
use crate::support::{self, path, pattern, read, tensor, wait, write};
use crate::training;
use crate::training_on::{Training, assert_clear};
use crate::transfers::*;

/// The variable that tells a child's test that it may change its process.
pub(crate) const CHILD: &str = "TSW_TEST_CHILD";

/// Runs one ignored test of this file in a process of its own.
pub(crate) fn in_child(test: &str) {
    let test = format!("process::{test}");
    let output = output_of(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--ignored", "--nocapture"])
            .env(CHILD, &test),
    )
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    assert!(text.contains("1 passed"), "{text}");
    for line in text.lines().filter(|line| line.contains("skipped (")) {
        let (_, reason) = line.split_once("skipped (").unwrap_or_default();
        let (feature, reason) = reason.split_once("): ").unwrap_or_default();
        common::skip(feature, reason);
    }
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: one `struct rlimit`, which outlives the call.
    assert_eq!(0, unsafe { libc::setrlimit(resource, &raw const limit) });
}

/// Takes every right of root from this thread and those it starts.
pub(crate) fn drop_capabilities() {
    // Version 3 of the header, this thread; none in any of the three sets of two words each.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: both arrays are laid out as capset(2) reads them and outlive the call.
    let dropped = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(dropped, 0);
}

/// Has the kernel answer `io_uring_setup` with `errno` in this thread and those it starts.
pub(crate) fn forbid_rings(errno: i32) {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let number = libc::SYS_io_uring_setup as u32;
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut filter = [
        // The number of the call is the first word of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: no memory is involved.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(no_new, 0);
    // SAFETY: a program of as many instructions as it says, which outlives the call.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0);
}

pub(crate) fn refused_ring(errno: i32, name: &str) {
    forbid_rings(errno);
    let directory = support::directory();
    let demanded = support::config(&[("backend", "io_uring")]);
    let error = Engine::new(&demanded).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert_eq!(error.os_error(), errno);
    assert!(error.to_string().contains(name), "{error}");
    let engine = support::engine(&[("backend", "auto")]);
    let facts: serde_json::Value = serde_json::from_str(&engine.describe()).unwrap();
    assert_eq!(facts["backend"], "threads");
    let reason = facts["backend_reason"].as_str().unwrap();
    assert!(reason.contains(name), "{reason}");
    assert!(reason.contains("seccomp"), "{reason}");
    round_trips(&engine, directory.path());
    swapper_round_trips(&engine, directory.path());
    trains(engine, directory.path());
}

/// Some steps, and the store opened again.
pub(crate) fn trains(engine: Engine, directory: &Path) {
    let mut training = Training::on(engine, &directory.join("store"));
    for _ in 0..3 {
        training.step().unwrap();
    }
    training = training.opened_again();
    training.step().unwrap();
    drop(training);
    std::fs::remove_dir_all(directory.join("store")).unwrap();
}

#[test]
fn a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so() {
    in_child("child_whose_ring_is_not_permitted");
    in_child("child_whose_ring_is_unknown");
}

#[test]
#[ignore = "run by a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so"]
fn child_whose_ring_is_not_permitted() {
    if is_child() {
        refused_ring(libc::EPERM, "EPERM");
    }
}

#[test]
#[ignore = "run by a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so"]
fn child_whose_ring_is_unknown() {
    if is_child() {
        refused_ring(libc::ENOSYS, "ENOSYS");
    }
}

#[test]
fn with_little_locked_memory_buffers_stay_unpinned_and_say_so() {
    in_child("child_with_little_locked_memory");
}

#[test]
#[ignore = "run by with_little_locked_memory_buffers_stay_unpinned_and_say_so"]
fn child_with_little_locked_memory() {
    if !is_child() {
        return;
    }
    limit(libc::RLIMIT_MEMLOCK, 64 * KIB);
    drop_capabilities();
    let directory = support::directory();
    for backend in ["auto", "io_uring", "threads"] {
        let Some(_) = started(backend) else {
            continue;
        };
        let settings = [("backend", backend), ("huge_pages", "off")];
        let engine = support::engine(&[settings[0], settings[1], ("pin", "prefer")]);
        let buffer = engine.allocate_buffer(MIB).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&engine.describe()).unwrap();
        assert_eq!(facts["memlock_limit_bytes"], 64 * KIB);
        let told = &facts["buffers"][0];
        assert_eq!(told["len_bytes"], MIB);
        assert_eq!(
            (&told["locked"], &told["registered"]),
            (&false.into(), &false.into())
        );
        drop(buffer);
        round_trips(&engine, directory.path());
        swapper_round_trips(&engine, directory.path());
        trains(engine, directory.path());

        let strict = support::engine(&[settings[0], settings[1], ("pin", "require")]);
        let error = strict.allocate_buffer(MIB).unwrap_err();
        assert_eq!(error.status(), Status::Memlock, "{error}");
        assert_eq!(error.os_error(), libc::ENOMEM);
        assert!(error.to_string().contains("65536 bytes"), "{error}");
        // Bounce blocks are pinned memory too.
        let name = path(directory.path(), "strict");
        let odd = write(&strict, &name, &[1; 100], 0).outcome.unwrap_err();
        assert_eq!(odd.status(), Status::Memlock, "{odd}");
        // And so is the room for records.
        let store = directory.path().join("strict store");
        let optimizer = training::try_open(&strict, &store, &[], &training::F32).unwrap();
        optimizer.add_parameter(1, None, 100_000).unwrap();
        let mut bytes = training::to_bytes(&training::values(100_000, 1), Dtype::F32);
        let source = training::elements(&mut bytes, Dtype::F32);
        let error = optimizer
            .initialize_parameters(&[1], &[source])
            .unwrap_err();
        assert_eq!(error.status(), Status::Memlock, "{error}");
    }
}

#[test]
fn many_more_files_than_descriptors_are_swapped() {
    in_child("child_with_few_descriptors");
}

#[test]
#[ignore = "run by many_more_files_than_descriptors_are_swapped"]
fn child_with_few_descriptors() {
    if !is_child() {
        return;
    }
    limit(libc::RLIMIT_NOFILE, 32);
    let directory = support::directory();
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let names: Vec<CString> = (0..500)
            .map(|i| path(directory.path(), &format!("{backend}{i}")))
            .collect();
        let paths: Vec<_> = names.iter().map(CString::as_c_str).collect();
        let mut files: Vec<Vec<u8>> = (0..500).map(|i| pattern(1000 + 37 * i, i as u64)).collect();
        let mut back: Vec<Vec<u8>> = files.iter().map(|file| vec![0; file.len()]).collect();
        let out: Vec<_> = files.iter_mut().map(|file| tensor(file, 0)).collect();
        let into: Vec<_> = back.iter_mut().map(|file| tensor(file, 0)).collect();
        // Written in one list; read while the writes may still be under way.
        let written = engine.swap_out(&out, &paths).unwrap();
        let got = engine.swap_in(&into, &paths).unwrap();
        assert_eq!(wait(&engine, written).outcome, Ok(()));
        assert_eq!(wait(&engine, got).outcome, Ok(()));
        assert!(back == files);
        for (name, file) in names.iter().zip(&files) {
            assert!(std::fs::read(name.to_str().unwrap()).unwrap() == *file);
        }
        // And each by a request of its own, all of them before the first wait.
        for file in &mut files {
            file.reverse();
        }
        let mut tickets: Vec<_> = (0..500)
            .map(|i| engine.swap_out(&out[i..=i], &paths[i..=i]).unwrap())
            .collect();
        tickets.extend((0..500).map(|i| engine.swap_in(&into[i..=i], &paths[i..=i]).unwrap()));
        for ticket in tickets {
            assert_eq!(wait(&engine, ticket).outcome, Ok(()));
        }
        assert!(back == files);
        assert!(engine.stats().open_files_count <= 16);
        swapper_round_trips(&engine, directory.path());
        trains(engine, directory.path());
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_a_clear_error() {
    in_child("child_with_small_files");
    in_child("child_with_small_files_that_its_signal_would_end");
}

/// Where nobody ignores `SIGXFSZ`, which ends a process.
#[test]
#[ignore = "run by a_limit_on_the_size_of_files_is_a_clear_error"]
fn child_with_small_files_that_its_signal_would_end() {
    if !is_child() {
        return;
    }
    let directory = support::directory();
    let small = 16 * MIB;
    limit(libc::RLIMIT_FSIZE, small);
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let name = path(directory.path(), backend);
        let bytes = pattern(20 << 20, 9);
        let error = write(&engine, &name, &bytes, 0).outcome.unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
        let swapper = swapper(&engine);
        let mut bytes = bytes.clone();
        let swapped = swapper.swap_out(&[tensor(&mut bytes, 0)], &[&name]);
        let error = swapped.and(swapper.flush(support::PATIENCE)).unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");

        // What fits is trained; what does not is refused, and takes nothing.
        let mut training = Training::on(engine, &directory.path().join("store"));
        training.step().unwrap();
        let error = training.optimizer().add_parameter(9, None, 10_000_000);
        let error = error.unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
        assert_clear(&error, &training.directory, &[Status::Io]);
        training.step().unwrap();
        let mut training = training.opened_again();
        training.step().unwrap();
        drop(training);
        std::fs::remove_dir_all(directory.path().join("store")).unwrap();
    }
}

#[test]
#[ignore = "run by a_limit_on_the_size_of_files_is_a_clear_error"]
fn child_with_small_files() {
    if !is_child() {
        return;
    }
    // SAFETY: no handler is installed, the signal is only ignored.
    let ignored = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    assert_ne!(ignored, libc::SIG_ERR);
    limit(libc::RLIMIT_FSIZE, MIB);
    let directory = support::directory();
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let name = path(directory.path(), backend);
        let bytes = pattern(3 << 20, 9);
        for _ in 0..2 {
            let error = write(&engine, &name, &bytes, 0).outcome.unwrap_err();
            assert_eq!(error.os_error(), libc::EFBIG, "{error}");
            assert_eq!(error.status(), Status::Io);
            let text = error.to_string();
            assert!(text.contains("EFBIG"), "{text}");
            assert!(text.contains(name.to_str().unwrap()), "{text}");
        }
        let fits = &bytes[..1 << 20];
        assert_eq!(write(&engine, &name, fits, 0).outcome, Ok(()));
        let (back, done) = read(&engine, &name, 1 << 20, 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == fits);
        assert!(std::fs::read(directory.path().join(backend)).unwrap() == fits);

        let swapper = swapper(&engine);
        let mut bytes = bytes.clone();
        let out = tensor(&mut bytes, 0);
        let swapped = swapper.swap_out(&[out], &[&name]);
        let error = swapped.and(swapper.flush(support::PATIENCE)).unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
    }
}
