//! Files that get their names only when all of them are whole: written as `NAME.partial`, synced, renamed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::to_u64;
use crate::store::{absolute, c_path, join};
use crate::sys::{self, Errno, FileIdentity, FileKind};

const SUFFIX: &str = ".partial";
/// BOUND: how often others may finish or give up an export of the same name at this very moment.
const ATTEMPTS_MAX: u32 = 16;

/// One of the files.
#[derive(Debug)]
struct Partial {
    name: CString,
    partial_name: CString,
    identity: FileIdentity,
    has_name: bool,
}

/// The files of one export in one directory. Dropped before they are published, they are gone.
#[derive(Debug)]
pub(super) struct Partials {
    directory: OwnedFd,
    directory_path: CString,
    files: Vec<Partial>,
    /// The first file, locked all the while: two exports of the same files do not mix.
    lock: Option<OwnedFd>,
    is_published: bool,
}

impl Partials {
    /// Will write files into a directory, which must be there.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new(directory: &Path) -> Result<Partials> {
        let path = c_path(&absolute(directory)?)?;
        let opened = sys::open_directory(&path);
        Ok(Partials {
            directory: opened.map_err(|errno| failed("open", &path, errno))?,
            directory_path: path,
            files: Vec::new(),
            lock: None,
            is_published: false,
        })
    }

    /// Refuses to take the place of anything but a file or a symbolic link: a device would be gone for
    /// everybody.
    fn refuse_other(&self, name: &CStr) -> Result<()> {
        let path = join(&self.directory_path, name);
        let errno = match sys::stat_at(self.directory.as_fd(), name) {
            Err(libc::ENOENT) => return Ok(()),
            Err(errno) => return Err(failed("stat", &path, errno)),
            Ok(status) => match status.kind {
                FileKind::Regular | FileKind::Link => return Ok(()),
                FileKind::Directory => libc::EISDIR,
                FileKind::Other => libc::EOPNOTSUPP,
            },
        };
        let detail = "only a regular file or a link is replaced";
        Err(Error::io("create", path.to_bytes(), None, errno, detail))
    }

    /// Adds a file of this length, whose space is reserved; what it holds is not known.
    ///
    /// # Errors
    /// `Unsupported` where something else than a file or a link has the name; `Locked` where somebody
    /// else is writing it; `Io`: with `NO_SPACE` it names the bytes needed and those free;
    /// `InvalidArgument` for a name with a zero byte.
    pub(super) fn add(&mut self, name: &str, len_bytes: u64) -> Result<()> {
        let partial_name = c_path(Path::new(&format!("{name}{SUFFIX}")))?;
        let name = c_path(Path::new(name))?;
        self.refuse_other(&name)?;
        let path = join(&self.directory_path, &partial_name);
        let (file, identity) = self.create(&partial_name, &path)?;
        self.files.push(Partial {
            name,
            partial_name,
            identity,
            has_name: false,
        });
        reserve(file.as_fd(), &path, len_bytes)?;
        self.lock.get_or_insert(file);
        Ok(())
    }

    /// The file, new, and locked by this process. One that nobody has locked was left behind.
    fn create(&self, name: &CStr, path: &CStr) -> Result<(OwnedFd, FileIdentity)> {
        let directory = self.directory.as_fd();
        for _ in 0..ATTEMPTS_MAX {
            let (file, is_new) = match sys::create_at(directory, name) {
                Err(libc::EEXIST) => (sys::open_at(directory, name, false), false),
                created => (created, true),
            };
            let file = match file {
                // Gone since a moment ago.
                Err(libc::ENOENT) if !is_new => continue,
                file => file.map_err(|errno| failed("create", path, errno))?,
            };
            match sys::lock_exclusive(file.as_fd()) {
                Ok(()) => {}
                Err(libc::EWOULDBLOCK) => return Err(locked(path)),
                Err(errno) => {
                    if is_new {
                        let _ = sys::unlink_at(directory, name);
                    }
                    return Err(failed("lock", path, errno));
                }
            }
            // Whoever had it may have given it its name, or taken it for left behind, before.
            let status = sys::fstat(file.as_fd()).map_err(|errno| failed("stat", path, errno))?;
            let ours = status.identity;
            let is_ours = sys::stat_at(directory, name).is_ok_and(|it| it.identity == ours);
            if is_ours && is_new {
                return Ok((file, ours));
            }
            if is_ours {
                let removed = sys::unlink_at(directory, name);
                removed.map_err(|errno| failed("unlink", path, errno))?;
            }
        }
        Err(failed("create", path, libc::EBUSY))
    }

    /// The path of a file as it is now.
    pub(super) fn path_of(&self, index: usize) -> CString {
        join(&self.directory_path, &self.files[index].partial_name)
    }

    /// Which file it is.
    pub(super) fn identity_of(&self, index: usize) -> FileIdentity {
        self.files[index].identity
    }

    /// Waits until all of a file is on storage.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn sync(&self, index: usize) -> Result<()> {
        let path = self.path_of(index);
        let file = sys::open_at(
            self.directory.as_fd(),
            &self.files[index].partial_name,
            false,
        );
        file.and_then(|file| sys::sync(file.as_fd()))
            .map_err(|errno| failed("sync", &path, errno))
    }

    /// Adds a file with this content, on storage.
    ///
    /// # Errors
    /// As [`add`](Partials::add).
    pub(super) fn add_whole(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(name, to_u64(content.len()))?;
        let index = self.files.len() - 1;
        let path = self.path_of(index);
        let name = &self.files[index].partial_name;
        let mut done = 0;
        let written = sys::open_at(self.directory.as_fd(), name, false).and_then(|file| {
            while done < content.len() {
                done += sys::write_at(file.as_fd(), &content[done..], to_u64(done))?;
            }
            Ok(())
        });
        written.map_err(|errno| failed("write", &path, errno))?;
        self.sync(index)
    }

    /// Gives every file its name, in their order, in place of what had it.
    ///
    /// Where there are several files the last one makes them one. What had its name goes first: at no
    /// moment it leads to files of which some are new.
    ///
    /// # Errors
    /// `Io`; none of the files is there then.
    pub(super) fn publish(mut self) -> Result<()> {
        let directory = self.directory.as_fd();
        let synced = |path: &CStr| {
            let synced = sys::sync(directory);
            synced.map_err(|errno| failed("sync", path, errno))
        };
        if let [_, .., last] = self.files.as_slice() {
            match sys::unlink_at(directory, &last.name) {
                Ok(()) => synced(&self.directory_path)?,
                Err(libc::ENOENT) => {}
                Err(errno) => {
                    let path = join(&self.directory_path, &last.name);
                    return Err(failed("unlink", &path, errno));
                }
            }
        }
        for index in 0..self.files.len() {
            let file = &self.files[index];
            sys::rename_at(directory, &file.partial_name, &file.name)
                .map_err(|errno| failed("rename", &self.path_of(index), errno))?;
            self.files[index].has_name = true;
        }
        synced(&self.directory_path)?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Partials {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        // The last one first: it leads to the others.
        for file in self.files.iter().rev() {
            let name = if file.has_name {
                &file.name
            } else {
                &file.partial_name
            };
            // The engine may keep it open for a while: the space is given back now.
            if let Ok(opened) = sys::open_at(self.directory.as_fd(), name, false) {
                let _ = sys::set_len(opened.as_fd(), 0);
            }
            let _ = sys::unlink_at(self.directory.as_fd(), name);
        }
    }
}

/// Gives a new file its length and space.
fn reserve(file: BorrowedFd<'_>, path: &CStr, len_bytes: u64) -> Result<()> {
    let reserved = match sys::file_size_limit_bytes() {
        // The kernel would end the process with a signal.
        Ok(limit) if len_bytes > limit => Err(libc::EFBIG),
        _ => sys::allocate(file, 0, len_bytes),
    };
    let reserved = match reserved {
        // The file system finds the space as the file is written.
        Err(libc::EOPNOTSUPP | libc::ENOSYS) => sys::set_len(file, len_bytes),
        reserved => reserved,
    };
    reserved.map_err(|errno| {
        // KERNEL: ext4 keeps what it had found before space ran out, which is all that was free.
        let _ = sys::set_len(file, 0);
        let free = sys::free_bytes(file).unwrap_or(0);
        let detail = format!("{len_bytes} bytes are needed, {free} are free");
        Error::io("reserve", path.to_bytes(), None, errno, detail)
    })
}

fn locked(path: &CStr) -> Error {
    Error::Locked(Box::new(IoFailure {
        operation: "lock",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: libc::EWOULDBLOCK,
        detail: "another export is writing it".to_owned(),
    }))
}

fn failed(operation: &'static str, path: &CStr, errno: Errno) -> Error {
    Error::io(operation, path.to_bytes(), None, errno, "")
}
