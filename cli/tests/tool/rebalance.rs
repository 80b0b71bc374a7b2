//! `rebalance`, stopped and not.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::*;

/// Directories a, b and c, and the options that move a store from some to others of them.
struct Places(tempfile::TempDir);

impl Places {
    fn new() -> Places {
        let place = place();
        for name in ["a", "b", "c"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
        }
        Places(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn moving(&self, from: &str, to: &str, more: &[&str]) -> Vec<String> {
        let list = |names: &str| {
            let paths = names
                .split(',')
                .map(|name| self.path(name).display().to_string());
            paths.collect::<Vec<_>>().join(",")
        };
        let mut arguments = ["rebalance", "--from", &list(from), "--to", &list(to)]
            .map(str::to_owned)
            .to_vec();
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        arguments
    }

    fn run(&self, from: &str, to: &str, more: &[&str]) -> Run {
        let arguments = self.moving(from, to, more);
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What a store in these directories says of itself, all of it verified.
    fn verified(&self, names: &str) -> String {
        let places: Vec<PathBuf> = names.split(',').map(|name| self.path(name)).collect();
        let mut arguments = vec!["inspect", "--verify", "--json"];
        arguments.extend(places.iter().map(|place| text_of(place)));
        let json = run(&arguments).ended(0).json();
        let mut told = Vec::new();
        for store in json.as_array().unwrap() {
            for key in ["step", "written_bytes", "user_data", "states"] {
                told.push(store[key].to_string());
            }
            for parameter in store["parameters"].as_array().unwrap() {
                for key in ["id", "numel", "generation", "zero_states"] {
                    told.push(parameter[key].to_string());
                }
            }
            told.push(store["verified"]["compared_bytes"].to_string());
        }
        told.join(" ")
    }
}

#[test]
fn all_ranks_move_and_come_back() {
    let places = Places::new();
    store(&places.path("a"));
    copy_rank(&places.path("a"), 1);
    let before = places.verified("a");
    let json = places.run("a", "b=1,c=2", &["--json"]).ended(0).json();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[1]["rank"], 1);
    assert_eq!(json[1]["parameters_count"], 3);
    assert_eq!(json[1]["was_there"], false);
    assert!(json[1]["copied_bytes"].as_u64().unwrap() > 0);
    assert_eq!(json[0]["directories"][1]["weight"], 2);
    assert_eq!(places.verified("b,c"), before);
    assert!(names_in(&places.path("a")).is_empty());
    // One rank, then all: the other one is left.
    places.run("b,c", "a", &["--rank", "1"]).ended(0);
    assert_eq!(names_in(&places.path("a")), ["rank1"]);
    let text = places.run("b,c", "a", &[]).ended(0).out;
    assert!(
        text.contains("was there") && text.contains("/a=1"),
        "{text}"
    );
    assert_eq!(places.verified("a"), before);
    assert!(names_in(&places.path("b")).is_empty());
    assert!(names_in(&places.path("c")).is_empty());
}

/// Gives another rank a store that says the same.
fn copy_rank(place: &Path, rank: u32) {
    let to = place.join(format!("rank{rank}"));
    std::fs::create_dir(&to).unwrap();
    for name in ["data", "log"] {
        std::fs::copy(place.join("rank0").join(name), to.join(name)).unwrap();
    }
}

#[test]
fn what_cannot_be_moved_is_said_in_one_line() {
    let places = Places::new();
    store(&places.path("a"));
    places
        .run("a=2", "b", &[])
        .refused(2, "weights belong to --to");
    places.run("a", "b=x", &[]).refused(2, "--to");
    places
        .run("b", "c", &[])
        .refused(3, "/b has no store in it");
    places.run("a", "gone", &[]).refused(3, "/gone");
    places
        .run("b", "c", &["--rank", "7"])
        .refused(3, "/b/rank7");
    store(&places.path("b"));
    places.run("a", "b", &[]).refused(3, "/b/rank0: EEXIST");
    let used = optimizer(&places.path("a"));
    places.run("a", "c", &[]).refused(3, "uses the store");
    drop(used);
    let point = places.path("c/ro");
    std::fs::create_dir(&point).unwrap();
    match ReadOnly::new(&point, |_| {}) {
        Some(_mounted) => places
            .run("a", "c/ro", &[])
            .refused(3, "/c/ro/.rebalance: EROFS"),
        None => skip("mount", "no right to mount"),
    }
    assert_eq!(names_in(&places.path("a")), ["rank0"]);
}

#[test]
fn a_store_that_does_not_fit_stays_where_it_is() {
    let places = Places::new();
    store(&places.path("a"));
    let before = places.verified("a");
    let point = places.path("c");
    let mut mount = std::process::Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&point);
    if !mount.output().unwrap().status.success() {
        return skip("mount", "no right to mount");
    }
    let run = places.run("a", "b=1,c=1", &[]);
    let left = names_in(&point);
    let unmounted = std::process::Command::new("umount").arg(&point).status();
    assert!(unmounted.unwrap().success());
    run.refused(3, "bytes needed");
    assert!(left.is_empty() && names_in(&places.path("b")).is_empty());
    assert_eq!(places.verified("a"), before);
}

/// Killed at moments that are spread over all that it does.
#[test]
fn a_run_that_is_killed_is_gone_on_with() {
    let places = Places::new();
    let optimizer = optimizer(&places.path("a"));
    for id in 10..13 {
        fill(&optimizer, id, 0.5);
    }
    optimizer.commit().unwrap();
    drop(optimizer);
    let before = places.verified("a");
    let (mut killed, mut from, mut to) = (0, "a", "b=1,a=1");
    for round in 0..24_u64 {
        let mut command = tool(&[]);
        command
            .args(places.moving(from, to, &[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 5));
        let id = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        let status = child.wait().unwrap();
        killed += u32::from(status.signal().is_some());
        places.run(from, to, &[]).ended(0);
        let names = to.replace("=1", "");
        assert_eq!(places.verified(&names), before, "round {round}");
        for name in names.split(',') {
            assert_eq!(names_in(&places.path(name)), ["rank0"]);
        }
        (from, to) = match from {
            "a" => ("b,a", "a"),
            _ => ("a", "b=1,a=1"),
        };
    }
    assert!(killed > 0);
}
