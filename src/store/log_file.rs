//! The log on storage: opened, appended to, replaced by a shorter one.
//!
//! INVARIANT: what lies before `end` is on storage once a commit returned, and is never changed;
//! nothing is written behind bytes that a reader could not read.

use super::Version;
use super::directory::{Directory, LOG, NEW_LOG};
use super::entry::{EntryWriter, Identity, Kind};
use super::file::{Role, StoreFile};
use super::header::{FORMAT_VERSION, LOG_HEADER_BYTES, LogHeader};
use super::replay::{Replay, Unreadable, replay};
use super::table::{RecordIndex, Table};
use crate::base::error::{Error, Result};
use crate::base::observe::events;
use crate::base::units::{FILE_OFFSET_MAX, MIB, round_up, to_u64, to_usize};

/// A log shorter than this is not replaced by a shorter one.
const COMPACT_BYTES_MIN: u64 = 4 * MIB;
/// A log is replaced when it is this many times as long as the one that would replace it.
const COMPACT_FACTOR: u64 = 4;

/// The log, open. One thread at a time.
#[derive(Debug)]
pub(crate) struct Log {
    file: StoreFile,
    identity: Identity,
    /// The number of the last commit.
    sequence: u64,
    /// Where the next commit goes.
    end: u64,
    /// The checksum of the last entry.
    previous: u32,
    /// Space is reserved up to here.
    reserved_end: u64,
    /// The length at which a shorter log is considered.
    compact_at: u64,
    /// Why nothing can be committed any more.
    failed: Option<Error>,
}

impl Log {
    /// Makes an empty log. It appears whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create(directory: &Directory, identity: Identity) -> Result<Log> {
        let header = LogHeader {
            identity,
            sequence: 0,
        };
        let begun = begin(&header);
        let file = directory.publish(LOG, &begun.bytes)?;
        Ok(Log::new(file, identity, 0, begun.position, begun.previous))
    }

    fn new(file: StoreFile, identity: Identity, sequence: u64, end: u64, previous: u32) -> Log {
        Log {
            file,
            identity,
            sequence,
            end,
            previous,
            reserved_end: 0,
            compact_at: COMPACT_BYTES_MIN,
            failed: None,
        }
    }

    /// Reads a log, cuts its torn tail off, and makes sure that all it says is on storage.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` for a later version, `Io`, `NoMemory`.
    pub(crate) fn open(file: StoreFile) -> Result<(Log, Table)> {
        let (bytes, read) = read_log(&file)?;
        let len_bytes = to_u64(bytes.len());
        if len_bytes > read.end {
            events::log_cut(file.path().to_bytes(), read.end, len_bytes);
            file.set_len(read.end)?;
        }
        // Whoever wrote the last commit may have died before it was on storage, or may have failed
        // to sync it. From now on the slots of the commit before it may be written, so it has to
        // be there. It is written again, because after a failed sync the kernel takes the pages for
        // clean (fsync(2)), and another sync would do nothing.
        if !read.sealed {
            let last = to_usize(read.last_from)?..to_usize(read.end)?;
            file.write_at(&bytes[last], read.last_from)?;
        }
        file.sync()?;
        let mut log = Log::new(file, read.identity, read.sequence, read.end, read.previous);
        if !read.sealed {
            log.seal();
        }
        Ok((log, read.table))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether commits are still possible.
    ///
    /// # Errors
    /// The failure after which they are not.
    pub(crate) fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Makes `outcome` what every later commit gets, where it is a failure.
    ///
    /// # Errors
    /// That failure.
    pub(crate) fn for_ever(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }

    /// A commit in the form of the log, with the states and records that are not part of it yet.
    pub(crate) fn prepare(
        &self,
        table: &Table,
        step: u64,
        changes: &[(RecordIndex, Version)],
        user_data: Option<&[u8]>,
    ) -> EntryWriter {
        let mut entries = EntryWriter::new(self.identity, self.end, self.previous);
        table.write_commit(&mut entries, self.sequence + 1, step, changes, user_data);
        entries
    }

    /// Appends a commit that was prepared since the last one, and waits until it is on storage.
    ///
    /// # Errors
    /// `Io`: where writing failed the log is as before; where syncing failed no later commit can
    /// succeed.
    pub(crate) fn append(&mut self, commit: EntryWriter) -> Result<()> {
        if let Err(error) = self.file.write_at(&commit.bytes, self.end) {
            // What was written of it would only be a torn tail, but it takes space as well.
            self.reserved_end = 0;
            let cut = self.file.set_len(self.end);
            return self.for_ever(cut).and(Err(error));
        }
        let synced = self.file.sync();
        self.for_ever(synced)?;
        self.end = commit.position;
        self.previous = commit.previous;
        self.sequence += 1;
        Ok(())
    }

    /// Says in the log that its last commit is on storage, so that damage to it is never taken for
    /// a commit that did not happen. Without a sync: what this adds is knowledge, not safety.
    pub(crate) fn seal(&mut self) {
        let mut entries = EntryWriter::new(self.identity, self.end, self.previous);
        entries.add(Kind::Seal, self.sequence, |_| {});
        // Without a seal the next commit is written at the same place, over what there is of it.
        if self.file.write_at(&entries.bytes, self.end).is_ok() {
            self.end = entries.position;
            self.previous = entries.previous;
        }
    }

    /// Reserves space for commits of so many bytes, where that is possible, so that a commit needs
    /// none on a disk that is full by then.
    pub(crate) fn reserve(&mut self, commit_bytes: u64) {
        let needed = self.end.saturating_add(commit_bytes);
        if needed > self.reserved_end {
            let ample = round_up(needed.saturating_add(commit_bytes), MIB).min(FILE_OFFSET_MAX);
            self.file.allocate_beyond_end(ample);
            self.reserved_end = ample;
        }
    }

    /// A log that says the same as this one and no more, where this one has become much longer
    /// than that. Everything in `table` has been committed.
    pub(crate) fn shorter(&mut self, table: &Table) -> Option<EntryWriter> {
        if self.end <= self.compact_at || self.failed.is_some() {
            return None;
        }
        let header = LogHeader {
            identity: self.identity,
            // The first commit in the new log takes the number of the last one in the old log.
            sequence: self.sequence.saturating_sub(1),
        };
        let mut entries = begin(&header);
        table.write_snapshot(&mut entries, self.sequence);
        entries.add(Kind::Seal, self.sequence, |_| {});
        self.compact_at = entries
            .position
            .saturating_mul(COMPACT_FACTOR)
            .max(COMPACT_BYTES_MIN);
        (self.end > self.compact_at).then_some(entries)
    }

    /// Puts a shorter log in place of this one. Where that fails the log stays as it is, and is
    /// left alone until it is twice as long.
    pub(crate) fn replace(&mut self, directory: &Directory, entries: EntryWriter) {
        match directory.replace(LOG, &entries.bytes) {
            Ok(file) => self.file = file,
            Err(error) => {
                events::log_not_compacted(&error.to_string());
                // Nobody reads it, and the next one removes it first.
                let _ = directory.remove(NEW_LOG);
                self.compact_at = self.end.saturating_mul(2);
                return;
            }
        }
        self.end = entries.position;
        self.previous = entries.previous;
        self.reserved_end = 0;
        // Until the directory is on storage either log may be found after a crash. They say the
        // same now, but only the new one is written to from here on.
        let synced = directory.sync();
        let _ = self.for_ever(synced);
    }
}

/// Reads a whole log: its bytes, and what they say. Changes nothing.
///
/// # Errors
/// As [`Log::open`].
pub(crate) fn read_log(file: &StoreFile) -> Result<(Vec<u8>, Replay)> {
    // A file that is no log may be of any length: its beginning first.
    let header = file.read_up_to(to_u64(LOG_HEADER_BYTES))?;
    LogHeader::decode(&header).map_err(|bad| error_of(file, bad.into()))?;
    let bytes = file.read_up_to(FILE_OFFSET_MAX)?;
    let read = replay(&bytes).map_err(|unreadable| error_of(file, unreadable))?;
    Ok((bytes, read))
}

/// The header of a log, to be followed by entries.
fn begin(header: &LogHeader) -> EntryWriter {
    let bytes = header.encode();
    let checksum = bytes.last_chunk().map_or(0, |end| u32::from_le_bytes(*end));
    let mut entries = EntryWriter::new(header.identity, to_u64(bytes.len()), checksum);
    entries.bytes.extend_from_slice(&bytes);
    entries
}

/// The error for a file that cannot be read.
pub(crate) fn error_of(file: &StoreFile, unreadable: Unreadable) -> Error {
    match unreadable {
        Unreadable::Damaged { offset, reason } => file.corrupt(offset, reason),
        Unreadable::Version(version) => Error::Unsupported {
            message: format!(
                "{} is in version {version} of the format; this build knows {FORMAT_VERSION}",
                file.path().to_string_lossy()
            ),
            errno: 0,
        },
    }
}

/// Opens the log; `None` where there is none.
///
/// # Errors
/// As [`Log::open`].
pub(crate) fn open_log(directory: &Directory) -> Result<Option<(Log, Table)>> {
    let file = directory.open_file(LOG, Role::Log)?;
    file.map(Log::open).transpose()
}
