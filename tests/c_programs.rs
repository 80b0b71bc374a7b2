//! Every example and every misuse program in C, linked shared and static, plain and with address
//! and undefined-behaviour sanitizers, each run in an empty directory on a real disk.
//!
//! A program ends with 0 where all is well and with 77 where the machine cannot show something;
//! everything else is a failure, with its output.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::programs::{self, Checked, Linked, build, checksum, run, succeeded};

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

/// Builds and runs all programs in one way, several at once; all failures are told together.
fn build_and_run_all(linked: Linked, checked: Checked) {
    let binaries = common::directory();
    let sources = Mutex::new(programs().into_iter());
    let failures = Mutex::new(String::new());
    let next = || sources.lock().unwrap().next();
    let work = || {
        while let Some(source) = next() {
            let program = binaries.path().join(source.file_stem().unwrap());
            build(&source, &program, linked, checked);
            let directory = common::directory();
            let arguments = arguments(&source, checked);
            let failure = programs::failure(&program, directory.path(), arguments);
            *failures.lock().unwrap() += &failure;
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
        (0..workers).for_each(|_| _ = scope.spawn(work));
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn a_training_that_is_killed_in_the_middle_of_a_step_ends_with_the_same_bits() {
    let binaries = common::directory();
    let program = programs::example("train_adam.c", binaries.path());
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
    let ways_len = if common::is_long("more settings") {
        ways.len()
    } else {
        2
    };
    for way in &ways[..ways_len] {
        let directory = common::directory();
        let train = |more: &[&str]| {
            let shared = ["--hidden", "264", "--steps", "12", "--store", "store"];
            run(&program, directory.path(), &[&shared, *way, more].concat())
        };
        let whole = succeeded(train(&["--verify"]));
        for step in ["1", "2", "9"] {
            let (status, output) = train(&["--crash-at", step]);
            let signal = status.and_then(|status| status.signal());
            assert_eq!(signal, Some(9), "{way:?}\n{output}");
            let resumed = succeeded(train(&["--resume", "--verify"]));
            assert_eq!(checksum(&whole), checksum(&resumed), "{way:?}");
        }
    }
}

#[test]
fn a_training_begins_with_the_weights_of_an_export() {
    let binaries = common::directory();
    let program = binaries.path().join("train_adam");
    let source = common::root().join("examples_c/train_adam.c");
    build(&source, &program, Linked::Shared, Checked::Plain);
    let directory = common::directory();
    let train = |arguments: &[&str]| {
        let arguments = [&["--hidden", "136"], arguments].concat();
        let (status, output) = run(&program, directory.path(), &arguments);
        assert!(status.is_some_and(|status| status.success()), "{output}");
        output
    };
    let file = "model.safetensors";
    let exported = train(&["--seed", "2", "--steps", "0", "--export", file]);
    let own = train(&["--steps", "0"]);
    let taken = train(&["--steps", "0", "--init", file]);
    assert_eq!(checksum(&taken), checksum(&exported));
    assert_ne!(checksum(&taken), checksum(&own));
    train(&["--steps", "3", "--init", file, "--verify"]);
}

fn sanitized(linked: Linked) {
    match programs::sanitizers_missing() {
        Some(reason) => common::skip("sanitizers", reason),
        None => build_and_run_all(linked, Checked::Sanitized),
    }
}

#[test]
fn programs_with_the_shared_library() {
    if !common::is_long("the shared library without sanitizers") {
        return;
    }
    build_and_run_all(Linked::Shared, Checked::Plain);
}

#[test]
fn programs_with_the_static_library() {
    if !common::is_long("the static library without sanitizers") {
        return;
    }
    build_and_run_all(Linked::Static, Checked::Plain);
}

#[test]
fn programs_with_the_shared_library_under_sanitizers() {
    sanitized(Linked::Shared);
}

#[test]
fn programs_with_the_static_library_under_sanitizers() {
    if !common::is_long("the static library under sanitizers") {
        return;
    }
    sanitized(Linked::Static);
}
