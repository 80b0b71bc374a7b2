//! The store as the optimizer sees it.

mod spare;
mod weights;

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::directory::{DATA, Directory, LOG, NEW_LOG, SPARE, join, rank_path};
use super::entry::Identity;
use super::file::StoreFile;
use super::log_file::{Log, open_log};
use super::moving::refuse_moving;
use super::places::{Directories, PlaceFile, sync_all};
use super::striping::{Area, Striping};
use super::table::{RecordIndex, StoredRecord, Table};
use super::{Layout, StateSpec, Version};
use crate::base::config::{OptimizerOptions, StoreMode};
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::sync::{Mutex, lock};
use crate::io::{Engine, FileIdentity};
use spare::open_spare;
use weights::{choose_weights, has_weights};

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
    paths: Paths,
    scratch_path: CString,
    /// Bytes that were written to slots since the last commit was prepared.
    written: AtomicU64,
}

/// What a commit made durable.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) step: u64,
    pub(crate) user_data: Vec<u8>,
    pub(crate) layout: Layout,
    /// With their durable versions.
    pub(crate) records: Vec<StoredRecord>,
}

/// The files of records, one in each place.
#[derive(Debug)]
struct Paths {
    data: Vec<CString>,
    spare: Vec<CString>,
    /// What the paths led to when the files were opened here; none for files that are not there.
    // LOCK ORDER: last.
    identities: Mutex<Identities>,
}

#[derive(Debug, Default)]
struct Identities {
    data: Vec<FileIdentity>,
    spare: Vec<FileIdentity>,
}

fn identities_of(files: &[PlaceFile]) -> Result<Vec<FileIdentity>> {
    files.iter().map(|place| place.file.identity()).collect()
}

#[derive(Debug)]
struct Disk {
    writer: Mutex<Writer>,
    /// Nobody gave weights: they follow what the drives achieve.
    follows_drives: bool,
    // DROP ORDER: last, they hold the locks.
    directories: Directories,
}

#[derive(Debug)]
struct Writer {
    log: Log,
    data: Vec<PlaceFile>,
    /// Empty while there are no third slots.
    spare: Vec<PlaceFile>,
}

impl Store {
    /// Opens or makes the store (`options.directories`, `rank`, `store`). With the memory backend
    /// no storage is touched, and the store is always a new one. Where it is made in several
    /// directories without weights, they are measured.
    ///
    /// # Errors
    /// `Unsupported` for another version of the format; `Locked`; `Corrupt`, also for directories
    /// in another order; `Io`: `NOT_FOUND` where a store is to be there and is not.
    pub(crate) fn open(engine: &Engine, options: &OptimizerOptions) -> Result<Store> {
        if engine.is_in_memory() {
            return Store::in_memory(options);
        }
        let directories = Directories::open(engine, options)?;
        refuse_moving(directories.first())?;
        Store::open_in(engine, options, directories)
    }

    /// As [`Store::open`], on storage, in directories that are locked already.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(super) fn open_in(
        engine: &Engine,
        options: &OptimizerOptions,
        directories: Directories,
    ) -> Result<Store> {
        let create = options.store != StoreMode::Existing;
        if options.store == StoreMode::New {
            directories.remove_files()?;
        }
        let first = directories.first();
        let (path, len) = (first.path().to_bytes(), directories.len());
        let (log, mut table, data, spare) = match open_log(first)? {
            Some((log, table)) => {
                let data = directories.open_files(Area::Data, log.identity(), &table)?;
                let spare = open_spare(&directories, &log, &table)?;
                first.remove(NEW_LOG)?;
                // Whoever gave the log its name may have died before that was on storage.
                first.sync()?;
                events::store_opened(path, len, table.step, table.records().len());
                (log, table, data, spare)
            }
            None if create => {
                let (identity, data) = directories.create_data()?;
                let log = Log::create(first, identity)?;
                events::store_made(path, len);
                (log, Table::default(), data, Vec::new())
            }
            None => return Err(not_found(first.path_of(LOG).to_bytes())),
        };
        if len > 1 {
            choose_weights(engine, options, &directories, &mut table)?;
        }
        let identities = Identities {
            data: identities_of(&data)?,
            spare: identities_of(&spare)?,
        };
        Ok(Store {
            table: Mutex::new(table),
            paths: Paths {
                data: directories.paths_of(DATA),
                spare: directories.paths_of(SPARE),
                identities: Mutex::new(identities),
            },
            scratch_path: first.prepare_scratch()?,
            written: AtomicU64::new(0),
            disk: Some(Disk {
                writer: Mutex::new(Writer { log, data, spare }),
                follows_drives: !has_weights(options),
                directories,
            }),
        })
    }

    fn in_memory(options: &OptimizerOptions) -> Result<Store> {
        let path = options.directories.first();
        let path = path.map_or(Path::new(""), |first| first.path.as_path());
        let path = rank_path(path, options.rank)?;
        if options.store == StoreMode::Existing {
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
            paths: Paths {
                data: vec![named("data")],
                spare: vec![named("spare")],
                identities: Mutex::default(),
            },
            scratch_path: named("scratch"),
            written: AtomicU64::new(0),
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

    /// Registers a record and reserves its slots. It is part of the store from the next
    /// commit on; without one it is forgotten.
    ///
    /// # Errors
    /// `InvalidArgument`; `Io`: with `ENOSPC` it names the file, the bytes needed and those free.
    /// Nothing is registered then.
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
        let table = lock(&self.table);
        let (_, end) = table.next_slots(id, name, numel)?;
        let striping = Arc::clone(table.striping());
        drop(table);
        for (place, data) in writer.data.iter_mut().enumerate() {
            data.reach(striping.file_bytes(Area::Data, place, end))?;
        }
        let mut table = lock(&self.table);
        let index = table.add_record(id, name, numel)?;
        let commit_bytes = table.commit_bytes_max();
        drop(table);
        writer.log.reserve(commit_bytes);
        Ok(index)
    }

    /// The file of a place for an area, as the engine is to be asked for it.
    pub(crate) fn path(&self, area: Area, place: usize) -> &CStr {
        match area {
            Area::Data => &self.paths.data[place],
            Area::Spare => &self.paths.spare[place],
        }
    }

    /// The one file that [`Store::path`] may lead to. Whoever can rename what lies above could have
    /// put another in its place, a link to somebody else's among them.
    pub(crate) fn file_identity(&self, area: Area, place: usize) -> Option<FileIdentity> {
        let identities = lock(&self.paths.identities);
        let files = match area {
            Area::Data => &identities.data,
            Area::Spare => &identities.spare,
        };
        files.get(place).copied()
    }

    /// All its files in which records lie.
    pub(crate) fn file_identities(&self) -> Vec<FileIdentity> {
        let identities = lock(&self.paths.identities);
        [identities.data.as_slice(), &identities.spare].concat()
    }

    /// The file and the offset of an address.
    pub(crate) fn find_address(&self, area: Area, address: u64) -> (&CStr, u64) {
        let (place, offset) = self.striping().find(area, address);
        (self.path(area, place), offset)
    }

    /// Where addresses lie.
    pub(crate) fn striping(&self) -> Arc<Striping> {
        Arc::clone(lock(&self.table).striping())
    }

    /// Counts bytes that were written to slots.
    pub(crate) fn note_written(&self, bytes: u64) {
        // ORDERING: relaxed; a sum of its own.
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that were written to slots since the store was made.
    pub(crate) fn written_bytes(&self) -> u64 {
        lock(&self.table).written_bytes + self.written.load(Ordering::Relaxed)
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

    /// What was committed last. No commit is under way.
    pub(crate) fn committed(&self) -> Committed {
        let table = lock(&self.table);
        Committed {
            step: table.step,
            user_data: table.user_data.clone(),
            layout: table.layout().clone(),
            records: table.committed_records().to_vec(),
        }
    }

    /// Bytes of the data files that records take.
    pub(crate) fn data_bytes(&self) -> u64 {
        lock(&self.table).end()
    }

    /// Lets others open the store; nobody uses this object any more, though somebody may still
    /// hold it.
    pub(crate) fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.directories.unlock();
        }
    }

    /// The failure after which nothing can become durable any more, if there was one.
    pub(crate) fn failure(&self) -> Option<Error> {
        lock(&self.disk.as_ref()?.writer).log.check().err()
    }

    /// Makes versions durable: syncs the data in all places, appends one entry, syncs the log. Blocks; one
    /// thread at a time, others wait. Every write to the data files that belongs to the versions
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
        if let Some((_, writer)) = &mut writer {
            let Writer { log, data, spare } = &mut **writer;
            log.check()?;
            let files = data.iter().chain(spare.iter());
            let files: Vec<&StoreFile> = files.map(|place| &place.file).collect();
            log.for_ever(sync_all(&files))?;
            let mut table = lock(&self.table);
            table.written_bytes += self.written.swap(0, Ordering::Relaxed);
            let entries = log.prepare(&table, step, changes, user_data);
            drop(table);
            log.append(entries)?;
        }
        lock(&self.table).commit(step, changes.iter().copied(), user_data);
        if let Some((disk, writer)) = &mut writer {
            writer.log.seal();
            let new = writer.log.shorter(&lock(&self.table));
            if let Some(new) = new {
                writer.log.replace(disk.directories.first(), new);
            }
            let commit_bytes = lock(&self.table).commit_bytes_max();
            writer.log.reserve(commit_bytes);
        }
        Ok(())
    }

    /// What tells the store from every other one, and its first directory; `None` in memory.
    pub(super) fn on_disk(&self) -> Option<(Identity, &Directory)> {
        let disk = self.disk.as_ref()?;
        let identity = *lock(&disk.writer).log.identity();
        Some((identity, disk.directories.first()))
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
