//! The files that are moved: made, filled, opened, compared.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tensorswap::sys;

use crate::failure::Failure;
use crate::sizes::{shown, to_u64};

/// Some files of one length, in a directory of their own.
#[derive(Debug)]
pub(crate) struct FileSet {
    directory: PathBuf,
    paths: Vec<PathBuf>,
    /// The same for the engine.
    pub(crate) names: Vec<CString>,
    pub(crate) file_bytes: usize,
    /// Open past the page cache, where the file system permits it.
    pub(crate) open: Vec<File>,
    pub(crate) is_direct: bool,
}

impl FileSet {
    /// Makes the files, with their space reserved and nothing in them yet.
    ///
    /// # Errors
    /// `Refused`; a full file system among the reasons.
    pub(crate) fn make(
        parent: &Path,
        name: &str,
        count: usize,
        file_bytes: usize,
    ) -> Result<FileSet, Failure> {
        let directory = parent.join(name);
        std::fs::create_dir(&directory).map_err(Failure::at("write to", &directory))?;
        let paths: Vec<PathBuf> = (0..count)
            .map(|index| directory.join(index.to_string()))
            .collect();
        let name = |path: &PathBuf| CString::new(path.as_os_str().as_bytes());
        let names = paths.iter().map(name).collect::<Result<_, _>>();
        let mut set = FileSet {
            names: names.map_err(|_| Failure::wrong("the path holds a zero byte"))?,
            directory,
            paths,
            file_bytes,
            open: Vec::with_capacity(count),
            is_direct: true,
        };
        for path in &set.paths {
            let file = match open(path, set.is_direct) {
                // KERNEL: file systems without direct I/O refuse it at open.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && set.is_direct => {
                    set.is_direct = false;
                    open(path, false)
                }
                other => other,
            };
            let file = file.map_err(Failure::at("create", path))?;
            reserve(&file, path, file_bytes)?;
            set.open.push(file);
        }
        Ok(set)
    }

    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    pub(crate) fn total_bytes(&self) -> usize {
        self.paths.len() * self.file_bytes
    }

    /// The first file, to ask about what all have in common.
    pub(crate) fn first(&self) -> Option<&File> {
        self.open.first()
    }

    /// Removes the files before the scratch directory goes.
    pub(crate) fn remove(self) -> Result<(), Failure> {
        std::fs::remove_dir_all(&self.directory).map_err(Failure::at("remove", &self.directory))
    }

    /// Waits until everything is on storage, so that one measurement leaves nothing to the next.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let failed = Failure::at("sync", &self.directory);
        let directory = File::open(&self.directory).map_err(&failed)?;
        rustix::fs::syncfs(directory.as_fd()).map_err(|errno| failed(errno.into()))
    }
}

fn open(path: &Path, is_direct: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(if is_direct { libc::O_DIRECT } else { 0 })
        .open(path)
}

/// Reserves space, where the file system can.
fn reserve(file: &File, path: &Path, file_bytes: usize) -> Result<(), Failure> {
    let len_bytes = to_u64(file_bytes);
    match sys::allocate(file.as_fd(), 0, len_bytes) {
        Ok(()) => Ok(()),
        Err(libc::EOPNOTSUPP) => file.set_len(len_bytes).map_err(Failure::at("extend", path)),
        Err(errno) => {
            let free = sys::free_bytes(file.as_fd())
                .map_or(String::new(), |free| format!(" ({} are free)", shown(free)));
            let reason = Errno::from_raw_os_error(errno);
            Err(Failure::Refused(format!(
                "reserve {} in {}: {reason}{free}",
                shown(len_bytes),
                path.display()
            )))
        }
    }
}

/// Lets the process have as many open files as it may.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it is refused, opening the files says so.
    let _ = setrlimit(Resource::Nofile, raised);
}
