//! Making a snapshot: its directory, the space for its data, and the one step that publishes it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::partial::PartialDirectory;
use super::{DATA, MANIFEST, MANIFEST_CHECKSUM, Manifest};
use crate::base::checksum::crc32c;
use crate::base::error::{Error, Result};
use crate::store::{Role, StoreFile, join};
use crate::sys::{self, WriteLife};

/// A snapshot in the making, in `DIR.partial`. Dropped before [`SnapshotWriter::publish`], it
/// leaves nothing. One thread at a time.
#[derive(Debug)]
pub(crate) struct SnapshotWriter {
    data: StoreFile,
    data_bytes: u64,
    /// Of which this much needs no space of its own.
    cloned_bytes: AtomicU64,
    partial: PartialDirectory,
}

impl SnapshotWriter {
    /// Makes `directory.partial` with a `data` file of exactly `data_bytes`, all of it a hole, and
    /// the directories above it. What a killed process left there is removed first.
    ///
    /// # Errors
    /// `Io`: `EEXIST` where something is called `directory` already, a link among them; `Locked`
    /// where somebody else is making it; `InvalidArgument` for a path that does not end in a name.
    pub(crate) fn create(directory: &Path, data_bytes: u64) -> Result<SnapshotWriter> {
        SnapshotWriter::create_in(PartialDirectory::create(directory)?, data_bytes)
    }

    /// As [`SnapshotWriter::create`], in a directory that was just made.
    pub(super) fn create_in(partial: PartialDirectory, data_bytes: u64) -> Result<SnapshotWriter> {
        let data = create_file(&partial, DATA)?;
        data.hint(WriteLife::Extreme);
        data.set_len(data_bytes)?;
        Ok(SnapshotWriter {
            data,
            data_bytes,
            cloned_bytes: AtomicU64::new(0),
            partial,
        })
    }

    /// The file that the data goes to.
    pub(crate) fn data(&self) -> &StoreFile {
        &self.data
    }

    /// Writes all bytes at `offset_bytes` of the data.
    ///
    /// # Errors
    /// `Io`; a part may have been written.
    pub(super) fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        self.data.write_at(bytes, offset_bytes)
    }

    /// Reserves space for all of the data that is not there yet. Not before the first range that
    /// could not be cloned: clones take no space, and need none.
    ///
    /// # Errors
    /// `Io`: with `ENOSPC` the message names the bytes needed and those free.
    pub(crate) fn reserve(&self) -> Result<()> {
        if self.data_bytes == 0 {
            return Ok(());
        }
        // ORDERING: relaxed; whoever cloned and whoever reserves are one.
        let cloned = self.cloned_bytes.load(Ordering::Relaxed);
        let needed = self.data_bytes.saturating_sub(cloned);
        let free = self.data.free_bytes();
        // Asked before: a reservation that fails takes all that is free first, from a training too.
        // Nothing free is also what file systems say that do not tell.
        let reserved = match free > 0 && needed > free {
            true => Err(libc::ENOSPC),
            false => self.data.allocate(0, self.data_bytes),
        };
        match reserved {
            // KERNEL: fallocate(2): not every file system can reserve; the write that needs the
            // space finds out there.
            Ok(()) | Err(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
            Err(errno) => {
                let detail = format!("{needed} bytes needed, {free} free");
                let path = self.data.path().to_bytes();
                Err(Error::io("reserve", path, None, errno, detail))
            }
        }
    }

    /// Lets a range of the data share the blocks of a range of another file; false where the file
    /// system, or the two of them, cannot, so that it has to be copied. Offsets and length are
    /// multiples of 4096.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn clone_range(
        &self,
        from: BorrowedFd<'_>,
        from_offset_bytes: u64,
        len_bytes: u64,
        to_offset_bytes: u64,
    ) -> Result<bool> {
        let to = self.data.as_fd();
        match sys::clone_range(from, from_offset_bytes, len_bytes, to, to_offset_bytes) {
            Ok(()) => {
                // ORDERING: as above.
                self.cloned_bytes.fetch_add(len_bytes, Ordering::Relaxed);
                Ok(true)
            }
            // KERNEL: ioctl_ficlonerange(2). EINVAL: larger blocks, or one of the two is compressed
            // or has no checksums; ENOTTY: no file system of Linux' own.
            Err(
                libc::EXDEV
                | libc::EOPNOTSUPP
                | libc::EINVAL
                | libc::ENOTTY
                | libc::ENOSYS
                | libc::EPERM
                | libc::ETXTBSY,
            ) => Ok(false),
            Err(errno) => {
                let (path, offset) = (self.data.path().to_bytes(), Some(to_offset_bytes));
                Err(Error::io("clone", path, offset, errno, ""))
            }
        }
    }

    /// Makes a whole snapshot of it: syncs the data, writes the manifest and its checksum, syncs
    /// them, and gives the directory its name.
    ///
    /// # Errors
    /// `Io`: `EEXIST` where the name has been taken meanwhile; `Internal` for a manifest that does
    /// not fit the data. Nothing is left then, unless it was the very last sync that failed.
    pub(crate) fn publish(self, manifest: &Manifest) -> Result<()> {
        let json = manifest.encode()?;
        let data_bytes = self.data.len_bytes()?;
        if data_bytes != manifest.data_bytes {
            return Err(Error::Internal(format!(
                "a snapshot of {} bytes has {data_bytes}",
                manifest.data_bytes
            )));
        }
        self.data.sync()?;
        let checksum = format!("{:08x}\n", crc32c(&json));
        for (name, bytes) in [
            (MANIFEST, json.as_slice()),
            (MANIFEST_CHECKSUM, checksum.as_bytes()),
        ] {
            let file = create_file(&self.partial, name)?;
            file.write_at(bytes, 0)?;
            file.sync()?;
        }
        self.partial.publish()
    }
}

fn create_file(partial: &PartialDirectory, name: &CStr) -> Result<StoreFile> {
    let path = join(&partial.path(), name);
    let file = sys::open_at(partial.directory().as_fd(), name, true)
        .map_err(|errno| Error::io("create", path.to_bytes(), None, errno, ""))?;
    Ok(StoreFile::new(file, path, Role::Data, None))
}
