//! The manifest: what goes in comes out, and nothing comes out that makes no sense.

use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::manifest::{BadManifest, Manifest, SnapshotParameter, StateImage};
use crate::base::dtype::Dtype;
use crate::base::units::round_up;
use crate::store::{BLOCK_BYTES, StateSpec};

fn any_dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(Dtype::ALL)
}

fn any_states() -> impl Strategy<Value = Vec<StateSpec>> {
    prop::collection::btree_map("[^\0]{1,12}", (any_dtype(), any_dtype()), 1..=8).prop_map(
        |states| {
            let states = states.into_iter();
            states
                .map(|(name, (dtype, disk_dtype))| StateSpec {
                    name,
                    dtype,
                    disk_dtype,
                })
                .collect()
        },
    )
}

type AnyParameter = (u64, Option<String>, u64, Vec<Option<Option<u32>>>);

fn any_parameters() -> impl Strategy<Value = Vec<AnyParameter>> {
    let parameter = (
        0..u64::MAX,
        prop::option::of("[^\0]{0,20}"),
        1..1_000_000_u64,
        prop::collection::vec(prop::option::of(prop::option::of(any::<u32>())), 8),
    );
    prop::collection::vec(parameter, 0..40)
}

/// Places the images one after the other, with a gap of some blocks here and there.
fn manifest_of(states: Vec<StateSpec>, parameters: Vec<AnyParameter>) -> Manifest {
    let mut manifest = Manifest {
        states,
        ..Manifest::default()
    };
    let mut end = 0;
    let mut ids = std::collections::HashSet::new();
    for (id, name, numel, images) in parameters {
        if !ids.insert(id) {
            continue;
        }
        let images = images.into_iter().take(manifest.states.len()).enumerate();
        let states = images
            .map(|(state, image)| match image {
                None => StateImage::Zero,
                Some(checksum) => {
                    let offset_bytes = end;
                    end += round_up(manifest.image_bytes(state, numel), BLOCK_BYTES);
                    end += numel % 3 * BLOCK_BYTES;
                    StateImage::At {
                        offset_bytes,
                        checksum,
                    }
                }
            })
            .collect();
        manifest.parameters.push(SnapshotParameter {
            id,
            name,
            numel,
            states,
        });
    }
    manifest.data_bytes = end;
    manifest
}

/// Two parameters, the second one with a state that is zero.
fn small() -> Manifest {
    let state = |name: &str, disk_dtype| StateSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        disk_dtype,
    };
    let states = vec![state("master", Dtype::F32), state("exp_avg", Dtype::Bf16)];
    let mut manifest = manifest_of(
        states,
        vec![
            (3, Some("a\"é\n".to_owned()), 2000, vec![Some(Some(7)); 2]),
            (u64::MAX - 1, None, 5, vec![Some(None), None]),
        ],
    );
    manifest.step = 12;
    manifest.user_data = vec![0, 255, 16];
    manifest
}

#[test]
fn the_json_is_the_documented_one() {
    let manifest = small();
    let json: Value = serde_json::from_slice(&manifest.encode().unwrap()).unwrap();
    assert_eq!(
        json,
        json!({
            "format": "tensorswap-snapshot",
            "version": 1,
            "step": 12,
            "data_bytes": 40960,
            "user_data": "00ff10",
            "states": [
                {"name": "master", "dtype": "f32", "disk_dtype": "f32"},
                {"name": "exp_avg", "dtype": "f32", "disk_dtype": "bf16"},
            ],
            "parameters": [
                {"id": 3, "name": "a\"é\n", "numel": 2000, "states": [[0, 7], [16384, 7]]},
                {"id": 18_446_744_073_709_551_614_u64, "name": null, "numel": 5,
                 "states": [[28672, null], null]},
            ],
        })
    );
}

proptest! {
    #[test]
    fn any_manifest_comes_back_as_it_was(
        states in any_states(),
        parameters in any_parameters(),
        step in any::<u64>(),
        user_data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut manifest = manifest_of(states, parameters);
        (manifest.step, manifest.user_data) = (step, user_data);
        prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()), Ok(manifest));
    }

    /// The checksum beside the manifest finds every such change; this is what holds without it.
    #[test]
    fn a_changed_text_is_refused_or_makes_sense(
        states in any_states(),
        parameters in any_parameters(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut json = manifest_of(states, parameters).encode().unwrap();
        let at = at.index(json.len());
        json[at] = to;
        if let Ok(read) = Manifest::decode(&json) {
            prop_assert_eq!(Manifest::decode(&read.encode().unwrap()), Ok(read));
        }
        prop_assert!(Manifest::decode(&json[..at]).is_err());
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let refused = |path: &str, value: Value, part: &str| {
        let mut json: Value = serde_json::from_slice(&small().encode().unwrap()).unwrap();
        match json.pointer_mut(path) {
            Some(place) => *place = value,
            None => panic!("{path}"),
        }
        match Manifest::decode(json.to_string().as_bytes()) {
            Err(BadManifest::Damaged(why)) => assert!(why.contains(part), "{path}: {why}"),
            other => panic!("{path}: {other:?}"),
        }
    };
    let huge = "x".repeat(4097);
    for (path, value, part) in [
        (
            "/format",
            json!("tensorswap-store"),
            "not that of a snapshot",
        ),
        ("/step", json!(-1), "invalid value"),
        ("/step", json!(1.5), "invalid type"),
        ("/data_bytes", json!(40959), "no data file has 40959 bytes"),
        ("/data_bytes", json!(28672), "can lie at 28672"),
        ("/data_bytes", json!(1_u64 << 63), "no data file"),
        ("/user_data", json!("0"), "not hexadecimal"),
        ("/user_data", json!("0G"), "not hexadecimal"),
        ("/user_data", json!("AB"), "not hexadecimal"),
        (
            "/user_data",
            json!("00".repeat((1 << 20) + 1)),
            "too much user data",
        ),
        ("/states", json!([]), "need a state first"),
        ("/states/0/name", json!("exp_avg"), "taken"),
        ("/states/0/name", json!(""), "empty"),
        ("/states/0/name", json!("a\0"), "zero byte"),
        ("/states/0/name", json!(huge), "longer than"),
        (
            "/states/0/dtype",
            json!("f33"),
            "no dtype is called \"f33\"",
        ),
        ("/states/1/disk_dtype", json!(1), "invalid type"),
        (
            "/parameters/0/id",
            json!(u64::MAX),
            "stands for no parameter",
        ),
        (
            "/parameters/0/id",
            json!(u64::MAX - 1),
            "registered already",
        ),
        ("/parameters/0/name", json!(huge), "longer than"),
        ("/parameters/0/numel", json!(0), "at least one element"),
        ("/parameters/0/numel", json!(u64::MAX), "too many"),
        ("/parameters/0/numel", json!(1_u64 << 54), "no state of"),
        (
            "/parameters/0/numel",
            json!(4097),
            "two states lie at 16384",
        ),
        ("/parameters/0/states", json!([]), "0 states instead of 2"),
        (
            "/parameters/0/states",
            json!([null, null, null]),
            "3 states instead of 2",
        ),
        ("/parameters/0/states/0", json!([1, 7]), "can lie at 1"),
        (
            "/parameters/0/states/0",
            json!([u64::MAX - 4095, 7]),
            "can lie at",
        ),
        (
            "/parameters/0/states/0",
            json!([16384, 7]),
            "two states lie at 16384",
        ),
        (
            "/parameters/0/states/0",
            json!([0, 1_u64 << 32]),
            "invalid value",
        ),
        ("/parameters/0/states/0", json!([0]), "invalid length"),
        ("/parameters/0/states/0", json!([0, 1, 2]), "trailing"),
        ("/parameters/1", json!({"id": 1}), "missing field"),
        ("/parameters/1", json!(null), "invalid type"),
    ] {
        refused(path, value, part);
    }
}

#[test]
fn unknown_and_repeated_fields_are_refused_and_so_are_other_versions() {
    let json = String::from_utf8(small().encode().unwrap()).unwrap();
    for (from, to) in [
        ("\"step\":12", "\"step\":12,\"more\":1"),
        ("\"step\":12", "\"step\":12,\"step\":12"),
        ("\"numel\":5", "\"numel\":5,\"rank\":0"),
        ("\"dtype\":\"f32\"", "\"dtype\":\"f32\",\"shape\":[]"),
        ("]}", "]}]"),
    ] {
        assert!(json.contains(from));
        let changed = json.replacen(from, to, 1);
        let read = Manifest::decode(changed.as_bytes());
        assert!(
            matches!(read, Err(BadManifest::Damaged(_))),
            "{to}: {read:?}"
        );
    }
    // What a later version looks like is not known, beyond its number.
    let later = br#"{"version": 2, "format": "tensorswap-snapshot", "steps": []}"#;
    assert_eq!(Manifest::decode(later), Err(BadManifest::Version(2)));
    for text in ["", "{}", "[]", "null", "\u{feff}{}"] {
        let read = Manifest::decode(text.as_bytes());
        assert!(matches!(read, Err(BadManifest::Damaged(_))), "{text}");
    }
}

#[test]
fn a_manifest_that_no_reader_would_take_is_not_written() {
    let mut manifest = small();
    manifest.data_bytes -= 4 * BLOCK_BYTES;
    assert!(manifest.encode().is_err());
    manifest = small();
    manifest.parameters[1].id = 3;
    assert!(manifest.encode().is_err());
}

#[test]
fn a_hundred_thousand_parameters_are_one_manifest() {
    let parameters = (0..100_000_u64).map(|id| {
        let name = format!("model.layers.{}.mlp.{id}.weight", id / 9);
        let images = vec![Some(Some(id as u32)), Some(Some(!id as u32)), None];
        (id << 20, Some(name), 4096 + id, images)
    });
    let mut states = small().states;
    states.push(StateSpec {
        name: "exp_avg_sq".to_owned(),
        ..states[1].clone()
    });
    let manifest = manifest_of(states, parameters.collect());
    let started = Instant::now();
    let json = manifest.encode().unwrap();
    let encoded = started.elapsed();
    let read = Manifest::decode(&json).unwrap();
    let decoded = started.elapsed() - encoded;
    assert_eq!(read, manifest);
    println!(
        "{} bytes, encoded in {encoded:?}, decoded in {decoded:?}",
        json.len()
    );
    assert!(json.len() < 15_000_000);
}
