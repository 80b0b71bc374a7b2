//! The directories of a store, its *places*, and the files of records in them.
//!
//! Each holds a `data` file with its part of the records, and while there is a snapshot, or records
//! from then lie in it, a `spare` file. The first one also holds the log and the scratch directory.

use std::ffi::{CStr, CString};

use super::directory::{DATA, Directory, LOG, NEW_LOG, SPARE};
use super::entry::Identity;
use super::file::{Role, StoreFile};
use super::header::{DATA_START_BYTES, PLACE_HEADER_BYTES, PlaceHeader};
use super::log_file::error_of;
use super::reservation::Reservation;
use super::striping::{Area, PLACES_MAX};
use super::table::Table;
use crate::base::config::{OptimizerOptions, StoreMode};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::to_u64;
use crate::io::Engine;
use crate::sys;

/// The directories of a store, locked, in their order.
#[derive(Debug)]
pub(crate) struct Directories(Vec<Directory>);

impl Directories {
    /// Opens and locks the directories; makes them where there is no store, and the options allow
    /// for a new one.
    ///
    /// # Errors
    /// `Locked`, `Io`, `InvalidArgument` for too many.
    pub(crate) fn open(engine: &Engine, options: &OptimizerOptions) -> Result<Directories> {
        let create = options.store != StoreMode::Existing;
        let Some((first, others)) = options.directories.split_first() else {
            return Err(Error::invalid("a store needs a directory"));
        };
        if others.len() >= PLACES_MAX {
            return Err(Error::invalid(format!(
                "a store has at most {PLACES_MAX} directories"
            )));
        }
        let open = |path, create| {
            let faults = engine.store_faults().cloned();
            Directory::open(path, options.rank, create, faults)
        };
        let mut directories = vec![open(&first.path, create)?];
        // A directory that is missing from a store must not be made anew.
        let is_there = directories[0].open_file(LOG, Role::Log)?.is_some();
        let create = create && (!is_there || options.store == StoreMode::New);
        for other in others {
            directories.push(open(&other.path, create)?);
        }
        Ok(Directories(directories))
    }

    /// The one that holds the log.
    pub(crate) fn first(&self) -> &Directory {
        &self.0[0]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Directory> {
        self.0.iter()
    }

    /// Lets others have them; nothing in them is used any more.
    pub(crate) fn unlock(&self) {
        for directory in &self.0 {
            directory.unlock();
        }
    }

    /// The paths of a file that lies in each of them.
    pub(crate) fn paths_of(&self, name: &CStr) -> Vec<CString> {
        let directories = self.0.iter();
        directories
            .map(|directory| directory.path_of(name))
            .collect()
    }

    /// Removes what a store consists of, and nothing else.
    pub(crate) fn remove_files(&self) -> Result<()> {
        for directory in &self.0 {
            directory.remove(LOG)?;
            // Without its log a store is none; with it, but without its data, it would be a
            // damaged one.
            directory.sync()?;
        }
        for directory in &self.0 {
            for name in [NEW_LOG, SPARE, DATA] {
                directory.remove(name)?;
            }
        }
        Ok(())
    }

    /// Makes the data files of a new store. There is no log in the first directory. What somebody
    /// left who was stopped while he made the same store is made to its end; says whose it is.
    ///
    /// # Errors
    /// `Corrupt` where there are records, or what belongs to another store; `Io`.
    pub(crate) fn create_data(&self) -> Result<(Identity, Vec<PlaceFile>)> {
        let mut identity = None;
        for (number, directory) in self.0.iter().enumerate() {
            let begun = self.begun_data(number)?;
            if number == 0 {
                identity = begun.map(|(_, header)| header.identity);
            } else if let Some(log) = directory.open_file(LOG, Role::Log)? {
                return Err(log.corrupt(0, "it is another store's, whose first directory this is"));
            } else if let Some((data, header)) = begun
                && identity != Some(header.identity)
            {
                return Err(kept(&data, "it belongs to another store"));
            }
        }
        let identity = match identity {
            Some(identity) => identity,
            None => new_identity(self.first().path())?,
        };
        Ok((identity, self.create_files(Area::Data, &identity)?))
    }

    /// The data file of a place where there is no log, and how it begins: its store was begun and
    /// never held anything, or no record has reached this place. `None` where there is no such file,
    /// or it was cut off while it was made.
    ///
    /// # Errors
    /// `Corrupt` where it holds records, or is at another place; `Unsupported`, `Io`.
    fn begun_data(&self, number: usize) -> Result<Option<(StoreFile, PlaceHeader)>> {
        let Some(data) = self.0[number].open_file(DATA, Role::Data)? else {
            return Ok(None);
        };
        let header = match header_of(&data, Area::Data) {
            Ok(header) => Some(header),
            Err(Error::Corrupt(_)) => None,
            Err(error) => return Err(error),
        };
        if let Some(header) = header {
            let (place, len) = (header.place as usize, header.places_len as usize);
            if (place, len) != (number, self.0.len()) {
                let why = format!("it is directory {} of {len} of a store", place + 1);
                return Err(kept(&data, &why));
            }
        }
        // Records get space only after the log is there.
        if data.len_bytes()? > DATA_START_BYTES {
            return Err(kept(&data, "its log is gone"));
        }
        Ok(header.map(|header| (data, header)))
    }

    /// Makes a file for an area in each of the directories, with its header, on storage. A data file
    /// that is there is one that [`create_data`](Directories::create_data) found begun.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create_files(&self, area: Area, identity: &Identity) -> Result<Vec<PlaceFile>> {
        let mut files = Vec::new();
        for (number, directory) in (0..).zip(&self.0) {
            let header = PlaceHeader {
                identity: *identity,
                area,
                place: number,
                places_len: u32::try_from(self.0.len()).unwrap_or(u32::MAX),
            };
            let begun = match area {
                Area::Data => directory.open_file(name_of(area), role_of(area))?,
                // Of a store that is open, nobody else has begun any.
                Area::Spare => None,
            };
            let file = match begun {
                Some(file) => file,
                None => directory.create(name_of(area), role_of(area))?,
            };
            file.write_at(&header.encode(), 0)?;
            file.set_len(DATA_START_BYTES)?;
            file.sync()?;
            // One directory alone is synced with the log in it. Of several the first one is known
            // to be this store's whenever another is.
            if self.0.len() > 1 || area == Area::Spare {
                directory.sync()?;
            }
            files.push(PlaceFile::new(file)?);
        }
        Ok(files)
    }

    /// Opens the files of an area, and checks that they are this store's, in their order, and have
    /// all that the log records up to the address `end`.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`.
    pub(crate) fn open_files(
        &self,
        area: Area,
        identity: &Identity,
        table: &Table,
    ) -> Result<Vec<PlaceFile>> {
        let mut files = Vec::new();
        for (number, directory) in self.0.iter().enumerate() {
            let file = directory.open_file(name_of(area), role_of(area))?;
            let file = file.ok_or_else(|| is_gone(&directory.path_of(name_of(area))))?;
            check_file(&file, area, number, self.0.len(), identity, table)?;
            files.push(PlaceFile::new(file)?);
        }
        Ok(files)
    }

    /// Removes the files for third slots, in which nothing lies.
    pub(crate) fn remove_spare(&self) -> Result<()> {
        for directory in &self.0 {
            // Somebody may have the file open, and its space is to be free now.
            if let Some(spare) = directory.open_file(SPARE, Role::Spare)? {
                spare.set_len(0)?;
            }
            directory.remove(SPARE)?;
        }
        Ok(())
    }
}

/// The file of one place for an area, and how far its space is reserved.
#[derive(Debug)]
pub(crate) struct PlaceFile {
    pub(crate) file: StoreFile,
    reservation: Reservation,
}

impl PlaceFile {
    fn new(file: StoreFile) -> Result<PlaceFile> {
        let reservation = Reservation::new(file.len_bytes()?);
        Ok(PlaceFile { file, reservation })
    }

    /// Makes sure that there is space up to an offset.
    ///
    /// # Errors
    /// As [`Reservation::reach`].
    pub(crate) fn reach(&mut self, end: u64) -> Result<()> {
        self.reservation.reach(&self.file, end)
    }
}

/// Waits until all that was written to the files is on storage; they may be on different drives.
///
/// # Errors
/// `Io`, the first in the order of the places.
pub(crate) fn sync_all(files: &[&StoreFile]) -> Result<()> {
    match files {
        [] => Ok(()),
        [file] => file.sync(),
        [first, others @ ..] => std::thread::scope(|scope| {
            let syncs: Vec<_> = others
                .iter()
                .map(|file| {
                    scope.spawn(move || {
                        sys::block_signals();
                        file.sync()
                    })
                })
                .collect();
            let mut outcome = first.sync();
            for sync in syncs {
                let panicked = |_| Err(Error::Internal("a sync panicked".to_owned()));
                outcome = outcome.and(sync.join().unwrap_or_else(panicked));
            }
            outcome
        }),
    }
}

/// The name of an area's file.
pub(crate) fn name_of(area: Area) -> &'static CStr {
    match area {
        Area::Data => DATA,
        Area::Spare => SPARE,
    }
}

fn role_of(area: Area) -> Role {
    match area {
        Area::Data => Role::Data,
        Area::Spare => Role::Spare,
    }
}

/// How the file of one place begins.
///
/// # Errors
/// `Corrupt` where it does not begin so, `Unsupported` for a later version, `Io`.
pub(super) fn header_of(file: &StoreFile, area: Area) -> Result<PlaceHeader> {
    let bytes = file.read_up_to(to_u64(PLACE_HEADER_BYTES))?;
    PlaceHeader::decode(area, &bytes).map_err(|bad| error_of(file, bad.into()))
}

/// The error for a data file that is not written over.
fn kept(data: &StoreFile, why: &str) -> Error {
    let advice = "name a store's directories in their order; store=new gives up what they hold";
    data.corrupt(0, format!("{why}; {advice}"))
}

fn new_identity(path: &CStr) -> Result<Identity> {
    let mut identity: Identity = [0; 16];
    sys::fill_random(&mut identity)
        .map_err(|errno| Error::io("getrandom", path.to_bytes(), None, errno, ""))?;
    Ok(identity)
}

/// The error for a log without one of its files.
pub(crate) fn is_gone(path: &CStr) -> Error {
    Error::Corrupt(Box::new(IoFailure {
        operation: "open",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: libc::ENOENT,
        detail: "the log is there".to_owned(),
    }))
}

/// Checks that a file belongs to a log, is at its place, and has all that the log records.
///
/// # Errors
/// `Corrupt`, `Unsupported` for a later version, `Io`.
pub(crate) fn check_file(
    file: &StoreFile,
    area: Area,
    place: usize,
    places_len: usize,
    identity: &Identity,
    table: &Table,
) -> Result<()> {
    let header = header_of(file, area)?;
    if header.identity != *identity {
        return Err(file.corrupt(0, "it belongs to another store than the log"));
    }
    if to_u64(header.places_len as usize) != to_u64(places_len) {
        let len = header.places_len;
        let detail = format!(
            "the store has {len} directories, and {places_len} were given: name all of them, in \
             their order"
        );
        return Err(file.corrupt(0, detail));
    }
    if header.place as usize != place {
        let (is, given) = (header.place + 1, place + 1);
        let detail = format!(
            "this is directory {is} of the store, and was given as number {given}: the order of \
             directories must stay as it was"
        );
        return Err(file.corrupt(0, detail));
    }
    let striping = table.striping();
    let needed = match area {
        _ if striping.places_len() != places_len => DATA_START_BYTES,
        Area::Data => striping.file_bytes(area, place, table.end()),
        Area::Spare => {
            let end = table.spare_used_end().unwrap_or(DATA_START_BYTES);
            striping.file_bytes(area, place, end)
        }
    };
    let len_bytes = file.len_bytes()?;
    if len_bytes < needed {
        let detail = format!("{needed} bytes are recorded in the log");
        return Err(file.corrupt(len_bytes, detail));
    }
    Ok(())
}
