//! The README's program is compiled and run as it stands there, and what it names exists.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The README's code blocks in one language.
fn blocks(language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(common::root().join("README.md")).unwrap();
    text.split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| {
            block
                .strip_prefix(&format!("{language}\n"))
                .map(str::to_owned)
        })
        .collect()
}

/// Compiles a program of the README as its readers would; it is to be a short one.
fn compiled(program: &str, directory: &Path, lines_max: usize) -> PathBuf {
    let lines = program.lines().count();
    assert!(lines <= lines_max, "the program has {lines} lines");
    let source = directory.join("program.c");
    std::fs::write(&source, program).unwrap();
    let library = common::libraries().shared.parent().unwrap();
    let executable = directory.join("program");
    let mut compile = common::compiler(false);
    compile
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror"])
        .arg(&source)
        .arg(format!("-I{}", common::root().join("include").display()))
        .arg(format!("-L{}", library.display()))
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .args(["-ltensorswap", "-o"])
        .arg(&executable);
    common::run(&mut compile);
    executable
}

#[test]
fn the_program_that_swaps_a_tensor_runs() {
    let directory = common::directory();
    let program = compiled(&blocks("c")[0], directory.path(), 42);
    let output = common::run(Command::new(&program).current_dir(directory.path()));
    assert_eq!(output, "weights[999] = 999\n");
}

#[test]
fn the_program_that_trains_goes_on_where_it_stopped() {
    let directory = common::directory();
    let program = compiled(&blocks("c")[1], directory.path(), 52);
    let run = || common::run(Command::new(&program).current_dir(directory.path()));
    assert_eq!(run(), "step 1: weights[0] = -0.5\n");
    assert_eq!(run(), "step 2: weights[0] = -1.4375\n");
}

#[test]
fn the_files_that_the_readme_links_to_exist() {
    let text = std::fs::read_to_string(common::root().join("README.md")).unwrap();
    let links: Vec<_> = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.starts_with("http"))
        .collect();
    assert!(links.len() >= 8, "{links:?}");
    for link in links {
        assert!(common::root().join(link).exists(), "README links to {link}");
    }
}

#[test]
fn the_two_commands_are_there() {
    let commands = blocks("sh").remove(0);
    assert!(commands.contains("make -C examples_c demo"));
    assert!(commands.contains("cargo test"));
}
