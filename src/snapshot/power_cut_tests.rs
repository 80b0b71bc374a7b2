//! The power fails after every single change of storage while a snapshot is made, or several are cut
//! anew. Whatever the disk kept, the new directory is there and right, or it is not there and can be
//! made.

use std::path::Path;

use super::reshard_tests::{all_in, reshard, sharded, to_ranks};
use super::{Manifest, Snapshot};
use crate::base::config::Config;
use crate::base::dtype::Dtype;
use crate::base::error::Status;
use crate::io::{Engine, Tensor};
use crate::optimizer::Optimizer;
use crate::sys::Recording;

/// Cuts off what `make` does below `root` after each change. `is_there` says whether what is made is
/// there, and fails where it is not as it should be.
fn cut_off(root: &Path, make: impl Fn(&Path), is_there: impl Fn(&Path) -> bool) {
    let recording = Recording::of(root).unwrap();
    let before = recording.events_len();
    make(root);
    recording.stop();
    let all = recording.events_len();
    let mut without = 0;
    for events_len in before..=all {
        for seed in [0, 1, 2 + events_len as u64] {
            let image = tempfile::tempdir().unwrap();
            recording.power_cut(events_len, seed, image.path()).unwrap();
            let found = is_there(image.path());
            assert!(found || events_len < all, "lost with seed {seed}");
            without += usize::from(!found);
            if !found && seed > 1 && events_len.is_multiple_of(3) {
                make(image.path());
                assert!(is_there(image.path()), "{events_len} events, seed {seed}");
            }
        }
    }
    assert!(without > 0);
}

/// Opens a snapshot and compares its checksums; `None` where there is none.
fn opened(directory: &Path) -> Option<Manifest> {
    match Snapshot::open(directory) {
        Ok(snapshot) => {
            snapshot.verify(&mut |_| {}).unwrap();
            Some(snapshot.manifest().clone())
        }
        Err(error) => {
            assert_eq!(error.status(), Status::NotFound, "{error}");
            assert!(!directory.exists(), "{error}");
            None
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "a tensor is made of the test's own memory")]
fn a_power_cut_while_a_snapshot_is_made_leaves_it_whole_or_not_at_all() {
    let place = tempfile::tempdir_in(".").unwrap();
    let mut config = Config::new();
    let store = place.path().join("store");
    config.set("path", store.to_str().unwrap()).unwrap();
    let engine = Engine::new(&config).unwrap();
    let optimizer = Optimizer::new(&engine, &config).unwrap();
    for (name, disk_dtype) in [("master", Dtype::F32), ("exp_avg", Dtype::Bf16)] {
        optimizer.add_state(name, Dtype::F32, disk_dtype).unwrap();
    }
    let mut values: Vec<f32> = (1..4000_u16).map(f32::from).collect();
    let numel = values.len() as u64;
    // SAFETY: the values stay until they were taken over below.
    let source = unsafe { Tensor::new(values.as_mut_ptr().cast(), numel, Dtype::F32) }.unwrap();
    for id in [7, 8] {
        optimizer.add_parameter(id, None, numel).unwrap();
        optimizer.initialize_parameters(&[id], &[source]).unwrap();
    }
    optimizer.commit().unwrap();
    let snapshots = place.path().join("snapshots");
    std::fs::create_dir(&snapshots).unwrap();
    let make = |root: &Path| {
        let ticket = optimizer.snapshot(&root.join("all/s")).unwrap();
        engine.wait(ticket, None).unwrap().outcome.unwrap();
    };
    let expected = std::cell::OnceCell::new();
    cut_off(&snapshots, make, |root| {
        let expected = expected.get_or_init(|| opened(&snapshots.join("all/s")).unwrap());
        let found = opened(&root.join("all/s"));
        assert!(found.as_ref().is_none_or(|found| found == expected));
        found.is_some()
    });
}

#[test]
fn a_power_cut_while_ranks_are_cut_anew_leaves_all_of_them_or_none() {
    let place = tempfile::tempdir_in(".").unwrap();
    sharded(&place.path().join("old"), &[Dtype::F32], &[3000, 5], 1, 1);
    let make = |root: &Path| reshard(&root.join("old"), &root.join("new"), &to_ranks(2)).unwrap();
    let expected = std::cell::OnceCell::new();
    cut_off(place.path(), make, |root| {
        let expected = expected.get_or_init(|| all_in(&place.path().join("new")));
        let new = root.join("new");
        if !new.exists() {
            return false;
        }
        assert!(all_in(&new) == *expected);
        true
    });
}
