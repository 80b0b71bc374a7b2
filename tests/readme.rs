//! The programs in README and documents are compiled and run as they stand there, and what is linked
//! to exists.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::listings::{links, listings};
use common::programs::{self, Checked, Linked};

/// The listings of a document in one language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(common::root().join(document)).unwrap();
    let found = listings(&text).into_iter();
    found
        .filter(|listing| listing.language == language)
        .map(|listing| listing.text)
        .collect()
}

/// Compiles a program of the README as its readers would; it is to be a short one.
fn compiled(program: &str, directory: &Path, lines_max: usize) -> PathBuf {
    let lines = program.lines().count();
    assert!(lines <= lines_max, "the program has {lines} lines");
    let (source, executable) = (directory.join("program.c"), directory.join("program"));
    std::fs::write(&source, program).unwrap();
    programs::build(&source, &executable, Linked::Shared, Checked::Plain);
    executable
}

#[test]
fn the_program_that_swaps_a_tensor_runs() {
    let directory = common::directory();
    let program = compiled(&blocks("README.md", "c")[0], directory.path(), 42);
    let output = common::run(Command::new(&program).current_dir(directory.path()));
    assert_eq!(output, "weights[999] = 999\n");
}

#[test]
fn the_program_that_trains_goes_on_where_it_stopped() {
    let directory = common::directory();
    let program = compiled(&blocks("README.md", "c")[1], directory.path(), 52);
    let run = || common::run(Command::new(&program).current_dir(directory.path()));
    assert_eq!(run(), "step 1: weights[0] = -0.5\n");
    assert_eq!(run(), "step 2: weights[0] = -1.4375\n");
}

#[test]
fn the_program_that_writes_for_prometheus_runs() {
    let directory = common::directory();
    let program = compiled(&blocks("docs/OBSERVING.md", "c")[0], directory.path(), 20);
    let output = common::run(Command::new(&program).current_dir(directory.path()));
    assert!(output.contains("# TYPE tensorswap_"), "{output}");
}

#[test]
fn the_command_that_draws_a_timeline_runs() {
    let directory = common::directory();
    let program = programs::example("train_adam.c", directory.path());
    let root = common::root();
    let listing = blocks("docs/OBSERVING.md", "sh").remove(0);
    let mut words = listing.split_whitespace();
    assert_eq!(words.next(), Some("examples_c/build/train_adam"));
    // Less of a model than the one shown.
    let smaller = ["--hidden", "136"];
    common::run(
        Command::new(&program)
            .args(words)
            .args(smaller)
            .arg(root.join("README.md"))
            .current_dir(directory.path()),
    );
    let timeline = std::fs::read(directory.path().join("timeline.json")).unwrap();
    let events: Vec<serde_json::Value> = serde_json::from_slice(&timeline).unwrap();
    assert!(events.iter().any(|event| event["name"] == "update"));
    let drawn = Command::new("python3")
        .arg(root.join("docs/images/timeline.py"))
        .args(["timeline.json", "0", "10000"])
        .current_dir(directory.path())
        .output();
    match drawn {
        Ok(drawn) => {
            let picture = String::from_utf8(drawn.stdout).unwrap();
            assert!(drawn.status.success() && picture.contains("parameter 0"));
        }
        Err(error) => println!("skipped: drawing the timeline needs python3: {error}"),
    }
}

#[test]
fn a_training_goes_on_with_another_number_of_ranks_and_ends_with_the_same_bits() {
    let Some(tool) = common::tool() else {
        return println!("skipped: the command line tool is not built: cargo test does");
    };
    let directory = common::directory();
    let listing = blocks("README.md", "sh")
        .into_iter()
        .find(|listing| listing.contains("tensorswap reshard"))
        .unwrap();
    // A smaller model, and a shorter text, than a reader would have.
    let root = common::root();
    let program = programs::example("train_adam.c", directory.path());
    let build = directory.path().join("examples_c/build");
    std::fs::create_dir_all(&build).unwrap();
    let script = format!(
        "#!/bin/sh\nexec {} --hidden 136 \"$@\" {}\n",
        program.display(),
        root.join("README.md").display()
    );
    let path = build.join("train_adam");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let paths = format!(
        "{}:{}",
        tool.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = common::run(
        Command::new("sh")
            .args(["-euc", &listing])
            .env("PATH", paths)
            .current_dir(directory.path()),
    );
    let sums: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("checksum"))
        .collect();
    assert_eq!(sums.len(), 3, "{output}");
    assert_eq!(sums[0], sums[2], "{output}");
    assert_ne!(sums[0], sums[1], "{output}");
}

#[test]
fn the_files_that_documents_link_to_exist() {
    let root = common::root();
    let documents = std::fs::read_dir(root.join("docs")).unwrap();
    let documents = documents
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain(["README.md", "ARCHITECTURE.md"].map(|name| root.join(name)));
    let mut count = 0;
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        let links = links(&text).into_iter();
        for link in links.filter(|link| !link.starts_with("http")) {
            count += 1;
            let target = document.parent().unwrap().join(link);
            assert!(target.exists(), "{} links to {link}", document.display());
        }
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn the_two_commands_are_there() {
    let commands = blocks("README.md", "sh").remove(0);
    assert!(commands.contains("make -C examples_c demo"));
    assert!(commands.contains("cargo test"));
}
