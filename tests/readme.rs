//! The README's program is compiled and run as it stands there, and what it names exists.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

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

#[test]
fn the_program_of_the_readme_runs() {
    let program = blocks("c").remove(0);
    assert!(
        program.lines().count() <= 42,
        "the program is to be a short one"
    );
    let directory = common::directory();
    let source = directory.path().join("program.c");
    std::fs::write(&source, program).unwrap();
    let library = common::libraries().shared.parent().unwrap();
    let executable = directory.path().join("program");
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
    let output = common::run(Command::new(&executable).current_dir(directory.path()));
    assert_eq!(output, "weights[999] = 999\n");
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
