//! `inspect`.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::*;

/// Every file of a store with its bytes and the time it was changed.
fn contents(store: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
    let files = names_in(store)
        .into_iter()
        .filter(|name| store.join(name).is_file());
    files
        .map(|name| {
            let path = store.join(&name);
            let changed = path.metadata().unwrap().modified().unwrap();
            (name, std::fs::read(path).unwrap(), changed)
        })
        .collect()
}

#[test]
fn all_that_a_store_records_is_told_and_nothing_is_changed() {
    let place = place();
    let store = store(place.path());
    let before = contents(&store);
    for path in [&store, place.path()] {
        let json = run(&["inspect", "--verify", "--json", text_of(path)])
            .ended(0)
            .json();
        let told = &json[0];
        assert_eq!(
            told["path"],
            store.canonicalize().unwrap().to_str().unwrap()
        );
        assert_eq!(
            (&told["step"], &told["usage"]["state"]),
            (&0.into(), &"free".into())
        );
        assert_eq!(told["user_data_bytes"], 6);
        assert_eq!(told["elements_count"], NUMELS.iter().sum::<u64>());
        let states = told["states"].to_string();
        assert_eq!(
            states,
            r#"[{"disk_dtype":"f32","dtype":"f32","name":"master"},{"disk_dtype":"bf16","dtype":"f32","name":"exp_avg"}]"#
        );
        let parameters = told["parameters"].as_array().unwrap();
        for (parameter, (id, numel)) in parameters.iter().zip((10_u64..).zip(NUMELS)) {
            assert_eq!(
                (&parameter["id"], &parameter["elements_count"]),
                (&id.into(), &numel.into())
            );
            let is_zero = id == 12;
            assert_eq!(
                parameter["zero_states"].as_array().unwrap().len(),
                if is_zero { 2 } else { 0 }
            );
        }
        assert_eq!(parameters[0]["name"], "layer.10");
        assert!(parameters[2]["name"].is_null());
        assert_eq!(told["verified"]["compared_bytes"], 5001 * (4 + 2));
        assert_eq!(told["verified"]["damages"].as_array().unwrap().len(), 0);
    }
    let text = run(&["inspect", text_of(&store)]).ended(0).out;
    for part in [
        "layer.11",
        "300 000",
        "exp_avg (f32, bf16 on storage)",
        "nobody",
        "all zero",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let short = run(&["inspect", "--limit", "1", text_of(&store)])
        .ended(0)
        .out;
    assert!(
        short.contains("and 2 more") && !short.contains("layer.11"),
        "{short}"
    );
    assert_eq!(contents(&store), before);
}

#[test]
fn a_damaged_record_is_named_and_the_others_are_good() {
    let place = place();
    let store = store(place.path());
    let json = run(&["inspect", "--json", text_of(&store)]).ended(0).json();
    let offset = json[0]["parameters"][0]["offset_bytes"].as_u64().unwrap();
    let data = std::fs::File::options()
        .write(true)
        .open(store.join("data"))
        .unwrap();
    data.write_all_at(&[0xff; 3], offset + 40).unwrap();
    // Only who asks for it pays for the reading.
    run(&["inspect", text_of(&store)]).ended(0);
    let text = run(&["inspect", "--verify", text_of(&store)]).ended(1).out;
    assert!(text.contains("1 parameter damaged"), "{text}");
    assert!(
        text.contains("master of parameter 10 (layer.10) has the checksum"),
        "{text}"
    );
    assert!(text.contains("DAMAGED"), "{text}");
    let json = run(&["inspect", "--verify", "--json", text_of(&store)])
        .ended(1)
        .json();
    assert_eq!(json[0]["verified"]["damages"][0]["id"], 10);
    assert_eq!(json[0]["verified"]["compared_bytes"], 6);
}

#[test]
fn a_store_in_use_is_told_as_committed_and_whoever_uses_it_is_not_disturbed() {
    let place = place();
    let optimizer = optimizer(place.path());
    fill(&optimizer, 10, 1.0);
    optimizer.commit().unwrap();
    fill(&optimizer, 11, 1.0);
    let path = text_of(place.path());
    let json = run(&["inspect", "--verify", "--json", path])
        .ended(0)
        .json();
    let usage = &json[0]["usage"];
    assert_eq!(
        (&usage["state"], &usage["pid"]),
        (&"in_use".into(), &std::process::id().into())
    );
    let generations: Vec<u64> = json[0]["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| parameter["generation"].as_u64().unwrap())
        .collect();
    assert!(
        generations[0] > 0 && generations[1..] == [0, 0],
        "{generations:?}"
    );
    let text = run(&["inspect", path]).ended(0).out;
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    optimizer.commit().unwrap();
    let json = run(&["inspect", "--verify", "--json", path])
        .ended(0)
        .json();
    assert!(
        json[0]["parameters"][1]["generation"].as_u64() > Some(0),
        "{json}"
    );
}

#[test]
fn a_store_on_a_read_only_file_system_can_be_looked_at() {
    let place = place();
    let Some(_mount) = ReadOnly::new(place.path(), |point| drop(store(point))) else {
        return skip("mount", "this process may not mount");
    };
    let json = run(&["inspect", "--verify", "--json", text_of(place.path())])
        .ended(0)
        .json();
    assert_eq!(json[0]["verified"]["compared_bytes"], 5001 * (4 + 2));
}

#[test]
fn what_is_no_readable_store_is_said_in_one_line() {
    let place = place();
    let store = store(place.path());
    let path = text_of(&store);
    run(&["inspect", "/nowhere"]).refused(3, "open /nowhere: No such file or directory");
    run(&["inspect", "/dev/null"]).refused(3, "open /dev/null: Not a directory");
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    run(&["inspect", text_of(&empty)]).refused(3, "is not a store: it has no log in it");

    let log = std::fs::read(store.join("log")).unwrap();
    let write = |bytes: &[u8]| std::fs::write(store.join("log"), bytes).unwrap();
    // A version that is not known yet, whole otherwise.
    let mut newer = log.clone();
    newer[8] = 3;
    let crc = crc32c(&newer[..60]);
    newer[60..64].copy_from_slice(&crc.to_le_bytes());
    write(&newer);
    run(&["inspect", path]).refused(3, "log is in version 3 of the format; this build knows 2");
    let mut damaged = log.clone();
    damaged[80] ^= 4;
    write(&damaged);
    run(&["inspect", path]).refused(1, "log at 64: ");
    write(b"some text of somebody else, long enough to be the header of a log, if it were one");
    run(&["inspect", path]).refused(1, "does not begin as a file of a store does");
    write(b"");
    run(&["inspect", path]).refused(1, "shorter than its header");
    write(&log);
    std::fs::remove_file(store.join("data")).unwrap();
    run(&["inspect", path]).refused(1, "data: ENOENT");
    std::fs::remove_file(store.join("log")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", store.join("log")).unwrap();
    run(&["inspect", path]).refused(1, "a store keeps regular files only");
}

#[test]
fn a_store_that_may_not_be_read_is_said_to_be_so() {
    let place = place();
    let store = store(place.path());
    match run_as_nobody(&["inspect", text_of(&store)]) {
        Some(run) if rustix::process::geteuid().is_root() => run.refused(3, "Permission denied"),
        Some(_) => skip("nobody", "the user is the store's owner"),
        None => skip("nobody", "other users cannot run the tool"),
    }
}

#[test]
fn bytes_written_are_told_and_how_long_a_drive_lasts_when_it_is_asked() {
    let place = place();
    let store = store(place.path());
    let told = |more: &[&str]| {
        let arguments = [&["inspect", "--json", text_of(&store)], more].concat();
        run(&arguments).ended(0).json()[0].clone()
    };
    let made = told(&[]);
    assert!(made["written_bytes"].as_u64().unwrap() > 0);
    assert!(made["written_bytes_per_step"].is_null() && made["drives"].is_null());
    // There is no rate before the first step.
    let asked = told(&["--endurance", "1TB", "--steps-per-day", "1000"]);
    assert!(asked["drives"][0]["days_left"].is_null(), "{asked}");

    let optimizer = optimizer(place.path());
    for _ in 0..4 {
        optimizer.step_begin(None).unwrap();
        while let Some(view) = optimizer.step_next().unwrap() {
            optimizer.step_done(view.id, true).unwrap();
        }
        optimizer.step_end().unwrap();
    }
    optimizer.commit().unwrap();
    drop(optimizer);
    let asked = told(&["--endurance", "1TB", "--steps-per-day", "1000"]);
    let written = asked["written_bytes"].as_u64().unwrap();
    assert!(written > made["written_bytes"].as_u64().unwrap());
    assert_eq!(asked["written_bytes_per_step"], written / 4);
    let drive = &asked["drives"][0];
    let expected = (1e12 - written as f64) / (written as f64 / 4.0 * 1000.0);
    let days = drive["days_left"].as_f64().unwrap();
    assert!(
        (days - expected).abs() < expected * 1e-9,
        "{days} {expected}"
    );
    assert!(drive["smart"].is_null() && drive["smart_refusal"].is_null());
    // What the drive says depends on the machine; that it does not is said with its reason.
    let drive = &told(&["--smart"])["drives"][0];
    assert_ne!(drive["smart"].is_null(), drive["smart_refusal"].is_null());
    let text = run(&["inspect", "--endurance", "1TB", "--smart", text_of(&store)]);
    let text = text.ended(0).out;
    assert!(text.contains("rated for 1.00 TB"), "{text}");
    assert!(
        text.contains("no SMART: ") || text.contains("nvme"),
        "{text}"
    );
    assert!(text.contains("since it was made, "), "{text}");
    run(&["inspect", "--endurance", "long", text_of(&store)]).refused(2, "no size");
}
