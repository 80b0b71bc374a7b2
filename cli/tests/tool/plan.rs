//! `plan`.

use std::path::Path;

use tensorswap::base::config::{Config, OptimizerOptions};
use tensorswap::base::dtype::Dtype;
use tensorswap::optimizer::Footprint;

use crate::support::*;

const GIVEN: [&str; 4] = ["--read", "2GiB/s", "--write", "1GiB/s"];

fn footprint(settings: &[(&str, &str)], types: &[(Dtype, Dtype)], numels: &[u64]) -> Footprint {
    let mut config = Config::new();
    config.set("path", "/nowhere").unwrap();
    for (key, value) in settings {
        config.set(key, value).unwrap();
    }
    let options = OptimizerOptions::from_config(&config).unwrap();
    Footprint::compute(&options, types, numels.iter().copied()).unwrap()
}

fn assert_is(json: &serde_json::Value, computed: Footprint) {
    for (key, number) in [
        ("parameters_count", computed.parameters_count),
        ("elements_count", computed.elements_count),
        ("storage_bytes", computed.storage_bytes),
        ("pinned_bytes", computed.pinned_bytes),
        ("resident_bytes", computed.resident_bytes),
        ("step_read_bytes", computed.step_read_bytes),
        ("step_written_bytes", computed.step_written_bytes),
    ] {
        assert_eq!(json[key].as_u64(), Some(number), "{key}");
    }
}

/// A safetensors file with two tensors.
fn safetensors(path: &Path) -> Vec<u8> {
    let header = br#"{"__metadata__":{"a":"b"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[8],"data_offsets":[24,40]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(&[0; 40]);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_step_that_writes_nothing_wears_no_drive() {
    let resident = ["plan", "1000", "--endurance", "1PB"];
    let resident = [&resident[..], &["--set", "cache_bytes=1GiB"]].concat();
    let resident = [&resident[..], &["--set", "sync=none"], &GIVEN].concat();
    for seconds in [&[][..], &["--step-seconds", "2"]] {
        let arguments = [&resident[..], seconds].concat();
        let text = run(&arguments).ended(0).out;
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let json = run(&[&arguments[..], &["--json"]].concat()).ended(0).json();
        assert_eq!(json["step_written_bytes"], 0);
        assert!(json["drive"].is_null(), "{json}");
    }
}

#[test]
fn parameters_come_from_arguments_files_standard_input_and_safetensors() {
    let place = place();
    let list = place.path().join("list");
    std::fs::write(&list, "1000 # a bias\n20x30:2\n").unwrap();
    let tensors = place.path().join("model.safetensors");
    safetensors(&tensors);
    let arguments = [
        "plan",
        "7:3",
        "--from",
        text_of(&list),
        "--from",
        "-",
        "--safetensors",
        text_of(&tensors),
        "--json",
    ];
    let json = run_with_input(&arguments, "123\n").ended(0).json();
    let numels = [7, 7, 7, 1000, 600, 600, 123, 6, 8];
    assert_is(
        &json,
        footprint(&[], &[(Dtype::F32, Dtype::F32); 3], &numels),
    );
}

#[test]
fn states_and_configuration_decide_as_they_do_for_the_optimizer() {
    let types = [(Dtype::F32, Dtype::F32), (Dtype::F32, Dtype::Bf16)];
    let settings = [
        ("cache_bytes", "100MiB"),
        ("sync", "none"),
        ("views_max", "4"),
    ];
    let more = [
        "--states",
        "f32,f32:bf16",
        "--set",
        "cache_bytes=100MiB",
        "--set",
        "sync=none",
        "--set",
        "views_max=4",
        "--json",
    ];
    let arguments = [&["plan", "4096x1024:20", "65536:3"], &more[..]].concat();
    let numels = [&[4096 * 1024; 20][..], &[65536; 3]].concat();
    assert_is(
        &run(&arguments).ended(0).json(),
        footprint(&settings, &types, &numels),
    );
    run(&["plan", "1M"]).refused(2, "\"1M\" is no parameter");
    run(&["plan", "1024", "--set", "pinned_bytes=4096"]).refused(2, "12288 bytes are needed");
}

#[test]
fn the_time_floor_is_that_of_the_slower_direction_or_of_both_together() {
    let seconds = |more: &[&str]| {
        let arguments = [
            &["plan", "134217728", "--states", "f32", "--json"],
            &GIVEN[..],
            more,
        ];
        run(&arguments.concat()).ended(0).json()["floor"]["seconds"]
            .as_f64()
            .unwrap()
    };
    // 512 MiB and a few blocks each way.
    assert!((seconds(&[]) - 0.5).abs() < 0.001);
    assert!((seconds(&["--mixed", "1GiB/s"]) - 1.0).abs() < 0.001);
    let place = place();
    let arguments = [
        "plan",
        "1048576",
        "--measure",
        text_of(place.path()),
        "--json",
    ];
    let json = run(&arguments).ended(0).json();
    assert_eq!(json["floor"]["origin"], "measured");
    assert!(json["floor"]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(names_in(place.path()), [""; 0]);
}

#[test]
fn the_life_of_a_drive_follows_from_what_is_written() {
    let base = [
        "plan",
        "134217728",
        "--states",
        "f32",
        "--step-seconds",
        "86400",
        "--json",
    ];
    let json = run(&[
        &base[..],
        &["--capacity", "2GiB", "--dwpd", "1", "--years", "1"],
    ]
    .concat());
    let drive = &json.ended(0).json()["drive"];
    let close = |key: &str, expected: f64| {
        let found = drive[key].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 0.001, "{key}: {found}");
    };
    close("written_bytes_per_day", f64::from(1 << 29));
    close("drive_writes_per_day", 0.25);
    close("days", 4.0 * 365.0);
    // What does not fit is not well.
    let run = run(&[&base[..6], &["--capacity", "1GiB"]].concat()).ended(1);
    assert!(run.out.contains("the drive is too small"), "{}", run.out);
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let place = place();
    run(&["plan"]).refused(2, "no parameters");
    run(&["plan", "0"]).refused(2, "has no elements");
    run(&["plan", "12", "--states", "f33"]).refused(2, "\"f33\" is no type");
    run(&["plan", "12", "--states", "i32"]).refused(3, "the master parameter is f32, f16 or bf16");
    run(&["plan", "1:99999999999"]).refused(2, "more than 10000000 parameters");
    run(&["plan", "999999999999999999"]).refused(2, "too many");
    run(&["plan", "12", "--read", "1GiB"]).refused(2, "--write");
    run(&["plan", "12", "--measure", "/nowhere"]).refused(3, "/nowhere");
    run(&["plan", "--from", "/nowhere"]).refused(3, "open /nowhere: No such file");
    run(&["plan", "--from", text_of(place.path())]).refused(3, "Is a directory");
    run_with_input(&["plan", "--from", "-"], "12\nx\n").refused(2, "standard input:2: \"x\"");

    let path = place.path().join("model.safetensors");
    let good = safetensors(&path);
    let refused = |bytes: &[u8], part: &str| {
        std::fs::write(&path, bytes).unwrap();
        run(&["plan", "--safetensors", text_of(&path)]).refused(2, part);
    };
    refused(b"", "too short");
    refused(&[0xff; 64], "longer than it can be");
    refused(&good[..good.len() - 1], "its header describes");
    refused(&[&good[..], b"x"].concat(), "its header describes");
    let mut wrong_shape = good.clone();
    let shape = good.windows(5).position(|part| part == b"[2,3]").unwrap();
    wrong_shape[shape + 3] = b'9';
    refused(&wrong_shape, "is not a safetensors file");
    run(&["plan", "--safetensors", "/dev/zero"]).refused(2, "not a regular file");
}
