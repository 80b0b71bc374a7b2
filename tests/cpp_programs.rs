//! The C++ header: it compiles with both compilers, as C++17 and C++20, with and without
//! exceptions, and nothing is to be said about it; programs written with it run, also under
//! sanitizers; it covers every function of the C header; and the training in C++ has the bits of
//! the one in C.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::programs::{self, Linked, checksum, succeeded};
use common::root;

const WARNINGS: &[&str] = &[
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
];
const WITHOUT_EXCEPTIONS: &str = "-fno-exceptions";

/// The two compilers, as far as they are there.
fn compilers() -> Vec<&'static str> {
    ["g++", "clang++"]
        .into_iter()
        .filter(|name| match Command::new(name).arg("--version").output() {
            Ok(_) => true,
            Err(error) => {
                common::skip(name, &error.to_string());
                false
            }
        })
        .collect()
}

/// Compiles a program that includes the header, with all warnings as errors.
fn compile(compiler: &str, standard: &str, source: &Path) -> Command {
    let mut command = Command::new(compiler);
    command.arg(format!("-std={standard}")).args(WARNINGS);
    command.arg("-I").arg(root().join("include"));
    command.arg("-I").arg(root().join("examples_c"));
    command.arg("-pthread").arg(source);
    command
}

fn program(name: &str) -> PathBuf {
    root().join("tests/cpp").join(name)
}

#[test]
fn the_header_compiles_in_every_way() {
    let (mut compilers, mut standards) = (compilers(), vec!["c++17", "c++20"]);
    if !common::is_long("the header with every compiler in every standard") {
        compilers.truncate(1);
        standards.truncate(1);
    }
    for compiler in compilers {
        for standard in &standards {
            let check = |name: &str, flags: &[&str]| {
                let mut command = compile(compiler, standard, &program(name));
                common::run(command.arg("-fsyntax-only").args(flags));
            };
            check("objects.cpp", &[]);
            check("steps.cpp", &[]);
            check("no_exceptions.cpp", &[WITHOUT_EXCEPTIONS]);
            check("no_exceptions.cpp", &["-DTENSORSWAP_NO_EXCEPTIONS"]);
        }
    }
}

/// What is read off a text: the names in it that begin with `tsw_`.
fn names(text: &str) -> BTreeSet<&str> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_name(character))
        .filter(|word| word.starts_with("tsw_"))
        .collect()
}

#[test]
fn every_function_of_the_c_header_is_used() {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let (header, wrapper) = (read("tensorswap.h"), read("tensorswap.hpp"));
    let used = names(&wrapper);
    let declarations = header
        .lines()
        .filter(|line| !line.trim_start().starts_with(['*', '/']));
    let functions: Vec<&str> = declarations
        .filter(|line| !line.starts_with("typedef"))
        .filter_map(|line| line[..line.find('(')?].rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("tsw_"))
        .collect();
    assert!(functions.len() > 80, "{}", functions.len());
    let missing: Vec<_> = functions
        .iter()
        .filter(|name| !used.contains(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_status_and_every_type_has_a_name() {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let (header, wrapper) = (read("tensorswap.h"), read("tensorswap.hpp"));
    let numbers: Vec<&str> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split(' ').next())
        .filter(|name| name.starts_with("TSW_"))
        // Numbers of versions, and bounds that C++ callers take from the C header.
        .filter(|name| !name.contains("VERSION") && !name.ends_with("_MAX"))
        .collect();
    assert!(numbers.len() > 50, "{}", numbers.len());
    for number in numbers {
        let ends = wrapper.match_indices(number).any(|(at, _)| {
            let after = wrapper[at + number.len()..].chars().next().unwrap();
            !after.is_ascii_alphanumeric() && after != '_'
        });
        assert!(ends, "{number} has no name in C++");
    }
}

/// Builds and runs the programs; all failures are told together.
fn build_and_run(compiler: &str, standard: &str, linked: Linked, flags: &[&str]) {
    let binaries = common::directory();
    let mut failures = String::new();
    for (name, exceptions) in [
        ("objects", None),
        ("steps", None),
        ("no_exceptions", Some(WITHOUT_EXCEPTIONS)),
    ] {
        let executable = binaries.path().join(name);
        let mut command = compile(compiler, standard, &program(&format!("{name}.cpp")));
        command.args(flags).args(exceptions).arg("-g").arg("-o");
        programs::link(command.arg(&executable), linked);
        common::run(&mut command);
        let directory = common::directory();
        failures += &programs::failure(&executable, directory.path(), &[]);
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn programs_run_with_every_compiler() {
    let (mut compilers, mut optimized) = (compilers(), &["-O2"][..]);
    if !common::is_long("C++ programs, optimized, with every compiler") {
        compilers.truncate(1);
        optimized = &[];
    }
    for (compiler, linked) in compilers.into_iter().zip([Linked::Shared, Linked::Static]) {
        build_and_run(compiler, "c++20", linked, optimized);
    }
}

#[test]
fn programs_run_under_sanitizers() {
    if !common::is_long("C++ programs under sanitizers") {
        return;
    }
    match (programs::sanitizers_missing(), compilers().first()) {
        (Some(reason), _) => common::skip("sanitizers", reason),
        (None, None) => common::skip("sanitizers", "no C++ compiler"),
        (None, Some(compiler)) => {
            build_and_run(compiler, "c++17", Linked::Shared, programs::SANITIZE);
        }
    }
}

#[test]
fn the_training_in_cpp_has_the_bits_of_the_one_in_c() {
    let binaries = common::directory();
    let [in_c, in_cpp] =
        ["train_adam.c", "train_adam.cpp"].map(|source| programs::example(source, binaries.path()));
    let directory = common::directory();
    let train = |executable: &Path, more: &[&str]| {
        let shared = [
            "--hidden",
            "264",
            "--steps",
            "12",
            "--store",
            "store",
            "--threads",
            "3",
        ];
        let types = ["--state-types", "f32,bf16,bf16"];
        programs::run(
            executable,
            directory.path(),
            &[&shared, &types[..], more].concat(),
        )
    };
    let expected = succeeded(train(&in_c, &["--verify"]));
    let whole = succeeded(train(&in_cpp, &["--verify"]));
    assert_eq!(checksum(&expected), checksum(&whole));

    // One of them is killed in the middle of a step, and the other goes on with its store.
    for (first, second) in [(&in_cpp, &in_c), (&in_c, &in_cpp)] {
        let (status, output) = train(first, &["--crash-at", "5"]);
        assert!(status.is_some_and(|status| !status.success()), "{output}");
        assert!(
            output.contains("killed in the middle of step 5"),
            "{output}"
        );
        let resumed = succeeded(train(second, &["--resume", "--verify"]));
        assert_eq!(checksum(&expected), checksum(&resumed));
    }

    // What is wrong is said in one line.
    let (status, output) = train(&in_cpp, &["--set", "queue_dept=3"]);
    assert!(
        status.is_some_and(|status| status.code() == Some(1)),
        "{output}"
    );
    let last = output.lines().last().unwrap();
    assert!(
        last.starts_with("TSW_ERR_CONFIG") && last.contains("queue_depth"),
        "{output}"
    );
}
