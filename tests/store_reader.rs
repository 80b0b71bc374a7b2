//! A store that is looked at: everything is told, damage is found, nothing is changed, and whoever
//! uses the store is not in the way.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

mod support;
mod training;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::store::StoreReader;
use training::*;

/// Three parameters, trained for two steps; the optimizer is closed again.
fn trained(place: &Path) -> (Model, PathBuf) {
    let mut model = Model::new(&BF16_MOMENTS);
    for (id, numel) in [(7, 1), (3, 300_000), (9, 4096)] {
        model.add(id, numel);
    }
    let engine = engine(&[]);
    let optimizer = open(&engine, place, &[], &model);
    initialize(&optimizer, &mut model, 1);
    for _ in 0..2 {
        for id in [7, 3, 9] {
            let slope = values(model.records[&id].numel, id + model.step);
            give_gradient(&optimizer, &mut model, id, 0, (&slope, Dtype::F32), false);
        }
        step(&optimizer, &mut model, None, 1, &|_| false);
    }
    optimizer.set_user_data(b"epoch 4").unwrap();
    optimizer.commit().unwrap();
    (model, place.join("rank0"))
}

/// Every file of a directory with its bytes.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_reader_tells_what_was_committed_and_changes_nothing() {
    let place = directory();
    let (model, store) = trained(place.path());
    let before = contents(&store);
    let reader = StoreReader::open(&[&store]).unwrap();
    assert_eq!((reader.step(), reader.user_data()), (2, &b"epoch 4"[..]));
    let states: Vec<_> = reader
        .states()
        .map(|state| (state.name, state.dtype, state.disk_dtype))
        .collect();
    assert_eq!(states, BF16_MOMENTS);
    let parameters: Vec<_> = reader.parameters().collect();
    assert_eq!(parameters.len(), model.records.len());
    for (index, parameter) in parameters.iter().enumerate() {
        assert_eq!(parameter.numel as usize, model.records[&parameter.id].numel);
        assert!(parameter.is_checked && parameter.generation >= 2);
        let bytes = parameter.numel * (4 + 2 + 2);
        assert_eq!(reader.verify(index), Ok(bytes), "{}", parameter.id);
        // What the reader points at is the master parameter itself.
        let mut master = vec![0; parameter.numel as usize * 4];
        let data = std::fs::File::open(store.join("data")).unwrap();
        data.read_exact_at(&mut master, parameter.offset_bytes.unwrap())
            .unwrap();
        let expected = &model.records[&parameter.id].states[0];
        assert_eq!(&from_bytes(&master, Dtype::F32), expected);
    }
    assert!(matches!(reader.verify(3), Err(Error::InvalidArgument(_))));
    assert_eq!(contents(&store), before);
}

#[test]
fn every_damaged_state_is_named_and_the_others_are_good() {
    let place = directory();
    let (_, store) = trained(place.path());
    let parameters: Vec<(u64, u64, u64)> = StoreReader::open(&[&store])
        .unwrap()
        .parameters()
        .map(|parameter| {
            let offset = parameter.offset_bytes.unwrap();
            (parameter.id, parameter.numel, offset)
        })
        .collect();
    let data = std::fs::File::options()
        .read(true)
        .write(true)
        .open(store.join("data"))
        .unwrap();
    for (index, (id, numel, offset)) in parameters.into_iter().enumerate() {
        let at = offset + numel * 4 - 1;
        let mut byte = [0];
        data.read_exact_at(&mut byte, at).unwrap();
        data.write_all_at(&[byte[0] ^ 1], at).unwrap();
        data.sync_all().unwrap();
        let reader = StoreReader::open(&[&store]).unwrap();
        let error = reader.verify(index).unwrap_err();
        assert_eq!(error.status(), Status::Checksum);
        let expected =
            format!("data at {offset}: master of parameter {id} (p{id}) has the checksum ");
        assert!(error.to_string().contains(&expected), "{error}");
        data.write_all_at(&byte, at).unwrap();
        data.sync_all().unwrap();
        for index in 0..3 {
            reader.verify(index).unwrap();
        }
    }
}

#[test]
fn a_store_in_use_is_read_as_it_was_committed_last() {
    let place = directory();
    let mut model = Model::new(&F32);
    model.add(1, 50_000);
    let engine = engine(&[]);
    let optimizer = open(&engine, place.path(), &[], &model);
    let store = place.path().join("rank0");
    assert_eq!(StoreReader::open(&[&store]).unwrap().parameters().len(), 0);
    initialize(&optimizer, &mut model, 1);
    optimizer.commit().unwrap();
    for round in 0..5 {
        let reader = StoreReader::open(&[&store]).unwrap();
        assert_eq!(reader.step(), round);
        assert_eq!(reader.parameters().len(), 1);
        reader.verify(0).unwrap();
        let slope = values(50_000, round);
        give_gradient(&optimizer, &mut model, 1, 0, (&slope, Dtype::F32), false);
        step(&optimizer, &mut model, None, 1, &|_| false);
        optimizer.commit().unwrap();
        // One commit does not touch what the one before it made durable.
        reader.verify(0).unwrap();
    }
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let place = directory();
    let message = |path: &Path| StoreReader::open(&[path]).unwrap_err();
    let missing = message(&place.path().join("nowhere"));
    assert_eq!(missing.status(), Status::NotFound);
    let empty = message(place.path());
    assert_eq!(empty.status(), Status::NotFound);
    assert!(empty.to_string().contains("it is not a store"), "{empty}");
    let file = place.path().join("file");
    std::fs::write(&file, "text").unwrap();
    assert_eq!(message(&file).os_error(), libc::ENOTDIR);

    let (_, store) = trained(place.path());
    let log = std::fs::read(store.join("log")).unwrap();
    std::fs::write(
        store.join("log"),
        "not a log, but long enough to be one, as far as that goes",
    )
    .unwrap();
    assert_eq!(message(&store).status(), Status::Corrupt);
    let mut damaged = log.clone();
    damaged[100] ^= 1;
    std::fs::write(store.join("log"), damaged).unwrap();
    let error = message(&store);
    assert_eq!(error.status(), Status::Corrupt);
    assert!(error.to_string().contains("log at 64: "), "{error}");
    std::fs::write(store.join("log"), &log).unwrap();
    StoreReader::open(&[&store]).unwrap();
    std::fs::remove_file(store.join("data")).unwrap();
    assert_eq!(message(&store).status(), Status::Corrupt);
}
