//! Moving a store from its directories to others, or to other shares of the same ones.
//!
//! A copy is made in `.rebalance/rank<N>` of every directory that the store moves to; it is a store
//! like any other, with its records committed part by part, so that whoever was stopped goes on
//! where the last commit was. When it is whole it takes the store's place (`moving`).

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::StoreReader;
use super::copying::{CopiedVersion, Copying, Observer};
use super::directory::Directory;
use super::entry::Identity;
use super::moving::{
    MOVING, Move, make_staging, read_moving, refuse_other, remove_staging, staging_in, vacate,
    write_moving,
};
use super::places::Directories;
use super::store::{Committed, Store};
use super::striping::weights_of;
use super::table::RecordIndex;
use super::version::Version;
use crate::base::config::{self, Config, OptimizerOptions, StoreMode};
use crate::base::error::{Error, Result};
use crate::base::units::GIB;
use crate::io::{Engine, Priority};

/// A commit is made whenever so much was copied.
const COMMIT_BYTES: u64 = GIB;

/// Which store is moved, and to where.
#[derive(Debug, Clone, PartialEq)]
pub struct RebalanceOptions {
    /// The number of the process whose store it is: it lies in `rank<N>` of each directory.
    pub rank: u32,
    /// Where it lies, in the store's order.
    pub from: Vec<PathBuf>,
    /// Where it is to lie; each one exists. Without a weight they are measured.
    pub to: Vec<config::Directory>,
}

/// What became of a store that was to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebalanced {
    /// It was moved.
    Moved {
        /// Bytes that this call copied; those that one before it had copied are not among them.
        copied_bytes: u64,
    },
    /// It was as it was to be.
    AlreadyThere,
}

/// Moves a store. Takes as much space again as the store has until it has been moved. One that
/// cannot be moved to its end stays where it is, as it is; the same call goes on with what another
/// one began, also where that was killed. From the moment that the copy is whole until the end, the
/// store cannot be opened. Blocks; `progress` hears how many bytes were copied, and how many there
/// are. `config` is the engine's.
///
/// # Errors
/// `Locked` where somebody uses the store, or where it is being moved with other options, which the
/// message names; `Io`: `NOT_FOUND` where there is no store, or no directory to move it to,
/// `EEXIST` where a store is there already, `ENOSPC` with the bytes needed and free; `Checksum`
/// where a record is damaged; `Unsupported` where directories that both have cannot be exchanged;
/// `InvalidArgument`, `Corrupt`, `NoMemory`.
pub fn rebalance(
    config: &Config,
    options: &RebalanceOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Rebalanced> {
    let plan = Plan::new(options)?;
    let (identity, copied_bytes) = match plan.copied()? {
        Some(identity) => (identity, 0),
        None if plan.is_done() => return Ok(Rebalanced::AlreadyThere),
        None => plan.copy(config, progress)?,
    };
    plan.last_part(identity).finish(&mut || Ok(()))?;
    Ok(Rebalanced::Moved { copied_bytes })
}

/// The options in the form in which they are compared.
#[derive(Debug)]
pub(super) struct Plan {
    rank: u32,
    /// Without symbolic links.
    from: Vec<PathBuf>,
    to: Vec<PathBuf>,
    weights: Vec<Option<f64>>,
    /// What a call with the same options has as well.
    command: Vec<u8>,
}

impl Plan {
    pub(super) fn new(options: &RebalanceOptions) -> Result<Plan> {
        let real = |path: &PathBuf| {
            std::fs::canonicalize(path).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Error::io("open", path.as_os_str().as_bytes(), None, errno, "")
            })
        };
        let from: Vec<PathBuf> = options.from.iter().map(real).collect::<Result<_>>()?;
        let to = options.to.iter().map(|place| real(&place.path));
        let to: Vec<PathBuf> = to.collect::<Result<_>>()?;
        if from.is_empty() || to.is_empty() {
            return Err(Error::invalid("a store has a directory"));
        }
        let weights: Vec<Option<f64>> = options.to.iter().map(|place| place.weight).collect();
        let list = |paths: &[PathBuf], weights: &[Option<f64>]| -> Vec<u8> {
            let weights = weights.iter().chain(std::iter::repeat(&None));
            let texts = paths.iter().zip(weights).map(|(path, weight)| {
                let weight = weight.map_or_else(String::new, |weight| format!("={weight}"));
                [path.as_os_str().as_bytes(), weight.as_bytes()].concat()
            });
            texts.collect::<Vec<_>>().join(&b',')
        };
        let begin = format!("tensorswap rebalance --rank {} --from ", options.rank);
        let command = [
            begin.as_bytes(),
            &list(&from, &[]),
            b" --to ",
            &list(&to, &weights),
            b"\n",
        ];
        Ok(Plan {
            rank: options.rank,
            command: command.concat(),
            from,
            to,
            weights,
        })
    }

    pub(super) fn last_part(&self, identity: Identity) -> Move<'_> {
        Move {
            rank: self.rank,
            from: &self.from,
            to: &self.to,
            identity,
        }
    }

    /// The identity of the store, where a copy of it is whole and takes its place already.
    pub(super) fn copied(&self) -> Result<Option<Identity>> {
        for above in [&self.to[0], &self.from[0]] {
            if let Some(directory) = Directory::find(above, self.rank)?
                && let Some((identity, command)) = read_moving(&directory)?
            {
                refuse_other(&directory, &command, &self.command)?;
                // Whoever made it may have died before its name was on storage.
                directory.sync()?;
                return Ok(Some(identity));
            }
        }
        Ok(None)
    }

    /// Whether the store lies where it is to lie, as it is to lie, and nowhere else.
    fn is_done(&self) -> bool {
        let rank = format!("rank{}", self.rank);
        let is_left = |from: &&PathBuf| !self.to.contains(from) && from.join(&rank).exists();
        let places: Vec<PathBuf> = self.to.iter().map(|to| to.join(&rank)).collect();
        let Ok(store) = StoreReader::open(&places) else {
            return false;
        };
        let as_asked = match self.shares() {
            Some(shares) if self.to.len() > 1 => store.has_weights(&weights_of(&shares)),
            _ => self.from != self.to || self.to.len() == 1,
        };
        as_asked && !self.from.iter().any(|from| is_left(&from))
    }

    /// The shares that were asked for, if any were.
    fn shares(&self) -> Option<Vec<f64>> {
        let are_given = self.weights.iter().any(Option::is_some);
        let shares = self.weights.iter().map(|weight| weight.unwrap_or(1.0));
        are_given.then(|| shares.collect())
    }

    /// Makes the copy, or what it lacks; says whose it is, and how many bytes were copied.
    pub(super) fn copy(
        &self,
        config: &Config,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Identity, u64)> {
        let engine = Engine::new(config)?;
        let existing = self.options(&self.from, &[], StoreMode::Existing)?;
        let from = Store::open(&engine, &existing)?;
        let (identity, directory) = from.on_disk().ok_or_else(in_memory)?;
        self.prepare()?;
        let to = self.open_copy(&engine, &identity)?;
        let committed = from.committed();
        let is_new = to.records_len() == 0;
        if let Err(error) = register(&committed, &to) {
            drop(to);
            if is_new {
                // The space is others'.
                self.remove_copy()?;
            }
            return Err(error);
        }
        let copied_bytes = copy_missing(&engine, &committed, &from, &to, progress)?;
        // Nobody has had the lock in between, so both are the same.
        write_moving(directory, &identity, &self.command)?;
        Ok((identity, copied_bytes))
    }

    /// Makes sure that nothing is where the store is to lie.
    fn prepare(&self) -> Result<()> {
        for to in self.to.iter().filter(|to| !self.from.contains(to)) {
            if let Some(there) = Directory::find(to, self.rank)? {
                vacate(&there)?;
            }
        }
        let mut targets = self.to.iter();
        targets.try_for_each(|to| make_staging(to, self.from.contains(to)))
    }

    /// Opens the copy that was begun with the same options, or begins one.
    fn open_copy(&self, engine: &Engine, identity: &Identity) -> Result<Store> {
        let staging: Vec<PathBuf> = self.to.iter().map(|to| staging_in(to)).collect();
        let options = |mode| self.options(&staging, &self.weights, mode);
        let new = options(StoreMode::New)?;
        let mut directories = Directories::open(engine, &new)?;
        if read_moving(directories.first())? == Some((*identity, self.command.clone())) {
            match Store::open_in(engine, &options(StoreMode::Existing)?, directories) {
                // Made, but not to its end: weights come with the first record.
                Ok(store) if store.records_len() > 0 => return Ok(store),
                Ok(_) | Err(Error::Corrupt(_) | Error::Io(_) | Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
            directories = Directories::open(engine, &new)?;
        }
        directories.first().remove(MOVING)?;
        directories.first().sync()?;
        let store = Store::open_in(engine, &new, directories)?;
        let (_, first) = store.on_disk().ok_or_else(in_memory)?;
        write_moving(first, identity, &self.command)?;
        Ok(store)
    }

    /// Removes a copy that nothing was copied to.
    fn remove_copy(&self) -> Result<()> {
        for to in &self.to {
            if let Some(directory) = Directory::find(&staging_in(to), self.rank)? {
                directory.remove_store(MOVING)?;
            }
            remove_staging(to)?;
        }
        Ok(())
    }

    fn options(
        &self,
        paths: &[PathBuf],
        weights: &[Option<f64>],
        store: StoreMode,
    ) -> Result<OptimizerOptions> {
        let mut config = Config::new();
        config.set("path", "/")?;
        let weights = weights.iter().chain(std::iter::repeat(&None));
        let places = paths.iter().zip(weights);
        let directories = places.map(|(path, weight)| config::Directory {
            path: path.clone(),
            weight: *weight,
        });
        Ok(OptimizerOptions {
            directories: directories.collect(),
            rank: self.rank,
            store,
            ..OptimizerOptions::from_config(&config)?
        })
    }
}

/// Registers the states and records that a copy lacks.
fn register(committed: &Committed, to: &Store) -> Result<()> {
    for state in &committed.layout.states[to.layout().states.len()..] {
        to.add_state(state.clone())?;
    }
    for record in &committed.records[to.records_len()..] {
        to.add_record(record.id, record.name.as_deref(), record.numel)?;
    }
    Ok(())
}

/// Copies and commits what a copy lacks, or has in another version; says how many bytes that were.
fn copy_missing(
    engine: &Engine,
    committed: &Committed,
    from: &Store,
    to: &Store,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let mut copying = Copying::new("rebalance", (engine, Priority::Foreground), from, to)?;
    let bytes_of = |copied: &CopiedVersion| -> u64 {
        let parts = from.parts_of(copied);
        parts.iter().map(|part| part.len_bytes).sum()
    };
    let mut missing: Vec<CopiedVersion> = Vec::new();
    let mut total_bytes = 0;
    for (index, record) in (0..).zip(&committed.records) {
        let Some(own) = to.record(index) else { break };
        if let Some(version) = record.durable
            && own.durable != Some(in_copy(version))
        {
            let copied = CopiedVersion {
                index,
                id: record.id,
                numel: record.numel,
                offset: record.offset,
                version,
            };
            total_bytes += bytes_of(&copied);
            missing.push(copied);
        }
    }
    let mut observer = Progress {
        copied_bytes: 0,
        total_bytes,
        progress,
    };
    let mut rest = missing.as_slice();
    loop {
        let mut group_bytes = 0;
        let group_len = rest.iter().take_while(|copied| {
            let has_room = group_bytes < COMMIT_BYTES;
            group_bytes += bytes_of(copied);
            has_room
        });
        let (group, others) = rest.split_at(group_len.count());
        copying.run(group, &mut observer)?;
        let changes: Vec<(RecordIndex, Version)> = group
            .iter()
            .map(|copied| (copied.index, in_copy(copied.version)))
            .collect();
        // The copy's life is that of the store.
        to.note_written(from.written_bytes().saturating_sub(to.written_bytes()));
        to.commit(committed.step, &changes, Some(&committed.user_data))?;
        rest = others;
        if rest.is_empty() {
            return Ok(observer.copied_bytes);
        }
    }
}

/// Tells the caller how far a copy is.
struct Progress<'a> {
    copied_bytes: u64,
    total_bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Observer for Progress<'_> {
    fn was_written(&mut self, bytes: u64) {
        self.copied_bytes += bytes;
        (self.progress)(self.copied_bytes, self.total_bytes);
    }
}

/// A version as a copy has it.
fn in_copy(version: Version) -> Version {
    Version { slot: 0, ..version }
}

fn in_memory() -> Error {
    Error::Unsupported {
        message: "a store in memory cannot be moved".to_owned(),
        errno: 0,
    }
}
