//! Space for records: the data file grows in steps, before anything is written to it.

use super::file::StoreFile;
use crate::base::error::{Error, Result};
use crate::base::units::{FILE_OFFSET_MAX, GIB, MIB};
use crate::sys::Errno;

/// The data file grows by an eighth of what it is, within these bounds.
const GROWTH_BYTES_MIN: u64 = 64 * MIB;
const GROWTH_BYTES_MAX: u64 = GIB;

/// How far the data file is reserved.
#[derive(Debug)]
pub(crate) struct Reservation {
    end: u64,
}

impl Reservation {
    /// A file of this length, all of it reserved.
    pub(crate) fn new(len_bytes: u64) -> Reservation {
        Reservation { end: len_bytes }
    }

    /// Makes sure that the file is reserved up to `end`, which must not exceed the largest offset.
    ///
    /// # Errors
    /// `Io`: with `ENOSPC` the message names the bytes needed and those free.
    pub(crate) fn reach(&mut self, data: &StoreFile, end: u64) -> Result<()> {
        if end <= self.end {
            return Ok(());
        }
        let growth = (self.end / 8).clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX);
        let ample = end
            .max(self.end.saturating_add(growth))
            .min(FILE_OFFSET_MAX);
        let reached = match grow(data, self.end, ample) {
            Ok(()) => Ok(ample),
            // Growing ahead was too much; what is needed may still fit.
            Err(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                grow(data, self.end, end).map(|()| end)
            }
            Err(errno) => Err(errno),
        };
        self.end = match reached {
            Ok(reached) => reached,
            // KERNEL: fallocate(2): not every file system can reserve. The file gets its length,
            // and a full disk is met by the write that needs the space.
            Err(libc::EOPNOTSUPP | libc::ENOSYS) => data.set_len(ample).map(|()| ample)?,
            Err(errno) => {
                let (needed, free) = (end - self.end, data.free_bytes());
                let detail = format!("{needed} bytes needed, {free} free");
                let path = data.path().to_bytes();
                return Err(Error::io("reserve", path, Some(self.end), errno, detail));
            }
        };
        Ok(())
    }
}

/// Reserves space behind the end of the file, all of it or none.
fn grow(data: &StoreFile, len_bytes: u64, end: u64) -> Result<(), Errno> {
    let grown = data.allocate(len_bytes, end);
    if grown.is_err() {
        // KERNEL: ext4 keeps what it had found before space ran out, which is all that was free.
        // Where cutting it off fails the file is only longer than it has to be.
        let _ = data.set_len(len_bytes);
    }
    grown
}
