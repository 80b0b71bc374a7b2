//! The files that random data goes to.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tensorswap::base::config::Policy;
use tensorswap::memory::PinnedMemory;

use crate::common::area::Area;

/// From this number on files are left to the end.
const MANY: usize = 1000;

/// The files of a scenario: equal lengths, one after the other in memory.
#[derive(Debug)]
pub(crate) struct Files {
    /// Where the directories of files are made.
    base: PathBuf,
    pub(crate) directory: PathBuf,
    /// Directories that were used before, with their files.
    left_behind: Vec<(PathBuf, Vec<PathBuf>)>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) names: Vec<CString>,
    count: usize,
    pub(crate) file_bytes: usize,
    scratch: PinnedMemory,
}

impl Files {
    pub(crate) fn new(base: &Path, count: usize, file_bytes: usize) -> Result<Files> {
        std::fs::create_dir_all(base)?;
        spread_directories(base);
        let scratch_bytes = u64::try_from(file_bytes).map_err(Error::other)?;
        let scratch = PinnedMemory::allocate(scratch_bytes, Policy::Prefer, Policy::Prefer)
            .map_err(Error::other)?;
        let mut files = Files {
            base: base.to_owned(),
            directory: base.to_owned(),
            left_behind: Vec::new(),
            paths: Vec::new(),
            names: Vec::new(),
            count,
            file_bytes,
            scratch,
        };
        files.renew()?;
        Ok(files)
    }

    /// Goes to a new directory. What there is stays to the end where there are many files: ext4
    /// does not reuse inodes for some minutes, and creating files near thousands of removed ones
    /// would measure its search for others.
    pub(crate) fn renew(&mut self) -> Result<()> {
        let old = std::mem::take(&mut self.paths);
        if self.count >= MANY {
            self.left_behind.push((self.directory.clone(), old));
        } else {
            remove(&self.directory, &old)?;
        }
        // A name never used before: ext4 takes the place of the directory from it.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanos = now.map_or(0, |time| time.as_nanos());
        self.directory = self.base.join(format!("files-{nanos:x}"));
        std::fs::create_dir_all(&self.directory)?;
        let name = |index| self.directory.join(format!("tensor-{index:05}"));
        self.paths = (0..self.count).map(name).collect();
        self.names = self
            .paths
            .iter()
            .map(|path| CString::new(path.as_os_str().as_bytes()))
            .collect::<std::result::Result<_, _>>()?;
        Ok(())
    }

    pub(crate) fn total_bytes(&self) -> usize {
        self.paths.len() * self.file_bytes
    }

    pub(crate) fn open(path: &Path, create: bool) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(path)
    }

    /// Writes all files with plain system calls.
    pub(crate) fn write(&self, source: Area) -> Result<()> {
        for (index, path) in self.paths.iter().enumerate() {
            let part = source.part(index, self.file_bytes);
            Files::open(path, true)?.write_all_at(part.as_slice(), 0)?;
        }
        Ok(())
    }

    /// Lets the file system finish what earlier rounds left, so that nobody pays for another.
    pub(crate) fn sync(&self) -> Result<()> {
        let directory = File::open(&self.directory)?;
        // SAFETY: the descriptor is open for the call.
        match unsafe { libc::syncfs(directory.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    /// Drops what the page cache has of the files, which must have been synced.
    pub(crate) fn drop_cached(&self) -> Result<()> {
        for path in &self.paths {
            let file = File::open(path)?;
            // SAFETY: the descriptor is open for the call; no memory is involved.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        Ok(())
    }

    /// Reads every file back, past the page cache, and compares it and its length.
    pub(crate) fn verify(&mut self, expected: Area) -> Result<()> {
        // SAFETY: the scratch memory lives as long as `self` and is used here alone.
        let mut scratch = unsafe { Area::new(self.scratch.as_ptr(), self.file_bytes) };
        for (index, path) in self.paths.iter().enumerate() {
            let file = Files::open(path, false)?;
            file.read_exact_at(scratch.as_mut_slice(), 0)?;
            let len_bytes = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
            if len_bytes != self.file_bytes
                || scratch.as_slice() != expected.part(index, self.file_bytes).as_slice()
            {
                return Err(Error::other(format!(
                    "{} is not as written",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.left_behind
            .push((self.directory.clone(), std::mem::take(&mut self.paths)));
        for (directory, paths) in &self.left_behind {
            let _ = remove(directory, paths);
        }
        let _ = std::fs::remove_dir(&self.base);
    }
}

/// Removes the files that exist, and their directory.
fn remove(directory: &Path, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match paths.is_empty() {
        true => Ok(()),
        false => std::fs::remove_dir(directory),
    }
}

/// Asks ext4 to put directories made in this one far from each other; others do not know it.
fn spread_directories(base: &Path) {
    /// `FS_TOPDIR_FL` of linux/fs.h.
    const TOP_OF_HIERARCHY: libc::c_int = 0x0002_0000;
    let Ok(directory) = File::open(base) else {
        return;
    };
    let mut flags: libc::c_int = 0;
    // SAFETY: the descriptor is open for the calls; each reads or writes one int.
    unsafe {
        if libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) == 0 {
            flags |= TOP_OF_HIERARCHY;
            libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags);
        }
    }
}
