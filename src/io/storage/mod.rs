//! Storage: what can be done to files besides moving bytes.
//!
//! Opening, asking for alignment and length, reserving space, setting lengths. These calls can
//! block, so the driver hands them to [`crate::io::driver`]'s metadata threads. [`disk`] is the
//! file system, [`memory`] keeps everything in the process.

pub(crate) mod disk;
pub(crate) mod memory;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memory::MemoryFile;

pub(crate) use crate::sys::{Errno, FileIdentity};

/// What transfers need of an open file.
#[derive(Debug)]
pub(crate) enum FileHandle {
    /// A descriptor, closed on drop.
    Disk(OwnedFd),
    /// A file of the memory backend.
    Memory(Arc<MemoryFile>),
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It must exist.
    Read,
    /// It is created where it does not exist.
    Write,
    /// To be written; it must exist.
    Change,
}

/// What direct I/O demands of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    pub(crate) offset_bytes: u64,
    pub(crate) memory_bytes: u64,
}

impl Alignment {
    /// No demands: buffered I/O.
    pub(crate) const NONE: Alignment = Alignment {
        offset_bytes: 1,
        memory_bytes: 1,
    };
}

/// A file as [`Storage::open`] found it.
#[derive(Debug)]
pub(crate) struct OpenedFile {
    pub(crate) handle: Arc<FileHandle>,
    pub(crate) identity: FileIdentity,
    pub(crate) len_bytes: u64,
    pub(crate) writable: bool,
    /// Whether transfers bypass the page cache.
    pub(crate) direct: bool,
    /// Why not, where direct I/O was wanted.
    pub(crate) fallback_errno: Option<Errno>,
    pub(crate) alignment: Alignment,
}

/// Files and their lengths. Called by the metadata threads, several at once.
pub(crate) trait Storage: Send + Sync + std::fmt::Debug {
    /// Identity and length of the file at `path`; `None` where it must be opened to know.
    fn identify(&self, path: &CStr) -> Option<(FileIdentity, u64)>;

    /// Opens a file.
    fn open(&self, path: &CStr, access: Access) -> Result<OpenedFile, Errno>;

    /// Reserves space from `from` up to `end` and makes the file at least that long;
    /// `EOPNOTSUPP` where the file system cannot.
    fn reserve(&self, file: &FileHandle, from: u64, end: u64) -> Result<(), Errno>;

    /// Sets the exact length.
    fn set_len(&self, file: &FileHandle, len_bytes: u64) -> Result<(), Errno>;

    /// The length now.
    fn len_bytes(&self, file: &FileHandle) -> Result<u64, Errno>;

    /// Turns direct I/O off for an open file whose file system refused it at a transfer.
    fn clear_direct(&self, file: &FileHandle) -> Result<(), Errno>;
}
