//! Random data in memory, and the files it goes to.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tensorswap::base::config::Policy;
use tensorswap::memory::PinnedMemory;

/// Each block of this size carries the number of its round.
const STAMP_BYTES: usize = 4096;

/// Memory that belongs to somebody else, seen as a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    start: *mut u8,
    len: usize,
}

impl Area {
    /// SAFETY: the memory must stay valid, and not be touched otherwise while a slice of it is
    /// alive, as long as the area is used.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Area {
        Area { start, len }
    }

    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The part that belongs to file `index`.
    pub(crate) fn part(self, index: usize, len: usize) -> Area {
        assert!((index + 1) * len <= self.len, "a part outside of its area");
        Area {
            start: self.start.wrapping_add(index * len),
            len,
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `new`'s contract: valid, and nobody writes: rounds are strictly sequential.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; one thread makes one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Fills with random bytes that no compression or deduplication shrinks.
    pub(crate) fn randomize(&mut self, seed: u64) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in self.as_mut_slice().chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }

    /// Makes every block differ from that of any other round.
    pub(crate) fn stamp(&mut self, round: u64) {
        for (index, block) in (0_u64..).zip(self.as_mut_slice().chunks_exact_mut(STAMP_BYTES)) {
            block[..8].copy_from_slice(&(round << 32 | index).to_le_bytes());
        }
    }
}

/// The files of a scenario: equal lengths, one after the other in memory.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) names: Vec<CString>,
    pub(crate) file_bytes: usize,
    scratch: PinnedMemory,
}

impl Files {
    pub(crate) fn new(directory: &Path, count: usize, file_bytes: usize) -> Result<Files> {
        std::fs::create_dir_all(directory)?;
        let paths: Vec<PathBuf> = (0..count)
            .map(|index| directory.join(format!("tensor-{index:05}")))
            .collect();
        let names = paths
            .iter()
            .map(|path| CString::new(path.as_os_str().as_bytes()))
            .collect::<std::result::Result<_, _>>()?;
        let scratch = PinnedMemory::allocate(
            u64::try_from(file_bytes).map_err(Error::other)?,
            Policy::Prefer,
            Policy::Prefer,
        )
        .map_err(Error::other)?;
        Ok(Files {
            directory: directory.to_owned(),
            paths,
            names,
            file_bytes,
            scratch,
        })
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

    /// Removes the files that exist.
    pub(crate) fn remove(&self) -> Result<()> {
        for path in &self.paths {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
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
        let _ = self.remove();
        let _ = std::fs::remove_dir(&self.directory);
    }
}
