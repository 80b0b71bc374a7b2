//! One of the store's own files, open: system calls whose failures say what failed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{to_u64, to_usize};
use crate::io::{Engine, FileIdentity, StoreCall, StoreFaults};
use crate::sys::{self, Errno, WriteLife};

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Holds the extents.
    Data,
    /// Holds third slots.
    Spare,
    /// Holds the log.
    Log,
    /// Is to replace the log.
    NewLog,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct StoreFile {
    file: OwnedFd,
    path: CString,
    pub(crate) role: Role,
    faults: Option<Arc<StoreFaults>>,
}

impl AsFd for StoreFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl StoreFile {
    pub(crate) fn new(
        file: OwnedFd,
        path: CString,
        role: Role,
        faults: Option<Arc<StoreFaults>>,
    ) -> StoreFile {
        StoreFile {
            file,
            path,
            role,
            faults,
        }
    }

    pub(crate) fn path(&self) -> &CStr {
        &self.path
    }

    /// What tells it from every other file.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn identity(&self) -> Result<FileIdentity> {
        match sys::fstat(self.file.as_fd()) {
            Ok(status) => Ok(status.identity),
            Err(errno) => Err(Error::io("stat", self.path.to_bytes(), None, errno, "")),
        }
    }

    /// Has the engine close it, which keeps what it has read or written open. For its owner, who has
    /// done with it. Does not wait.
    pub(crate) fn close_in(&self, engine: &Engine) {
        // Otherwise it is closed when the engine needs its place.
        if let Ok(identity) = self.identity() {
            engine.close_file(identity);
        }
    }

    /// Tells the drive how long what is written to it lives, where that can be told: drives that
    /// keep data of different lives apart have less to move when they make room.
    pub(crate) fn hint(&self, life: WriteLife) {
        // It is as good a file without.
        let _ = sys::set_write_life(self.file.as_fd(), life);
    }

    /// Takes the path that the file has after it was renamed.
    pub(crate) fn renamed(&mut self, path: CString, role: Role) {
        self.path = path;
        self.role = role;
    }

    fn failed(&self, operation: &'static str, offset: Option<u64>, errno: Errno) -> Error {
        Error::io(operation, self.path.to_bytes(), offset, errno, "")
    }

    /// The error for contents that cannot be.
    pub(crate) fn corrupt(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::Corrupt(Box::new(IoFailure {
            operation: "open",
            path: self.path.to_string_lossy().into_owned(),
            offset_bytes: Some(offset),
            errno: 0,
            detail: detail.into(),
        }))
    }

    fn strike(&self, call: StoreCall) -> Result<(), Errno> {
        match &self.faults {
            Some(faults) => faults.strike(call),
            None => Ok(()),
        }
    }

    /// Its length.
    pub(crate) fn len_bytes(&self) -> Result<u64> {
        let status = sys::fstat(self.file.as_fd());
        Ok(status
            .map_err(|errno| self.failed("stat", None, errno))?
            .len_bytes)
    }

    /// All bytes from the beginning, `len_bytes` at most.
    ///
    /// # Errors
    /// `Io`, `NoMemory`.
    pub(crate) fn read_up_to(&self, len_bytes: u64) -> Result<Vec<u8>> {
        let len_bytes = to_usize(len_bytes.min(self.len_bytes()?))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len_bytes).map_err(|_| {
            let path = self.path.to_string_lossy();
            Error::NoMemory(format!("{len_bytes} bytes to read {path}"))
        })?;
        bytes.resize(len_bytes, 0);
        let done = self.read_at(&mut bytes, 0)?;
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Fills `bytes` from `offset` on as far as the file goes; says how far.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + to_u64(done);
            match sys::read_at(self.file.as_fd(), &mut bytes[done..], at) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(errno) => return Err(self.failed("read", Some(at), errno)),
            }
        }
        Ok(done)
    }

    /// Lets the next read of a range be one of storage, where the kernel permits it.
    pub(crate) fn forget_cached(&self, offset: u64, len_bytes: u64) {
        // What stays in memory is what was read from storage before, or is about to go there.
        let _ = sys::forget_cached(self.file.as_fd(), offset, len_bytes);
    }

    /// Writes all bytes at `offset`, in as few calls as the system permits.
    ///
    /// # Errors
    /// `Io`; a part may have been written.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut cut = bytes.len();
        let mut refusal = Ok(());
        if self.role == Role::Log {
            refusal = self.strike(StoreCall::Append).inspect_err(|_| cut = 0);
            if refusal.is_ok() {
                refusal = self
                    .strike(StoreCall::AppendInPart)
                    .inspect_err(|_| cut = bytes.len() / 2);
            }
        }
        let (bytes, at) = (&bytes[..cut], offset);
        within_limit(at.saturating_add(to_u64(cut)))
            .map_err(|errno| self.failed("write", Some(at), errno))?;
        let mut done = 0;
        while done < bytes.len() {
            let offset = at + to_u64(done);
            match sys::write_at(self.file.as_fd(), &bytes[done..], offset) {
                // Nothing written and no reason told: never on a regular file.
                Ok(0) => return Err(self.failed("write", Some(offset), libc::EIO)),
                Ok(more) => done += more,
                Err(errno) => return Err(self.failed("write", Some(offset), errno)),
            }
        }
        refusal.map_err(|errno| self.failed("write", Some(at), errno))
    }

    /// Waits until all that was written is on storage. After a failure nothing is known about
    /// what is, and the call must never be tried again.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn sync(&self) -> Result<()> {
        let call = match self.role {
            Role::Data | Role::Spare => StoreCall::SyncData,
            Role::Log => StoreCall::SyncLog,
            Role::NewLog => StoreCall::SyncNewLog,
        };
        let failed = |errno| self.failed("sync", None, errno);
        self.strike(call).map_err(failed)?;
        sys::sync_data(self.file.as_fd()).map_err(failed)
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// `Io`; `EFBIG` beyond the longest file that the process may make.
    pub(crate) fn set_len(&self, len_bytes: u64) -> Result<()> {
        let failed = |errno| self.failed("truncate", Some(len_bytes), errno);
        self.strike(StoreCall::SetLength).map_err(failed)?;
        within_limit(len_bytes).map_err(failed)?;
        sys::set_len(self.file.as_fd(), len_bytes).map_err(failed)
    }

    /// Reserves space from `from` to `end` and makes the file at least that long.
    ///
    /// # Errors
    /// The errno, as `fallocate(2)`.
    pub(crate) fn allocate(&self, from: u64, end: u64) -> Result<(), Errno> {
        self.strike(StoreCall::Reserve)?;
        within_limit(end)?;
        sys::allocate(self.file.as_fd(), from, end - from)
    }

    /// Reserves space up to `end` where that is possible; the length stays.
    pub(crate) fn allocate_beyond_end(&self, end: u64) {
        // What could not be reserved is asked for again by the write that needs it.
        let _ = sys::allocate_keeping_len(self.file.as_fd(), 0, end);
    }

    /// Bytes free on its file system.
    pub(crate) fn free_bytes(&self) -> u64 {
        sys::free_bytes(self.file.as_fd()).unwrap_or(0)
    }
}

/// Beyond the process' own limit the kernel would end it with a signal.
fn within_limit(end: u64) -> Result<(), Errno> {
    match sys::file_size_limit_bytes() {
        Ok(limit) if end > limit => Err(libc::EFBIG),
        _ => Ok(()),
    }
}
