//! The timeline of a training step: every part of it is there, and no two spans of a row overlap.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;
mod training;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use support::{directory, engine};
use training::{F32, Model, initialize, open, step};

/// Spans by group and row: when it began, when it ended, what it was.
type Rows = BTreeMap<(u64, u64), Vec<(f64, f64, String)>>;

fn rows_of(events: &[Value]) -> Rows {
    let mut rows = Rows::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let number = |key: &str| event[key].as_u64().unwrap();
        let (start, length) = (
            event["ts"].as_f64().unwrap(),
            event["dur"].as_f64().unwrap(),
        );
        let name = event["name"].as_str().unwrap().to_owned();
        let row = rows.entry((number("pid"), number("tid"))).or_default();
        row.push((start, start + length, name));
    }
    rows
}

fn names(events: &[Value], kind: &str) -> BTreeMap<(u64, u64), String> {
    let is_name = |event: &&Value| event["ph"] == "M" && event["name"] == kind;
    let row = |event: &Value| {
        let name = event["args"]["name"].as_str().unwrap().to_owned();
        let number = |key: &str| event[key].as_u64().unwrap();
        ((number("pid"), number("tid")), name)
    };
    events.iter().filter(is_name).map(row).collect()
}

#[test]
fn a_step_is_drawn_by_parameter_by_thread_and_by_operation() {
    let directory = directory();
    let file = directory.path().join("timeline.json");
    let store = directory.path().join("store");
    std::fs::create_dir(&store).unwrap();
    {
        let engine = engine(&[("trace", file.to_str().unwrap())]);
        let mut model = Model::new(&F32);
        (0..6).for_each(|id| model.add(id, 50_000));
        let settings = [("sync", "commit"), ("pinned_bytes", "3MiB")];
        let optimizer = open(&engine, &store, &settings, &model);
        initialize(&optimizer, &mut model, 1);
        for _ in 0..3 {
            step(&optimizer, &mut model, None, 2, &|_| false);
        }
        optimizer.commit().unwrap();
    }
    let events: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = rows_of(&events);
    let (groups, labels) = (
        names(&events, "process_name"),
        names(&events, "thread_name"),
    );
    for (row, spans) in &rows {
        let mut spans = spans.clone();
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in spans.windows(2) {
            // Times are rounded to doubles of microseconds.
            assert!(pair[0].1 <= pair[1].0 + 0.01, "{}: {pair:?}", labels[row]);
        }
    }
    let in_group = |part: &str| -> BTreeSet<&str> {
        rows.iter()
            .filter(|(row, _)| groups[row].contains(part))
            .flat_map(|(_, spans)| spans.iter().map(|(_, _, name)| name.as_str()))
            .collect()
    };
    let parameters = ["prepare", "put back", "read", "update", "write"];
    assert_eq!(in_group("parameters"), BTreeSet::from(parameters));
    assert_eq!(
        in_group("operations"),
        BTreeSet::from(["swap_in", "swap_out"])
    );
    let threads = in_group("threads");
    assert!(threads.contains("commit"), "{threads:?}");
    let waits = |name: &&str| name.starts_with("wait for");
    assert!(threads.iter().any(waits), "{threads:?}");
    let label = |row: &(u64, u64)| groups[row].contains("parameters");
    let parameters: BTreeSet<u64> = rows
        .keys()
        .filter(|row| label(row))
        .map(|row| row.1)
        .collect();
    assert_eq!(parameters, (0..6).collect());
    assert!(labels.values().any(|label| label == "tsw-commit"));
}
