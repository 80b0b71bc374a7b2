//! Optimizers whose storage is full, or is taken away in the middle of a step.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::base::units::MIB;
use tensorswap::io::Engine;
use tensorswap::optimizer::Optimizer;

use crate::mounts::*;
use crate::support::{self, pattern};
use crate::training::{self, Model};
use crate::transfers::*;

/// Takes every block that is left; what was reserved for other files is theirs.
pub(crate) fn fill(file: &Path) {
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
pub(crate) fn trains_on_a_full_file_system(kind: &str, size_bytes: u64) {
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
pub(crate) struct Training {
    engine: Engine,
    pub(crate) directory: PathBuf,
    optimizer: Option<Optimizer>,
    model: Model,
    history: Vec<Model>,
}

pub(crate) const NUMELS: [usize; 5] = [1, 60_000, 300_000, 777, 100_001];

impl Training {
    pub(crate) fn new(directory: &Path) -> Training {
        Training::on(support::engine(&[]), directory)
    }

    pub(crate) fn on(engine: Engine, directory: &Path) -> Training {
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

    pub(crate) fn optimizer(&self) -> &Optimizer {
        self.optimizer.as_ref().unwrap()
    }

    /// Begins a step with a gradient for each second parameter.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
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
    pub(crate) fn next(&mut self) -> Result<bool, Error> {
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

    pub(crate) fn end(&mut self) -> Result<(), Error> {
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

    pub(crate) fn step(&mut self) -> Result<(), Error> {
        self.begin()?;
        while self.next()? {}
        self.end()
    }

    /// Goes on with the open step, and with others, until a call fails, which one must.
    pub(crate) fn goes_on_until_it_fails(&mut self) -> Error {
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
    pub(crate) fn opened_again(mut self) -> Training {
        let durable = self.optimizer().stats().durable_step;
        self.optimizer = None;
        self.reopened(durable)
    }

    pub(crate) fn reopened(mut self, durable: u64) -> Training {
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
pub(crate) fn assert_clear(error: &Error, point: &Path, statuses: &[Status]) {
    assert!(statuses.contains(&error.status()), "{error}");
    let text = error.to_string();
    assert!(text.contains(point.to_str().unwrap()), "{text}");
}

/// What takes storage away under a step that is half done.
pub(crate) fn loses_its_storage(
    kind: &str,
    size_bytes: u64,
    statuses: &[Status],
    take: &dyn Fn(&Mount),
) {
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

pub(crate) const LOST: [Status; 3] = [Status::Io, Status::NotFound, Status::Permission];

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

pub(crate) fn detach(mount: &Mount) {
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
