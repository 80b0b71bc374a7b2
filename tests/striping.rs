//! A store in several directories: dealt by weight, recognized when it is opened, whole or refused.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod support;
mod training;

use std::fs;
use std::path::PathBuf;

use support::*;
use tempfile::TempDir;
use tensorswap::base::config::Directory;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;
use tensorswap::store::{RebalanceOptions, Rebalanced, StoreReader, rebalance};
use training::*;

const MIB: usize = 1 << 20;

/// Directories a, b and c.
fn places(directory: &TempDir) -> Vec<PathBuf> {
    let names = ["a", "b", "c"];
    names.map(|name| directory.path().join(name)).to_vec()
}

/// A list of directories as a configuration has it, with the weights that are not 0.
fn list(places: &[&PathBuf], weights: &[u32]) -> String {
    let places = places
        .iter()
        .zip(weights.iter().chain(std::iter::repeat(&0)));
    let texts: Vec<String> = places
        .map(|(place, weight)| match weight {
            0 => place.display().to_string(),
            _ => format!("{}={weight}", place.display()),
        })
        .collect();
    texts.join(",")
}

fn model(numels: &[usize]) -> Model {
    let mut model = Model::new(&F32);
    for (id, numel) in (1..).zip(numels) {
        model.add(id, *numel);
    }
    model
}

fn opened(engine: &Engine, path: &str, mode: &str) -> Result<Optimizer, Error> {
    let settings = [("path", path), ("store", mode)];
    try_open(engine, "unused".as_ref(), &settings, &F32)
}

/// A store with two steps done, over the directories as listed.
fn trained(engine: &Engine, path: &str, model: &mut Model) -> Optimizer {
    let optimizer = open(engine, "unused".as_ref(), &[("path", path)], model);
    initialize(&optimizer, model, 3);
    for _ in 0..2 {
        step(&optimizer, model, None, 1, &|_| false);
    }
    optimizer.commit().unwrap();
    optimizer
}

/// Bytes of the records in a directory, as far as storage holds any.
fn blocks_bytes(place: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(place.join("rank0/data")).unwrap().blocks() * 512
}

#[test]
fn records_are_dealt_by_weight_and_come_back() {
    for backend in ["io_uring", "threads"] {
        let engine = engine(&[("backend", backend)]);
        let directory = directory();
        let places = places(&directory);
        let path = list(&[&places[0], &places[1], &places[2]], &[1, 2, 1]);
        let mut numels = vec![100; 300];
        numels.extend([MIB, MIB / 2, 17, 3 * MIB / 4]);
        let mut model = model(&numels);
        let optimizer = trained(&engine, &path, &mut model);
        verify(&optimizer, &model, backend);
        drop(optimizer);
        let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
        verify(&optimizer, &model, backend);
        drop(optimizer);
        // Half of all in the second one, give or take what was reserved ahead.
        let reader_places: Vec<PathBuf> = places.iter().map(|place| place.join("rank0")).collect();
        let reader = StoreReader::open(&reader_places).unwrap();
        assert_eq!((reader.places_len(), reader.weights()), (3, &[1, 2, 1][..]));
        let sum: u64 = (0..numels.len())
            .map(|index| reader.verify(index).unwrap())
            .sum();
        assert_eq!(sum, 3 * 4 * numels.iter().sum::<usize>() as u64);
        for place in &places {
            assert!(blocks_bytes(place) > 10 * MIB as u64, "{place:?}");
        }
        assert!(
            reader.written_bytes() >= 3 * sum - sum,
            "{}",
            reader.written_bytes()
        );
    }
}

#[test]
fn a_directory_that_no_record_has_reached_is_not_taken_for_a_new_store() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    let [a, b, c] = [&all[0], &all[1], &all[2]];
    let mut model = model(&[5, 1000]);
    let path = list(&[a, b], &[100, 1]);
    drop(trained(&engine, &path, &mut model));
    let data = b.join("rank0/data");
    let before = fs::read(&data).unwrap();
    assert_eq!(before.len(), 65536, "only its header");
    for wrong in [&[b][..], &[b, a], &[c, b], &[b, c]] {
        let error = opened(&engine, &list(wrong, &[]), "auto").unwrap_err();
        assert_eq!(error.status(), Status::Corrupt, "{wrong:?}: {error}");
        assert!(error.to_string().contains("/b/rank0/data"), "{error}");
        assert_eq!(fs::read(&data).unwrap(), before, "{wrong:?}");
    }
    let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
    verify(&optimizer, &model, "the store itself");
}

#[test]
fn a_store_that_was_begun_and_not_made_is_made_by_who_comes_next() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    let [a, b] = [&all[0], &all[1]];
    let path = list(&[a, b], &[1, 1]);
    drop(opened(&engine, &path, "new").unwrap());
    for cut_bytes in [None, Some(0), Some(40), Some(4096), Some(65536)] {
        fs::remove_file(a.join("rank0/log")).unwrap();
        let data = b.join("rank0/data");
        match cut_bytes {
            None => fs::remove_file(data).unwrap(),
            Some(bytes) => fs::File::options()
                .write(true)
                .open(data)
                .unwrap()
                .set_len(bytes)
                .unwrap(),
        }
        let begun = opened(&engine, &path, "auto");
        assert!(begun.is_ok(), "{cut_bytes:?}: {begun:?}");
    }
    let mut model = model(&[5, 2 * MIB]);
    drop(trained(&engine, &path, &mut model));
    let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
    verify(&optimizer, &model, "the store made at last");
}

#[test]
fn directories_that_are_not_as_they_were_are_refused_by_name() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    let [a, b, c] = [&all[0], &all[1], &all[2]];
    let mut model = model(&[MIB, 5, 2 * MIB]);
    let path = list(&[a, b, c], &[]);
    drop(trained(&engine, &path, &mut model));
    let refused =
        |places: &[&PathBuf], mode: &str| opened(&engine, &list(places, &[]), mode).unwrap_err();
    for mode in ["auto", "existing"] {
        let error = refused(&[a, c, b], mode);
        assert_eq!(error.status(), Status::Corrupt, "{error}");
        assert!(error.to_string().contains("/c/rank0/data"), "{error}");
        assert!(error.to_string().contains("directory 3"), "{error}");
        let error = refused(&[a, b], mode);
        assert_eq!(error.status(), Status::Corrupt, "{error}");
        assert!(error.to_string().contains("has 3 directories"), "{error}");
        let error = refused(&[a], mode);
        assert!(error.to_string().contains("has 3 directories"), "{error}");
        // Without the log there is no store to be opened, and none is made over its parts.
        let error = refused(&[b, a, c], mode);
        let expected = match mode {
            "auto" => Status::Corrupt,
            _ => Status::NotFound,
        };
        assert_eq!(error.status(), expected, "{error}");
    }
    // A drive that is not there.
    let away = directory.path().join("away");
    fs::rename(b, &away).unwrap();
    let error = refused(&[a, b, c], "auto");
    assert_eq!(error.status(), Status::NotFound, "{error}");
    assert!(error.to_string().contains("/b"), "{error}");
    assert!(!b.exists());
    // An empty file system in its place, as where nothing was mounted.
    fs::create_dir(b).unwrap();
    let error = refused(&[a, b, c], "auto");
    assert_eq!(error.status(), Status::NotFound, "{error}");
    assert!(error.to_string().contains("/b/rank0"), "{error}");
    fs::remove_dir(b).unwrap();
    // That of another store.
    let other = tempfile::tempdir_in(directory.path()).unwrap();
    let others = places(&other);
    let mut small = self::model(&[MIB]);
    let path_of_others = list(&[&others[0], &others[1], &others[2]], &[]);
    drop(trained(&engine, &path_of_others, &mut small));
    let error = refused(&[a, &others[1], c], "auto");
    assert_eq!(error.status(), Status::Corrupt, "{error}");
    assert!(error.to_string().contains("another store"), "{error}");
    fs::rename(&away, b).unwrap();
    let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
    verify(&optimizer, &model, "after all");
    // What uses it keeps others from all of its directories.
    let error = refused(&[c], "auto");
    assert_eq!(error.status(), Status::Locked, "{error}");
}

#[test]
fn other_weights_hold_for_what_is_registered_later() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    let [a, b] = [&all[0], &all[1]];
    let mut model = model(&[MIB]);
    drop(trained(&engine, &list(&[a, b], &[1, 1]), &mut model));
    let path = list(&[a, b], &[1, 7]);
    let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
    verify(&optimizer, &model, "with other weights");
    let before = [a, b].map(|place| blocks_bytes(place));
    let numels = [(50, 4 * MIB), (51, 7)];
    for (id, numel) in numels {
        optimizer
            .add_parameter(id, Some(&format!("p{id}")), numel as u64)
            .unwrap();
        model.add(id, numel);
    }
    step(&optimizer, &mut model, None, 1, &|_| false);
    optimizer.commit().unwrap();
    verify(&optimizer, &model, "after a step");
    drop(optimizer);
    let after = [a, b].map(|place| blocks_bytes(place));
    assert!(
        after[1] - before[1] > 3 * (after[0] - before[0]),
        "{before:?} {after:?}"
    );
    // Without weights the recorded ones stay.
    let path = list(&[a, b], &[]);
    let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
    verify(&optimizer, &model, "without weights");
    drop(optimizer);
    let reader = StoreReader::open(&[a.join("rank0"), b.join("rank0")]).unwrap();
    assert_eq!(reader.weights(), [1, 7]);
}

#[test]
fn a_new_store_measures_its_directories_and_leaves_no_probe() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    let path = list(&[&all[0], &all[1]], &[]);
    let mut model = model(&[2 * MIB, 2 * MIB]);
    drop(trained(&engine, &path, &mut model));
    let reader = StoreReader::open(&[all[0].join("rank0"), all[1].join("rank0")]).unwrap();
    let weights = reader.weights().to_vec();
    eprintln!("measured weights: {weights:?}");
    assert!(weights.len() == 2 && !weights.contains(&0));
    for place in &all[..2] {
        assert!(!place.join("rank0/probe").exists());
    }
}

#[test]
fn a_full_or_refusing_directory_is_named() {
    let engine = engine(&[]);
    let directory = directory();
    let all = places(&directory);
    fs::write(&all[1], b"a file").unwrap();
    let error = opened(&engine, &list(&[&all[0], &all[1]], &[1, 1]), "auto").unwrap_err();
    assert_eq!(error.os_error(), libc::ENOTDIR, "{error}");
    assert!(error.to_string().contains("/b"), "{error}");
}

#[test]
fn a_training_goes_on_after_its_store_was_moved() {
    let engine = engine(&[]);
    let directory = directory();
    let places = places(&directory);
    for place in &places {
        fs::create_dir(place).unwrap();
    }
    let mut model = model(&[MIB, 5, 2 * MIB, 700]);
    let moves: [(&[usize], &[usize]); 3] = [(&[0], &[1, 2]), (&[1, 2], &[2, 0]), (&[2, 0], &[1])];
    drop(trained(&engine, &list(&[&places[0]], &[]), &mut model));
    for (from, to) in moves {
        let options = RebalanceOptions {
            rank: 0,
            from: from.iter().map(|place| places[*place].clone()).collect(),
            to: to
                .iter()
                .map(|place| Directory {
                    path: places[*place].clone(),
                    weight: None,
                })
                .collect(),
        };
        let mut told = 0;
        let moved = rebalance(&config(&[]), &options, &mut |done, total| {
            assert!(told <= done && done <= total);
            told = done;
        });
        assert_eq!(moved, Ok(Rebalanced::Moved { copied_bytes: told }));
        assert!(told > 30 * MIB as u64);
        let to: Vec<&PathBuf> = to.iter().map(|place| &places[*place]).collect();
        let path = list(&to, &[]);
        let optimizer = open(&engine, "unused".as_ref(), &[("path", &path)], &model);
        verify(&optimizer, &model, "moved");
        step(&optimizer, &mut model, None, 1, &|_| false);
        optimizer.commit().unwrap();
        verify(&optimizer, &model, "a step later");
    }
}
