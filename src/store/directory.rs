//! The directory of a store: made, locked, and the files in it by name.
//!
//! `<path>/rank<N>/` holds `lock`, `data`, at times `spare`, and, in the first directory of a
//! store, `log`, for moments `log.new`, and the directory `scratch`. Files are named relative to
//! the open directory and symbolic links among them are refused, so a store never writes outside of
//! its directory.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::file::{Role, StoreFile};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::observe::events;
use crate::base::units::to_u64;
use crate::io::{StoreCall, StoreFaults};
use crate::sys::{self, Errno, FileKind, WriteLife};

const LOCK: &CStr = c"lock";
pub(crate) const DATA: &CStr = c"data";
pub(crate) const SPARE: &CStr = c"spare";
pub(crate) const LOG: &CStr = c"log";
pub(crate) const NEW_LOG: &CStr = c"log.new";
const SCRATCH: &CStr = c"scratch";
/// Made while speeds are measured.
pub(crate) const PROBE: &CStr = c"probe";
/// How long writes of a killed process are waited for, and how often they are looked for.
const STRAGGLERS_WAIT_MAX: Duration = Duration::from_secs(5);
const STRAGGLERS_POLL: Duration = Duration::from_millis(1);

/// A store's directory, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    directory: OwnedFd,
    path: CString,
    faults: Option<Arc<StoreFaults>>,
    // DROP ORDER: last.
    lock: Lock,
}

/// The lock of a directory.
#[derive(Debug)]
struct Lock {
    file: OwnedFd,
    fork_generation: u32,
}

impl Lock {
    /// Unlocks also where a child process has a duplicate of the descriptor; a child leaves its
    /// parent's lock alone.
    fn release(&self) {
        if !sys::forked_since(self.fork_generation) {
            // An empty lock says that nothing was left under way. Without it the next one waits.
            let _ = sys::set_len(self.file.as_fd(), 0);
            // Closing the file does it where this fails.
            let _ = sys::unlock(self.file.as_fd());
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}

impl Directory {
    /// Opens the directory of a rank below `path`, makes it where `create` says so, and locks it.
    /// After a process that was killed, waits for the writes that it left under way.
    ///
    /// # Errors
    /// `Locked` where somebody else has it, naming the directory and the process; `Io`.
    pub(crate) fn open(
        path: &Path,
        rank: u32,
        create: bool,
        faults: Option<Arc<StoreFaults>>,
    ) -> Result<Directory> {
        let path = &absolute(path)?;
        let own_path = rank_path(path, rank)?;
        let failed = |operation| move |errno| io_error(operation, path, errno);
        if create {
            make_path(path).map_err(failed("mkdir"))?;
        }
        let name = rank_name(rank);
        let own_failed = |operation| {
            let own_path = &own_path;
            move |errno| Error::io(operation, own_path.to_bytes(), None, errno, "")
        };
        let parent = sys::open_directory(&c_path(path)?).map_err(failed("open"))?;
        if create {
            match sys::make_directory_at(parent.as_fd(), &name) {
                // Whoever made it before may have died before this.
                Ok(()) | Err(libc::EEXIST) => sys::sync(parent.as_fd()).map_err(failed("sync"))?,
                Err(errno) => return Err(own_failed("mkdir")(errno)),
            }
        }
        let directory =
            sys::open_directory_at(parent.as_fd(), &name).map_err(own_failed("open"))?;
        let (lock, was_left_locked) = take_lock(directory.as_fd(), &own_path)?;
        if was_left_locked {
            await_writes_of_the_dead(&join(&own_path, DATA));
        }
        Ok(Directory {
            directory,
            path: own_path,
            faults,
            lock,
        })
    }

    /// As [`Directory::open`], of what exists; `None` where nothing does.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub(crate) fn find(path: &Path, rank: u32) -> Result<Option<Directory>> {
        match Directory::open(path, rank, false, None) {
            Ok(directory) => Ok(Some(directory)),
            Err(Error::Io(failure)) if failure.errno == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn path(&self) -> &CStr {
        &self.path
    }

    /// The device that it is on, where that can be told.
    pub(crate) fn device(&self) -> Option<u64> {
        let status = sys::fstat(self.directory.as_fd()).ok()?;
        Some(status.identity.device)
    }

    /// Lets others have the directory; nothing in it is used any more.
    pub(crate) fn unlock(&self) {
        self.lock.release();
    }

    pub(crate) fn path_of(&self, name: &CStr) -> CString {
        join(&self.path, name)
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::io(operation, self.path_of(name).to_bytes(), None, errno, "")
    }

    /// Makes a file, over any that has the name.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create(&self, name: &CStr, role: Role) -> Result<StoreFile> {
        self.remove(name)?;
        let file = sys::open_at(self.directory.as_fd(), name, true)
            .map_err(|errno| self.failed("create", name, errno))?;
        let file = StoreFile::new(file, self.path_of(name), role, self.faults.clone());
        file.hint(life_of(role));
        Ok(file)
    }

    /// Opens a file; `None` where there is none.
    ///
    /// # Errors
    /// `Corrupt` where something else has its name; `Io`.
    pub(crate) fn open_file(&self, name: &CStr, role: Role) -> Result<Option<StoreFile>> {
        let opened = sys::open_at(self.directory.as_fd(), name, false);
        let file = regular_file(opened, self.path_of(name), role, self.faults.clone())?;
        if let Some(file) = &file {
            file.hint(life_of(role));
        }
        Ok(file)
    }

    /// Removes a file, if there is one.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn remove(&self, name: &CStr) -> Result<()> {
        match sys::unlink_at(self.directory.as_fd(), name) {
            Ok(()) | Err(libc::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", name, errno)),
        }
    }

    /// Makes a file with these bytes in place of any that has the name, in one step. It is on
    /// storage, its name not yet.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn replace(&self, name: &CStr, bytes: &[u8]) -> Result<StoreFile> {
        // What a killed process leaves under this name is removed when the store is opened.
        let mut file = self.create(NEW_LOG, Role::NewLog)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        let failed = |errno| self.failed("rename", NEW_LOG, errno);
        self.strike(StoreCall::Rename).map_err(failed)?;
        sys::rename_at(self.directory.as_fd(), NEW_LOG, name).map_err(failed)?;
        file.renamed(self.path_of(name), Role::Log);
        Ok(file)
    }

    /// Makes a file with these bytes, on storage. It appears whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn publish(&self, name: &CStr, bytes: &[u8]) -> Result<StoreFile> {
        let file = self.replace(name, bytes)?;
        self.sync()?;
        Ok(file)
    }

    /// Waits until the names in the directory are on storage. Never to be tried again after a
    /// failure.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn sync(&self) -> Result<()> {
        let failed = |errno| Error::io("sync", self.path.to_bytes(), None, errno, "");
        self.strike(StoreCall::SyncDirectory).map_err(failed)?;
        sys::sync(self.directory.as_fd()).map_err(failed)
    }

    /// Makes the directory for files that do not outlive the process, or empties it; returns its
    /// path.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn prepare_scratch(&self) -> Result<CString> {
        let failed = |operation| move |errno| self.failed(operation, SCRATCH, errno);
        match sys::make_directory_at(self.directory.as_fd(), SCRATCH) {
            Ok(()) | Err(libc::EEXIST) => {}
            Err(errno) => return Err(failed("mkdir")(errno)),
        }
        let scratch =
            sys::open_directory_at(self.directory.as_fd(), SCRATCH).map_err(failed("open"))?;
        for name in sys::names_in(scratch.as_fd()).map_err(failed("list"))? {
            sys::unlink_at(scratch.as_fd(), &name).map_err(failed("empty"))?;
        }
        Ok(self.path_of(SCRATCH))
    }

    /// Removes the directory from the one that it is in, with all files of a store; the file `last`
    /// after the others. Where there is anything else in it, that stays, and so does the directory.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn remove_store(&self, last: &CStr) -> Result<()> {
        self.remove(LOG)?;
        // Without its log a store is none.
        self.sync()?;
        for name in [NEW_LOG, SPARE, DATA, PROBE] {
            self.remove(name)?;
        }
        if let Ok(scratch) = sys::open_directory_at(self.directory.as_fd(), SCRATCH) {
            drop(scratch);
            self.prepare_scratch()?;
            sys::remove_directory_at(self.directory.as_fd(), SCRATCH)
                .map_err(|errno| self.failed("remove", SCRATCH, errno))?;
        }
        self.sync()?;
        self.remove(last)?;
        self.remove(LOCK)?;
        self.sync()?;
        let name = self.path.to_bytes().rsplit(|byte| *byte == b'/').next();
        let name = CString::new(name.unwrap_or_default()).unwrap_or_default();
        let removed = sys::open_directory_at(self.directory.as_fd(), c"..").and_then(|above| {
            sys::remove_directory_at(above.as_fd(), &name)?;
            sys::sync(above.as_fd())
        });
        match removed {
            Ok(()) | Err(libc::ENOTEMPTY) => Ok(()),
            Err(errno) => Err(Error::io("remove", self.path.to_bytes(), None, errno, "")),
        }
    }

    fn strike(&self, call: StoreCall) -> Result<(), Errno> {
        match &self.faults {
            Some(faults) => faults.strike(call),
            None => Ok(()),
        }
    }
}

/// How long lives what is written to a file: until the record's next version but one, the next
/// version, or the log that replaces this one.
fn life_of(role: Role) -> WriteLife {
    match role {
        Role::Data => WriteLife::Medium,
        Role::Spare => WriteLife::Short,
        Role::Log | Role::NewLog => WriteLife::Long,
    }
}

/// What became of opening one of a store's files; `None` where there is none.
///
/// # Errors
/// `Corrupt` where something else has its name; `Io`.
pub(crate) fn regular_file(
    opened: Result<OwnedFd, Errno>,
    path: CString,
    role: Role,
    faults: Option<Arc<StoreFaults>>,
) -> Result<Option<StoreFile>> {
    let foreign = |errno| {
        Error::Corrupt(Box::new(IoFailure {
            operation: "open",
            path: path.to_string_lossy().into_owned(),
            offset_bytes: None,
            errno,
            detail: "a store keeps regular files only".to_owned(),
        }))
    };
    let failed = |operation, errno| Error::io(operation, path.to_bytes(), None, errno, "");
    let file = match opened {
        Ok(file) => file,
        Err(libc::ENOENT) => return Ok(None),
        Err(errno @ (libc::ELOOP | libc::EISDIR | libc::ENXIO)) => return Err(foreign(errno)),
        Err(errno) => return Err(failed("open", errno)),
    };
    let status = sys::fstat(file.as_fd()).map_err(|errno| failed("stat", errno))?;
    if status.kind != FileKind::Regular {
        return Err(foreign(0));
    }
    Ok(Some(StoreFile::new(file, path, role, faults)))
}

/// What the directory of a rank is called.
pub(crate) fn rank_name(rank: u32) -> CString {
    // There is no zero byte in it.
    CString::new(format!("rank{rank}")).unwrap_or_default()
}

/// The directory of a rank.
pub(crate) fn rank_path(path: &Path, rank: u32) -> Result<CString> {
    c_path(&path.join(OsStr::from_bytes(rank_name(rank).to_bytes())))
}

pub(crate) fn join(path: &CStr, name: &CStr) -> CString {
    let bytes = [path.to_bytes(), b"/", name.to_bytes()].concat();
    // Neither part has a zero byte.
    CString::new(bytes).unwrap_or_default()
}

/// The path from the root on: it leads to the same place when the process works in another
/// directory later.
///
/// # Errors
/// `Io` where the directory that the process works in is gone.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    std::path::absolute(path).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::ENOENT);
        io_error("getcwd", path, errno)
    })
}

pub(crate) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("a path contains a zero byte"))
}

fn io_error(operation: &'static str, path: &Path, errno: Errno) -> Error {
    Error::io(operation, path.as_os_str().as_bytes(), None, errno, "")
}

/// Makes a directory and those above it, each of them synced into the one that holds it.
pub(crate) fn make_path(path: &Path) -> Result<(), Errno> {
    let c_path = |path: &Path| c_path(path).map_err(|_| libc::EINVAL);
    let named = path.ancestors().filter(|path| path.file_name().is_some());
    let missing_count = named.clone().take_while(|path| !path.exists()).count();
    // And one that is there: whoever made it may have died before its name was on storage.
    let directories: Vec<&Path> = named.take(missing_count + 1).collect();
    for directory in directories.into_iter().rev() {
        let above = directory
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let opened = sys::open_directory(&c_path(above.unwrap_or(Path::new(".")))?);
        let above = match opened {
            // Not everybody may look at what holds a directory of theirs.
            Err(libc::EACCES) if directory.exists() => continue,
            opened => opened?,
        };
        let name = c_path(Path::new(directory.file_name().unwrap_or_default()))?;
        match sys::make_directory_at(above.as_fd(), &name) {
            Ok(()) | Err(libc::EEXIST) => sys::sync(above.as_fd())?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Waits until no write of a killed process is under way any more.
///
/// The lock of a process goes when it is killed, but direct writes that it had submitted are still
/// carried out, into slots that this process is about to write as well. The kernel keeps the file
/// open for them, which can be asked. BOUND: in the end it goes on all the same, because somebody
/// else may have the file open for no reason of ours; checksums tell what came of it.
fn await_writes_of_the_dead(data: &CStr) {
    let path = Path::new(OsStr::from_bytes(data.to_bytes()));
    let open = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let Ok(file) = open else {
        return;
    };
    let started = Instant::now();
    while sys::is_open_for_writing(file.as_fd()) == Ok(true) {
        if started.elapsed() > STRAGGLERS_WAIT_MAX {
            return events::data_still_open(data.to_bytes());
        }
        std::thread::sleep(STRAGGLERS_POLL);
    }
}

/// Locks the directory, or says who has it; and whether whoever had it last let go of it in order.
fn take_lock(directory: BorrowedFd<'_>, path: &CStr) -> Result<(Lock, bool)> {
    let lock_path = join(path, LOCK);
    let failed = |errno| Error::io("lock", lock_path.to_bytes(), None, errno, "");
    let lock = sys::open_at(directory, LOCK, true).map_err(failed)?;
    match sys::lock_exclusive(lock.as_fd()) {
        Ok(()) => {}
        Err(libc::EWOULDBLOCK) => return Err(locked(lock.as_fd(), path)),
        Err(errno) => return Err(failed(errno)),
    }
    let was_left_locked = sys::read_at(lock.as_fd(), &mut [0], 0) != Ok(0);
    // For the message of those who come second; without it the lock is as good.
    let holder = format!("{}\n", std::process::id());
    if sys::set_len(lock.as_fd(), 0).is_ok() {
        let _ = sys::write_at(lock.as_fd(), holder.as_bytes(), 0);
    }
    let lock = Lock {
        file: lock,
        fork_generation: sys::fork_generation(),
    };
    Ok((lock, was_left_locked))
}

fn locked(lock: BorrowedFd<'_>, path: &CStr) -> Error {
    let mut text = [0; 20];
    let len = sys::read_at(lock, &mut text, 0).unwrap_or(0);
    let holder: Option<u64> = std::str::from_utf8(&text[..len])
        .ok()
        .and_then(|text| text.trim_end().parse().ok());
    let detail = match holder {
        Some(pid) if pid == to_u64(std::process::id() as usize) => {
            format!("this process ({pid}) uses the store already")
        }
        Some(pid) => format!("process {pid} uses the store"),
        None => "another process uses the store".to_owned(),
    };
    Error::Locked(Box::new(IoFailure {
        operation: "lock",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: libc::EWOULDBLOCK,
        detail,
    }))
}
