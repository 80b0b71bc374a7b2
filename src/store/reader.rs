//! A store opened to be looked at: what it records, and whether its bytes are as they were written.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::Version;
use super::directory::{LOG, c_path, join, regular_file};
use super::file::{Role, StoreFile};
use super::header::FORMAT_VERSION;
use super::log_file::read_log;
use super::places::{check_file, is_gone, name_of};
use super::replay::Replay;
use super::striping::Area;
use super::table::StoredRecord;
use crate::base::checksum::Checksum;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, to_u64, to_usize};
use crate::sys;

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 4 * MIB;

/// What a store recorded when it was opened. Any thread may call any method.
///
/// It opens files for reading only, changes nothing, neither takes nor tries the lock, and so
/// works on a read-only file system, and beside a process that uses the store. It then tells what
/// was committed last when it was opened. What a later commit replaces may be written over by the
/// one after that: who verifies beside a writer opens a second reader before taking a wrong
/// checksum for damage, and looks whether [`StoredParameter::generation`] is still the same.
#[derive(Debug)]
pub struct StoreReader {
    read: Replay,
    log_bytes: u64,
    /// One for each place.
    data: Vec<StoreFile>,
    /// Empty where no durable version lies in them.
    spare: Vec<StoreFile>,
    data_bytes: u64,
}

/// A state that every parameter of a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredState<'a> {
    /// The name that it was added under.
    pub name: &'a str,
    /// The type of its elements in memory.
    pub dtype: Dtype,
    /// The type of its elements on storage.
    pub disk_dtype: Dtype,
}

/// A parameter as a store records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredParameter<'a> {
    /// The id that its user chose.
    pub id: u64,
    /// The name, where it was given one.
    pub name: Option<&'a str>,
    /// Elements of each state.
    pub numel: u64,
    /// Bytes that one version of it takes in the data files; they have room for two.
    pub extent_bytes: u64,
    /// The address of the durable version in bytes, which is its offset in the data file of a store
    /// in one directory; `None` where nothing was committed, and all states are zero.
    pub offset_bytes: Option<u64>,
    /// Counts the versions that were committed; 0 before the first.
    pub generation: u32,
    /// A bit for each state that is all zeros and was not written.
    pub zero_states: u8,
    /// Whether the store keeps checksums of this version.
    pub is_checked: bool,
}

impl StoreReader {
    /// Opens the store in these directories, in the order in which the store has them: each one
    /// holds `data`, the first one `log`; they are `rank<N>` below the optimizer's `path`.
    ///
    /// # Errors
    /// `Io`: `NOT_FOUND` where there is no store; `Corrupt`, also for too few directories and for
    /// another order; `Unsupported` for another version of the format; `NoMemory`.
    pub fn open(directories: &[impl AsRef<Path>]) -> Result<StoreReader> {
        let open = |directory: &Path| {
            let path = c_path(directory)?;
            let opened = sys::open_directory(&path);
            let opened =
                opened.map_err(|errno| Error::io("open", path.to_bytes(), None, errno, ""))?;
            Ok((path, opened))
        };
        let places = directories.iter().map(|directory| open(directory.as_ref()));
        let places: Vec<(CString, OwnedFd)> = places.collect::<Result<_>>()?;
        let file = |(path, directory): &(CString, OwnedFd), name: &CStr, role| {
            let file = sys::open_to_read_at(directory.as_fd(), name);
            regular_file(file, join(path, name), role, None)
        };
        let no_place = || Error::invalid("a store has a directory");
        let first = places.first().ok_or_else(no_place)?;
        let log = file(first, LOG, Role::Log)?.ok_or_else(|| {
            let detail = "there is no log in it: it is not a store, or not its first directory";
            Error::io("open", first.0.to_bytes(), None, libc::ENOENT, detail)
        })?;
        // In this order: records get their slots in the data files before they are in the log.
        let (bytes, read) = read_log(&log)?;
        let files = |area| -> Result<Vec<StoreFile>> {
            let open = |(number, place): (usize, &(CString, OwnedFd))| {
                let found = file(place, name_of(area), Role::Data)?;
                let found = found.ok_or_else(|| is_gone(&join(&place.0, name_of(area))))?;
                check_file(
                    &found,
                    area,
                    number,
                    places.len(),
                    &read.identity,
                    &read.table,
                )?;
                Ok(found)
            };
            places.iter().enumerate().map(open).collect()
        };
        let data = files(Area::Data)?;
        let spare = if read.table.spare_used_end().is_some() {
            files(Area::Spare)?
        } else {
            Vec::new()
        };
        let lengths = data.iter().map(StoreFile::len_bytes);
        Ok(StoreReader {
            log_bytes: to_u64(bytes.len()),
            data_bytes: lengths.sum::<Result<u64>>()?,
            read,
            data,
            spare,
        })
    }

    /// The version of the format that it is in.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        // No other version can be opened.
        FORMAT_VERSION
    }

    /// What tells this store from every other.
    #[must_use]
    pub fn identity(&self) -> [u8; 16] {
        self.read.identity
    }

    /// Steps done, as last committed.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.read.table.step
    }

    /// Commits so far.
    #[must_use]
    pub fn commits_count(&self) -> u64 {
        self.read.sequence
    }

    /// The user's own bytes, as last committed.
    #[must_use]
    pub fn user_data(&self) -> &[u8] {
        &self.read.table.user_data
    }

    /// Length of the log.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Bytes behind the last commit in the log: the remains of one that did not end, or of one
    /// that was being written at that moment. They mean nothing.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.log_bytes.saturating_sub(self.read.end)
    }

    /// Bytes that were written to slots since the store was made.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.read.table.written_bytes
    }

    /// How many directories it has.
    #[must_use]
    pub fn places_len(&self) -> usize {
        self.data.len()
    }

    /// The shares of its directories in what is registered next; empty where there is one.
    #[must_use]
    pub fn weights(&self) -> &[u32] {
        self.read.table.striping().weights().unwrap_or_default()
    }

    /// Whether all of it is dealt by these weights.
    pub(super) fn has_weights(&self, weights: &[u32]) -> bool {
        let mut stripes = self.read.table.striping().stripes();
        stripes.len() == 1 && stripes.all(|(_, own)| own == weights)
    }

    /// Length of the data files, which may be longer than their records.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Its states; the first one is the master parameter.
    pub fn states(&self) -> impl ExactSizeIterator<Item = StoredState<'_>> {
        let states = &self.read.table.layout().states;
        states.iter().map(|state| StoredState {
            name: &state.name,
            dtype: state.dtype,
            disk_dtype: state.disk_dtype,
        })
    }

    /// Its parameters, in the order in which they were first registered.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = StoredParameter<'_>> {
        let records = self.read.table.records().iter();
        records.map(|record| self.described(record))
    }

    fn described<'a>(&self, record: &'a StoredRecord) -> StoredParameter<'a> {
        let layout = self.read.table.layout();
        let offset = |version: Version| self.read.table.slot(record, version.slot).1;
        StoredParameter {
            id: record.id,
            name: record.name.as_deref(),
            numel: record.numel,
            extent_bytes: layout.extent_bytes(record.numel),
            offset_bytes: record.durable.map(offset),
            generation: record.durable.map_or(0, |version| version.generation),
            zero_states: record.durable.map_or(0, |version| version.zero_states),
            is_checked: record.durable.is_some_and(|version| version.checked),
        }
    }

    /// Reads the durable version of the parameter `index` from storage and compares its checksums;
    /// says how many bytes were compared. That is none where nothing was committed, where all is
    /// zero, and where the store keeps no checksums of it.
    ///
    /// # Errors
    /// `Checksum` names the state, its place, and both checksums; `InvalidArgument` where there is
    /// no such parameter; `Io`, `NoMemory`.
    pub fn verify(&self, index: usize) -> Result<u64> {
        let (table, no_record) = (&self.read.table, || Error::invalid("no such parameter"));
        let record = table.records().get(index).ok_or_else(no_record)?;
        let Some(version) = record.durable.filter(|version| version.checked) else {
            return Ok(0);
        };
        let layout = table.layout();
        let (area, start) = table.slot(record, version.slot);
        let mut compared_bytes = 0;
        for (number, state) in layout.states.iter().enumerate() {
            if version.is_zero(number) {
                continue;
            }
            let offset = start + layout.image(number, record.numel).start;
            let len_bytes = layout.image_bytes(number, record.numel);
            let found = self.checksum(area, offset, len_bytes)?;
            let expected = version.checksums[number];
            if found != expected {
                let (file, offset) = self.file_of(area, offset);
                return Err(Error::Checksum(Box::new(IoFailure {
                    operation: "verify",
                    path: file.path().to_string_lossy().into_owned(),
                    offset_bytes: Some(offset),
                    errno: 0,
                    detail: format!(
                        "{} of parameter {}{} has the checksum {found:08x}, and {expected:08x} \
                         was recorded",
                        state.name,
                        record.id,
                        in_brackets(record.name.as_deref()),
                    ),
                })));
            }
            compared_bytes += len_bytes;
        }
        Ok(compared_bytes)
    }

    /// The files of an area.
    fn files(&self, area: Area) -> &[StoreFile] {
        match area {
            Area::Data => &self.data,
            Area::Spare => &self.spare,
        }
    }

    /// The file and the offset of an address.
    fn file_of(&self, area: Area, address: u64) -> (&StoreFile, u64) {
        let (place, offset) = self.read.table.striping().find(area, address);
        (&self.files(area)[place], offset)
    }

    /// The checksum of a range of addresses, as it is on storage.
    fn checksum(&self, area: Area, address: u64, len_bytes: u64) -> Result<u32> {
        let room = to_usize(PIECE_BYTES.min(len_bytes))?;
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(room)
            .map_err(|_| Error::NoMemory(format!("{room} bytes to verify a state")))?;
        memory.resize(room, 0);
        let mut checksum = Checksum::new();
        for piece in self.read.table.striping().pieces(area, address, len_bytes) {
            let file = &self.files(area)[piece.place];
            file.forget_cached(piece.file_offset, piece.len_bytes);
            let mut done = 0;
            while done < piece.len_bytes {
                let part = &mut memory[..to_usize(PIECE_BYTES.min(piece.len_bytes - done))?];
                let at = piece.file_offset + done;
                if file.read_at(part, at)? < part.len() {
                    return Err(file.corrupt(at, "the file ends in the middle of a record"));
                }
                checksum.update(part);
                done += to_u64(part.len());
            }
            file.forget_cached(piece.file_offset, piece.len_bytes);
        }
        Ok(checksum.finish())
    }
}

fn in_brackets(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" ({name})"))
}
