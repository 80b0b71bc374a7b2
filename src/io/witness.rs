//! A witness of everything that changes storage, for tests.
//!
//! An engine that has one notes every write of its backend when it is done; the store notes its
//! own calls. From the notes [`Witness::power_cut`] builds what a disk could hold had the power
//! failed at any moment. The witness can also make calls of the store fail.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::storage::FileHandle;
use crate::base::sync::{Mutex, lock};
use crate::memory::MemoryRange;
use crate::sys::{self, Errno, FileIdentity};

/// One change of storage, in the order in which it was done. Files are numbered by the witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file was made, and has the name from now on.
    Create {
        /// Its number.
        file: u32,
        /// Its path.
        path: PathBuf,
    },
    /// Bytes were written.
    Write {
        /// The file's number.
        file: u32,
        /// Where.
        offset_bytes: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The length was set; what is beyond is gone, what is new is zero.
    SetLength {
        /// The file's number.
        file: u32,
        /// The length.
        len_bytes: u64,
    },
    /// All changes of the file so far are on storage.
    Sync {
        /// The file's number.
        file: u32,
    },
    /// A name was given to the file that had another one, and taken from what had it.
    Rename {
        /// The name before.
        from: PathBuf,
        /// The name after.
        to: PathBuf,
    },
    /// A name was taken away.
    Remove {
        /// The name.
        path: PathBuf,
    },
    /// All names in a directory are on storage as they are.
    SyncDirectory {
        /// The directory.
        path: PathBuf,
    },
}

/// A call of the store that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreCall {
    /// Syncing the data file.
    SyncData,
    /// Syncing the log.
    SyncLog,
    /// Syncing a log that is to replace the log.
    SyncNewLog,
    /// Syncing the directory.
    SyncDirectory,
    /// Writing to the log, nothing done.
    Append,
    /// Writing to the log, half of it done.
    AppendInPart,
    /// Cutting or extending the log or the data file.
    SetLength,
    /// Putting a new log in place.
    Rename,
    /// Reserving space for records.
    Reserve,
}

/// Notes what changes storage, and makes calls of the store fail. Any thread may call any method.
#[derive(Debug, Default)]
pub struct Witness {
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    events: Vec<Event>,
    files: HashMap<FileIdentity, u32>,
    files_made: u32,
    faults: Vec<Fault>,
}

#[derive(Debug)]
struct Fault {
    call: StoreCall,
    skip_count: u32,
    fail_count: u32,
    errno: Errno,
}

impl Notes {
    /// The number of a file; a `new` one may have the identity of a file that is gone.
    fn number(&mut self, identity: FileIdentity, new: bool) -> u32 {
        let next = self.files_made;
        if new {
            self.files.remove(&identity);
        }
        let number = *self.files.entry(identity).or_insert(next);
        self.files_made += u32::from(number == next);
        number
    }
}

impl Witness {
    /// A witness that has seen nothing.
    #[must_use]
    pub fn new() -> Witness {
        Witness::default()
    }

    /// All that was noted so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        lock(&self.notes).events.clone()
    }

    /// How much was noted so far.
    #[must_use]
    pub fn events_len(&self) -> usize {
        lock(&self.notes).events.len()
    }

    /// Makes `fail_count` calls fail with `errno`, after `skip_count` that do not.
    pub fn fail(&self, call: StoreCall, skip_count: u32, fail_count: u32, errno: Errno) {
        lock(&self.notes).faults.push(Fault {
            call,
            skip_count,
            fail_count,
            errno,
        });
    }

    /// Lets every call through again.
    pub fn forgive(&self) {
        lock(&self.notes).faults.clear();
    }

    /// Whether a call is to fail, and how.
    ///
    /// # Errors
    /// The errno to fail with.
    pub(crate) fn strike(&self, call: StoreCall) -> Result<(), Errno> {
        let mut notes = lock(&self.notes);
        let mut faults = notes.faults.iter_mut();
        let Some(fault) = faults.find(|fault| fault.call == call && fault.fail_count > 0) else {
            return Ok(());
        };
        if fault.skip_count > 0 {
            fault.skip_count -= 1;
            return Ok(());
        }
        fault.fail_count -= 1;
        Err(fault.errno)
    }

    pub(crate) fn note(&self, event: Event) {
        lock(&self.notes).events.push(event);
    }

    /// Notes something about an open file, which is told its number. Files of which nothing can be
    /// learned are left out.
    pub(crate) fn note_file(
        &self,
        file: BorrowedFd<'_>,
        new: bool,
        event: impl FnOnce(u32) -> Event,
    ) {
        if let Ok(status) = sys::fstat(file) {
            let mut notes = lock(&self.notes);
            let number = notes.number(status.identity, new);
            notes.events.push(event(number));
        }
    }

    /// Notes a write of the engine's; the memory is still as it was written.
    pub(crate) fn note_transfer(
        &self,
        file: &FileHandle,
        offset_bytes: u64,
        memory: MemoryRange,
        done_bytes: usize,
    ) {
        let FileHandle::Disk(file) = file else {
            return;
        };
        let mut bytes = vec![0; done_bytes];
        if memory.copy_out_of(0, &mut bytes).is_ok() {
            self.note_file(file.as_fd(), false, |file| Event::Write {
                file,
                offset_bytes,
                bytes,
            });
        }
    }
}

/// A path as notes have it.
pub(crate) fn path_of(path: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
}
