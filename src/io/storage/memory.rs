//! Files in the memory of the process: the `memory` backend, for tests of bindings.
//!
//! Paths are compared as text; a directory exists without being made. Nothing touches a disk.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, RwLock};

use super::{Access, Alignment, Errno, FileHandle, FileIdentity, OpenedFile, Storage};
use crate::base::units::to_u64;
use crate::memory::MemoryRange;

/// One file's bytes.
#[derive(Debug, Default)]
pub(crate) struct MemoryFile {
    inode: u64,
    bytes: RwLock<Vec<u8>>,
}

impl MemoryFile {
    /// Reads what exists at `offset`; returns how much.
    pub(crate) fn read(&self, offset: u64, into: MemoryRange) -> Result<usize, Errno> {
        let bytes = self
            .bytes
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let len = into.len().min(bytes.len() - start);
        into.copy_into(0, &bytes[start..start + len])
            .map_err(|_| libc::EFAULT)?;
        Ok(len)
    }

    /// Writes at `offset`, growing the file.
    pub(crate) fn write(&self, offset: u64, from: MemoryRange) -> Result<usize, Errno> {
        let start = usize::try_from(offset).map_err(|_| libc::EFBIG)?;
        let end = start.checked_add(from.len()).ok_or(libc::EFBIG)?;
        let mut bytes = self
            .bytes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        resize(&mut bytes, end, true)?;
        from.copy_out_of(0, &mut bytes[start..end])
            .map_err(|_| libc::EFAULT)?;
        Ok(from.len())
    }
}

/// Makes `bytes` `len` long (or at least that, with `grow_only`), as a full disk would refuse it.
fn resize(bytes: &mut Vec<u8>, len: usize, grow_only: bool) -> Result<(), Errno> {
    if len > bytes.len() {
        bytes
            .try_reserve(len - bytes.len())
            .map_err(|_| libc::ENOSPC)?;
    } else if grow_only {
        return Ok(());
    }
    bytes.resize(len, 0);
    Ok(())
}

/// All files of one engine.
#[derive(Debug, Default)]
pub(crate) struct MemoryStorage {
    files: RwLock<HashMap<CString, Arc<MemoryFile>>>,
}

impl MemoryStorage {
    fn find(&self, path: &CStr) -> Option<Arc<MemoryFile>> {
        self.files
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(path)
            .map(Arc::clone)
    }
}

fn file_of(handle: &FileHandle) -> Result<&MemoryFile, Errno> {
    match handle {
        FileHandle::Memory(file) => Ok(file),
        FileHandle::Disk(_) => Err(libc::EBADF),
    }
}

impl Storage for MemoryStorage {
    fn identify(&self, path: &CStr) -> Option<(FileIdentity, u64)> {
        let file = self.find(path)?;
        let len = file
            .bytes
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .len();
        Some((
            FileIdentity {
                device: 0,
                inode: file.inode,
            },
            to_u64(len),
        ))
    }

    fn open(&self, path: &CStr, access: Access) -> Result<OpenedFile, Errno> {
        let found = self.find(path);
        let file = match (found, access) {
            (Some(file), _) => file,
            (None, Access::Read | Access::Change) => return Err(libc::ENOENT),
            (None, Access::Write) => {
                let mut files = self
                    .files
                    .write()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let inode = to_u64(files.len()) + 1;
                let file = files.entry(path.to_owned()).or_insert_with(|| {
                    Arc::new(MemoryFile {
                        inode,
                        bytes: RwLock::default(),
                    })
                });
                Arc::clone(file)
            }
        };
        let len = file
            .bytes
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .len();
        Ok(OpenedFile {
            identity: FileIdentity {
                device: 0,
                inode: file.inode,
            },
            len_bytes: to_u64(len),
            writable: true,
            direct: false,
            fallback_errno: None,
            alignment: Alignment::NONE,
            handle: Arc::new(FileHandle::Memory(file)),
        })
    }

    fn reserve(&self, file: &FileHandle, _from: u64, end: u64) -> Result<(), Errno> {
        let end = usize::try_from(end).map_err(|_| libc::EFBIG)?;
        let file = file_of(file)?;
        let mut bytes = file
            .bytes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        resize(&mut bytes, end, true)
    }

    fn set_len(&self, file: &FileHandle, len_bytes: u64) -> Result<(), Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| libc::EFBIG)?;
        let file = file_of(file)?;
        let mut bytes = file
            .bytes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        resize(&mut bytes, len, false)
    }

    fn len_bytes(&self, file: &FileHandle) -> Result<u64, Errno> {
        let file = file_of(file)?;
        Ok(to_u64(
            file.bytes
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .len(),
        ))
    }

    fn clear_direct(&self, _file: &FileHandle) -> Result<(), Errno> {
        Ok(())
    }
}
