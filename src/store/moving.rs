//! The last part of moving a store: its copy takes its place, and it is removed.
//!
//! The copy lies in `.rebalance/rank<N>` of every target directory until it is whole. From then on
//! a file `moving` in the first directory of the store, and one in the first directory of the copy,
//! keep both from being opened. Every step can be found again in what the directories hold, so
//! whoever was killed in between is followed by somebody who goes on, and first syncs what was not
//! synced of a step that is done. The copy's `moving` goes last, when nothing is left to do.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::directory::{DATA, Directory, LOG, c_path, join, rank_name};
use super::entry::Identity;
use super::file::Role;
use super::places::header_of;
use super::striping::Area;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::KIB;
use crate::sys;

/// The identity of the store that is moved, and the command that moves it.
pub(super) const MOVING: &CStr = c"moving";
/// Where copies lie, in the directories that a store moves to.
const STAGING: &CStr = c".rebalance";
/// The longest `moving` that is looked at.
const MOVING_BYTES_MAX: u64 = 512 * KIB;

/// Refuses a store that is being moved.
///
/// # Errors
/// `Locked` with the command that goes on.
pub(super) fn refuse_moving(directory: &Directory) -> Result<()> {
    match read_moving(directory)? {
        Some((_, command)) => Err(not_finished(directory, &command)),
        None => Ok(()),
    }
}

/// The error for a store that is being moved.
fn not_finished(directory: &Directory, command: &[u8]) -> Error {
    let command = String::from_utf8_lossy(command);
    Error::Locked(Box::new(IoFailure {
        operation: "open",
        path: directory.path_of(MOVING).to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: libc::EBUSY,
        detail: format!(
            "the store is being moved to other directories; {} goes on",
            command.trim_end()
        ),
    }))
}

/// Whose identity a directory's `moving` has, and the command; `None` where there is none.
pub(super) fn read_moving(directory: &Directory) -> Result<Option<(Identity, Vec<u8>)>> {
    let Some(file) = directory.open_file(MOVING, Role::Log)? else {
        return Ok(None);
    };
    let bytes = file.read_up_to(MOVING_BYTES_MAX)?;
    match bytes.split_first_chunk() {
        Some((identity, command)) => Ok(Some((*identity, command.to_vec()))),
        None => Err(file.corrupt(0, "it is cut off")),
    }
}

/// Makes `moving`, on storage. It appears whole or not at all.
pub(super) fn write_moving(
    directory: &Directory,
    identity: &Identity,
    command: &[u8],
) -> Result<()> {
    let bytes = [identity, command].concat();
    directory.publish(MOVING, &bytes).map(drop)
}

/// The identity of the store whose place a directory is; `None` where it has no `data`.
fn identity_of(directory: &Directory) -> Result<Option<Identity>> {
    let Some(data) = directory.open_file(DATA, Role::Data)? else {
        return Ok(None);
    };
    Ok(Some(header_of(&data, Area::Data)?.identity))
}

/// The steps from a whole copy to nothing but the copy.
#[derive(Debug)]
pub(super) struct Move<'a> {
    pub(super) rank: u32,
    /// Without symbolic links, as are the others, so that the same directory has the same path.
    pub(super) from: &'a [PathBuf],
    pub(super) to: &'a [PathBuf],
    /// The identity of the store that is moved.
    pub(super) identity: Identity,
}

impl Move<'_> {
    /// Takes all steps that are left; `step` is called after each.
    ///
    /// # Errors
    /// `Corrupt` where directories hold something else than what was left there; `Locked`, `Io`,
    /// and what `step` returns. To be called again.
    pub(super) fn finish(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let new = self.new_identity()?;
        // The first one has the log: without it nobody takes the others for a store.
        for to in self.to {
            self.switch(to, &new)?;
            step()?;
        }
        // The first one keeps the store from being opened until there is nothing left of it.
        for from in self.from.iter().rev() {
            let is_exchanged = self.to.contains(from);
            let staging = staging_in(from);
            let above = if is_exchanged { &staging } else { from };
            match Directory::find(above, self.rank)? {
                Some(old) => {
                    let is_mine = match identity_of(&old)? {
                        Some(identity) => identity == self.identity,
                        // Was begun to be removed, unless it is somebody else's.
                        None => old.open_file(LOG, Role::Log)?.is_none(),
                    };
                    if is_mine {
                        old.remove_store(MOVING)?;
                    }
                }
                None => sync_names(above)?,
            }
            step()?;
        }
        for to in self.to {
            remove_staging(to)?;
            step()?;
        }
        let first = Directory::find(&self.to[0], self.rank)?;
        let first = first.ok_or_else(|| self.lost(&self.to[0]))?;
        first.remove(MOVING)?;
        first.sync()?;
        step()
    }

    /// The identity of the copy.
    fn new_identity(&self) -> Result<Identity> {
        for above in [staging_in(&self.to[0]), self.to[0].clone()] {
            if let Some(found) = Directory::find(&above, self.rank)?
                && read_moving(&found)?.is_some()
                && let Some(identity) = identity_of(&found)?
                && identity != self.identity
            {
                return Ok(identity);
            }
        }
        Err(self.lost(&self.to[0]))
    }

    /// Gives one place of the copy its name.
    fn switch(&self, to: &Path, new: &Identity) -> Result<()> {
        let staging = staging_in(to);
        let identity_in = |above: &Path| -> Result<(Option<Directory>, Option<Identity>)> {
            let found = Directory::find(above, self.rank)?;
            let identity = found.as_ref().map(identity_of).transpose()?.flatten();
            Ok((found, identity))
        };
        // Both are locked until it is done.
        let (copy, copy_identity) = identity_in(&staging)?;
        let (there, identity_there) = identity_in(to)?;
        if identity_there != Some(*new) {
            let Some(copy) = copy.as_ref().filter(|_| copy_identity == Some(*new)) else {
                return Err(self.lost(to));
            };
            let name = rank_name(self.rank);
            let (above, inner) = open_both(to)?;
            let (inner, above) = (inner.as_fd(), above.as_fd());
            if identity_there == Some(self.identity) {
                sys::exchange_at(inner, &name, above, &name)
            } else {
                there.as_ref().map_or(Ok(()), vacate)?;
                sys::move_at(inner, &name, above, &name)
            }
            .map_err(|errno| Error::io("rename", copy.path().to_bytes(), None, errno, ""))?;
        }
        sync_names(to)?;
        sync_names(&staging)
    }

    fn lost(&self, to: &Path) -> Error {
        Error::Corrupt(Box::new(IoFailure {
            operation: "rebalance",
            path: to.join(format!("rank{}", self.rank)).display().to_string(),
            offset_bytes: None,
            errno: libc::ENOENT,
            detail: "the copy that was to be there is not".to_owned(),
        }))
    }
}

/// Removes a directory that is in the way of a store's, and holds nothing: what stays where a store
/// was to be opened and could not.
///
/// # Errors
/// `Io`: `EEXIST` where it holds something.
pub(super) fn vacate(there: &Directory) -> Result<()> {
    if there.open_file(DATA, Role::Data)?.is_none() && there.open_file(LOG, Role::Log)?.is_none() {
        return there.remove_store(MOVING);
    }
    let detail = "a store moves to where there is none";
    let path = there.path().to_bytes();
    Err(Error::io("rename to", path, None, libc::EEXIST, detail))
}

/// Waits until the names in a directory are on storage, if it is there.
fn sync_names(path: &Path) -> Result<()> {
    match sys::open_directory(&c_path(path)?).and_then(|directory| sys::sync(directory.as_fd())) {
        Ok(()) | Err(libc::ENOENT) => Ok(()),
        Err(errno) => {
            let path = path.as_os_str().as_bytes();
            Err(Error::io("sync", path, None, errno, ""))
        }
    }
}

/// Where copies lie in a directory.
pub(super) fn staging_in(path: &Path) -> PathBuf {
    path.join(OsStr::from_bytes(STAGING.to_bytes()))
}

/// Makes the directory for copies, where there is none; with `exchanging`, sees that two names in
/// it can be exchanged.
///
/// # Errors
/// `Unsupported` where that cannot be done; `Io`: `ENOTDIR` where something else has its name.
pub(super) fn make_staging(path: &Path, exchanging: bool) -> Result<()> {
    let path = c_path(path)?;
    let failed = |operation| move |errno| (operation, errno);
    let made = (|| {
        let above = sys::open_directory(&path).map_err(failed("open"))?;
        match sys::make_directory_at(above.as_fd(), STAGING) {
            Ok(()) | Err(libc::EEXIST) => sys::sync(above.as_fd()).map_err(failed("sync"))?,
            Err(errno) => return Err(("mkdir", errno)),
        }
        let staging = sys::open_directory_at(above.as_fd(), STAGING).map_err(failed("open"))?;
        if exchanging {
            let names = [c"probe.1", c"probe.2"];
            for name in names {
                sys::open_at(staging.as_fd(), name, true).map_err(failed("create"))?;
            }
            let exchanged = sys::exchange_at(staging.as_fd(), names[0], staging.as_fd(), names[1]);
            for name in names {
                sys::unlink_at(staging.as_fd(), name).map_err(failed("remove"))?;
            }
            exchanged.map_err(failed("exchange"))?;
        }
        Ok(())
    })();
    made.map_err(|(operation, errno)| match (operation, errno) {
        ("exchange", libc::EINVAL | libc::ENOSYS) => Error::Unsupported {
            message: format!(
                "the file system of {} cannot exchange two directories, as it takes to move a store \
                 within it; move it to another one",
                path.to_string_lossy()
            ),
            errno,
        },
        _ => Error::io(operation, join(&path, STAGING).to_bytes(), None, errno, ""),
    })
}

/// Removes the directory for copies, unless there is one in it.
///
/// # Errors
/// `Io`.
pub(super) fn remove_staging(path: &Path) -> Result<()> {
    let failed = |errno| {
        let path = staging_in(path);
        Error::io("remove", path.as_os_str().as_bytes(), None, errno, "")
    };
    let above = sys::open_directory(&c_path(path)?).map_err(failed)?;
    match sys::remove_directory_at(above.as_fd(), STAGING) {
        Ok(()) | Err(libc::ENOENT) => sys::sync(above.as_fd()).map_err(failed),
        Err(libc::ENOTEMPTY) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// A directory, and the one for copies in it.
fn open_both(path: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |errno| Error::io("open", path.as_os_str().as_bytes(), None, errno, "");
    let above = sys::open_directory(&c_path(path)?).map_err(failed)?;
    let inner = sys::open_directory_at(above.as_fd(), STAGING).map_err(failed)?;
    Ok((above, inner))
}

/// Refuses what is being moved by another command.
///
/// # Errors
/// `Locked` with the command that goes on.
pub(super) fn refuse_other(directory: &Directory, found: &[u8], command: &[u8]) -> Result<()> {
    match found == command {
        true => Ok(()),
        false => Err(not_finished(directory, found)),
    }
}
