//! What the process does to storage below a directory, for tests.
//!
//! Every call of [`sys`](super) that changes a file or a name is told to the recordings there are,
//! and so is every write of the ring. A [`Recording`] keeps what concerns its directory. What goes
//! past `sys` it does not see.
//!
//! Without a recording, as in every process but a test, this is one load of an atomic for a call.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::{
    Errno, FileIdentity, FileKind, fstat, names_in, open_directory, open_directory_at,
    open_to_read_at, read_at, stat_at,
};
use crate::memory::MemoryRange;

/// Bytes of what is there already are looked at in parts of this.
const PART_BYTES: usize = 64 << 10;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The directory's number.
    pub directory: u32,
    /// The name in it.
    pub name: CString,
}

/// One change of storage, in the order in which it was done. Files and directories are numbered by
/// the recording; its own directory is number 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file or a directory was made, and has the name from now on.
    Create {
        /// Its number.
        node: u32,
        /// Whether it is a directory.
        is_directory: bool,
        /// Its name.
        name: Name,
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
    /// All changes of a file, or of the names in a directory, so far are on storage.
    Sync {
        /// Its number.
        node: u32,
    },
    /// What had a name got another one, which is taken from what had it.
    Rename {
        /// The name before.
        from: Name,
        /// The name after.
        to: Name,
    },
    /// What had one name has the other one now.
    Exchange {
        /// One of the names.
        one: Name,
        /// The other one.
        other: Name,
    },
    /// A name was taken away.
    Remove {
        /// The name.
        name: Name,
    },
}

/// What is done to storage below a directory, from what was there at the beginning. Any thread may
/// call any method. See [`Recording::power_cut`].
#[derive(Debug)]
pub struct Recording {
    notes: Arc<Mutex<Notes>>,
}

#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) events: Vec<Event>,
    /// The numbers of what is there.
    pub(super) nodes: HashMap<FileIdentity, u32>,
    nodes_len: u32,
}

/// All recordings, and how many there are.
static RECORDINGS: RwLock<Vec<Arc<Mutex<Notes>>>> = RwLock::new(Vec::new());
static RECORDINGS_LEN: AtomicUsize = AtomicUsize::new(0);

impl Recording {
    /// Begins with what there is in a directory, as events that are all on storage.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn of(root: &Path) -> Result<Recording, Errno> {
        let path = CString::new(root.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)?;
        let directory = open_directory(&path)?;
        let mut notes = Notes::default();
        notes.number(fstat(directory.as_fd())?.identity);
        notes.walk(directory.as_fd(), 0)?;
        Ok(Recording::begin(notes))
    }

    pub(super) fn begin(notes: Notes) -> Recording {
        let notes = Arc::new(Mutex::new(notes));
        let mut all = RECORDINGS.write().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::clone(&notes));
        // ORDERING: relaxed; the caller makes the changes that are to be recorded after this call.
        RECORDINGS_LEN.store(all.len(), Ordering::Relaxed);
        Recording { notes }
    }

    /// Notes nothing from now on.
    pub fn stop(&self) {
        let mut all = RECORDINGS.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|notes| !Arc::ptr_eq(notes, &self.notes));
        // ORDERING: as above.
        RECORDINGS_LEN.store(all.len(), Ordering::Relaxed);
    }

    /// All that was noted so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.notes().events.clone()
    }

    /// How much was noted so far.
    #[must_use]
    pub fn events_len(&self) -> usize {
        self.notes().events.len()
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Notes {
    /// Those of somebody who noted these events, without the numbers of what is there.
    pub(super) fn after(events: Vec<Event>) -> Notes {
        let nodes = events.iter().map(|event| match event {
            Event::Create { node, .. } => node + 1,
            _ => 1,
        });
        Notes {
            nodes_len: nodes.max().unwrap_or(1),
            events,
            nodes: HashMap::new(),
        }
    }

    /// Numbers something new, which may have the identity of something that is gone.
    fn number(&mut self, identity: FileIdentity) -> u32 {
        let number = self.nodes_len;
        self.nodes.insert(identity, number);
        self.nodes_len += 1;
        number
    }

    fn node(&self, file: BorrowedFd<'_>) -> Option<u32> {
        self.nodes.get(&fstat(file).ok()?.identity).copied()
    }

    fn name(&self, (directory, name): (BorrowedFd<'_>, &CStr)) -> Option<Name> {
        let directory = self.node(directory)?;
        let name = name.to_owned();
        Some(Name { directory, name })
    }

    fn create(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Option<Event> {
        let status = stat_at(directory, name).ok()?;
        let name = self.name((directory, name))?;
        Some(Event::Create {
            node: self.number(status.identity),
            is_directory: status.kind == FileKind::Directory,
            name,
        })
    }

    /// Notes what there is in a directory.
    fn walk(&mut self, directory: BorrowedFd<'_>, number: u32) -> Result<(), Errno> {
        for name in names_in(directory)? {
            let status = stat_at(directory, &name)?;
            let node = self.nodes_len;
            let created = self.create(directory, &name);
            self.events.extend(created);
            match status.kind {
                FileKind::Directory => {
                    let inner = open_directory_at(directory, &name)?;
                    self.walk(inner.as_fd(), node)?;
                }
                FileKind::Regular => {
                    let file = open_to_read_at(directory, &name)?;
                    self.content(file.as_fd(), node, status.len_bytes)?;
                }
                FileKind::Link | FileKind::Other => {}
            }
            self.events.push(Event::Sync { node });
        }
        self.events.push(Event::Sync { node: number });
        Ok(())
    }

    fn content(&mut self, from: BorrowedFd<'_>, file: u32, len_bytes: u64) -> Result<(), Errno> {
        self.events.push(Event::SetLength { file, len_bytes });
        for offset_bytes in (0..len_bytes).step_by(PART_BYTES) {
            let mut bytes = vec![0; PART_BYTES];
            let len = read_at(from, &mut bytes, offset_bytes)?;
            bytes.truncate(len);
            if bytes.iter().any(|byte| *byte != 0) {
                self.events.push(Event::Write {
                    file,
                    offset_bytes,
                    bytes,
                });
            }
        }
        Ok(())
    }
}

/// Whether there is any recording.
pub(super) fn is_on() -> bool {
    // ORDERING: relaxed; as in `of`.
    RECORDINGS_LEN.load(Ordering::Relaxed) > 0
}

fn tell(event: impl Fn(&mut Notes) -> Option<Event>) {
    if is_on() {
        let all = RECORDINGS.read().unwrap_or_else(PoisonError::into_inner);
        for notes in all.iter() {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            let event = event(&mut notes);
            notes.events.extend(event);
        }
    }
}

/// Something was made.
pub(super) fn created(directory: BorrowedFd<'_>, name: &CStr) {
    tell(|notes| notes.create(directory, name));
}

/// A name was taken away from what had this identity.
pub(super) fn removed(directory: BorrowedFd<'_>, name: &CStr, identity: Option<FileIdentity>) {
    tell(|notes| {
        // The next file of anybody may have it.
        identity.and_then(|identity| notes.nodes.remove(&identity));
        let name = notes.name((directory, name))?;
        Some(Event::Remove { name })
    });
}

/// Something has another name.
pub(super) fn renamed(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr)) {
    tell(|notes| {
        let (from, to) = (notes.name(from)?, notes.name(to)?);
        Some(Event::Rename { from, to })
    });
}

/// Two names were exchanged.
pub(super) fn exchanged(one: (BorrowedFd<'_>, &CStr), other: (BorrowedFd<'_>, &CStr)) {
    tell(|notes| {
        let (one, other) = (notes.name(one)?, notes.name(other)?);
        Some(Event::Exchange { one, other })
    });
}

/// A file has another length.
pub(super) fn resized(file: BorrowedFd<'_>) {
    tell(|notes| {
        Some(Event::SetLength {
            file: notes.node(file)?,
            len_bytes: fstat(file).ok()?.len_bytes,
        })
    });
}

/// A file or directory is about to be synced: what is written meanwhile does not count.
pub(super) fn syncing(node: BorrowedFd<'_>) {
    tell(|notes| {
        let node = notes.node(node)?;
        Some(Event::Sync { node })
    });
}

/// The first bytes of the memory were written; they are still as they were.
pub(crate) fn written(
    file: BorrowedFd<'_>,
    from: MemoryRange,
    done_bytes: usize,
    offset_bytes: u64,
) {
    tell(|notes| {
        let file = notes.node(file)?;
        let mut bytes = vec![0; done_bytes];
        from.copy_out_of(0, &mut bytes).ok()?;
        Some(Event::Write {
            file,
            offset_bytes,
            bytes,
        })
    });
}

/// A range of a file holds what another file holds.
pub(super) fn cloned(file: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) {
    tell(|notes| {
        let number = notes.node(file)?;
        let mut bytes = vec![0; usize::try_from(len_bytes).ok()?];
        let len = read_at(file, &mut bytes, offset_bytes).ok()?;
        bytes.truncate(len);
        Some(Event::Write {
            file: number,
            offset_bytes,
            bytes,
        })
    });
}
