//! What others could plant in a store's way, and what they could get from its files.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "a test"
)]

mod support;
mod training;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;
use training::*;

const NUMEL: usize = 300_000;

/// A store with one parameter, committed.
fn committed(engine: &Engine, place: &Path, settings: &[(&str, &str)]) -> (Optimizer, Model) {
    let mut model = Model::new(&F32);
    model.add(0, NUMEL);
    let optimizer = open(engine, place, settings, &model);
    initialize(&optimizer, &mut model, 1);
    optimizer.commit().unwrap();
    (optimizer, model)
}

#[test]
fn a_store_that_is_open_reads_and_writes_no_file_but_its_own() {
    type Plant = fn(&Path, &Path);
    let plants: [(&str, Plant); 4] = [
        ("a link", |store, victim| {
            fs::rename(store.join("data"), store.join("aside")).unwrap();
            symlink(victim, store.join("data")).unwrap();
        }),
        ("another name of another file", |store, victim| {
            fs::rename(store.join("data"), store.join("aside")).unwrap();
            fs::hard_link(victim, store.join("data")).unwrap();
        }),
        ("another directory", |store, victim| {
            fs::rename(store, store.with_file_name("aside")).unwrap();
            symlink(victim.parent().unwrap(), store).unwrap();
        }),
        ("nothing", |store, _| {
            fs::rename(store.join("data"), store.join("aside")).unwrap();
        }),
    ];
    for (what, plant) in plants {
        for is_read in [false, true] {
            let place = directory();
            let engine = engine(&[]);
            let settings = [("sync", "none"), ("cache_bytes", "0")];
            let (optimizer, model) = committed(&engine, &place.path().join("run"), &settings);
            let store = place.path().join("run/rank0");
            let victims = place.path().join("victims");
            fs::create_dir(&victims).unwrap();
            let victim = victims.join("data");
            let kept = pattern(1 << 23, 3);
            fs::write(&victim, &kept).unwrap();

            let next = || match optimizer.step_next() {
                Ok(_) => Ok(()),
                Err(error) => Err(error.error),
            };
            optimizer.step_begin(None).unwrap();
            let outcome = if is_read {
                // The first read may be under way; that of the next step is not.
                drain(&optimizer, 1, &|_| false);
                optimizer.step_end().unwrap();
                plant(&store, &victim);
                optimizer.step_begin(None).and_then(|()| next())
            } else {
                let view = optimizer.step_next().unwrap().unwrap();
                update(&view, 1);
                plant(&store, &victim);
                optimizer.step_done(view.id, true).unwrap();
                // Whichever call hears of it first.
                next()
                    .and_then(|()| optimizer.step_end())
                    .and_then(|()| optimizer.commit())
            };
            let error = outcome.unwrap_err().to_string();
            let named = store.join("data");
            assert!(error.contains(named.to_str().unwrap()), "{what}: {error}");
            let expected = match what {
                "nothing" => "ENOENT",
                _ => "leads to another file",
            };
            assert!(error.contains(expected), "{what}: {error}");
            assert!(fs::read(&victim).unwrap() == kept, "{what}");
            assert_eq!(fs::read_dir(&victims).unwrap().count(), 1, "{what}");
            drop(optimizer);

            // As it was, it is whole.
            match what {
                "another directory" => {
                    fs::remove_file(&store).unwrap();
                    fs::rename(store.with_file_name("aside"), &store).unwrap();
                }
                _ => fs::rename(store.join("aside"), store.join("data")).unwrap(),
            }
            let optimizer = open(&engine, &place.path().join("run"), &settings, &model);
            verify(&optimizer, &model, what);
        }
    }
}

#[test]
fn links_in_the_place_of_files_that_come_and_go_are_not_followed() {
    let place = directory();
    let engine = engine(&[]);
    let (a, b) = (place.path().join("a"), place.path().join("b"));
    let victim = place.path().join("victim");
    fs::write(&victim, b"kept").unwrap();
    for path in [&a, &b] {
        fs::create_dir_all(path.join("rank0")).unwrap();
        // The speed of several places is measured with a file of this name.
        symlink(&victim, path.join("rank0/probe")).unwrap();
    }
    symlink(&victim, a.join("rank0/log.new")).unwrap();
    let both = PathBuf::from(format!("{},{}", a.display(), b.display()));
    let (optimizer, mut model) = committed(&engine, &both, &[]);
    for path in [&a, &b] {
        assert!(!path.join("rank0/probe").is_symlink());
        symlink(&victim, path.join("rank0/spare")).unwrap();
    }
    let ticket = optimizer.snapshot(&place.path().join("snapshot")).unwrap();
    step(&optimizer, &mut model, None, 1, &|_| false);
    engine.wait(ticket, None).unwrap().outcome.unwrap();
    optimizer.commit().unwrap();
    verify(&optimizer, &model, "after a snapshot");
    drop(optimizer);
    let is_link = |path: PathBuf| path.is_symlink();
    if is_link(a.join("rank0/spare")) {
        // Blocks were shared, so that no spare file was made.
        fs::remove_file(a.join("rank0/spare")).unwrap();
        fs::remove_file(b.join("rank0/spare")).unwrap();
    }
    // Again where a store is opened.
    for name in ["log.new", "probe", "spare"] {
        symlink(&victim, a.join("rank0").join(name)).unwrap();
        match try_open(&engine, &both, &[], &F32) {
            Ok(optimizer) => drop(optimizer),
            Err(error) => assert!(error.to_string().contains(name), "{error}"),
        }
        let _ = fs::remove_file(a.join("rank0").join(name));
    }
    verify(&open(&engine, &both, &[], &model), &model, "in the end");
    assert_eq!(fs::read(&victim).unwrap(), b"kept");
}

/// What a process that is started now inherits.
fn inherited() -> Vec<String> {
    let output = Command::new("ls").arg("/proc/self/fd").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn files_are_private_whatever_the_umask_and_other_programs_inherit_none() {
    let before = inherited();
    // SAFETY: the mask of this process, in which other tests make private files as well.
    unsafe { libc::umask(0) };
    for backend in ["auto", "threads"] {
        let place = directory();
        let top = place.path().join("above/run");
        let engine = engine(&[("backend", backend)]);
        let (optimizer, mut model) = committed(&engine, &top, &[("gradients", "disk")]);
        let slope = values(NUMEL, 1);
        give_gradient(&optimizer, &mut model, 0, 0, (&slope, Dtype::F32), false);
        optimizer.flush_gradients().unwrap();
        let ticket = optimizer.snapshot(&top.join("snapshots/one")).unwrap();
        step(&optimizer, &mut model, None, 1, &|_| false);
        assert_eq!(inherited(), before, "{backend}");
        engine.wait(ticket, None).unwrap().outcome.unwrap();
        let (mut own, memory) = (vec![0x55; 4096], top.join("direct"));
        let written = engine
            .swap_out(&[tensor(&mut own, 0)], &[&path(&top, "direct")])
            .unwrap();
        wait(&engine, written).outcome.unwrap();
        assert!(memory.exists());
        assert_eq!(inherited(), before, "{backend}");
        let mut found = 0;
        let mut open = vec![place.path().join("above")];
        while let Some(next) = open.pop() {
            let mode = next.symlink_metadata().unwrap().permissions().mode() & 0o7777;
            let expected = if next.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{}", next.display());
            found += 1;
            if next.is_dir() {
                open.extend(
                    fs::read_dir(next)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
        }
        assert!(found > 10, "{found}");
    }
}
