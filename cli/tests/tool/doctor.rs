//! `doctor`.

use serde_json::Value;

use crate::support::*;

/// The finding with this name.
fn finding<'a>(findings: &'a Value, name: &str) -> &'a Value {
    let mut all = findings.as_array().unwrap().iter();
    all.find(|finding| finding["name"] == name).unwrap()
}

#[test]
fn everything_is_looked_at_and_nothing_is_left_behind() {
    let place = place();
    let report = run(&["doctor", "--size", "8MiB", "--json", text_of(place.path())]);
    let json = report.ended(0).json();
    for name in [
        "kernel",
        "io_uring",
        "locked memory",
        "open files",
        "huge pages",
    ] {
        let finding = finding(&json["machine"], name);
        assert!(!finding["seen"].as_str().unwrap().is_empty());
        assert!(["good", "remark"].contains(&finding["health"].as_str().unwrap()));
    }
    let here = &json["places"][0];
    for name in ["file system", "free space", "direct I/O", "speed"] {
        finding(&here["findings"], name);
    }
    for way in ["read", "write", "mixed"] {
        let speed = &here["speeds"][format!("{way}_bytes_per_second")];
        assert!(speed.as_f64().unwrap() > 0.0, "{json}");
    }
    assert_eq!(names_in(place.path()), [""; 0]);
    let text = run(&["doctor", "--no-speed", text_of(place.path())])
        .ended(0)
        .out;
    assert!(
        text.contains("io_uring") && text.contains("direct I/O"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn a_problem_makes_the_status_1_and_comes_with_the_command_that_mends_it() {
    let place = place();
    let missing = place.path().join("not there");
    let report = run(&["doctor", "--json", "--no-speed", text_of(&missing)])
        .ended(1)
        .json();
    let problem = finding(&report["places"][0]["findings"], "directory");
    assert_eq!(problem["health"], "problem");
    let command = problem["mend"][0].as_str().unwrap();
    assert_eq!(command, format!("mkdir -p '{}'", missing.display()));
    // The command is exact: a shell runs it, and the problem is gone.
    let mended = std::process::Command::new("sh")
        .args(["-c", command])
        .status()
        .unwrap();
    assert!(mended.success());
    run(&["doctor", "--no-speed", text_of(&missing)]).ended(0);

    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    let text = run(&["doctor", "--no-speed", text_of(&file)]).ended(1).out;
    assert!(
        text.contains("is not a directory") && text.contains("1 problem"),
        "{text}"
    );
}

#[test]
fn a_directory_that_may_not_be_written_to_is_a_problem() {
    let place = place();
    // Others may look into it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(place.path(), open).unwrap();
    let Some(report) = run_as_nobody(&["doctor", "--json", text_of(place.path())]) else {
        return skip("nobody", "other users cannot run the tool");
    };
    let report = report.ended(1).json();
    let problem = finding(&report["places"][0]["findings"], "directory");
    let seen = problem["seen"].as_str().unwrap();
    assert_eq!(seen, "cannot be written to: Permission denied");
    assert!(
        problem["mend"][0]
            .as_str()
            .unwrap()
            .starts_with("sudo chown $(id -u) ")
    );
}

#[test]
fn who_refuses_io_uring_is_named_and_threads_measure_the_drive() {
    let place = place();
    let path = text_of(place.path());
    let report = without_io_uring(tool(&["doctor", "--size", "8MiB", "--json", path])).ended(0);
    let json = report.json();
    let ring = finding(&json["machine"], "io_uring");
    assert_eq!(ring["health"], "remark");
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|is| is == "0\n") {
        assert_eq!(ring["seen"], "refused by a seccomp profile");
    }
    assert!(
        ring["mend"][0]
            .as_str()
            .unwrap()
            .starts_with("docker run --security-opt seccomp=")
    );
    assert_eq!(json["places"][0]["speeds"]["way"], "threads");
    assert_eq!(
        without_io_uring(tool(&["doctor", "--strict", "--no-speed", path])).status,
        Some(1)
    );
}

#[test]
fn a_read_only_file_system_is_told_with_the_command_that_remounts_it() {
    let place = place();
    let Some(_mount) = ReadOnly::new(place.path(), |_| ()) else {
        return skip("mount", "this process may not mount");
    };
    let report = run(&["doctor", "--json", text_of(place.path())])
        .ended(1)
        .json();
    let problem = finding(&report["places"][0]["findings"], "directory");
    let point = place.path().canonicalize().unwrap();
    let command = format!("sudo mount -o remount,rw {}", point.display());
    assert_eq!(problem["mend"][0], *command, "{report}");
}
