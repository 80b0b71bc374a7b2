//! The store as the optimizer sees it.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::directory::{DATA, Directory, LOG, NEW_LOG, join, rank_path};
use super::entry::Identity;
use super::file::{Role, StoreFile};
use super::header::{DATA_HEADER_BYTES, DATA_START_BYTES, decode_data_header, encode_data_header};
use super::log_file::{Log, error_of, open_log};
use super::reservation::Reservation;
use super::table::{RecordIndex, StoredRecord, Table};
use super::{Layout, StateSpec, Version};
use crate::base::config::{OptimizerOptions, StoreMode};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::sync::{Mutex, lock};
use crate::base::units::to_u64;
use crate::io::Engine;
use crate::sys;

/// Names the stores that are kept in memory, which must not share a file of the backend's.
static STORES_IN_MEMORY: AtomicU64 = AtomicU64::new(0);

/// A store that this process holds the lock of. Any thread may call any method.
///
/// Reading what is recorded never waits for storage; [`Store::add_record`] waits for a commit that
/// is under way.
#[derive(Debug)]
pub(crate) struct Store {
    // LOCK ORDER: the disk's writer before the table.
    table: Mutex<Table>,
    /// `None` where everything is in memory and goes with the process.
    disk: Option<Disk>,
    data_path: CString,
    scratch_path: CString,
}

#[derive(Debug)]
struct Disk {
    writer: Mutex<Writer>,
    data: StoreFile,
    // DROP ORDER: last, it holds the lock.
    directory: Directory,
}

#[derive(Debug)]
struct Writer {
    log: Log,
    reservation: Reservation,
}

impl Store {
    /// Opens or makes the store (`options.directories`, `rank`, `store`). With the memory backend
    /// no storage is touched, and the store is always a new one.
    ///
    /// # Errors
    /// `Unsupported` for several directories and for a later version of the format; `Locked`;
    /// `Corrupt`; `Io`: `NOT_FOUND` where a store is to be there and is not.
    pub(crate) fn open(engine: &Engine, options: &OptimizerOptions) -> Result<Store> {
        let [place] = options.directories.as_slice() else {
            return Err(Error::Unsupported {
                message: "a store in several directories".to_owned(),
                errno: 0,
            });
        };
        let (path, rank) = (place.path.as_path(), options.rank);
        if engine.is_in_memory() {
            return Store::in_memory(path, rank, options.store);
        }
        let create = options.store != StoreMode::Existing;
        let witness = engine.witness().cloned();
        let directory = Directory::open(path, rank, create, witness)?;
        if options.store == StoreMode::New {
            remove_files(&directory)?;
        }
        let (log, table, data) = match open_log(&directory)? {
            Some((log, table)) => {
                let data = open_data(&directory, &log, &table)?;
                directory.remove(NEW_LOG)?;
                (log, table, data)
            }
            None if create => create_files(&directory)?,
            None => return Err(not_found(directory.path_of(LOG).to_bytes())),
        };
        let reservation = Reservation::new(data.len_bytes()?);
        Ok(Store {
            table: Mutex::new(table),
            data_path: directory.path_of(DATA),
            scratch_path: directory.prepare_scratch()?,
            disk: Some(Disk {
                writer: Mutex::new(Writer { log, reservation }),
                data,
                directory,
            }),
        })
    }

    fn in_memory(path: &Path, rank: u32, mode: StoreMode) -> Result<Store> {
        let path = rank_path(path, rank)?;
        if mode == StoreMode::Existing {
            return Err(not_found(path.to_bytes()));
        }
        // ORDERING: relaxed; only uniqueness matters.
        let number = STORES_IN_MEMORY.fetch_add(1, Ordering::Relaxed);
        let named = |name: &str| {
            let name = CString::new(format!("{name}-{number}")).unwrap_or_default();
            join(&path, &name)
        };
        Ok(Store {
            table: Mutex::default(),
            disk: None,
            data_path: named("data"),
            scratch_path: named("scratch"),
        })
    }

    /// States recorded so far (all of an opened store's at once).
    pub(crate) fn layout(&self) -> Layout {
        lock(&self.table).layout().clone()
    }

    /// Records a further state; only before the first record of a new store. It is part of the
    /// store from the next commit on.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn add_state(&self, state: StateSpec) -> Result<()> {
        let _writer = self.disk.as_ref().map(|disk| lock(&disk.writer));
        lock(&self.table).add_state(state)
    }

    /// A record, its name included.
    pub(crate) fn record(&self, index: RecordIndex) -> Option<StoredRecord> {
        lock(&self.table).record(index).cloned()
    }

    /// How many records there are.
    pub(crate) fn records_len(&self) -> usize {
        lock(&self.table).records().len()
    }

    /// The record of a parameter.
    pub(crate) fn find(&self, id: u64) -> Option<RecordIndex> {
        lock(&self.table).find(id)
    }

    /// Registers a record and reserves both of its slots. It is part of the store from the next
    /// commit on; without one it is forgotten.
    ///
    /// # Errors
    /// `InvalidArgument`; `Io`: with `ENOSPC` it names the bytes needed and those free. Nothing is
    /// registered then.
    pub(crate) fn add_record(
        &self,
        id: u64,
        name: Option<&str>,
        numel: u64,
    ) -> Result<RecordIndex> {
        let Some(disk) = &self.disk else {
            return lock(&self.table).add_record(id, name, numel);
        };
        let mut writer = lock(&disk.writer);
        // Who adds records holds the writer, so the place stays what it is.
        let (_, end) = lock(&self.table).place(id, name, numel)?;
        writer.reservation.reach(&disk.data, end)?;
        let mut table = lock(&self.table);
        let index = table.add_record(id, name, numel)?;
        let commit_bytes = table.commit_bytes_max();
        drop(table);
        writer.log.reserve(commit_bytes);
        Ok(index)
    }

    /// The data file, as the engine is to be asked for it.
    pub(crate) fn data_path(&self) -> &CStr {
        &self.data_path
    }

    /// Steps done, as last committed.
    pub(crate) fn step(&self) -> u64 {
        lock(&self.table).step
    }

    /// The caller's own bytes, as last committed.
    pub(crate) fn user_data(&self) -> Vec<u8> {
        lock(&self.table).user_data.clone()
    }

    /// A directory of this store for files that do not outlive the process; emptied at open.
    pub(crate) fn scratch_directory(&self) -> &CStr {
        &self.scratch_path
    }

    /// Bytes of the data file that records take.
    pub(crate) fn data_bytes(&self) -> u64 {
        lock(&self.table).data_bytes()
    }

    /// Lets others open the store; nobody uses this object any more, though somebody may still
    /// hold it.
    pub(crate) fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.directory.unlock();
        }
    }

    /// The failure after which nothing can become durable any more, if there was one.
    pub(crate) fn failure(&self) -> Option<Error> {
        lock(&self.disk.as_ref()?.writer).log.check().err()
    }

    /// Makes versions durable: syncs the data, appends one entry, syncs the log. Blocks; one
    /// thread at a time, others wait. Every write to the data file that belongs to the versions
    /// has been reaped. `user_data` `None` keeps what was there.
    ///
    /// # Errors
    /// `Io`: a failed sync makes this and every later commit fail with the same error; a failed
    /// append leaves the store as it was, and a later commit may succeed. `InvalidArgument` for a
    /// version that cannot be, and for more than 1 MiB of user data; the store is as it was.
    pub(crate) fn commit(
        &self,
        step: u64,
        changes: &[(RecordIndex, Version)],
        user_data: Option<&[u8]>,
    ) -> Result<()> {
        let mut writer = self.disk.as_ref().map(|disk| (disk, lock(&disk.writer)));
        lock(&self.table).check_commit(changes.iter().copied(), user_data)?;
        if let Some((disk, writer)) = &mut writer {
            let log = &mut writer.log;
            log.check()?;
            log.for_ever(disk.data.sync())?;
            let entries = log.prepare(&lock(&self.table), step, changes, user_data);
            log.append(entries)?;
        }
        lock(&self.table).commit(step, changes.iter().copied(), user_data);
        if let Some((disk, writer)) = &mut writer {
            writer.log.seal();
            let new = writer.log.shorter(&lock(&self.table));
            if let Some(new) = new {
                writer.log.replace(&disk.directory, new);
            }
            let commit_bytes = lock(&self.table).commit_bytes_max();
            writer.log.reserve(commit_bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    /// The last committed version of a record.
    pub(crate) fn durable(&self, index: RecordIndex) -> Option<Version> {
        lock(&self.table).record(index)?.durable
    }

    /// Memory that the table of records takes, without names.
    pub(crate) fn memory_bytes(&self) -> u64 {
        lock(&self.table).memory_bytes()
    }
}

fn not_found(path: &[u8]) -> Error {
    let detail = "store=existing, and there is no store";
    Error::io("open", path, None, libc::ENOENT, detail)
}

/// Removes what a store consists of, and nothing else.
fn remove_files(directory: &Directory) -> Result<()> {
    directory.remove(LOG)?;
    // Without its log a store is none; with it, but without its data, it would be a damaged one.
    directory.sync()?;
    directory.remove(NEW_LOG)?;
    directory.remove(DATA)
}

fn create_files(directory: &Directory) -> Result<(Log, Table, StoreFile)> {
    if let Some(data) = directory.open_file(DATA, Role::Data)?
        && data.len_bytes()? > DATA_START_BYTES
    {
        // Records get space only after the log is there.
        return Err(data.corrupt(0, "its log is gone; store=new gives up what it holds"));
    }
    let mut identity: Identity = [0; 16];
    sys::fill_random(&mut identity)
        .map_err(|errno| Error::io("getrandom", directory.path().to_bytes(), None, errno, ""))?;
    let data = directory.create(DATA, Role::Data)?;
    data.write_at(&encode_data_header(&identity), 0)?;
    data.set_len(DATA_START_BYTES)?;
    data.sync()?;
    let log = Log::create(directory, identity)?;
    Ok((log, Table::default(), data))
}

fn open_data(directory: &Directory, log: &Log, table: &Table) -> Result<StoreFile> {
    let data = directory.open_file(DATA, Role::Data)?;
    let data = data.ok_or_else(|| data_is_gone(&directory.path_of(DATA)))?;
    check_data(&data, log.identity(), table)?;
    Ok(data)
}

/// The error for a log without a data file.
pub(super) fn data_is_gone(path: &CStr) -> Error {
    Error::Corrupt(Box::new(IoFailure {
        operation: "open",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: libc::ENOENT,
        detail: "the log is there".to_owned(),
    }))
}

/// Checks that a data file belongs to a log, and has all that the log records.
///
/// # Errors
/// `Corrupt`, `Unsupported` for a later version, `Io`.
pub(super) fn check_data(data: &StoreFile, log: &Identity, table: &Table) -> Result<()> {
    let header = data.read_up_to(to_u64(DATA_HEADER_BYTES))?;
    let identity = decode_data_header(&header).map_err(|bad| error_of(data, bad.into()))?;
    if identity != *log {
        return Err(data.corrupt(0, "it belongs to another store than the log beside it"));
    }
    let len_bytes = data.len_bytes()?;
    if len_bytes < table.data_bytes() {
        let detail = format!("{} bytes are recorded in the log", table.data_bytes());
        return Err(data.corrupt(len_bytes, detail));
    }
    Ok(())
}
