//! Snapshots on storage: made, published, opened, verified, refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::manifest::{Manifest, SnapshotParameter, StateImage};
use super::{Snapshot, SnapshotWriter};
use crate::base::checksum::crc32c;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Status};
use crate::store::StateSpec;

const NAMES: [&str; 3] = ["data", "manifest.json", "manifest.json.crc32c"];

/// A directory on the disk that holds the build, which is a real one.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(".").unwrap()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 251 + seed) as u8)
        .collect()
}

/// A manifest of two parameters, and the data that it describes.
fn example() -> (Manifest, Vec<u8>) {
    let state = |name: &str, disk_dtype| StateSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        disk_dtype,
    };
    let mut data = vec![0; 5 * 4096];
    let mut image = |offset: usize, len: usize| {
        let bytes = pattern(len, offset);
        data[offset..offset + len].copy_from_slice(&bytes);
        StateImage::At {
            offset_bytes: offset as u64,
            checksum: Some(crc32c(&bytes)),
        }
    };
    let parameters = vec![
        SnapshotParameter {
            id: 7,
            name: Some("wte".to_owned()),
            numel: 1500,
            states: vec![image(0, 6000), image(8192, 3000)],
        },
        SnapshotParameter {
            id: 8,
            name: None,
            numel: 3,
            states: vec![image(12288, 12), StateImage::Zero],
        },
    ];
    let manifest = Manifest {
        step: 5,
        user_data: b"seed".to_vec(),
        states: vec![state("master", Dtype::F32), state("exp_avg", Dtype::Bf16)],
        parameters,
        data_bytes: data.len() as u64,
    };
    (manifest, data)
}

fn begun(directory: &Path) -> (SnapshotWriter, Manifest) {
    let (manifest, data) = example();
    let writer = SnapshotWriter::create(directory, manifest.data_bytes).unwrap();
    writer.reserve().unwrap();
    writer.write_at(&data, 0).unwrap();
    (writer, manifest)
}

fn made(directory: &Path) -> Manifest {
    let (writer, manifest) = begun(directory);
    writer.publish(&manifest).unwrap();
    manifest
}

/// Gives a snapshot another manifest, with the right checksum.
fn forge(directory: &Path, json: &[u8]) {
    std::fs::write(directory.join("manifest.json"), json).unwrap();
    let checksum = format!("{:08x}\n", crc32c(json));
    std::fs::write(directory.join("manifest.json.crc32c"), checksum).unwrap();
}

fn verified(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    Snapshot::open(directory)?.verify(&mut |more| bytes += more)?;
    Ok(bytes)
}

#[test]
fn a_snapshot_is_private_whole_and_read_back() {
    let place = place();
    let directory = place.path().join("above/it/snap");
    let manifest = made(&directory);
    assert_eq!(names_in(directory.parent().unwrap()), ["snap"]);
    assert_eq!(names_in(&directory), NAMES);
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for name in NAMES {
        assert_eq!(mode(&directory.join(name)), 0o600);
    }
    let snapshot = Snapshot::open(&directory).unwrap();
    assert_eq!(snapshot.manifest(), &manifest);
    let path = snapshot.data_path().to_str().unwrap();
    assert_eq!(Path::new(path), directory.join("data"));
    assert_eq!(verified(&directory), Ok(6000 + 3000 + 12));
    assert_eq!(manifest.images_bytes(), 6000 + 3000 + 12);
}

#[test]
fn a_relative_path_and_one_with_a_slash_at_its_end_mean_what_they_say() {
    let place = place();
    let here = std::env::current_dir().unwrap();
    let above = "../".repeat(here.components().count() - 1);
    let relative = Path::new(&above).join(place.path().strip_prefix("/").unwrap());
    made(&relative.join("snap/"));
    assert_eq!(names_in(place.path()), ["snap"]);
    for path in ["/", "..", "", "a/.."] {
        let error = SnapshotWriter::create(Path::new(path), 0).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{path}");
    }
}

#[test]
fn a_snapshot_of_nothing_is_one() {
    let place = place();
    let directory = place.path().join("snap");
    let writer = SnapshotWriter::create(&directory, 0).unwrap();
    writer.reserve().unwrap();
    writer.publish(&Manifest::default()).unwrap();
    let snapshot = Snapshot::open(&directory).unwrap();
    assert_eq!(snapshot.manifest(), &Manifest::default());
    assert_eq!(verified(&directory), Ok(0));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_found_or_harmless() {
    let place = place();
    let directory = place.path().join("snap");
    let manifest = made(&directory);
    for name in NAMES {
        let path = directory.join(name);
        let whole = std::fs::read(&path).unwrap();
        let step = if name == "data" { 97 } else { 1 };
        for at in (0..whole.len()).step_by(step) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            match verified(&directory) {
                Err(error) => assert!(
                    matches!(error.status(), Status::Corrupt | Status::Checksum),
                    "{name} {at}: {error}"
                ),
                Ok(_) => {
                    // What fills up the blocks means nothing.
                    let is_padding = [(0, 6000), (8192, 3000), (12288, 12)]
                        .iter()
                        .all(|(start, len)| at < *start || at >= start + len);
                    assert!(name == "data" && is_padding, "{name} {at}");
                    assert_eq!(Snapshot::open(&directory).unwrap().manifest(), &manifest);
                }
            }
            std::fs::write(&path, &whole[..at]).unwrap();
            let error = Snapshot::open(&directory).unwrap_err();
            assert_eq!(error.status(), Status::Corrupt, "{name} {at}: {error}");
        }
        std::fs::write(&path, [&whole[..], b"\n"].concat()).unwrap();
        assert_eq!(
            Snapshot::open(&directory).unwrap_err().status(),
            Status::Corrupt
        );
        std::fs::remove_file(&path).unwrap();
        let expected = match name {
            "manifest.json" => Status::NotFound,
            _ => Status::Corrupt,
        };
        assert_eq!(Snapshot::open(&directory).unwrap_err().status(), expected);
        std::fs::write(&path, &whole).unwrap();
    }
    assert_eq!(verified(&directory), Ok(9012));
}

#[test]
fn a_forged_manifest_with_the_right_checksum_is_refused() {
    let place = place();
    let directory = place.path().join("snap");
    let manifest = made(&directory);
    let json = String::from_utf8(manifest.encode().unwrap()).unwrap();
    for (from, to) in [
        ("\"numel\":1500", "\"numel\":1000000"),
        ("\"numel\":1500", "\"numel\":18446744073709551615"),
        ("[8192,", "[4096,"),
        ("[8192,", "[8191,"),
        ("[8192,", "[9223372036854775808,"),
        ("\"data_bytes\":20480", "\"data_bytes\":24576"),
        ("\"id\":8", "\"id\":7"),
    ] {
        assert!(json.contains(from), "{json}");
        forge(&directory, json.replacen(from, to, 1).as_bytes());
        let error = Snapshot::open(&directory).unwrap_err();
        assert_eq!(error.status(), Status::Corrupt, "{to}: {error}");
    }
    forge(
        &directory,
        json.replace("\"version\":1", "\"version\":2").as_bytes(),
    );
    let error = Snapshot::open(&directory).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported, "{error}");
    forge(&directory, json.as_bytes());
    assert_eq!(verified(&directory), Ok(9012));
}

#[test]
fn what_is_in_place_of_a_file_is_never_followed() {
    let place = place();
    let directory = place.path().join("snap");
    made(&directory);
    for name in NAMES {
        let (path, aside) = (directory.join(name), place.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        let error = Snapshot::open(&directory).unwrap_err();
        assert_eq!(error.status(), Status::Corrupt, "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = Snapshot::open(&directory).unwrap_err();
        assert_eq!(error.status(), Status::Corrupt, "{error}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(verified(&directory), Ok(9012));
}

#[test]
fn nothing_is_made_over_what_is_there() {
    let place = place();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir_all(at("full/of")).unwrap();
    std::fs::write(at("file"), b"kept").unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    made(&at("snap"));
    for name in ["full", "file", "dangling", "snap"] {
        let error = SnapshotWriter::create(&at(name), 4096).unwrap_err();
        assert_eq!(error.os_error(), libc::EEXIST, "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(!at(&format!("{name}.partial")).exists());
    }
    // And what comes to be there meanwhile stays.
    let (writer, manifest) = begun(&at("late"));
    std::fs::create_dir_all(at("late/own")).unwrap();
    let error = writer.publish(&manifest).unwrap_err();
    assert_eq!(error.os_error(), libc::EEXIST, "{error}");
    assert_eq!(names_in(&at("late")), ["own"]);
    assert!(!at("late.partial").exists());
    // An empty directory holds nothing that could be lost.
    std::fs::create_dir(at("empty")).unwrap();
    made(&at("empty"));
    Snapshot::open(&at("empty")).unwrap();
}

#[test]
fn a_link_or_a_file_in_place_of_the_partial_directory_is_refused() {
    let place = place();
    let partial = place.path().join("snap.partial");
    let elsewhere = place.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("data"), b"kept").unwrap();
    symlink(&elsewhere, &partial).unwrap();
    let error = SnapshotWriter::create(&place.path().join("snap"), 4096).unwrap_err();
    assert_eq!(error.os_error(), libc::ENOTDIR, "{error}");
    std::fs::remove_file(&partial).unwrap();
    std::fs::write(&partial, b"kept").unwrap();
    let error = SnapshotWriter::create(&place.path().join("snap"), 4096).unwrap_err();
    assert_eq!(error.os_error(), libc::ENOTDIR, "{error}");
    assert_eq!(std::fs::read(elsewhere.join("data")).unwrap(), b"kept");
    // A directory with something else in it is somebody's own.
    std::fs::remove_file(&partial).unwrap();
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("notes.txt"), b"kept").unwrap();
    let error = SnapshotWriter::create(&place.path().join("snap"), 4096).unwrap_err();
    assert_eq!(error.os_error(), libc::ENOTEMPTY, "{error}");
    assert_eq!(names_in(&partial), ["notes.txt"]);
}

#[test]
fn what_a_killed_process_left_is_removed_whichever_step_it_had_reached() {
    let place = place();
    let (directory, partial) = (place.path().join("snap"), place.path().join("snap.partial"));
    made(&place.path().join("whole"));
    for left in 0..=NAMES.len() {
        std::fs::create_dir(&partial).unwrap();
        for name in &NAMES[..left] {
            std::fs::copy(place.path().join("whole").join(name), partial.join(name)).unwrap();
        }
        // Half-made, whatever is in it: it is not under its name.
        let error = Snapshot::open(&directory).unwrap_err();
        assert_eq!(error.status(), Status::NotFound, "{error}");
        made(&directory);
        assert!(!partial.exists());
        assert_eq!(verified(&directory), Ok(9012));
        std::fs::remove_dir_all(&directory).unwrap();
    }
    // Those of several ranks as well.
    std::fs::create_dir_all(partial.join("rank0")).unwrap();
    std::fs::create_dir(partial.join("rank1.partial")).unwrap();
    std::fs::write(partial.join("rank1.partial/data"), b"half").unwrap();
    made(&directory);
    assert_eq!(names_in(place.path()), ["snap", "whole"]);
}

#[test]
fn only_one_makes_a_snapshot_at_a_time_and_whoever_gives_up_leaves_nothing() {
    let place = place();
    let directory = place.path().join("snap");
    let (writer, _) = begun(&directory);
    let error = SnapshotWriter::create(&directory, 4096).unwrap_err();
    assert_eq!(error.status(), Status::Locked, "{error}");
    assert_eq!(names_in(&place.path().join("snap.partial")), ["data"]);
    drop(writer);
    assert_eq!(names_in(place.path()), [""; 0]);
    made(&directory);
}

#[test]
fn many_at_once_make_one_snapshot() {
    let place = place();
    let directory = place.path().join("snap");
    let outcomes: Vec<Result<(), Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let (manifest, data) = example();
                    let writer = SnapshotWriter::create(&directory, manifest.data_bytes)?;
                    writer.write_at(&data, 0)?;
                    writer.publish(&manifest)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.into_iter().filter_map(Result::err) {
        let is_taken = error.status() == Status::Locked || error.os_error() == libc::EEXIST;
        assert!(is_taken, "{error}");
    }
    assert_eq!(verified(&directory), Ok(9012));
    assert_eq!(names_in(place.path()), ["snap"]);
}

#[test]
fn data_of_another_length_than_the_manifest_says_is_not_published() {
    let place = place();
    let (writer, manifest) = begun(&place.path().join("snap"));
    let data = place.path().join("snap.partial/data");
    let data = std::fs::File::options().write(true).open(data).unwrap();
    data.set_len(manifest.data_bytes - 1).unwrap();
    assert_eq!(
        writer.publish(&manifest).unwrap_err().status(),
        Status::Internal
    );
    assert_eq!(names_in(place.path()), [""; 0]);
}

#[test]
fn a_directory_that_may_not_be_written_to_is_named() {
    let place = place();
    let parent = place.path().join("read-only");
    std::fs::create_dir(&parent).unwrap();
    std::fs::set_permissions(&parent, PermissionsExt::from_mode(0o500)).unwrap();
    let made = SnapshotWriter::create(&parent.join("snap"), 4096);
    // Who has the capability may write all the same.
    if let Err(error) = &made {
        assert_eq!(error.status(), Status::Permission, "{error}");
        assert!(error.to_string().contains("snap.partial"), "{error}");
    }
    drop(made);
    assert_eq!(names_in(&parent), [""; 0]);
    let error = SnapshotWriter::create(Path::new("/proc/snap"), 4096).unwrap_err();
    assert_eq!(error.status(), Status::NotFound, "{error}");
}

#[test]
fn a_range_is_cloned_where_the_file_system_can() {
    let place = place();
    let source = place.path().join("source");
    let (manifest, data) = example();
    std::fs::write(&source, &data).unwrap();
    let file = std::fs::File::open(&source).unwrap();
    let directory = place.path().join("snap");
    let writer = SnapshotWriter::create(&directory, manifest.data_bytes).unwrap();
    let from = std::os::fd::AsFd::as_fd(&file);
    if !writer.clone_range(from, 0, manifest.data_bytes, 0).unwrap() {
        println!("skipped (reflink): the file system of the build cannot");
        return;
    }
    writer.publish(&manifest).unwrap();
    assert_eq!(verified(&directory), Ok(9012));
}

#[test]
fn too_little_space_is_said_in_bytes() {
    let place = place();
    let directory = place.path().join("snap");
    // More than any disk has. None of it may be taken before that is said.
    let writer = SnapshotWriter::create(&directory, 1 << 43).unwrap();
    let error = writer.reserve().unwrap_err();
    match error.status() {
        Status::NoSpace => {
            let text = error.to_string();
            let part = format!("{} bytes needed, ", 1_u64 << 43);
            assert!(text.contains(&part) && text.contains(" free"), "{text}");
        }
        _ => assert_eq!(error.os_error(), libc::EFBIG, "{error}"),
    }
    drop(writer);
    assert_eq!(names_in(place.path()), [""; 0]);
}
