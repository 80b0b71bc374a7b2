//! A directory in the making: `DIR.partial`, which becomes `DIR` by one rename or goes away.
//!
//! Whoever makes one has it locked (`flock` on the directory itself) until it is published or
//! removed. So one that nobody has locked was left by a process that was killed, and is removed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{DATA, MANIFEST, MANIFEST_CHECKSUM};
use crate::base::error::{Error, IoFailure, Result};
use crate::store::{absolute, c_path, join, make_path};
use crate::sys::{self, Errno};

/// BOUND: how often making one is begun anew because somebody else took it away meanwhile.
const ATTEMPTS_MAX: u32 = 100;

/// A directory in the making. It is removed, with the files of a snapshot in it, when this is
/// dropped before it was published; a child process leaves that to its parent.
#[derive(Debug)]
pub(super) struct PartialDirectory {
    parent: OwnedFd,
    parent_path: CString,
    /// What it will be called.
    name: CString,
    partial_name: CString,
    fork_generation: u32,
    is_published: bool,
    // DROP ORDER: last; holds the lock.
    directory: OwnedFd,
}

impl PartialDirectory {
    /// Makes it, and the directories above it.
    ///
    /// # Errors
    /// `Io`: `EEXIST` where something other than an empty directory is called `directory`; `Locked`
    /// where somebody else is making it; `InvalidArgument` for a path that does not end in a name.
    pub(super) fn create(directory: &Path) -> Result<PartialDirectory> {
        let no_name = || Error::invalid(format!("{directory:?} does not end in a name"));
        let name = c_path(Path::new(directory.file_name().ok_or_else(no_name)?))?;
        let above = &absolute(directory.parent().ok_or_else(no_name)?)?;
        let failed = |operation| {
            move |errno| Error::io(operation, above.as_os_str().as_bytes(), None, errno, "")
        };
        make_path(above).map_err(failed("mkdir"))?;
        let parent_path = c_path(above)?;
        let parent = sys::open_directory(&parent_path).map_err(failed("open"))?;
        PartialDirectory::create_in(parent, parent_path, name)
    }

    /// As [`PartialDirectory::create`], in an open directory.
    pub(super) fn create_in(
        parent: OwnedFd,
        parent_path: CString,
        name: CString,
    ) -> Result<PartialDirectory> {
        let partial_name = [name.to_bytes(), b".partial"].concat();
        let partial_name =
            CString::new(partial_name).map_err(|_| Error::invalid("a name with a zero byte"))?;
        refuse_existing(&parent, &parent_path, &name)?;
        let directory = make(&parent, &parent_path, &partial_name)?;
        Ok(PartialDirectory {
            parent,
            parent_path,
            name,
            partial_name,
            fork_generation: sys::fork_generation(),
            is_published: false,
            directory,
        })
    }

    /// It itself, open.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Where it is until it is published.
    pub(super) fn path(&self) -> CString {
        join(&self.parent_path, &self.partial_name)
    }

    /// Gives it its name, once all in it is on storage.
    ///
    /// # Errors
    /// `Io`: `EEXIST` where the name has been taken meanwhile. It is gone then, unless it was the
    /// last sync that failed: then it is there, and whole, but maybe not after a power cut.
    pub(super) fn publish(mut self) -> Result<()> {
        let failed =
            |operation, path: &CStr, errno| Error::io(operation, path.to_bytes(), None, errno, "");
        let own_path = self.path();
        sys::sync(self.directory.as_fd()).map_err(|errno| failed("sync", &own_path, errno))?;
        let (parent, from, to) = (self.parent.as_fd(), &self.partial_name, &self.name);
        // KERNEL: rename(2): a directory goes over nothing but an empty directory.
        sys::rename_at(parent, from, to).map_err(|errno| match errno {
            libc::ENOTEMPTY | libc::ENOTDIR | libc::EEXIST => {
                failed("rename", &own_path, libc::EEXIST)
            }
            errno => failed("rename", &own_path, errno),
        })?;
        self.is_published = true;
        sys::sync(self.parent.as_fd()).map_err(|errno| failed("sync", &self.parent_path, errno))
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        if sys::forked_since(self.fork_generation) {
            return;
        }
        if !self.is_published {
            // What stays is removed by whoever wants to make it next.
            let _ = empty(&self.directory);
            let _ = sys::remove_directory_at(self.parent.as_fd(), &self.partial_name);
        }
        // Closing it does this where no child has a duplicate.
        let _ = sys::unlock(self.directory.as_fd());
    }
}

/// Refuses a name that somebody has, but for an empty directory.
fn refuse_existing(parent: &OwnedFd, parent_path: &CStr, name: &CStr) -> Result<()> {
    let names = |directory: OwnedFd| sys::names_in(directory.as_fd());
    let errno = match sys::open_directory_at(parent.as_fd(), name).and_then(names) {
        Err(libc::ENOENT) => return Ok(()),
        Ok(names) if names.is_empty() => return Ok(()),
        Ok(_) | Err(libc::ENOTDIR | libc::ELOOP) => libc::EEXIST,
        Err(errno) => errno,
    };
    let path = join(parent_path, name);
    let detail = match errno {
        libc::EEXIST => "something has that name; choose another one, or remove it",
        _ => "",
    };
    Err(Error::io("create", path.to_bytes(), None, errno, detail))
}

/// Makes the directory and locks it; removes what a dead process left.
fn make(parent: &OwnedFd, parent_path: &CStr, name: &CStr) -> Result<OwnedFd> {
    let path = join(parent_path, name);
    let failed = |operation, errno| Error::io(operation, path.to_bytes(), None, errno, "");
    for _ in 0..ATTEMPTS_MAX {
        let is_new = match sys::make_directory_at(parent.as_fd(), name) {
            Ok(()) => true,
            Err(libc::EEXIST) => false,
            Err(errno) => return Err(failed("mkdir", errno)),
        };
        let directory = match sys::open_directory_at(parent.as_fd(), name) {
            Ok(directory) => directory,
            Err(libc::ENOENT) => continue,
            Err(errno) => return Err(failed("open", errno)),
        };
        match sys::lock_exclusive(directory.as_fd()) {
            Ok(()) => {}
            Err(errno @ libc::EWOULDBLOCK) => return Err(locked(&path, errno)),
            Err(errno) => return Err(failed("lock", errno)),
        }
        // Whoever had it locked may have published or removed it before this one got the lock.
        if !is_same(parent, name, &directory) {
            continue;
        }
        if is_new {
            return Ok(directory);
        }
        // Made anew rather than used: somebody else may have made it, and could write to it.
        empty(&directory).map_err(|errno| failed("empty", errno))?;
        sys::remove_directory_at(parent.as_fd(), name).map_err(|errno| failed("remove", errno))?;
    }
    Err(failed("mkdir", libc::EBUSY))
}

/// Whether `name` still means the directory that was opened under it.
fn is_same(parent: &OwnedFd, name: &CStr, directory: &OwnedFd) -> bool {
    let named = sys::stat_at(parent.as_fd(), name).map(|status| status.identity);
    let opened = sys::fstat(directory.as_fd()).map(|status| status.identity);
    named.is_ok() && named == opened
}

/// Removes the files of a snapshot, and the directories of ranks with nothing but such files in
/// them. Nothing else, which may be somebody's own.
fn empty(directory: &OwnedFd) -> Result<(), Errno> {
    remove_files(directory)?;
    for name in sys::names_in(directory.as_fd())? {
        if is_of_rank(&name) {
            let rank = sys::open_directory_at(directory.as_fd(), &name)?;
            remove_files(&rank)?;
            sys::remove_directory_at(directory.as_fd(), &name)?;
        }
    }
    Ok(())
}

/// Whether it is called `rank<N>` or `rank<N>.partial`.
fn is_of_rank(name: &CStr) -> bool {
    let number = name.to_bytes().strip_prefix(b"rank");
    let number = number.map(|number| number.strip_suffix(b".partial").unwrap_or(number));
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

fn remove_files(directory: &OwnedFd) -> Result<(), Errno> {
    for name in [MANIFEST, MANIFEST_CHECKSUM, DATA] {
        match sys::unlink_at(directory.as_fd(), name) {
            Ok(()) | Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn locked(path: &CStr, errno: Errno) -> Error {
    Error::Locked(Box::new(IoFailure {
        operation: "lock",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno,
        detail: "somebody else is making it".to_owned(),
    }))
}
