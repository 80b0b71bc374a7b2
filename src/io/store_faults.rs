//! Makes calls of the store fail, for tests.

use crate::base::sync::{Mutex, lock};
use crate::sys::Errno;

/// A call of the store that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreCall {
    /// Syncing the data file.
    SyncData,
    /// Syncing the log.
    SyncLog,
    /// Syncing a log that is to replace the log.
    SyncNewLog,
    /// Syncing the directory.
    SyncDirectory,
    /// Writing to the log, nothing done.
    Append,
    /// Writing to the log, half of it done.
    AppendInPart,
    /// Cutting or extending the log or the data file.
    SetLength,
    /// Putting a new log in place.
    Rename,
    /// Reserving space for records.
    Reserve,
}

/// Is asked before the store calls the system. Any thread may call any method.
#[derive(Debug, Default)]
pub struct StoreFaults {
    faults: Mutex<Vec<Fault>>,
}

#[derive(Debug)]
struct Fault {
    call: StoreCall,
    skip_count: u32,
    fail_count: u32,
    errno: Errno,
}

impl StoreFaults {
    /// Lets every call through.
    #[must_use]
    pub fn new() -> StoreFaults {
        StoreFaults::default()
    }

    /// Makes `fail_count` calls fail with `errno`, after `skip_count` that do not.
    pub fn fail(&self, call: StoreCall, skip_count: u32, fail_count: u32, errno: Errno) {
        lock(&self.faults).push(Fault {
            call,
            skip_count,
            fail_count,
            errno,
        });
    }

    /// Lets every call through again.
    pub fn forgive(&self) {
        lock(&self.faults).clear();
    }

    /// Whether a call is to fail, and how.
    ///
    /// # Errors
    /// The errno to fail with.
    pub(crate) fn strike(&self, call: StoreCall) -> Result<(), Errno> {
        let mut faults = lock(&self.faults);
        let mut faults = faults.iter_mut();
        let Some(fault) = faults.find(|fault| fault.call == call && fault.fail_count > 0) else {
            return Ok(());
        };
        if fault.skip_count > 0 {
            fault.skip_count -= 1;
            return Ok(());
        }
        fault.fail_count -= 1;
        Err(fault.errno)
    }
}
