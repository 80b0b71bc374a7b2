//! Every example and every misuse program in C, linked shared and static, plain and with address
//! and undefined-behaviour sanitizers, each run in an empty directory on a real disk.
//!
//! A program ends with 0 where all is well and with 77 where the machine cannot show something;
//! everything else is a failure, with its output.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// BOUND: how long a program may run.
const RUN_TIME_MAX: Duration = Duration::from_secs(150);
const SANITIZE: &[&str] = &[
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Linked {
    Shared,
    Static,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    Plain,
    Sanitized,
}

/// Every program, by folder: the examples with the warnings of their Makefile, ours with more.
fn programs() -> Vec<PathBuf> {
    let mut programs = Vec::new();
    for folder in ["examples_c", "tests/c"] {
        let entries = std::fs::read_dir(common::root().join(folder)).unwrap();
        programs.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "c")),
        );
    }
    programs.sort();
    assert!(programs.len() >= 24, "programs are missing: {programs:?}");
    programs
}

/// What a program is given: the model is trained shortly, and under sanitizers a tiny one.
fn arguments(program: &Path, checked: Checked) -> &'static [&'static str] {
    match (program.file_stem().unwrap().to_str().unwrap(), checked) {
        ("train_adam", Checked::Plain) => &["--steps", "20", "--threads", "3", "--verify"],
        ("train_adam", Checked::Sanitized) => &["--steps", "4", "--hidden", "136", "--verify"],
        _ => &[],
    }
}

fn build(source: &Path, program: &Path, linked: Linked, checked: Checked) {
    let root = common::root();
    let libraries = common::libraries();
    let mut compiler = common::compiler(false);
    compiler
        .args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-pthread",
        ])
        .arg("-I")
        .arg(root.join("include"))
        .arg("-I")
        .arg(root.join("examples_c"));
    if checked == Checked::Sanitized {
        compiler.args(SANITIZE);
    }
    compiler.arg(source).arg("-o").arg(program);
    match linked {
        Linked::Shared => {
            let directory = libraries.shared.parent().unwrap();
            compiler
                .arg("-L")
                .arg(directory)
                .arg(format!("-Wl,-rpath,{}", directory.display()))
                .args(["-ltensorswap", "-lm"]);
        }
        Linked::Static => {
            compiler
                .arg(&libraries.archive)
                .args(common::NATIVE_LIBS.split(' '));
        }
    }
    common::run(&mut compiler);
}

/// How a program ended, and what it said. It is ended where it takes too long.
fn run(program: &Path, directory: &Path, arguments: &[&str]) -> (Option<ExitStatus>, String) {
    let log = directory.join(".output");
    let output = File::create(&log).unwrap();
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .stdin(Stdio::null())
        .stderr(output.try_clone().unwrap())
        .stdout(output)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > RUN_TIME_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    (status, text)
}

/// Builds and runs all programs in one way; all failures are told together.
fn build_and_run_all(linked: Linked, checked: Checked) {
    let binaries = common::directory();
    let mut failures = String::new();
    for source in programs() {
        let name = source.file_stem().unwrap().to_str().unwrap().to_owned();
        let program = binaries.path().join(&name);
        build(&source, &program, linked, checked);
        let directory = common::directory();
        let arguments = arguments(&source, checked);
        let (status, output) = run(&program, directory.path(), arguments);
        match status.map(|status| (status.code(), status)) {
            Some((Some(0), _)) => {}
            Some((Some(77), _)) => {
                let reason = output.lines().last().unwrap_or_default();
                common::skip(&name, reason);
            }
            Some((_, status)) => failures += &format!("{name}: {status}\n{output}\n"),
            None => {
                failures += &format!("{name}: still running after {RUN_TIME_MAX:?}\n{output}\n")
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The last line in which a training says what its store holds.
fn checksum(output: &str) -> &str {
    let line = output.lines().rfind(|line| line.starts_with("checksum"));
    line.unwrap_or_else(|| panic!("no checksum in\n{output}"))
}

#[test]
fn a_training_that_is_killed_in_the_middle_of_a_step_ends_with_the_same_bits() {
    let binaries = common::directory();
    let program = binaries.path().join("train_adam");
    let source = common::root().join("examples_c/train_adam.c");
    build(&source, &program, Linked::Shared, Checked::Plain);
    let ways: &[&[&str]] = &[
        &[],
        &["--set", "sync=none", "--threads", "1"],
        &[
            "--state-types",
            "f32,bf16,bf16",
            "--set",
            "cache_bytes=64MiB",
        ],
        &["--threads", "4", "--set", "backend=threads"],
    ];
    for way in ways {
        let directory = common::directory();
        let train = |more: &[&str]| {
            let shared = ["--hidden", "264", "--steps", "12", "--store", "store"];
            run(&program, directory.path(), &[&shared, *way, more].concat())
        };
        let (status, whole) = train(&["--verify"]);
        assert!(
            status.is_some_and(|status| status.success()),
            "{way:?}\n{whole}"
        );
        for step in ["1", "2", "9"] {
            let (status, output) = train(&["--crash-at", step]);
            let signal = status.and_then(|status| status.signal());
            assert_eq!(signal, Some(9), "{way:?}\n{output}");
            let (status, resumed) = train(&["--resume", "--verify"]);
            assert!(
                status.is_some_and(|status| status.success()),
                "{way:?}\n{resumed}"
            );
            assert_eq!(checksum(&whole), checksum(&resumed), "{way:?}");
        }
    }
}

/// Why nothing can be sanitized here, if so: the compiler or its runtime lacks it, or the
/// sanitizer cannot work in this container.
fn sanitizers_missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            let directory = common::directory();
            let source = directory.path().join("empty.c");
            let program = directory.path().join("empty");
            std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
            let mut compiler = common::compiler(false);
            compiler.args(SANITIZE).arg(&source).arg("-o").arg(&program);
            let built = compiler.output().unwrap();
            if !built.status.success() {
                return Some(String::from_utf8_lossy(&built.stderr).into_owned());
            }
            let (status, output) = run(&program, directory.path(), &[]);
            let works = status.is_some_and(|status| status.success());
            (!works).then_some(output)
        })
        .as_deref()
}

fn sanitized(linked: Linked) {
    match sanitizers_missing() {
        Some(reason) => common::skip("sanitizers", reason),
        None => build_and_run_all(linked, Checked::Sanitized),
    }
}

#[test]
fn programs_with_the_shared_library() {
    build_and_run_all(Linked::Shared, Checked::Plain);
}

#[test]
fn programs_with_the_static_library() {
    build_and_run_all(Linked::Static, Checked::Plain);
}

#[test]
fn programs_with_the_shared_library_under_sanitizers() {
    sanitized(Linked::Shared);
}

#[test]
fn programs_with_the_static_library_under_sanitizers() {
    sanitized(Linked::Static);
}
