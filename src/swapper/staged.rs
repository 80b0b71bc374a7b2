//! What lies where in one staging buffer, and what of it is not submitted yet. Pure.
//!
//! Each entry is one piece of a tensor. Entries that were not submitted are the newest version of
//! their bytes, whatever was or will be written to the file by others before them: reading them
//! from the buffer gives what a read after the write would give.

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::pool::Place;
use crate::io::{Length, Request, Segment};
use crate::memory::{Buffer, MemoryRange};

/// One piece of a tensor in a staging buffer.
#[derive(Debug, Clone)]
struct Entry {
    path_hash: u64,
    path: Range<usize>,
    file_offset: u64,
    len_bytes: u64,
    padding_bytes: u64,
    /// The bytes and their padding.
    memory: MemoryRange,
    length: Length,
    group: u64,
    index: u32,
    user_tag: u64,
}

/// A piece to be noted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) place: Place,
    pub(super) memory: MemoryRange,
    pub(super) file_offset: u64,
    pub(super) length: Length,
    /// The call it came with.
    pub(super) group: u64,
    pub(super) index: u32,
    pub(super) user_tag: u64,
}

/// The unsubmitted entries of the current buffer.
#[derive(Debug, Default)]
pub(super) struct Staged {
    entries: Vec<Entry>,
    paths: Vec<u8>,
    len_bytes: u64,
}

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of tensors that wait to be submitted.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Pieces that wait to be submitted.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.paths.clear();
        self.len_bytes = 0;
    }

    /// Notes a piece that was copied into the buffer.
    pub(super) fn push(&mut self, path: &CStr, piece: Piece) {
        let bytes = path.to_bytes_with_nul();
        let path = match self.entries.last() {
            Some(last) if &self.paths[last.path.clone()] == bytes => last.path.clone(),
            _ => {
                let start = self.paths.len();
                self.paths.extend_from_slice(bytes);
                start..self.paths.len()
            }
        };
        self.len_bytes += piece.place.len_bytes;
        self.entries.push(Entry {
            path_hash: hash_of(bytes),
            path,
            file_offset: piece.file_offset,
            len_bytes: piece.place.len_bytes,
            padding_bytes: piece.place.padding_bytes,
            memory: piece.memory,
            length: piece.length,
            group: piece.group,
            index: piece.index,
            user_tag: piece.user_tag,
        });
    }

    /// The newest staged bytes for all of a range of a file, by the text of its path; `None` where
    /// no single entry holds them, or an entry after it changes a part of them or the length.
    pub(super) fn find(&self, path: &CStr, file_offset: u64, len: usize) -> Option<MemoryRange> {
        let bytes = path.to_bytes_with_nul();
        let hash = hash_of(bytes);
        // Only the very last path: one staged after it may be another name of the same file.
        let newest = self
            .entries
            .last()
            .filter(|entry| entry.path_hash == hash && &self.paths[entry.path.clone()] == bytes)?;
        let skip = usize::try_from(file_offset.checked_sub(newest.file_offset)?).ok()?;
        let inside = skip.checked_add(len)?;
        let held = usize::try_from(newest.len_bytes).ok()?;
        (inside <= held)
            .then(|| newest.memory.slice(skip, len))
            .flatten()
    }

    /// Moves all entries into a request over `buffer`.
    pub(super) fn fill(&mut self, request: &mut Request, buffer: &Buffer) {
        request.buffers.push(buffer.clone());
        let mut last: Option<&Entry> = None;
        for entry in &self.entries {
            let joins = last.is_some_and(|last| {
                last.path == entry.path
                    && last.group == entry.group
                    && last.length == entry.length
                    && last.file_offset + last.len_bytes <= entry.file_offset
            });
            if !joins {
                let path = CStr::from_bytes_with_nul(&self.paths[entry.path.clone()]);
                request.push_file(path.unwrap_or_default(), entry.length, entry.group);
            }
            request.push_segment(Segment {
                file_offset: entry.file_offset,
                memory: entry.memory,
                padding_bytes: entry.padding_bytes,
                buffer: Some(0),
                index: entry.index,
                user_tag: entry.user_tag,
            });
            last = Some(entry);
        }
        self.clear();
    }
}

fn hash_of(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// An empty request to be filled, if it is not shared.
pub(super) fn exclusive(request: &mut Arc<Request>) -> Option<&mut Request> {
    let request = Arc::get_mut(request)?;
    request.clear();
    request.direction = crate::io::Direction::Out;
    Some(request)
}
