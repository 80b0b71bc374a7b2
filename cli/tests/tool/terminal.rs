//! What does not belong to one command: help, errors, pipes, terminals.

use std::process::{Command, Stdio};

use crate::support::*;

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["bench", "--help"],
    ] {
        let run = run(arguments).ended(0);
        assert!(
            run.out.contains("tensorswap") && !run.out.contains('\x1b'),
            "{}",
            run.out
        );
    }
    assert!(run(&["--help"]).out.contains("Exit status"));
}

#[test]
fn a_command_line_that_makes_no_sense_is_answered_in_one_line() {
    run(&[]).refused(2, "a command is missing");
    run(&["docter"]).refused(2, "similar subcommand exists: 'doctor'");
    run(&["bench", "--bogus"]).refused(2, "'--bogus'");
    run(&["inspect"]).refused(2, "<STORE>");
    run(&["bench", ".", "--size", "lots"]).refused(2, "write for example 65536");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = tool(&["completions", "bash"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.len()),
        (Some(0), 0),
        "{output:?}"
    );
}

#[test]
fn a_terminal_gets_colours_and_a_bar_and_a_pipe_gets_neither() {
    let place = place();
    let tool = env!("CARGO_BIN_EXE_tensorswap");
    let line = format!("{tool} doctor --size 4MiB {}", text_of(place.path()));
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    let Ok(output) = script.stdin(Stdio::null()).output() else {
        return skip("script", "script(1) is not installed");
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\x1b[32mok\x1b[0m"), "{text:?}");
    assert!(text.contains("measuring the drive"), "{text:?}");
    let run = run(&["doctor", "--size", "4MiB", text_of(place.path())]).ended(0);
    assert!(!run.out.contains('\x1b'), "{}", run.out);
}
