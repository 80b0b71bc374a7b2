//! `tune`.

use tensorswap::base::config::Config;

use crate::support::*;

const QUICK: [&str; 8] = [
    "--seconds",
    "0.1",
    "--size",
    "2MiB",
    "--blocks",
    "64KiB,1MiB",
    "--depths",
    "2,5",
];
const NAMES: [&str; 3] = [
    "deepspeed_aio.json",
    "tensorswap-tune.html",
    "tensorswap.json",
];

fn quick<'a>(place: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["tune", place, "--output", place], &QUICK[..], more].concat()
}

#[test]
fn what_it_writes_is_what_the_engine_and_deepspeed_read() {
    let place = place();
    let json = run(&quick(text_of(place.path()), &["--json"]))
        .ended(0)
        .json();
    assert_eq!(names_in(place.path()), NAMES);
    let read = |name: &str| std::fs::read(place.path().join(name)).unwrap();

    let mut config = Config::new();
    config.load_json(&read("tensorswap.json")).unwrap();
    let best = &json["best"];
    assert_eq!(
        config.number("block_bytes"),
        Ok(best["block_bytes"].as_u64().unwrap())
    );
    assert_eq!(
        config.number("queue_depth"),
        Ok(best["queue_depth"].as_u64().unwrap())
    );
    let huge = if best["huge_pages"] == true {
        "prefer"
    } else {
        "off"
    };
    assert_eq!(config.choice("huge_pages"), Ok(huge));
    match best["backend"].as_str().unwrap() {
        // Where io_uring is refused later on, threads are to do the work.
        "io_uring" => assert_eq!(config.choice("backend"), Ok("auto")),
        backend => assert_eq!(config.choice("backend"), Ok(backend)),
    }

    let section: serde_json::Value = serde_json::from_slice(&read("deepspeed_aio.json")).unwrap();
    let aio = section["aio"].as_object().unwrap();
    let keys: Vec<&String> = aio.keys().collect();
    let known = [
        "block_size",
        "intra_op_parallelism",
        "overlap_events",
        "queue_depth",
        "single_submit",
    ];
    assert_eq!(keys, known);
    for key in ["block_size", "queue_depth", "intra_op_parallelism"] {
        assert!(aio[key].is_u64(), "{section}");
    }
    for key in ["single_submit", "overlap_events"] {
        assert!(aio[key].is_boolean(), "{section}");
    }
    let mut config = Config::new();
    config.load_json(&read("deepspeed_aio.json")).unwrap();
    let for_deepspeed = &json["best_for_deepspeed"];
    assert_eq!(
        config.number("block_bytes"),
        Ok(for_deepspeed["block_bytes"].as_u64().unwrap())
    );
    assert_eq!(
        config.number("queue_depth"),
        Ok(for_deepspeed["queue_depth"].as_u64().unwrap())
    );

    let page = String::from_utf8(read("tensorswap-tune.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("64KiB"));
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org").count()
    );
    // Each combination was measured, and the defaults were among those compared.
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len() % 4, 0);
    for cell in cells {
        assert!(
            cell["mixed_bytes_per_second"].as_f64().unwrap() > 0.0,
            "{cell}"
        );
    }
    let finalists = json["finalists"].as_array().unwrap();
    assert!(
        finalists
            .iter()
            .any(|cell| cell["setting"] == json["defaults"])
    );
}

#[test]
fn files_that_exist_are_written_over_with_force_only() {
    let place = place();
    let path = text_of(place.path());
    let config = place.path().join("tensorswap.json");
    std::fs::write(&config, "mine").unwrap();
    run(&quick(path, &[])).refused(3, "tensorswap.json exists; --force writes over it");
    assert_eq!(names_in(place.path()), ["tensorswap.json"]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
    let text = run(&quick(path, &["--force"])).ended(0).out;
    assert!(
        text.contains("best: ") && text.contains("written: "),
        "{text}"
    );
    assert_eq!(names_in(place.path()), NAMES);
    assert_ne!(std::fs::read_to_string(&config).unwrap(), "mine");
}

#[test]
fn where_io_uring_is_refused_only_threads_are_tried() {
    let place = place();
    let json = without_io_uring(tool(&quick(text_of(place.path()), &["--json"])))
        .ended(0)
        .json();
    let cells = json["cells"].as_array().unwrap();
    assert!(
        cells
            .iter()
            .all(|cell| cell["setting"]["backend"] == "threads")
    );
    let notes = json["notes"].to_string();
    assert!(
        notes.contains("no io_uring: io_uring_setup: EPERM"),
        "{notes}"
    );
    let mut config = Config::new();
    let written = std::fs::read(place.path().join("tensorswap.json")).unwrap();
    config.load_json(&written).unwrap();
    assert_eq!(config.choice("backend"), Ok("threads"));
}

#[test]
fn bad_input_is_refused_in_one_line_and_nothing_is_written() {
    let place = place();
    let path = text_of(place.path());
    run(&["tune", path, "--output", "/nowhere"]).refused(3, "write to /nowhere: No such file");
    run(&["tune", path, "--output", "/dev/null"]).refused(3, "/dev/null");
    run(&["tune", "/nowhere", "--output", path]).refused(3, "/nowhere: No such file");
    run(&["tune", path, "--blocks", "1000"]).refused(2, "not a multiple of 4096");
    run(&["tune", path, "--depths", "0"]).refused(2, "--depths");
    run(&["tune", path, "--seconds", "0"]).refused(2, "--seconds");
    run(&quick(path, &["--size", "1000GiB"])).refused(2, "cannot be used multiple times");
    assert_eq!(names_in(place.path()), [""; 0]);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(place.path(), open).unwrap();
    match run_as_nobody(&quick(path, &[])) {
        Some(run) => run.refused(3, "Permission denied"),
        None => skip("nobody", "other users cannot run the tool"),
    }
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let place = place();
    let path = text_of(place.path());
    let endless = [
        "tune",
        path,
        "--output",
        path,
        "--seconds",
        "1000",
        "--size",
        "4MiB",
    ];
    assert_eq!(
        interrupted(&endless, place.path(), libc::SIGINT),
        Some(libc::SIGINT)
    );
    assert_eq!(names_in(place.path()), [""; 0]);
}
