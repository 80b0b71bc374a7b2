//! What the system does to an engine: file systems of several kinds, full ones, a forbidden ring,
//! and the limits of a process.
//!
//! Limits and filters cannot be taken back, so each is set in a process of its own: this program
//! runs itself for one ignored test. File systems are mounted from image files, which takes root.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;
mod support;
mod training;

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock};

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::base::units::{KIB, MIB};
use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;
use tensorswap::swapper::Swapper;

use support::{Random, keep, path, pattern, read, tensor, wait, write};
use training::Model;

// ---- file systems ----

/// A file system of its own in an image file, unmounted and removed in the end.
struct Mount {
    point: PathBuf,
    /// Holds the image, and the directory that is mounted on.
    _directory: tempfile::TempDir,
}

impl Mount {
    /// Makes and mounts one. `None`, and said so, where that is not possible here.
    fn new(kind: &str, size_bytes: u64, options: &[&str]) -> Option<Mount> {
        // SAFETY: no memory is involved.
        if unsafe { libc::geteuid() } != 0 {
            common::skip(kind, "mounting takes root");
            return None;
        }
        let directory = support::directory();
        let (image, point) = (directory.path().join("image"), directory.path().join("on"));
        std::fs::create_dir(&point).unwrap();
        let mut mount = system("mount");
        if kind == "tmpfs" {
            let size = format!("size={size_bytes}");
            mount.args(["-t", kind, "-o", &size, "tensorswap"]);
        } else {
            let file = std::fs::File::create(&image).unwrap();
            file.set_len(size_bytes).unwrap();
            let mut make = system(&format!("mkfs.{kind}"));
            make.arg("-q").args(options).arg(&image);
            if let Err(reason) = succeeds(&mut make) {
                common::skip(kind, &reason);
                return None;
            }
            mount.args(["-t", kind, "-o", "loop"]).arg(&image);
        }
        if let Err(reason) = succeeds(mount.arg(&point)) {
            common::skip(kind, &reason);
            return None;
        }
        Some(Mount {
            point,
            _directory: directory,
        })
    }

    /// Unmounts, which takes that nobody has a file open, and mounts again.
    fn again(&self) {
        // A driver closes its files behind the back of whoever dropped it.
        let patience = std::time::Duration::from_millis(20);
        let mut outcome = Ok(());
        for _ in 0..500 {
            outcome = succeeds(system("umount").arg(&self.point));
            // Where nothing is mounted any more, the image may still be in use.
            if outcome.is_ok() || !self.is_mounted() {
                break;
            }
            std::thread::sleep(patience);
        }
        assert!(outcome.is_ok() || !self.is_mounted(), "{outcome:?}");
        let image = self.point.with_file_name("image");
        while !devices_of(&image).is_empty() {
            std::thread::sleep(patience);
        }
        let mut mount = system("mount");
        mount.args(["-o", "loop"]).arg(image).arg(&self.point);
        assert_eq!(succeeds(&mut mount), Ok(()));
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(self.point.to_str().unwrap())
    }
}

/// The loop devices that an image is behind.
fn devices_of(image: &Path) -> String {
    common::run(system("losetup").arg("-j").arg(image))
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The loop device detaches itself when its file system goes.
        if succeeds(system("umount").arg(&self.point)).is_err() {
            // Something still has a file open: the rest happens when it is closed.
            let detached = succeeds(system("umount").arg("-l").arg(&self.point));
            assert!(detached.is_ok() || std::thread::panicking(), "{detached:?}");
        }
    }
}

/// A command of the administrator, who has them in the path.
fn system(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Held while a program is started: until it runs, it has a copy of every descriptor, and what a
/// deleted file took is not free as long as somebody has it open.
static STARTING: RwLock<()> = RwLock::new(());

fn output_of(command: &mut Command) -> std::io::Result<Output> {
    let child = {
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?
    };
    child.wait_with_output()
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = output_of(command).map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", errors.trim()))
}

/// An engine with this backend. `None`, and said so, where there is no ring.
fn started(backend: &str) -> Option<Engine> {
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

fn swapper(engine: &Engine) -> Swapper {
    let swapper = Swapper::new(engine, None).unwrap();
    let buffers = [3 * MIB + 4096, MIB].map(|len| engine.allocate_buffer(len).unwrap());
    swapper.add_buffers(&buffers, Dtype::Bytes).unwrap();
    swapper
}

/// Odd lengths, offsets and addresses come back exact, and so does the length of the file.
fn round_trips(engine: &Engine, directory: &Path) {
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
fn overlapping_writes(engine: &Engine, directory: &Path) {
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

fn swapper_round_trips(engine: &Engine, directory: &Path) {
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

fn assert_no_space(error: &Error, name: &str) {
    assert_eq!(error.status(), Status::NoSpace, "{error}");
    assert_eq!(error.os_error(), libc::ENOSPC);
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("ENOSPC"), "{text}");
}

/// The files that were written until there was no space left.
#[derive(Default)]
struct Filling {
    files: Vec<(String, usize)>,
}

impl Filling {
    /// Different in each file, and cheap to make.
    fn content(pool: &[u8], index: usize, len: usize) -> &[u8] {
        &pool[index * 8..][..len]
    }

    /// Writes files of these lengths, each until the file system refuses.
    fn until_full(engine: &Engine, directory: &Path, pool: &[u8], lens: &[usize]) -> Filling {
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

    fn verify(&self, engine: &Engine, directory: &Path, pool: &[u8]) {
        for (index, (name, len)) in self.files.iter().enumerate() {
            let (back, done) = read(engine, &path(directory, name), *len, 0);
            assert_eq!(done.outcome, Ok(()), "{name}");
            assert!(back == Filling::content(pool, index, *len), "{name}");
        }
    }

    /// Deletes them through the file system; the engine is not told.
    fn delete(&mut self, directory: &Path) {
        for (name, _) in self.files.drain(..) {
            std::fs::remove_file(directory.join(name)).unwrap();
        }
    }
}

/// A full file system is a clear error; what was stored stays readable; space that was freed
/// behind the engine's back is used.
fn fills_and_recovers(engine: &Engine, directory: &Path, large: usize) {
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
fn on_file_system(kind: &str, size_bytes: u64, large: usize) {
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
fn shares_blocks(kind: &str) {
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

/// Takes every block that is left; what was reserved for other files is theirs.
fn fill(file: &Path) {
    let mut file = std::fs::File::create(file).unwrap();
    let chunk = pattern(1 << 20, 3);
    for len in [1 << 20, 4096, 4096, 4096] {
        let error = loop {
            if let Err(error) = file.write_all(&chunk[..len]) {
                break error;
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        // Blocks that were put aside for allocations to come are free after this.
        let _ = file.sync_all();
    }
}

/// What is registered has its space: on a full file system it trains and commits. What is not is
/// refused, and so are commits once the log's own space is used up, until there is room again.
fn trains_on_a_full_file_system(kind: &str, size_bytes: u64) {
    let Some(mount) = Mount::new(kind, size_bytes, &[]) else {
        return;
    };
    let engine = support::engine(&[]);
    let mut model = Model::new(&training::F32);
    for (id, numel) in [1, 60_000, 300_000].into_iter().enumerate() {
        model.add(id as u64, numel);
    }
    let start =
        |sync, model: &Model| training::open(&engine, &mount.point, &[("sync", sync)], model);
    let optimizer = start("commit", &model);
    training::initialize(&optimizer, &mut model, 1);
    for id in 0..3 {
        let slope = training::values(model.records[&id].numel, id);
        training::give_gradient(&optimizer, &mut model, id, 0, (&slope, Dtype::F32), false);
    }
    training::step(&optimizer, &mut model, None, 1, &|_| false);
    optimizer.commit().unwrap();

    let refuses_more = || {
        let data = mount.point.join("rank0/data");
        let blocks = std::fs::metadata(&data).unwrap().blocks();
        let error = optimizer.add_parameter(9, None, size_bytes).unwrap_err();
        assert_no_space(&error, data.to_str().unwrap());
        let text = error.to_string();
        assert!(
            text.contains("bytes needed, ") && text.contains(" free"),
            "{text}"
        );
        assert_eq!(optimizer.parameters_len(), 3);
        // The attempt has taken nothing.
        assert_eq!(std::fs::metadata(&data).unwrap().blocks(), blocks);
    };
    refuses_more();
    let filling = mount.point.join("filling");
    fill(&filling);
    refuses_more();
    for _ in 0..3 {
        training::step(&optimizer, &mut model, None, 1, &|_| false);
        optimizer.commit().unwrap();
    }
    drop(optimizer);

    let optimizer = start("none", &model);
    training::verify(&optimizer, &model, "opened on a full file system");
    training::step(&optimizer, &mut model, None, 1, &|_| false);
    let error = (0..100).find_map(|_| {
        // The most that a commit can add to the log.
        optimizer.set_user_data(&[7; 1 << 20]).unwrap();
        optimizer.commit().err()
    });
    assert_no_space(
        &error.unwrap(),
        mount.point.join("rank0/log").to_str().unwrap(),
    );
    training::step(&optimizer, &mut model, None, 1, &|_| false);
    training::verify(&optimizer, &model, "after a commit without space");
    assert_eq!(optimizer.commit().unwrap_err().status(), Status::NoSpace);
    std::fs::remove_file(filling).unwrap();
    optimizer.commit().unwrap();
    drop(optimizer);
    training::verify(&start("commit", &model), &model, "with space again");
}

#[test]
fn an_optimizer_trains_and_commits_on_a_full_ext4() {
    trains_on_a_full_file_system("ext4", 48 * MIB);
}

#[test]
fn an_optimizer_trains_and_commits_on_a_full_xfs() {
    trains_on_a_full_file_system("xfs", 300 * MIB);
}

/// Where every write takes new space, training itself meets the full disk: that is told, and what
/// was committed is there, and so it is with space again.
#[test]
fn an_optimizer_on_a_full_btrfs_loses_nothing_that_was_committed() {
    let Some(mount) = Mount::new("btrfs", 256 * MIB, &[]) else {
        return;
    };
    let mut training = Training::new(&mount.point);
    for _ in 0..3 {
        training.step().unwrap();
    }
    let filling = mount.point.join("filling");
    fill(&filling);
    let mut told = 0;
    for _ in 0..6 {
        if let Err(error) = training.step() {
            assert_no_space(&error, mount.point.to_str().unwrap());
            told += 1;
            training = training.opened_again();
        }
    }
    println!("btrfs: {told} of 6 steps met the full disk");
    std::fs::remove_file(filling).unwrap();
    training = training.opened_again();
    for _ in 0..3 {
        training.step().unwrap();
    }
    training.opened_again();
}

/// A training whose steps may fail, with the models at the end of all those that may be found.
struct Training {
    engine: Engine,
    directory: PathBuf,
    optimizer: Option<Optimizer>,
    model: Model,
    history: Vec<Model>,
}

const NUMELS: [usize; 5] = [1, 60_000, 300_000, 777, 100_001];

impl Training {
    fn new(directory: &Path) -> Training {
        Training::on(support::engine(&[]), directory)
    }

    fn on(engine: Engine, directory: &Path) -> Training {
        let mut model = Model::new(&training::F32);
        for (id, numel) in (0..).zip(NUMELS) {
            model.add(id, numel);
        }
        let optimizer = training::open(&engine, directory, &[], &model);
        training::initialize(&optimizer, &mut model, 1);
        optimizer.commit().unwrap();
        Training {
            engine,
            directory: directory.to_owned(),
            optimizer: Some(optimizer),
            history: vec![model.clone()],
            model,
        }
    }

    fn optimizer(&self) -> &Optimizer {
        self.optimizer.as_ref().unwrap()
    }

    /// Begins a step with a gradient for each second parameter.
    fn begin(&mut self) -> Result<(), Error> {
        let number = self.model.step + 1;
        for id in (0..NUMELS.len() as u64).step_by(2) {
            let slope = training::values(self.model.records[&id].numel, number * 100 + id);
            let mut bytes = training::to_bytes(&slope, Dtype::F32);
            let tensor = training::elements(&mut bytes, Dtype::F32);
            self.optimizer().swap_out_gradients(id, &[0], &[tensor])?;
            self.model.add_gradient(id, 0, &slope, false);
        }
        self.optimizer().step_begin(None)
    }

    /// Gives out the next record, checks and changes it; false where there is none left.
    fn next(&mut self) -> Result<bool, Error> {
        let next = self.optimizer().step_next();
        let Some(view) = next.map_err(|failed| failed.error)? else {
            return Ok(false);
        };
        for (state, found) in view.states().enumerate() {
            let expected = &self.model.records[&view.id].states[state];
            assert!(training::load(found) == *expected, "{} {state}", view.id);
        }
        training::update(&view, self.model.step + 1);
        self.optimizer().step_done(view.id, true)?;
        Ok(true)
    }

    fn end(&mut self) -> Result<(), Error> {
        // It may be durable also where that is not told.
        let mut after = self.model.clone();
        for id in 0..NUMELS.len() as u64 {
            after.update(id);
        }
        after.step += 1;
        after.end_gradients();
        self.history.push(after.clone());
        self.optimizer().step_end()?;
        self.model = after;
        self.optimizer().commit()
    }

    fn step(&mut self) -> Result<(), Error> {
        self.begin()?;
        while self.next()? {}
        self.end()
    }

    /// Goes on with the open step, and with others, until a call fails, which one must.
    fn goes_on_until_it_fails(&mut self) -> Error {
        for _ in 0..20 {
            let mut rest = || {
                while self.next()? {}
                self.end()?;
                self.begin()
            };
            if let Err(error) = rest() {
                return error;
            }
        }
        panic!("20 steps without storage");
    }

    /// Drops it and lets the next one open the store: at the last durable step, or a later one.
    fn opened_again(mut self) -> Training {
        let durable = self.optimizer().stats().durable_step;
        self.optimizer = None;
        self.reopened(durable)
    }

    fn reopened(mut self, durable: u64) -> Training {
        let model = Model::new(&training::F32);
        let optimizer = training::open(&self.engine, &self.directory, &[], &model);
        let step = optimizer.step_number();
        assert!(step >= durable, "{step} < {durable}");
        self.model = self
            .history
            .iter()
            .rev()
            .find(|model| model.step == step)
            .unwrap()
            .clone();
        for (id, record) in &self.model.records {
            let name = format!("p{id}");
            optimizer
                .add_parameter(*id, Some(&name), record.numel as u64)
                .unwrap();
        }
        training::verify(&optimizer, &self.model, "opened again");
        self.history = vec![self.model.clone()];
        self.optimizer = Some(optimizer);
        self
    }
}

/// Told clearly: what failed, where, and why.
fn assert_clear(error: &Error, point: &Path, statuses: &[Status]) {
    assert!(statuses.contains(&error.status()), "{error}");
    let text = error.to_string();
    assert!(text.contains(point.to_str().unwrap()), "{text}");
}

/// What takes storage away under a step that is half done.
fn loses_its_storage(kind: &str, size_bytes: u64, statuses: &[Status], take: &dyn Fn(&Mount)) {
    let Some(mount) = Mount::new(kind, size_bytes, &[]) else {
        return;
    };
    let all = [2, 0, NUMELS.len()];
    let moments = if support::is_long() {
        &all[..]
    } else {
        &all[..1]
    };
    for &done in moments {
        let mut training = Training::new(&mount.point);
        for _ in 0..3 {
            training.step().unwrap();
        }
        training.begin().unwrap();
        for _ in 0..done {
            assert!(training.next().unwrap());
        }
        take(&mount);
        let failed = training.goes_on_until_it_fails();
        println!("{kind}, {done} records into the step: {failed}");
        assert_clear(&failed, &mount.point, statuses);
        // Whatever else is asked gets an answer, and no wrong one.
        let optimizer = training.optimizer();
        let aborted = optimizer.step_abort();
        println!("    step_abort: {aborted:?}");
        for id in 0..NUMELS.len() as u64 {
            let read = training::read_state(optimizer, &training.model, id, 0);
            let step = optimizer.step_number();
            let mut possible = training.history.iter().chain([&training.model]);
            assert!(
                read.as_ref().map_or(true, |found| possible
                    .any(|model| model.step == step && model.records[&id].states[0] == *found)),
                "{id}"
            );
        }
        let durable = optimizer.stats().durable_step;
        training.optimizer = None;
        training.engine = support::engine(&[]);
        mount.again();
        let mut training = training.reopened(durable);
        for _ in 0..2 {
            training.step().unwrap();
        }
        drop(training);
        std::fs::remove_dir_all(mount.point.join("rank0")).unwrap();
    }
}

const LOST: [Status; 3] = [Status::Io, Status::NotFound, Status::Permission];

#[test]
fn an_ext4_that_turns_read_only_in_mid_step_loses_nothing() {
    loses_its_storage("ext4", 64 * MIB, &LOST, &|mount| {
        // As after an error of the drive: it cannot be turned read-only while files are open.
        let mut abort = system("mount");
        abort.args(["-o", "remount,abort"]).arg(&mount.point);
        assert_eq!(succeeds(&mut abort), Ok(()));
    });
}

#[test]
fn an_xfs_that_shuts_down_in_mid_step_loses_nothing() {
    loses_its_storage("xfs", 300 * MIB, &LOST, &|mount| {
        let mut shutdown = system("xfs_io");
        shutdown.args(["-x", "-c", "shutdown"]).arg(&mount.point);
        assert_eq!(succeeds(&mut shutdown), Ok(()));
    });
}

fn detach(mount: &Mount) {
    let mut detach = system("umount");
    detach.arg("-l").arg(&mount.point);
    assert_eq!(succeeds(&mut detach), Ok(()));
}

#[test]
fn an_ext4_unmounted_lazily_in_mid_step_loses_nothing() {
    loses_its_storage("ext4", 64 * MIB, &LOST, &detach);
}

#[test]
fn an_xfs_unmounted_lazily_in_mid_step_loses_nothing() {
    loses_its_storage("xfs", 300 * MIB, &LOST, &detach);
}

#[test]
fn a_btrfs_unmounted_lazily_in_mid_step_loses_nothing() {
    loses_its_storage("btrfs", 256 * MIB, &LOST, &detach);
}

/// While a store is open its file system cannot be turned read-only; once it was, opening says so,
/// and all is there when it can be written again.
#[test]
fn a_file_system_remounted_read_only_is_refused_clearly_and_used_again() {
    for (kind, size_bytes) in [("ext4", 64 * MIB), ("xfs", 300 * MIB), ("btrfs", 256 * MIB)] {
        let Some(mount) = Mount::new(kind, size_bytes, &[]) else {
            continue;
        };
        let remount = |how: &str| {
            let mut remount = system("mount");
            succeeds(
                remount
                    .args(["-o", &format!("remount,{how}")])
                    .arg(&mount.point),
            )
        };
        let mut training = Training::new(&mount.point);
        training.begin().unwrap();
        assert!(training.next().unwrap());
        assert!(remount("ro").is_err(), "{kind}");
        while training.next().unwrap() {}
        training.end().unwrap();
        training.step().unwrap();
        let durable = training.optimizer().stats().durable_step;
        training.optimizer = None;
        training.engine = support::engine(&[]);
        while remount("ro").is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let types = &training.model.types;
        let opened = training::try_open(&training.engine, &mount.point, &[], types);
        let error = opened.unwrap_err();
        assert_eq!(error.os_error(), libc::EROFS, "{kind}: {error}");
        assert_clear(&error, &mount.point, &[Status::Io, Status::Permission]);
        assert_eq!(remount("rw"), Ok(()));
        let mut training = training.reopened(durable);
        training.step().unwrap();
    }
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

// ---- the process ----

/// The variable that tells a child's test that it may change its process.
const CHILD: &str = "TSW_TEST_CHILD";

/// Runs one ignored test of this file in a process of its own.
fn in_child(test: &str) {
    let output = output_of(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(CHILD, test),
    )
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    assert!(text.contains("1 passed"), "{text}");
    for line in text.lines().filter(|line| line.contains("skipped (")) {
        let (_, reason) = line.split_once("skipped (").unwrap_or_default();
        let (feature, reason) = reason.split_once("): ").unwrap_or_default();
        common::skip(feature, reason);
    }
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: one `struct rlimit`, which outlives the call.
    assert_eq!(0, unsafe { libc::setrlimit(resource, &raw const limit) });
}

/// Takes every right of root from this thread and those it starts.
fn drop_capabilities() {
    // Version 3 of the header, this thread; none in any of the three sets of two words each.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: both arrays are laid out as capset(2) reads them and outlive the call.
    let dropped = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(dropped, 0);
}

/// Has the kernel answer `io_uring_setup` with `errno` in this thread and those it starts.
fn forbid_rings(errno: i32) {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let number = libc::SYS_io_uring_setup as u32;
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut filter = [
        // The number of the call is the first word of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: no memory is involved.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(no_new, 0);
    // SAFETY: a program of as many instructions as it says, which outlives the call.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0);
}

fn refused_ring(errno: i32, name: &str) {
    forbid_rings(errno);
    let directory = support::directory();
    let demanded = support::config(&[("backend", "io_uring")]);
    let error = Engine::new(&demanded).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert_eq!(error.os_error(), errno);
    assert!(error.to_string().contains(name), "{error}");
    let engine = support::engine(&[("backend", "auto")]);
    let facts: serde_json::Value = serde_json::from_str(&engine.describe()).unwrap();
    assert_eq!(facts["backend"], "threads");
    let reason = facts["backend_reason"].as_str().unwrap();
    assert!(reason.contains(name), "{reason}");
    assert!(reason.contains("seccomp"), "{reason}");
    round_trips(&engine, directory.path());
    swapper_round_trips(&engine, directory.path());
    trains(engine, directory.path());
}

/// Some steps, and the store opened again.
fn trains(engine: Engine, directory: &Path) {
    let mut training = Training::on(engine, &directory.join("store"));
    for _ in 0..3 {
        training.step().unwrap();
    }
    training = training.opened_again();
    training.step().unwrap();
    drop(training);
    std::fs::remove_dir_all(directory.join("store")).unwrap();
}

#[test]
fn a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so() {
    in_child("child_whose_ring_is_not_permitted");
    in_child("child_whose_ring_is_unknown");
}

#[test]
#[ignore = "run by a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so"]
fn child_whose_ring_is_not_permitted() {
    if is_child() {
        refused_ring(libc::EPERM, "EPERM");
    }
}

#[test]
#[ignore = "run by a_ring_forbidden_by_seccomp_falls_back_to_threads_and_says_so"]
fn child_whose_ring_is_unknown() {
    if is_child() {
        refused_ring(libc::ENOSYS, "ENOSYS");
    }
}

#[test]
fn with_little_locked_memory_buffers_stay_unpinned_and_say_so() {
    in_child("child_with_little_locked_memory");
}

#[test]
#[ignore = "run by with_little_locked_memory_buffers_stay_unpinned_and_say_so"]
fn child_with_little_locked_memory() {
    if !is_child() {
        return;
    }
    limit(libc::RLIMIT_MEMLOCK, 64 * KIB);
    drop_capabilities();
    let directory = support::directory();
    for backend in ["auto", "io_uring", "threads"] {
        let Some(_) = started(backend) else {
            continue;
        };
        let settings = [("backend", backend), ("huge_pages", "off")];
        let engine = support::engine(&[settings[0], settings[1], ("pin", "prefer")]);
        let buffer = engine.allocate_buffer(MIB).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&engine.describe()).unwrap();
        assert_eq!(facts["memlock_limit_bytes"], 64 * KIB);
        let told = &facts["buffers"][0];
        assert_eq!(told["len_bytes"], MIB);
        assert_eq!(
            (&told["locked"], &told["registered"]),
            (&false.into(), &false.into())
        );
        drop(buffer);
        round_trips(&engine, directory.path());
        swapper_round_trips(&engine, directory.path());
        trains(engine, directory.path());

        let strict = support::engine(&[settings[0], settings[1], ("pin", "require")]);
        let error = strict.allocate_buffer(MIB).unwrap_err();
        assert_eq!(error.status(), Status::Memlock, "{error}");
        assert_eq!(error.os_error(), libc::ENOMEM);
        assert!(error.to_string().contains("65536 bytes"), "{error}");
        // Bounce blocks are pinned memory too.
        let name = path(directory.path(), "strict");
        let odd = write(&strict, &name, &[1; 100], 0).outcome.unwrap_err();
        assert_eq!(odd.status(), Status::Memlock, "{odd}");
        // And so is the room for records.
        let store = directory.path().join("strict store");
        let optimizer = training::try_open(&strict, &store, &[], &training::F32).unwrap();
        optimizer.add_parameter(1, None, 100_000).unwrap();
        let mut bytes = training::to_bytes(&training::values(100_000, 1), Dtype::F32);
        let source = training::elements(&mut bytes, Dtype::F32);
        let error = optimizer
            .initialize_parameters(&[1], &[source])
            .unwrap_err();
        assert_eq!(error.status(), Status::Memlock, "{error}");
    }
}

#[test]
fn many_more_files_than_descriptors_are_swapped() {
    in_child("child_with_few_descriptors");
}

#[test]
#[ignore = "run by many_more_files_than_descriptors_are_swapped"]
fn child_with_few_descriptors() {
    if !is_child() {
        return;
    }
    limit(libc::RLIMIT_NOFILE, 32);
    let directory = support::directory();
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let names: Vec<CString> = (0..500)
            .map(|i| path(directory.path(), &format!("{backend}{i}")))
            .collect();
        let paths: Vec<_> = names.iter().map(CString::as_c_str).collect();
        let mut files: Vec<Vec<u8>> = (0..500).map(|i| pattern(1000 + 37 * i, i as u64)).collect();
        let mut back: Vec<Vec<u8>> = files.iter().map(|file| vec![0; file.len()]).collect();
        let out: Vec<_> = files.iter_mut().map(|file| tensor(file, 0)).collect();
        let into: Vec<_> = back.iter_mut().map(|file| tensor(file, 0)).collect();
        // Written in one list; read while the writes may still be under way.
        let written = engine.swap_out(&out, &paths).unwrap();
        let got = engine.swap_in(&into, &paths).unwrap();
        assert_eq!(wait(&engine, written).outcome, Ok(()));
        assert_eq!(wait(&engine, got).outcome, Ok(()));
        assert!(back == files);
        for (name, file) in names.iter().zip(&files) {
            assert!(std::fs::read(name.to_str().unwrap()).unwrap() == *file);
        }
        // And each by a request of its own, all of them before the first wait.
        for file in &mut files {
            file.reverse();
        }
        let mut tickets: Vec<_> = (0..500)
            .map(|i| engine.swap_out(&out[i..=i], &paths[i..=i]).unwrap())
            .collect();
        tickets.extend((0..500).map(|i| engine.swap_in(&into[i..=i], &paths[i..=i]).unwrap()));
        for ticket in tickets {
            assert_eq!(wait(&engine, ticket).outcome, Ok(()));
        }
        assert!(back == files);
        assert!(engine.stats().open_files_count <= 16);
        swapper_round_trips(&engine, directory.path());
        trains(engine, directory.path());
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_a_clear_error() {
    in_child("child_with_small_files");
    in_child("child_with_small_files_that_its_signal_would_end");
}

/// Where nobody ignores `SIGXFSZ`, which ends a process.
#[test]
#[ignore = "run by a_limit_on_the_size_of_files_is_a_clear_error"]
fn child_with_small_files_that_its_signal_would_end() {
    if !is_child() {
        return;
    }
    let directory = support::directory();
    let small = 16 * MIB;
    limit(libc::RLIMIT_FSIZE, small);
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let name = path(directory.path(), backend);
        let bytes = pattern(20 << 20, 9);
        let error = write(&engine, &name, &bytes, 0).outcome.unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
        let swapper = swapper(&engine);
        let mut bytes = bytes.clone();
        let swapped = swapper.swap_out(&[tensor(&mut bytes, 0)], &[&name]);
        let error = swapped.and(swapper.flush(support::PATIENCE)).unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");

        // What fits is trained; what does not is refused, and takes nothing.
        let mut training = Training::on(engine, &directory.path().join("store"));
        training.step().unwrap();
        let error = training.optimizer().add_parameter(9, None, 10_000_000);
        let error = error.unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
        assert_clear(&error, &training.directory, &[Status::Io]);
        training.step().unwrap();
        let mut training = training.opened_again();
        training.step().unwrap();
        drop(training);
        std::fs::remove_dir_all(directory.path().join("store")).unwrap();
    }
}

#[test]
#[ignore = "run by a_limit_on_the_size_of_files_is_a_clear_error"]
fn child_with_small_files() {
    if !is_child() {
        return;
    }
    // SAFETY: no handler is installed, the signal is only ignored.
    let ignored = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    assert_ne!(ignored, libc::SIG_ERR);
    limit(libc::RLIMIT_FSIZE, MIB);
    let directory = support::directory();
    for backend in ["io_uring", "threads"] {
        let Some(engine) = started(backend) else {
            continue;
        };
        let name = path(directory.path(), backend);
        let bytes = pattern(3 << 20, 9);
        for _ in 0..2 {
            let error = write(&engine, &name, &bytes, 0).outcome.unwrap_err();
            assert_eq!(error.os_error(), libc::EFBIG, "{error}");
            assert_eq!(error.status(), Status::Io);
            let text = error.to_string();
            assert!(text.contains("EFBIG"), "{text}");
            assert!(text.contains(name.to_str().unwrap()), "{text}");
        }
        let fits = &bytes[..1 << 20];
        assert_eq!(write(&engine, &name, fits, 0).outcome, Ok(()));
        let (back, done) = read(&engine, &name, 1 << 20, 0);
        assert_eq!(done.outcome, Ok(()));
        assert!(back == fits);
        assert!(std::fs::read(directory.path().join(backend)).unwrap() == fits);

        let swapper = swapper(&engine);
        let mut bytes = bytes.clone();
        let out = tensor(&mut bytes, 0);
        let swapped = swapper.swap_out(&[out], &[&name]);
        let error = swapped.and(swapper.flush(support::PATIENCE)).unwrap_err();
        assert_eq!(error.os_error(), libc::EFBIG, "{error}");
    }
}
