//! Cutting anew, on storage: the same elements, whatever the ranks; and every refusal.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::manifest::{Manifest, SnapshotParameter, StateImage};
use super::reshard::compare;
use super::reshard_plan::Plan;
use super::{ReshardOptions, Resharding, Snapshot, SnapshotWriter};
use crate::base::checksum::crc32c;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result, Status};
use crate::base::units::round_up;
use crate::store::{BLOCK_BYTES, StateSpec};

/// One parameter of one rank: its id, and the bytes of each state; empty for one that is zero.
pub(super) type Record = (u64, u64, Vec<Vec<u8>>);

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(".").unwrap()
}

fn states(dtypes: &[Dtype]) -> Vec<StateSpec> {
    let state = |(index, dtype): (usize, &Dtype)| StateSpec {
        name: format!("s{index}"),
        dtype: *dtype,
        disk_dtype: *dtype,
    };
    dtypes.iter().enumerate().map(state).collect()
}

fn make(directory: &Path, dtypes: &[Dtype], records: &[Record], is_checked: bool) {
    let mut manifest = Manifest {
        step: 9,
        user_data: b"seed".to_vec(),
        states: states(dtypes),
        ..Manifest::default()
    };
    let mut data = Vec::new();
    for (id, numel, images) in records {
        let mut image = |bytes: &Vec<u8>| {
            if bytes.is_empty() {
                return StateImage::Zero;
            }
            let offset_bytes = data.len() as u64;
            data.extend_from_slice(bytes);
            data.resize(round_up(data.len() as u64, BLOCK_BYTES) as usize, 0xee);
            StateImage::At {
                offset_bytes,
                checksum: is_checked.then(|| crc32c(bytes)),
            }
        };
        manifest.parameters.push(SnapshotParameter {
            id: *id,
            name: Some(format!("p{id}")),
            numel: *numel,
            states: images.iter().map(&mut image).collect(),
        });
    }
    manifest.data_bytes = data.len() as u64;
    let writer = SnapshotWriter::create(directory, manifest.data_bytes).unwrap();
    writer.write_at(&data, 0).unwrap();
    writer.publish(&manifest).unwrap();
}

/// The records of a snapshot; zero states as zeros.
fn read(directory: &Path) -> Vec<Record> {
    let snapshot = Snapshot::open(directory).unwrap();
    snapshot.verify(&mut |_| {}).unwrap();
    let manifest = snapshot.manifest();
    let records = manifest.parameters.iter().map(|parameter| {
        let images = parameter.states.iter().enumerate().map(|(state, image)| {
            let mut bytes = vec![0; manifest.image_bytes(state, parameter.numel) as usize];
            if let StateImage::At { offset_bytes, .. } = image {
                snapshot.read_once(&mut bytes, *offset_bytes).unwrap();
            }
            bytes
        });
        (parameter.id, parameter.numel, images.collect())
    });
    records.collect()
}

fn ranks_in(directory: &Path) -> Vec<PathBuf> {
    let count = std::fs::read_dir(directory).unwrap().count();
    (0..count)
        .map(|rank| directory.join(format!("rank{rank}")))
        .collect()
}

pub(super) fn reshard(from: &Path, to: &Path, options: &ReshardOptions) -> Result<()> {
    let sources: Vec<Snapshot> = ranks_in(from)
        .iter()
        .map(|rank| Snapshot::open(rank).unwrap())
        .collect();
    let resharding = Resharding::begin(&sources, to, options)?;
    let (total, mut done) = (resharding.total_bytes(), 0);
    resharding.run(&mut |bytes| done += bytes)?.publish()?;
    assert_eq!(done, total);
    Ok(())
}

pub(super) fn to_ranks(ranks_count: u32) -> ReshardOptions {
    ReshardOptions {
        ranks_count,
        ..ReshardOptions::default()
    }
}

/// The elements of one parameter in all ranks, joined; `None` where no rank has it.
fn joined(ranks: &[Vec<Record>], id: u64) -> Option<Vec<Vec<u8>>> {
    let pieces = ranks.iter().flatten().filter(|record| record.0 == id);
    pieces
        .map(|record| record.2.clone())
        .reduce(|mut all, piece| {
            for (all, more) in all.iter_mut().zip(piece) {
                all.extend(more);
            }
            all
        })
}

/// Several ranks of a parameter of each size, cut as ZeRO cuts. Some states are zero.
pub(super) fn sharded(place: &Path, dtypes: &[Dtype], numels: &[u64], ranks: u64, seed: u64) {
    let mut records = vec![Vec::new(); ranks as usize];
    for (id, numel) in (1_u64..).zip(numels) {
        let piece = numel.div_ceil(ranks);
        for (rank, records) in records.iter_mut().enumerate() {
            let len = numel.saturating_sub(rank as u64 * piece).min(piece);
            if len == 0 {
                continue;
            }
            let image = |(state, dtype): (usize, &Dtype)| {
                let noise = seed.wrapping_add(id * 31 + rank as u64 * 7 + state as u64);
                if noise.is_multiple_of(4) {
                    return Vec::new();
                }
                let bytes = 0..len * dtype.size_bytes();
                bytes
                    .map(|at| (at * 11 + at / 250 + noise * 101) as u8)
                    .collect()
            };
            let images = dtypes.iter().enumerate().map(image).collect();
            records.push((id, len, images));
        }
    }
    for (rank, records) in records.iter().enumerate() {
        make(
            &place.join(format!("rank{rank}")),
            dtypes,
            records,
            !seed.is_multiple_of(5),
        );
    }
}

pub(super) fn all_in(directory: &Path) -> Vec<Vec<Record>> {
    ranks_in(directory).iter().map(|rank| read(rank)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn the_elements_stay_the_same_and_the_way_back_gives_the_same_ranks(
        numels in prop::collection::vec(1..3000_u64, 1..5),
        dtypes in prop::collection::vec(prop::sample::select(Dtype::ALL), 1..4),
        from in 1..5_u32,
        to in 1..6_u32,
        is_padded in any::<bool>(),
        seed in 0..1000_u64,
    ) {
        let place = place();
        let [first, second, back] = ["a", "b", "c"].map(|name| place.path().join(name));
        sharded(&first, &dtypes, &numels, u64::from(from), seed);
        let before = all_in(&first);
        let options = ReshardOptions { is_padded, ..to_ranks(to) };
        reshard(&first, &second, &options).unwrap();
        let after = all_in(&second);
        prop_assert_eq!(after.len(), to as usize);
        for (id, numel) in (1..).zip(&numels) {
            let (mut all, expected) = (joined(&after, id).unwrap(), joined(&before, id).unwrap());
            for ((all, expected), dtype) in all.iter_mut().zip(&expected).zip(&dtypes) {
                let len = (numel * dtype.size_bytes()) as usize;
                prop_assert!(all[len..].iter().all(|byte| *byte == 0));
                all.truncate(len);
                prop_assert!(all == expected);
            }
            let piece = numel.div_ceil(u64::from(to));
            for (rank, records) in after.iter().enumerate() {
                let found = records.iter().find(|record| record.0 == id).map(|record| record.1);
                let left = numel.saturating_sub(rank as u64 * piece).min(piece);
                let expected = if is_padded { piece } else { left };
                prop_assert_eq!(found.unwrap_or(0), expected);
            }
        }
        let numels = (1..).zip(numels).filter(|_| is_padded).collect();
        reshard(&second, &back, &ReshardOptions { numels, ..to_ranks(from) }).unwrap();
        prop_assert!(all_in(&back) == before);
    }
}

#[test]
fn what_is_no_padding_is_not_cut_off() {
    let place = place();
    let [whole, cut] = ["a", "b"].map(|name| place.path().join(name));
    sharded(&whole, &[Dtype::F32, Dtype::U8], &[1000], 2, 1);
    for numel in [999, 500, 1] {
        let options = ReshardOptions {
            numels: vec![(1, numel)],
            ..to_ranks(3)
        };
        let error = reshard(&whole, &cut, &options).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains("no padding"), "{error}");
        assert!(std::fs::read_dir(place.path()).unwrap().count() == 1);
    }
}

#[test]
fn long_parameters_go_through_in_parts() {
    let place = place();
    let dtypes = [Dtype::F32, Dtype::U8];
    let numel = 3 << 20;
    sharded(&place.path().join("a"), &dtypes, &[numel, 5], 2, 1);
    reshard(
        &place.path().join("a"),
        &place.path().join("b"),
        &to_ranks(3),
    )
    .unwrap();
    let (before, after) = (
        all_in(&place.path().join("a")),
        all_in(&place.path().join("b")),
    );
    for id in [1, 2] {
        assert!(joined(&before, id) == joined(&after, id));
    }
    assert_eq!(after[2][0].1, numel / 3);
}

#[test]
fn states_of_zeros_stay_zero_and_take_no_space() {
    let place = place();
    let records = |numel: u64| vec![(1, numel, vec![vec![7; numel as usize], Vec::new()])];
    for rank in 0..2 {
        let directory = place.path().join(format!("a/rank{rank}"));
        make(&directory, &[Dtype::U8; 2], &records(5000), true);
    }
    reshard(
        &place.path().join("a"),
        &place.path().join("b"),
        &to_ranks(1),
    )
    .unwrap();
    let snapshot = Snapshot::open(&place.path().join("b/rank0")).unwrap();
    let manifest = snapshot.manifest();
    assert_eq!(manifest.parameters[0].states[1], StateImage::Zero);
    assert_eq!(manifest.data_bytes, 12288);
    assert_eq!((manifest.step, &manifest.user_data[..]), (9, &b"seed"[..]));
}

#[test]
fn a_parameter_of_some_ranks_only_is_joined_from_those() {
    let place = place();
    let at = |rank: u32| place.path().join(format!("a/rank{rank}"));
    let piece = |id: u64, byte: u8| (id, 3, vec![vec![byte; 3]]);
    make(&at(0), &[Dtype::I8], &[piece(1, 1)], true);
    make(&at(1), &[Dtype::I8], &[piece(2, 2), piece(1, 3)], true);
    make(&at(2), &[Dtype::I8], &[], true);
    reshard(
        &place.path().join("a"),
        &place.path().join("b"),
        &to_ranks(2),
    )
    .unwrap();
    let after = all_in(&place.path().join("b"));
    assert_eq!(
        after,
        [
            vec![(1, 3, vec![vec![1; 3]]), (2, 2, vec![vec![2; 2]])],
            vec![(1, 3, vec![vec![3; 3]]), (2, 1, vec![vec![2]])],
        ]
    );
}

#[test]
fn ranks_that_do_not_go_together_are_named() {
    let place = place();
    let directory = |name: &str| place.path().join(name);
    let record = |id: u64| (id, 4, vec![vec![1; 4]]);
    make(&directory("one"), &[Dtype::U8], &[record(1)], true);
    make(&directory("other-states"), &[Dtype::I8], &[record(1)], true);
    let writer = SnapshotWriter::create(&directory("other-step"), 0).unwrap();
    let manifest = Manifest {
        step: 10,
        states: states(&[Dtype::U8]),
        ..Manifest::default()
    };
    writer.publish(&manifest).unwrap();
    let manifest = Manifest {
        step: 9,
        parameters: vec![SnapshotParameter {
            id: 1,
            name: None,
            numel: 1,
            states: vec![StateImage::Zero],
        }],
        ..manifest
    };
    let writer = SnapshotWriter::create(&directory("other-name"), 0).unwrap();
    writer.publish(&manifest).unwrap();
    let open = |name: &str| Snapshot::open(&directory(name)).unwrap();
    let refused = |names: &[&str], options: &ReshardOptions, parts: &[&str]| {
        let sources: Vec<Snapshot> = names.iter().map(|name| open(name)).collect();
        let error = Resharding::begin(&sources, &directory("out"), options).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(!directory("out.partial").exists() && !directory("out").exists());
    };
    let two = to_ranks(2);
    refused(
        &["one", "other-step"],
        &two,
        &["rank 0 is of step 9", "rank 1 of step 10"],
    );
    refused(
        &["one", "other-states"],
        &two,
        &["s0 (u8, u8 on", "rank 1 s0 (i8"],
    );
    refused(&["one", "other-name"], &two, &["\"p1\"", "None in rank 1"]);
    refused(&[], &two, &["no snapshot"]);
    refused(&["one"], &to_ranks(0), &["0 ranks"]);
    refused(&["one"], &to_ranks(u32::MAX), &["1 to 65536"]);
    let numels = |numels: &[(u64, u64)]| ReshardOptions {
        numels: numels.to_vec(),
        ..to_ranks(2)
    };
    refused(&["one"], &numels(&[(1, 5)]), &["5 elements", "have 4"]);
    refused(&["one"], &numels(&[(1, 0)]), &["0 elements"]);
    refused(&["one"], &numels(&[(2, 4)]), &["no rank has a parameter 2"]);
    refused(&["one"], &numels(&[(1, 4), (1, 3)]), &["two lengths"]);
}

#[test]
fn damage_is_found_before_anything_is_published() {
    let place = place();
    let (from, to) = (place.path().join("a"), place.path().join("b"));
    sharded(&from, &[Dtype::F32], &[2000], 2, 1);
    let data = from.join("rank1/data");
    let whole = std::fs::read(&data).unwrap();
    // Also where it is cut off as padding: what was asked for may be wrong.
    for at in [0, 1000, 3999] {
        let mut damaged = whole.clone();
        damaged[at] ^= 16;
        std::fs::write(&data, &damaged).unwrap();
        let options = ReshardOptions {
            numels: vec![(1, 1999)],
            ..to_ranks(3)
        };
        let error = reshard(&from, &to, &options).unwrap_err();
        assert_eq!(error.status(), Status::Checksum, "{error}");
        assert!(error.to_string().contains("rank1/data"), "{error}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
    std::fs::write(&data, &whole).unwrap();
    reshard(&from, &to, &to_ranks(3)).unwrap();
}

#[test]
fn the_comparison_finds_every_byte_that_differs() {
    let place = place();
    let (from, to) = (place.path().join("a"), place.path().join("b"));
    sharded(&from, &[Dtype::Bf16, Dtype::U8], &[300], 2, 1);
    reshard(&from, &to, &to_ranks(3)).unwrap();
    let opened = |directory: &Path| -> Vec<Snapshot> {
        let ranks = ranks_in(directory);
        ranks
            .iter()
            .map(|rank| Snapshot::open(rank).unwrap())
            .collect()
    };
    let sources = opened(&from);
    let compared = || -> Result<(), Error> {
        let manifests: Vec<&Manifest> = sources.iter().map(Snapshot::manifest).collect();
        let plan = Plan::new(&manifests, &to_ranks(3)).unwrap();
        compare(&sources, &opened(&to), &plan.parameters, &mut |_| {})
    };
    assert_eq!(compared(), Ok(()));
    for rank in ranks_in(&to) {
        let manifest = Snapshot::open(&rank).unwrap().manifest().clone();
        let data = rank.join("data");
        let whole = std::fs::read(&data).unwrap();
        for (state, image) in manifest.parameters[0].states.iter().enumerate() {
            let StateImage::At { offset_bytes, .. } = *image else {
                continue;
            };
            for at in [0, manifest.image_bytes(state, 100) - 1] {
                let mut damaged = whole.clone();
                damaged[(offset_bytes + at) as usize] ^= 1;
                std::fs::write(&data, &damaged).unwrap();
                let error = compared().unwrap_err();
                assert_eq!(error.status(), Status::Checksum, "{error}");
                let place = format!("data at {}", offset_bytes + at);
                assert!(error.to_string().contains(&place), "{error}");
            }
        }
        std::fs::write(&data, &whole).unwrap();
    }
    assert_eq!(compared(), Ok(()));
}

#[test]
fn what_is_there_stays_and_what_a_killed_process_left_goes() {
    let place = place();
    let (from, to) = (place.path().join("a"), place.path().join("b"));
    sharded(&from, &[Dtype::F32], &[20, 30], 2, 1);
    // As a process leaves it that is killed after one rank was whole and another one was not.
    let partial = place.path().join("b.partial");
    std::fs::create_dir_all(partial.join("rank1.partial")).unwrap();
    std::fs::write(partial.join("rank1.partial/data"), b"half").unwrap();
    make(&partial.join("rank0"), &[Dtype::U8], &[], true);
    reshard(&from, &to, &to_ranks(1)).unwrap();
    assert!(!partial.exists());
    let before = all_in(&to);
    let error = reshard(&from, &to, &to_ranks(3)).unwrap_err();
    assert_eq!(error.os_error(), libc::EEXIST, "{error}");
    assert!(all_in(&to) == before && !partial.exists());

    let sources = [Snapshot::open(&from.join("rank0")).unwrap()];
    let other = place.path().join("c");
    let begun = Resharding::begin(&sources, &other, &to_ranks(2)).unwrap();
    let error = reshard(&from, &other, &to_ranks(2)).unwrap_err();
    assert_eq!(error.status(), Status::Locked, "{error}");
    drop(begun);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2);
}
