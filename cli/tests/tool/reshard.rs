//! `reshard`, and `inspect` of what it takes and makes.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::*;

/// Both states of parameter 7, all ranks joined.
fn joined(directory: &Path, ranks: u32) -> [Vec<u8>; 2] {
    let mut states = [Vec::new(), Vec::new()];
    for rank in 0..ranks {
        let rank = directory.join(format!("rank{rank}"));
        let text = std::fs::read(rank.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        let data = std::fs::read(rank.join("data")).unwrap();
        for parameter in manifest["parameters"].as_array().unwrap() {
            if parameter["id"] == 7 {
                let numel = parameter["numel"].as_u64().unwrap() as usize;
                for (state, (joined, size)) in states.iter_mut().zip([4, 2]).enumerate() {
                    let at = parameter["states"][state][0].as_u64().unwrap() as usize;
                    joined.extend(&data[at..at + numel * size]);
                }
            }
        }
    }
    states
}

#[test]
fn there_and_back_gives_the_same_elements() {
    let place = place();
    let [two, three, back] = ["two", "three", "back"].map(|name| place.path().join(name));
    snapshots(&two);
    let before = joined(&two, 2);
    assert_eq!(before[0].len(), 4 * 1501);
    let json = run(&[
        "reshard",
        "--from",
        "2",
        "--to",
        "3",
        "--json",
        text_of(&two),
        text_of(&three),
    ])
    .ended(0)
    .json();
    assert_eq!(
        (&json["step"], &json["from_ranks_count"]),
        (&5.into(), &2.into())
    );
    assert_eq!(json["ranks"].as_array().unwrap().len(), 3);
    assert_eq!(json["ranks"][2]["elements_count"], 499);
    assert_eq!(json["compared_bytes"], 6 * (1501 + 1));
    assert_eq!(json["other_user_data"].to_string(), "[1]");
    assert_eq!(joined(&three, 3), before);
    let text = run(&[
        "reshard",
        "--from",
        "3",
        "--to",
        "2",
        text_of(&three),
        text_of(&back),
    ])
    .ended(0)
    .out;
    assert!(text.contains("2 ranks from 3, step 5"), "{text}");
    assert!(!text.contains("user data"), "{text}");
    assert_eq!(joined(&back, 2), before);
    assert_eq!(names_in(place.path()), ["back", "three", "two"]);

    let json = run(&["inspect", "--verify", "--json", text_of(&three)])
        .ended(0)
        .json();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[0]["step"], 5);
    assert_eq!(json[0]["verified"]["compared_bytes"], 6 * (501 + 1));
    assert_eq!(json[1]["parameters"][0]["name"], "layer.7");
    let text = run(&["inspect", text_of(&three.join("rank0"))])
        .ended(0)
        .out;
    for part in [
        "of step 5",
        "exp_avg (f32, bf16 on storage)",
        "layer.7",
        "501",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn padding_comes_and_goes() {
    let place = place();
    let [two, three, back] = ["two", "three", "back"].map(|name| place.path().join(name));
    snapshots(&two);
    let [from, to] = [text_of(&two), text_of(&three)];
    run(&["reshard", "--from", "2", "--to", "3", "--padded", from, to]).ended(0);
    let [from, to] = [text_of(&three), text_of(&back)];
    let json = run(&["inspect", "--json", from]).ended(0).json();
    for rank in 0..3 {
        assert_eq!(json[rank]["elements_count"], 501 + 1);
    }
    run(&[
        "reshard", "--from", "3", "--to", "2", "--numel", "7=1501", "--numel", "9=1", from, to,
    ])
    .ended(0);
    assert_eq!(joined(&back, 2), joined(&two, 2));
}

#[test]
fn damage_of_a_snapshot_is_named() {
    let place = place();
    let two = place.path().join("two");
    snapshots(&two);
    let data = two.join("rank1/data");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let text = run(&["inspect", "--verify", text_of(&two)]).ended(1).out;
    assert!(
        text.contains("master of parameter 7 (layer.7) has the checksum"),
        "{text}"
    );
    let out = place.path().join("out");
    run(&[
        "reshard",
        "--from",
        "2",
        "--to",
        "1",
        text_of(&two),
        text_of(&out),
    ])
    .refused(1, "rank1/data at 0: master of parameter 7");
    std::fs::write(two.join("rank0/manifest.json"), "{}").unwrap();
    run(&["inspect", text_of(&two)]).refused(1, "rank0/manifest.json");
    assert_eq!(names_in(place.path()), ["two"]);
}

#[test]
fn what_cannot_be_cut_is_said_in_one_line() {
    let place = place();
    let [two, out] = ["two", "out"].map(|name| place.path().join(name));
    snapshots(&two);
    let reshard =
        |more: &[&str]| run(&[&["reshard"], more, &[text_of(&two), text_of(&out)]].concat());
    let counts = |from, to| ["--from", from, "--to", to];
    reshard(&counts("3", "2")).refused(3, "two/rank2: ENOENT");
    reshard(&counts("1", "2")).refused(2, "--from 1 leaves out");
    reshard(&counts("0", "2")).refused(2, "0 is not in 1..=65536");
    reshard(&counts("2", "65537")).refused(2, "65537 is not in 1..=65536");
    reshard(&["--from", "2"]).refused(2, "--to <M>");
    let numel = |text| [&counts("2", "3")[..], &["--numel", text]].concat();
    reshard(&numel("7")).refused(2, "for example 7=4096");
    reshard(&numel("7=1502")).refused(2, "its pieces have 1501");
    reshard(&numel("8=1")).refused(2, "no rank has a parameter 8");
    std::os::unix::fs::symlink("two", place.path().join("out.partial")).unwrap();
    reshard(&counts("2", "3")).refused(3, "out.partial: ENOTDIR");
    std::fs::remove_file(place.path().join("out.partial")).unwrap();
    std::fs::create_dir_all(out.join("own")).unwrap();
    reshard(&counts("2", "3")).refused(3, "out: EEXIST");
    std::fs::remove_dir_all(&out).unwrap();
    snapshot(&two.join("rank2"), 6, b"", &[]);
    reshard(&counts("3", "2")).refused(2, "rank 0 is of step 5 and rank 2 of step 6");
    assert_eq!(names_in(place.path()), ["two"]);
    // One rank may be named itself.
    let [one, out] = [two.join("rank0"), place.path().join("out")].map(|path| path.clone());
    run(&[
        "reshard",
        "--from",
        "1",
        "--to",
        "2",
        text_of(&one),
        text_of(&out),
    ])
    .ended(0);
    assert_eq!(names_in(&out), ["rank0", "rank1"]);
}

#[test]
fn a_run_that_is_stopped_leaves_nothing_and_one_that_is_killed_is_begun_again() {
    let place = place();
    let [from, out] = ["from", "out"].map(|name| place.path().join(name));
    // Without checksums, and mostly a hole: large enough to be met at work.
    let bytes = 192 << 20;
    snapshot(&from.join("rank0"), 1, b"", &[(1, bytes / 6, None)]);
    let arguments = [
        "reshard",
        "--from",
        "1",
        "--to",
        "2",
        text_of(&from),
        text_of(&out),
    ];
    let partial = place.path().join("out.partial");
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mut command = tool(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !partial.join("rank1.partial/data").exists() {
            assert_eq!(
                child.try_wait().unwrap(),
                None,
                "it ended before the signal"
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // It has said by then what is to be removed.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(id, signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(!out.exists());
        assert_eq!(partial.exists(), signal == rustix::process::Signal::KILL);
    }
    run(&arguments).ended(0);
    assert_eq!(names_in(place.path()), ["from", "out"]);
}
