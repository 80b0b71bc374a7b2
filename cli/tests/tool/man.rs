//! The manual pages and the completions.

use std::path::Path;

use crate::support::*;

#[test]
fn the_manual_pages_are_those_of_this_tool() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man");
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(&committed).unwrap();
        run(&["man", text_of(&committed)]).ended(0);
        return;
    }
    let place = place();
    run(&["man", text_of(place.path())]).ended(0);
    let names = names_in(place.path());
    assert_eq!(names, names_in(&committed));
    for name in names {
        let made = std::fs::read_to_string(place.path().join(&name)).unwrap();
        let kept = std::fs::read_to_string(committed.join(&name)).unwrap();
        assert!(
            made == kept,
            "{name} is out of date; UPDATE_GOLDEN=1 cargo test renews it"
        );
    }
}

#[test]
fn every_command_has_a_page_and_every_page_says_how_runs_end() {
    let place = place();
    run(&["man", text_of(place.path())]).ended(0);
    let commands = [
        "bench",
        "completions",
        "doctor",
        "inspect",
        "plan",
        "rebalance",
        "reshard",
        "tune",
    ];
    let mut expected = vec!["tensorswap.1".to_owned()];
    expected.extend(commands.map(|command| format!("tensorswap-{command}.1")));
    expected.sort();
    assert_eq!(names_in(place.path()), expected);
    for name in names_in(place.path()) {
        let page = std::fs::read_to_string(place.path().join(name)).unwrap();
        let (_, section) = page.split_once(".SH \"EXIT STATUS\"").unwrap();
        assert!(section.contains(".B 3\nthe machine refused"), "{page}");
    }
    run(&["man", "/nowhere"]).refused(3, "/nowhere/");
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let text = run(&["completions", shell]).ended(0).out;
        assert!(
            text.contains("inspect") && text.contains("doctor"),
            "{shell}"
        );
    }
    run(&["completions", "csh"]).refused(2, "'csh'");
}
