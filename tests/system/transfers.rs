//! Engines and swappers on file systems of several kinds, full ones too.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::PoisonError;

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::base::units::MIB;
use tensorswap::io::Engine;
use tensorswap::swapper::Swapper;

use crate::common;
use crate::mounts::*;
use crate::support;
use crate::support::{Random, keep, path, pattern, read, tensor, wait, write};

/// An engine with this backend. `None`, and said so, where there is no ring.
pub(crate) fn started(backend: &str) -> Option<Engine> {
    let config = support::config(&[("backend", backend), ("block_bytes", "256KiB")]);
    match Engine::new(&config) {
        Ok(engine) => Some(engine),
        Err(error) => {
            assert_eq!(error.status(), Status::Unsupported, "{backend}: {error}");
            common::skip(backend, &error.to_string());
            None
        }
    }
}

pub(crate) fn swapper(engine: &Engine) -> Swapper {
    let swapper = Swapper::new(engine, None).unwrap();
    let buffers = [3 * MIB + 4096, MIB].map(|len| engine.allocate_buffer(len).unwrap());
    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
    swapper
}

/// Odd lengths, offsets and addresses come back exact, and so does the length of the file.
pub(crate) fn round_trips(engine: &Engine, directory: &Path) {
    let name = path(directory, "odd");
    let file = directory.join("odd");
    for len in [0, 1, 511, 513, 4095, 4097, 65_537, (1 << 20) + 100] {
        for (offset, skew) in [(0, 0), (0, 1), (1, 0), (511, 7), (4095, 511), (100_003, 3)] {
            let _ = std::fs::remove_file(&file);
            let mut bytes = pattern(len + skew, (len + offset) as u64);
            let ticket = engine.swap_out(&[tensor(&mut bytes[skew..], offset as u64)], &[&name]);
            let done = wait(engine, ticket.unwrap());
            assert_eq!(done.outcome, Ok(()), "{len} at {offset}");
            let stored = std::fs::read(&file).unwrap();
            assert_eq!(stored.len(), offset + len, "{len} at {offset}");
            assert!(stored[offset..] == bytes[skew..], "{len} at {offset}");
            assert!(stored[..offset].iter().all(|byte| *byte == 0));
            let (back, done) = read(engine, &name, len, offset as u64);
            assert_eq!(done.outcome, Ok(()), "{len} at {offset}");
            assert!(back == bytes[skew..], "{len} at {offset}");
        }
    }
    let (_, done) = read(engine, &name, (1 << 20) + 101, 100_003);
    assert_eq!(done.outcome.unwrap_err().status(), Status::SizeMismatch);
    std::fs::remove_file(&file).unwrap();
}

/// Overlapping writes of odd ranges, several under way at once, take effect in their order.
pub(crate) fn overlapping_writes(engine: &Engine, directory: &Path) {
    let name = path(directory, "overlap");
    let mut random = Random(11);
    let mut model: Vec<u8> = random.bytes(300_001);
    assert_eq!(write(engine, &name, &model, 0).outcome, Ok(()));
    for _ in 0..10 {
        let mut pieces: Vec<(usize, Vec<u8>)> = (0..12)
            .map(|_| {
                let offset = random.below(model.len());
                let len = random.below(model.len() - offset) + 1;
                (offset, random.bytes(len))
            })
            .collect();
        let tickets: Vec<_> = pieces
            .iter_mut()
            .map(|(offset, bytes)| {
                let tensor = keep(tensor(bytes, *offset as u64));
                engine.swap_out(&[tensor], &[&name]).unwrap()
            })
            .collect();
        for ticket in tickets {
            assert_eq!(wait(engine, ticket).outcome, Ok(()));
        }
        for (offset, bytes) in &pieces {
            model[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        let (back, done) = read(engine, &name, model.len(), 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == model);
        assert!(std::fs::read(directory.join("overlap")).unwrap() == model);
    }
    std::fs::remove_file(directory.join("overlap")).unwrap();
}

pub(crate) fn swapper_round_trips(engine: &Engine, directory: &Path) {
    let swapper = swapper(engine);
    let mut files: Vec<Vec<u8>> = [1, 513, 65_537, 5_000_001, 4096, 777_777]
        .iter()
        .map(|len| pattern(*len, *len as u64))
        .collect();
    let names: Vec<CString> = (0..files.len())
        .map(|i| path(directory, &format!("s{i}")))
        .collect();
    let names: Vec<_> = names.iter().map(CString::as_c_str).collect();
    let tensors: Vec<_> = files.iter_mut().map(|file| tensor(file, 0)).collect();
    swapper.swap_out(&tensors, &names).unwrap();
    swapper.flush(support::PATIENCE).unwrap();
    let mut back: Vec<Vec<u8>> = files.iter().map(|file| vec![0xAA; file.len()]).collect();
    let tensors: Vec<_> = back.iter_mut().map(|file| tensor(file, 0)).collect();
    swapper.swap_in(&tensors, &names).unwrap();
    assert!(back == files);
    for (i, file) in files.iter().enumerate() {
        let stored = directory.join(format!("s{i}"));
        assert!(std::fs::read(&stored).unwrap() == *file, "{}", file.len());
        std::fs::remove_file(stored).unwrap();
    }
}

pub(crate) fn assert_no_space(error: &Error, name: &str) {
    assert_eq!(error.status(), Status::NoSpace, "{error}");
    assert_eq!(error.os_error(), libc::ENOSPC);
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("ENOSPC"), "{text}");
}

/// The files that were written until there was no space left.
#[derive(Default)]
pub(crate) struct Filling {
    files: Vec<(String, usize)>,
}

impl Filling {
    /// Different in each file, and cheap to make.
    pub(crate) fn content(pool: &[u8], index: usize, len: usize) -> &[u8] {
        &pool[index * 8..][..len]
    }

    /// Writes files of these lengths, each until the file system refuses.
    pub(crate) fn until_full(
        engine: &Engine,
        directory: &Path,
        pool: &[u8],
        lens: &[usize],
    ) -> Filling {
        let mut filling = Filling::default();
        for &len in lens {
            loop {
                let index = filling.files.len();
                assert!(index < 4000, "never full");
                let name = format!("f{index}");
                let bytes = Filling::content(pool, index, len);
                let done = write(engine, &path(directory, &name), bytes, 0);
                let Err(error) = done.outcome else {
                    filling.files.push((name, len));
                    continue;
                };
                assert_no_space(&error, directory.join(&name).to_str().unwrap());
                // Nothing half written is left.
                let left = std::fs::metadata(directory.join(&name));
                assert_eq!(left.map_or(0, |file| file.len()), 0, "{name}");
                let _ = std::fs::remove_file(directory.join(&name));
                break;
            }
        }
        filling
    }

    pub(crate) fn verify(&self, engine: &Engine, directory: &Path, pool: &[u8]) {
        for (index, (name, len)) in self.files.iter().enumerate() {
            let (back, done) = read(engine, &path(directory, name), *len, 0);
            assert_eq!(done.outcome, Ok(()), "{name}");
            assert!(back == Filling::content(pool, index, *len), "{name}");
        }
    }

    /// Deletes them through the file system; the engine is not told.
    pub(crate) fn delete(&mut self, directory: &Path) {
        for (name, _) in self.files.drain(..) {
            std::fs::remove_file(directory.join(name)).unwrap();
        }
    }
}

/// A full file system is a clear error; what was stored stays readable; space that was freed
/// behind the engine's back is used.
pub(crate) fn fills_and_recovers(engine: &Engine, directory: &Path, large: usize) {
    let _nothing_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    let pool = pattern(large + 64_000, 77);
    let lens = [large, MIB as usize, 64 << 10, 4096];
    let mut filling = Filling::until_full(engine, directory, &pool, &lens);
    let name = path(directory, "again");
    for _ in 0..2 {
        let error = write(engine, &name, &pool[..large], 0).outcome.unwrap_err();
        assert_no_space(&error, directory.join("again").to_str().unwrap());
    }
    // Reading them has them open again, and kept open.
    filling.verify(engine, directory, &pool);
    assert!(engine.stats().open_files_count > 1);
    let many = filling.files.iter().filter(|file| file.1 == large).count() / 2;
    filling.delete(directory);
    let done = write(engine, &name, &pool[..large], 0);
    assert_eq!(done.outcome, Ok(()), "the space of deleted files");
    let (back, done) = read(engine, &name, large, 0);
    assert_eq!(done.outcome, Ok(()));
    assert!(back == pool[..large]);

    // And many files at once, each of which meets the full file system.
    let mut filling = Filling::until_full(engine, directory, &pool, &lens);
    filling.delete(directory);
    let mut bytes = pool[..large].to_vec();
    let out = vec![tensor(&mut bytes, 0); many];
    filling.files = (0..many).map(|i| (format!("m{i}"), large)).collect();
    let names: Vec<CString> = filling
        .files
        .iter()
        .map(|(name, _)| path(directory, name))
        .collect();
    let names: Vec<_> = names.iter().map(CString::as_c_str).collect();
    let ticket = engine.swap_out(&out, &names).unwrap();
    assert_eq!(wait(engine, ticket).outcome, Ok(()), "many at once");
    for (name, _) in &filling.files {
        assert!(std::fs::read(directory.join(name)).unwrap() == bytes);
    }

    let Filling { files } = Filling::until_full(engine, directory, &pool, &lens);
    filling.files.extend(files);
    let swapper = swapper(engine);
    let mut bytes = pool[..large].to_vec();
    let name = path(directory, "swapped");
    let out = tensor(&mut bytes, 0);
    let swapped = swapper.swap_out(&[out], &[&name]);
    let error = swapped.and(swapper.flush(support::PATIENCE)).unwrap_err();
    assert_no_space(&error, directory.join("swapped").to_str().unwrap());
    // Told once or twice: a later flush has nothing more to tell.
    let _ = swapper.flush(support::PATIENCE);
    filling.delete(directory);
    swapper.swap_out(&[out], &[&name]).unwrap();
    swapper.flush(support::PATIENCE).unwrap();
    let mut back = vec![0; large];
    swapper.swap_in(&[tensor(&mut back, 0)], &[&name]).unwrap();
    assert!(back == bytes);
    assert!(std::fs::read(directory.join("swapped")).unwrap() == bytes);
    for name in ["again", "swapped"] {
        std::fs::remove_file(directory.join(name)).unwrap();
    }
}

/// Everything above on one file system, through both backends.
pub(crate) fn on_file_system(kind: &str, size_bytes: u64, large: usize) {
    for backend in ["io_uring", "threads"] {
        let Some(mount) = Mount::new(kind, size_bytes, &[]) else {
            return;
        };
        let Some(engine) = started(backend) else {
            continue;
        };
        round_trips(&engine, &mount.point);
        overlapping_writes(&engine, &mount.point);
        swapper_round_trips(&engine, &mount.point);
        // Reserving and opening are the same for both: once is enough for the slow ones.
        if backend == "io_uring" || size_bytes < 64 * MIB {
            fills_and_recovers(&engine, &mount.point, large);
        }
    }
}

#[test]
fn ext4_round_trips_fills_and_recovers() {
    on_file_system("ext4", 48 * MIB, 4 << 20);
}

/// Here space cannot be reserved: the writes themselves find out.
#[test]
fn ext2_which_cannot_reserve_round_trips_fills_and_recovers() {
    on_file_system("ext2", 48 * MIB, 4 << 20);
}

#[test]
fn xfs_round_trips_fills_and_recovers() {
    on_file_system("xfs", 300 * MIB, 16 << 20);
}

#[test]
fn btrfs_round_trips_fills_and_recovers() {
    on_file_system("btrfs", 128 * MIB, 8 << 20);
}

#[test]
fn a_capped_tmpfs_round_trips_fills_and_recovers() {
    on_file_system("tmpfs", 32 * MIB, 4 << 20);
}

/// What a snapshot relies on to take no time and no space, and to stay as it is.
pub(crate) fn shares_blocks(kind: &str) {
    let Some(mount) = Mount::new(kind, 400 * MIB, &[]) else {
        return;
    };
    let [from, to] = ["from", "to"].map(|name| mount.point.join(name));
    let mut bytes = pattern(150 << 20, 5);
    std::fs::write(&from, &bytes).unwrap();
    let writable = |path: &Path| {
        let mut options = std::fs::File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    };
    let (source, target) = (writable(&from), writable(&to));
    target.set_len(200 << 20).unwrap();
    source.sync_all().unwrap();
    let free = || tensorswap::sys::free_bytes(source.as_fd()).unwrap();
    let before = free();
    let clone = |to: BorrowedFd<'_>| {
        tensorswap::sys::clone_range(source.as_fd(), 4096, (150 << 20) - 8192, to, 8192)
    };
    assert_eq!(clone(target.as_fd()), Ok(()), "{kind}");
    target.sync_all().unwrap();
    // Only what says where the blocks are is new.
    assert!(
        before.abs_diff(free()) < 8 * MIB,
        "{kind}: {before}, {}",
        free()
    );
    source.write_all_at(&[0xff; 10_000], 70 << 20).unwrap();
    let copy = std::fs::read(&to).unwrap();
    assert_eq!(copy.len(), 200 << 20);
    assert!(copy[8192..(150 << 20)] == bytes[4096..(150 << 20) - 4096]);
    bytes.fill(0);
    assert!(copy[..8192] == bytes[..8192] && copy[150 << 20..] == bytes[..50 << 20]);

    let elsewhere = support::directory();
    let other = writable(&elsewhere.path().join("to"));
    assert_eq!(clone(other.as_fd()), Err(libc::EXDEV), "{kind}");
}

#[test]
fn xfs_shares_blocks() {
    shares_blocks("xfs");
}

#[test]
fn btrfs_shares_blocks() {
    shares_blocks("btrfs");
}

/// Files that the caller deleted must not keep the last inodes either.
#[test]
fn a_file_system_out_of_inodes_recovers_when_files_are_deleted() {
    let Some(mount) = Mount::new("ext4", 16 * MIB, &["-N", "64"]) else {
        return;
    };
    let engine = support::engine(&[]);
    let pool = pattern(64_000, 5);
    let mut filling = Filling::until_full(&engine, &mount.point, &pool, &[100]);
    assert!(filling.files.len() < 64);
    filling.verify(&engine, &mount.point, &pool);
    filling.delete(&mount.point);
    let name = path(&mount.point, "again");
    let done = write(&engine, &name, &pool, 0);
    assert_eq!(done.outcome, Ok(()), "the inodes of deleted files");
    let (back, done) = read(&engine, &name, pool.len(), 0);
    assert_eq!(done.outcome, Ok(()));
    assert!(back == pool);
}

#[test]
fn files_in_memory_work_with_or_without_direct_io() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        common::skip("tmpfs", "/dev/shm cannot be written");
        return;
    };
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        round_trips(&engine, directory.path());
        overlapping_writes(&engine, directory.path());
        swapper_round_trips(&engine, directory.path());
        // KERNEL: since 6.6 tmpfs takes O_DIRECT; before, every file falls back and is counted.
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true);
        options.custom_flags(libc::O_DIRECT);
        let is_direct = options.open(directory.path().join("probe")).is_ok();
        let fallbacks = engine.stats().swap_out.fallbacks_count;
        assert!(is_direct || fallbacks > 0);
        assert!(engine.prometheus().contains("tensorswap_fallbacks_total"));
        assert!(engine.describe().contains(r#""direct_io":"prefer""#));
    }
}
