//! The file table: open files by identity, their lengths, and the queue of tasks on each.
//!
//! Bounded: at most `open_files_max` descriptors, the least recently used idle one closed first.
//! A path is resolved anew for each request, so a file that was renamed or replaced meanwhile is
//! never mistaken for the one that is open. Pure but for counters.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;

use super::failed_ranges::FailedRanges;
use super::metadata::KnownFiles;
use crate::base::sync::lock;
use crate::io::counters::Counters;
use crate::io::storage::{Alignment, FileHandle, FileIdentity, OpenedFile};

/// Closed files whose failed writes are remembered.
const FAILED_MAX: usize = 4096;
/// Closed files remembered for when they were written, before the list is thinned out.
const FORGOTTEN_MAX: usize = 256;

/// One open file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) handle: Arc<FileHandle>,
    identity: FileIdentity,
    /// Index of the device that it lies on.
    pub(super) device: usize,
    pub(super) writable: bool,
    pub(super) direct: bool,
    pub(super) alignment: Alignment,
    /// Length as the finished requests left it.
    pub(super) len_bytes: u64,
    /// Length at least, once every admitted task that sets it has ended well.
    pub(super) planned_len_bytes: u64,
    /// Length on storage: longer while padded tails wait to be cut.
    pub(super) disk_len_bytes: u64,
    /// Tasks admitted and not finished, in the order of submission.
    pub(super) queue: VecDeque<usize>,
    /// Writing tasks that reserve or run.
    pub(super) writers: usize,
    /// Finished writers that wait for the length to be set.
    pub(super) settling: Vec<usize>,
    /// The length is being set, or asked for, now.
    pub(super) length_job: bool,
    /// Writers that may start once the length is settled.
    pub(super) held: Vec<usize>,
    /// Failed writes that nobody has made good yet.
    pub(super) failed: FailedRanges,
    /// The list of tensors admitted last for writing, and its largest end so far.
    pub(super) group: (u64, u64),
    /// The file system reserves space when asked.
    pub(super) reserves: bool,
    /// When a write of ours last ended; 0 if none has since it was opened.
    pub(super) written_at: u64,
    /// Lengths looked up before this moment are stale.
    pub(super) believed_from: u64,
    /// When the file last became idle; tells stale entries of the idle queue.
    idle_since: u64,
}

impl File {
    /// Whether new writers must wait for the length.
    pub(super) fn is_settling(&self) -> bool {
        self.length_job || !self.settling.is_empty()
    }

    /// Whether there have been tasks, and all are over.
    fn is_idle(&self) -> bool {
        self.idle_since > 0 && self.queue.is_empty() && !self.is_settling()
    }
}

/// All open files.
#[derive(Debug)]
pub(super) struct FileTable {
    pub(super) files: Slab<File>,
    by_identity: HashMap<FileIdentity, usize>,
    known: Arc<KnownFiles>,
    /// Idle files, least recently used first; entries may be stale.
    idle: VecDeque<(usize, u64)>,
    /// Counts the events whose order matters.
    clock: u64,
    /// Files that were closed, and when they were last written: lengths looked up before are
    /// stale. Only those that a task in the window may have looked up.
    forgotten: Vec<(FileIdentity, u64)>,
    /// Failed writes of files that were closed.
    failed: HashMap<FileIdentity, FailedRanges>,
    /// When idle files were last closed for the space that they may have kept.
    freed_at: u64,
    files_max: usize,
    counters: Arc<Counters>,
}

impl FileTable {
    pub(super) fn new(
        files_max: usize,
        known: Arc<KnownFiles>,
        counters: Arc<Counters>,
    ) -> FileTable {
        FileTable {
            files: Slab::new(),
            by_identity: HashMap::new(),
            known,
            idle: VecDeque::new(),
            clock: 0,
            forgotten: Vec::new(),
            failed: HashMap::new(),
            freed_at: 0,
            files_max: files_max.max(1),
            counters,
        }
    }

    /// The open file with this identity.
    pub(super) fn find(&self, identity: FileIdentity) -> Option<usize> {
        self.by_identity.get(&identity).copied()
    }

    /// Whether one more file can be taken in, after closing idle ones; `close` gets those.
    pub(super) fn make_room(&mut self, close: &mut dyn FnMut(Arc<FileHandle>)) -> bool {
        while self.files.len() >= self.files_max {
            if !self.evict(close) {
                return false;
            }
        }
        true
    }

    /// Takes in an opened file of a device, or joins it with the entry that is there.
    pub(super) fn insert(&mut self, opened: OpenedFile, device: usize) -> usize {
        if let Some(key) = self.find(opened.identity) {
            let file = &mut self.files[key];
            if opened.writable && !file.writable {
                // Operations in flight keep the old descriptor alive.
                file.handle = opened.handle;
                file.writable = true;
                file.direct = opened.direct;
                file.alignment = opened.alignment;
                lock(&self.known).insert(opened.identity, true);
            }
            return key;
        }
        let believed_from = self.tick();
        let key = self.files.insert(File {
            handle: opened.handle,
            identity: opened.identity,
            device,
            writable: opened.writable,
            direct: opened.direct,
            alignment: opened.alignment,
            len_bytes: opened.len_bytes,
            planned_len_bytes: opened.len_bytes,
            disk_len_bytes: opened.len_bytes,
            queue: VecDeque::new(),
            writers: 0,
            settling: Vec::new(),
            length_job: false,
            held: Vec::new(),
            failed: self.failed.remove(&opened.identity).unwrap_or_default(),
            group: (u64::MAX, 0),
            reserves: true,
            written_at: 0,
            believed_from,
            idle_since: 0,
        });
        self.by_identity.insert(opened.identity, key);
        lock(&self.known).insert(opened.identity, opened.writable);
        self.counters.open_files.add(1);
        key
    }

    /// The moment now.
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    /// A new moment, later than all before.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether the file was written by us, and closed, after `moment`.
    pub(super) fn forgot_since(&self, identity: FileIdentity, moment: u64) -> bool {
        self.forgotten
            .iter()
            .any(|(file, written_at)| *file == identity && *written_at > moment)
    }

    /// Drops what no lookup begun at `oldest` or later can have missed.
    pub(super) fn thin_out(&mut self, oldest: impl FnOnce() -> u64) {
        if self.forgotten.len() > FORGOTTEN_MAX {
            let oldest = oldest();
            self.forgotten
                .retain(|(_, written_at)| *written_at > oldest);
        }
    }

    /// Notes that the last task on a file is over.
    pub(super) fn rest(&mut self, key: usize) {
        let now = self.tick();
        self.files[key].idle_since = now;
        self.idle.push_back((key, now));
        // BOUND: at most two entries per open file, on average, stay in the queue.
        if self.idle.len() > 2 * self.files.len() + 16 {
            let files = &self.files;
            self.idle
                .retain(|(key, since)| is_idle(files, *key, *since));
        }
    }

    /// Closes the least recently used idle file; false where there is none.
    pub(super) fn evict(&mut self, close: &mut dyn FnMut(Arc<FileHandle>)) -> bool {
        let Some(key) = self.oldest_idle() else {
            return false;
        };
        close(self.remove(key));
        true
    }

    /// Takes out the file with this identity, to be closed, where it is idle.
    pub(super) fn close(&mut self, identity: FileIdentity) -> Option<Arc<FileHandle>> {
        let key = self.find(identity)?;
        self.files[key].is_idle().then(|| self.remove(key))
    }

    /// Takes out an idle file.
    fn remove(&mut self, key: usize) -> Arc<FileHandle> {
        let file = self.files.remove(key);
        if file.written_at > 0 {
            self.forgotten.push((file.identity, file.written_at));
        }
        self.by_identity.remove(&file.identity);
        lock(&self.known).remove(&file.identity);
        self.counters.open_files.sub(1);
        if !file.failed.is_empty() && self.failed.len() < FAILED_MAX {
            // The inode may be another file's when it is opened again; its reads then fail until
            // it is written, which is the safe side.
            self.failed.insert(file.identity, file.failed);
        }
        file.handle
    }

    /// Closes every idle file because storage is full: those that the caller deleted keep their
    /// space while they are open here. True where that happened after `asked_at`, so that what
    /// was refused then is worth another try.
    ///
    /// The files are closed on this thread, since who tries again must find the space.
    pub(super) fn free_space(&mut self, asked_at: u64) -> bool {
        let mut closed = false;
        while self.evict(&mut drop) {
            closed = true;
        }
        if closed {
            self.freed_at = self.tick();
        }
        self.freed_at > asked_at
    }

    /// The idle file to close next. One that remembers a failed write is kept as long as another
    /// can go.
    fn oldest_idle(&mut self) -> Option<usize> {
        let mut last_resort = None;
        for _ in 0..self.idle.len() {
            let (key, since) = self.idle.pop_front()?;
            if !is_idle(&self.files, key, since) {
                continue;
            }
            if self.files[key].failed.is_empty() {
                return Some(key);
            }
            last_resort = last_resort.or(Some(key));
            self.idle.push_back((key, since));
        }
        last_resort
    }
}

/// Whether an entry of the idle queue still speaks of an idle file.
fn is_idle(files: &Slab<File>, key: usize, since: u64) -> bool {
    files
        .get(key)
        .is_some_and(|file| file.idle_since == since && file.is_idle())
}
