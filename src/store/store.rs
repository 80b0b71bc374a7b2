//! SKELETON: the store as the optimizer sees it.
use std::ffi::{CStr, CString};

use super::{Layout, StateSpec, Version};
use crate::base::config::OptimizerOptions;
use crate::base::error::Result;
use crate::base::sync::Mutex;
use crate::io::Engine;

/// Index of a record: the order in which parameters were first registered.
pub(crate) type RecordIndex = u32;

/// One record as the store knows it.
#[derive(Debug, Clone)]
pub(crate) struct StoredRecord {
    pub(crate) id: u64,
    pub(crate) name: Option<Box<str>>,
    pub(crate) numel: u64,
    /// Offset of slot 0 in the data file; slot 1 follows it.
    pub(crate) offset: u64,
    /// The last committed version; `None` before the first.
    pub(crate) durable: Option<Version>,
}

/// A store that this process holds the lock of. Any thread may call any method.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<()>,
    path: CString,
}

#[allow(unused_variables, clippy::unused_self)]
impl Store {
    /// Opens or makes the store (`options.directories`, `rank`, `store`).
    pub(crate) fn open(engine: &Engine, options: &OptimizerOptions) -> Result<Store> {
        unimplemented!()
    }
    /// States recorded so far (all of an opened store's at once).
    pub(crate) fn layout(&self) -> Layout {
        unimplemented!()
    }
    /// Records a further state; only before the first record of a new store.
    pub(crate) fn add_state(&self, state: StateSpec) -> Result<()> {
        unimplemented!()
    }
    pub(crate) fn records_len(&self) -> usize {
        unimplemented!()
    }
    pub(crate) fn record(&self, index: RecordIndex) -> Option<StoredRecord> {
        unimplemented!()
    }
    pub(crate) fn find(&self, id: u64) -> Option<RecordIndex> {
        unimplemented!()
    }
    /// Registers a record and reserves both of its slots. The log entry becomes durable with the
    /// next commit.
    pub(crate) fn add_record(&self, id: u64, name: Option<&str>, numel: u64) -> Result<RecordIndex> {
        unimplemented!()
    }
    /// The data file, as the engine is to be asked for it.
    pub(crate) fn data_path(&self) -> &CStr {
        &self.path
    }
    /// Steps done, as last committed.
    pub(crate) fn step(&self) -> u64 {
        unimplemented!()
    }
    pub(crate) fn user_data(&self) -> Vec<u8> {
        unimplemented!()
    }
    /// A directory of this store for files that do not outlive the process; emptied at open.
    pub(crate) fn scratch_directory(&self) -> &CStr {
        &self.path
    }
    /// Makes versions durable: syncs the data, appends one entry, syncs the log. Blocks; one
    /// thread at a time. `user_data` None keeps what was there.
    /// A failed sync makes this and every later commit fail with the same error; a failed append
    /// leaves the store as it was, and a later commit may succeed.
    pub(crate) fn commit(
        &self,
        step: u64,
        changes: &[(RecordIndex, Version)],
        user_data: Option<&[u8]>,
    ) -> Result<()> {
        unimplemented!()
    }
}
