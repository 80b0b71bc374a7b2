//! The file table: open files by identity, their lengths, and the queue of tasks on each.
//!
//! Bounded: at most `open_files_max` descriptors, the least recently used idle one closed first.
//! A path is resolved anew for each request, so a file that was renamed or replaced meanwhile is
//! never mistaken for the one that is open. Pure but for counters.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use slab::Slab;

use super::metadata::KnownFiles;
use crate::base::error::Error;
use crate::base::sync::lock;
use crate::io::counters::Counters;
use crate::io::storage::{Alignment, FileHandle, FileIdentity, OpenedFile};

/// A failed write whose range reads as an error until it has been rewritten.
#[derive(Debug, Clone)]
pub(super) struct Sticky {
    range: Range<u64>,
    error: Error,
}

/// One open file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) handle: Arc<FileHandle>,
    identity: FileIdentity,
    pub(super) writable: bool,
    pub(super) direct: bool,
    pub(super) alignment: Alignment,
    /// Length as the finished requests left it.
    pub(super) len_bytes: u64,
    /// Length once every admitted task has ended well.
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
    sticky: Option<Sticky>,
    /// When a write of ours last ended: lengths looked up before are stale.
    pub(super) written_at: u64,
    /// When the file last became idle; tells stale entries of the idle queue.
    idle_since: u64,
}

impl File {
    /// Remembers that `range` may hold anything after `error`.
    pub(super) fn stick(&mut self, range: Range<u64>, error: &Error) {
        let range = match &self.sticky {
            Some(old) => old.range.start.min(range.start)..old.range.end.max(range.end),
            None => range,
        };
        self.sticky = Some(Sticky {
            range,
            error: error.clone(),
        });
    }

    /// The error of an earlier write that a read of `range` would meet.
    pub(super) fn stuck(&self, range: &Range<u64>) -> Option<&Error> {
        self.sticky
            .as_ref()
            .filter(|sticky| sticky.range.start < range.end && range.start < sticky.range.end)
            .map(|sticky| &sticky.error)
    }

    /// Forgets an earlier failure once `covers` says that all of its range was rewritten or cut.
    pub(super) fn unstick(&mut self, covers: impl FnOnce(&Range<u64>) -> bool) {
        if self
            .sticky
            .as_ref()
            .is_some_and(|sticky| covers(&sticky.range))
        {
            self.sticky = None;
        }
    }

    /// Whether new writers must wait for the length.
    pub(super) fn is_settling(&self) -> bool {
        self.length_job || !self.settling.is_empty()
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
    /// The latest `written_at` of a file that was closed.
    forgotten_at: u64,
    /// Failed writes of files that were closed.
    failed: HashMap<FileIdentity, Sticky>,
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
            forgotten_at: 0,
            failed: HashMap::new(),
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

    /// Takes in an opened file, or joins it with the entry that is there.
    pub(super) fn insert(&mut self, opened: OpenedFile) -> usize {
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
        let key = self.files.insert(File {
            handle: opened.handle,
            identity: opened.identity,
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
            sticky: self.failed.remove(&opened.identity),
            written_at: 0,
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

    /// Whether a file was closed that was written after `moment`.
    pub(super) fn forgot_since(&self, moment: u64) -> bool {
        self.forgotten_at > moment
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
        let file = self.files.remove(key);
        self.forgotten_at = self.forgotten_at.max(file.written_at);
        self.by_identity.remove(&file.identity);
        lock(&self.known).remove(&file.identity);
        self.counters.open_files.sub(1);
        if let Some(sticky) = file.sticky {
            // The inode may be another file's when it is opened again; its reads then fail until
            // it is written, which is the safe side.
            self.failed.insert(file.identity, sticky);
        }
        close(file.handle);
        true
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
            if self.files[key].sticky.is_none() {
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
    files.get(key).is_some_and(|file| {
        file.idle_since == since && file.queue.is_empty() && !file.is_settling()
    })
}
