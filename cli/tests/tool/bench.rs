//! `bench`.

use crate::support::*;

/// Little work.
const QUICK: [&str; 7] = [
    "--size",
    "4MiB",
    "--file-size",
    "1MiB",
    "--small",
    "20",
    "--rounds",
];

fn quick<'a>(place: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", place], &QUICK[..], &["2"], more].concat()
}

#[test]
fn every_kind_of_work_is_measured_for_the_drive_and_for_the_engine() {
    let place = place();
    let json = run(&quick(text_of(place.path()), &["--json"]))
        .ended(0)
        .json();
    let rows = json["rows"].as_array().unwrap();
    let kinds: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row["size"].as_str().unwrap(), row["kind"].as_str().unwrap()))
        .collect();
    let expected = ["large", "small"].map(|size| ["out", "in", "mixed"].map(|kind| (size, kind)));
    assert_eq!(kinds, expected.as_flattened());
    for row in rows {
        for key in ["raw_bytes_per_second", "engine_bytes_per_second", "ratio"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{row}");
        }
        let depth = row["engine_depth_peak"].as_u64().unwrap();
        assert!((1..=32).contains(&depth), "{row}");
    }
    assert_eq!(names_in(place.path()), [""; 0]);
    let text = run_in(place.path(), &quick(".", &[])).ended(0).out;
    assert!(
        text.contains("large mixed") && text.contains("4 × 1.0 MiB"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
    assert_eq!(names_in(place.path()), [""; 0]);
}

#[test]
fn the_configuration_is_the_engines() {
    let place = place();
    let config = place.path().join("config.json");
    std::fs::write(&config, r#"{"queue_depth": 3, "block_bytes": "64KiB"}"#).unwrap();
    let more = [
        "--json",
        "--config",
        text_of(&config),
        "--set",
        "backend=threads",
    ];
    let json = run(&quick(text_of(place.path()), &more)).ended(0).json();
    assert_eq!(json["engine"]["backend"], "threads");
    assert_eq!(json["engine"]["queue_depth"], 3);
    assert_eq!(json["engine"]["block_bytes"], 65536);
    assert_eq!(json["rows"][0]["engine_depth_peak"], 3);
}

#[test]
fn where_io_uring_is_refused_threads_do_all_of_it() {
    let place = place();
    let command = tool(&quick(text_of(place.path()), &["--json"]));
    let json = without_io_uring(command).ended(0).json();
    assert_eq!(
        (&json["raw_way"], &json["engine"]["backend"]),
        (&"threads".into(), &"threads".into())
    );
}

#[test]
fn bad_input_is_refused_in_one_line_and_nothing_is_written() {
    let place = place();
    let path = text_of(place.path());
    run(&["bench", path, "--size", "16MiB"]).refused(2, "less than two files");
    run(&["bench", path, "--size", "5000"]).refused(2, "not a multiple of 4096");
    run(&["bench", path, "--rounds", "0"]).refused(2, "--rounds");
    run(&["bench", path, "--set", "queue_dept=3"]).refused(2, "the nearest is queue_depth");
    run(&["bench", path, "--set", "queue_depth"]).refused(2, "write KEY=VALUE");
    run(&["bench", path, "--set", "backend=memory"]).refused(2, "uses no drive");
    run(&["bench", path, "--config", "/nowhere.json"]).refused(3, "/nowhere.json: No such file");
    run(&["bench", "/nowhere"]).refused(3, "/nowhere: No such file or directory");
    run(&["bench", "/dev/null"]).refused(3, "/dev/null: Not a directory");
    run(&["bench", path, "--size", "1000GiB"]).refused(3, "are free");
    assert_eq!(names_in(place.path()), [""; 0]);
}

#[test]
fn a_signal_ends_it_as_that_signal_and_takes_its_files_away() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let place = place();
        let path = text_of(place.path());
        let endless = [&["bench", path], &QUICK[..], &["10000"]].concat();
        assert_eq!(interrupted(&endless, place.path(), signal), Some(signal));
        assert_eq!(names_in(place.path()), [""; 0]);
    }
}
