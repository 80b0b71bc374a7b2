//! Files on a file system.
//!
//! Direct I/O is negotiated for each file: asked for at the open, its alignment taken from
//! `statx`. A file system that does not tell gets the alignment of a page, and is put to the test
//! by the first real transfer: the driver turns the file to buffered I/O if that is refused.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Access, Alignment, Errno, FileHandle, FileIdentity, OpenedFile, Storage};
use crate::base::config::DirectIo;
use crate::base::units::KIB;
use crate::sys::{self, FileKind, OpenFlags};

/// Assumed where direct I/O is accepted and the file system does not say what it demands.
const UNKNOWN_ALIGNMENT: Alignment = Alignment {
    offset_bytes: 4096,
    memory_bytes: 4096,
};

/// The largest alignment that direct I/O is used with.
const ALIGNMENT_BYTES_MAX: u64 = 64 * KIB;

/// The file systems of this machine.
#[derive(Debug)]
pub(crate) struct DiskStorage {
    direct_io: DirectIo,
}

impl DiskStorage {
    pub(crate) fn new(direct_io: DirectIo) -> DiskStorage {
        DiskStorage { direct_io }
    }

    /// Opens with direct I/O where wanted and possible; says why not where it was not.
    fn open_any(
        &self,
        path: &CStr,
        flags: OpenFlags,
    ) -> Result<(OwnedFd, bool, Option<Errno>), Errno> {
        if self.direct_io == DirectIo::Off {
            return Ok((sys::open(path, flags)?, false, None));
        }
        match sys::open(
            path,
            OpenFlags {
                direct: true,
                ..flags
            },
        ) {
            Ok(file) => Ok((file, true, None)),
            // KERNEL: open(2): EINVAL is how a file system refuses O_DIRECT.
            Err(errno @ (libc::EINVAL | libc::EOPNOTSUPP)) => {
                Ok((sys::open(path, flags)?, false, Some(errno)))
            }
            Err(errno) => Err(errno),
        }
    }

    fn alignment_of(file: &OwnedFd) -> Option<Alignment> {
        match sys::statx_dio(file.as_fd()) {
            Ok(Some(dio)) if dio.offset_bytes == 0 => None,
            // Blocks that do not fit into a bounce block.
            Ok(Some(dio)) if u64::from(dio.offset_bytes) > ALIGNMENT_BYTES_MAX => None,
            Ok(Some(dio)) => Some(Alignment {
                offset_bytes: u64::from(dio.offset_bytes),
                memory_bytes: u64::from(dio.memory_bytes.max(1)),
            }),
            Ok(None) | Err(_) => Some(UNKNOWN_ALIGNMENT),
        }
    }
}

fn file_of(handle: &FileHandle) -> Result<BorrowedFd<'_>, Errno> {
    match handle {
        FileHandle::Disk(file) => Ok(file.as_fd()),
        FileHandle::Memory(_) => Err(libc::EBADF),
    }
}

/// The errno for what is not a regular file; opening a FIFO would block for ever.
fn refuse(kind: FileKind) -> Result<(), Errno> {
    match kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(libc::EISDIR),
        FileKind::Link | FileKind::Other => Err(libc::EOPNOTSUPP),
    }
}

impl Storage for DiskStorage {
    fn identify(&self, path: &CStr) -> Option<(FileIdentity, u64)> {
        let status = sys::stat_identity(path).ok()?;
        Some((status.identity, status.len_bytes))
    }

    fn open(&self, path: &CStr, access: Access) -> Result<OpenedFile, Errno> {
        if let Ok(status) = sys::stat_identity(path) {
            refuse(status.kind)?;
        }
        let both = OpenFlags {
            read: true,
            write: true,
            ..OpenFlags::default()
        };
        let create = OpenFlags {
            create: true,
            ..both
        };
        let only_read = OpenFlags {
            write: false,
            ..both
        };
        let (opened, writable) = match access {
            Access::Write => (self.open_any(path, create), true),
            Access::Change => (self.open_any(path, both), true),
            // Open for both, so that a later write needs no second descriptor.
            Access::Read => match self.open_any(path, both) {
                Err(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) => {
                    (self.open_any(path, only_read), false)
                }
                opened => (opened, true),
            },
        };
        let (file, direct, refusal) = opened?;
        let status = sys::fstat(file.as_fd())?;
        refuse(status.kind)?;
        let alignment = if direct {
            Self::alignment_of(&file)
        } else {
            None
        };
        if direct && alignment.is_none() {
            sys::clear_direct(file.as_fd())?;
        }
        let refused = match (direct, alignment) {
            (true, None) => Some(libc::EINVAL),
            _ => refusal,
        };
        Ok(OpenedFile {
            handle: Arc::new(FileHandle::Disk(file)),
            identity: status.identity,
            len_bytes: status.len_bytes,
            writable,
            direct: alignment.is_some(),
            fallback_errno: refused,
            alignment: alignment.unwrap_or(Alignment::NONE),
        })
    }

    fn reserve(&self, file: &FileHandle, from: u64, end: u64) -> Result<(), Errno> {
        sys::allocate(file_of(file)?, from, end.saturating_sub(from))
    }

    fn set_len(&self, file: &FileHandle, len_bytes: u64) -> Result<(), Errno> {
        sys::set_len(file_of(file)?, len_bytes)
    }

    fn len_bytes(&self, file: &FileHandle) -> Result<u64, Errno> {
        Ok(sys::fstat(file_of(file)?)?.len_bytes)
    }

    fn clear_direct(&self, file: &FileHandle) -> Result<(), Errno> {
        sys::clear_direct(file_of(file)?)
    }
}
