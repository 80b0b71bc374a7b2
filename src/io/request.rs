//! Requests: a list of tensors and paths, brought into the form the driver works on.
//!
//! A request is immutable once submitted and recycled when done, so that the steady state
//! allocates nothing. Its tensors are sorted by file and offset; each file becomes one task of the
//! driver. The memory it names belongs to the engine until its sink has been told the outcome.

use std::ffi::CStr;
use std::ops::Range;
use std::sync::Arc;

use super::storage::FileIdentity;
use super::tensor::Tensor;
use crate::base::error::{Error, Result};
use crate::base::units::to_u64;
use crate::memory::{Buffer, MemoryRange};

/// Which way data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Memory to storage.
    Out,
    /// Storage to memory.
    In,
}

impl Direction {
    /// The operation's name in messages.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Direction::Out => "swap_out",
            Direction::In => "swap_in",
        }
    }
}

/// Who goes first on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody waits, or will soon.
    Foreground,
    /// Uses what foreground leaves of a device, and a small share of it at least.
    Background,
}

/// Who hears of a request's progress and end. Called by the driver thread; must not block.
pub(crate) trait Sink: Send + Sync + std::fmt::Debug {
    /// Whether the caller asked for the request to stop.
    fn is_cancelled(&self, token: u64) -> bool;
    /// `bytes` more of the caller's tensors were moved.
    fn progress(&self, token: u64, bytes: u64);
    /// The request is over; nothing touches its memory any more. Called exactly once.
    fn complete(&self, token: u64, outcome: Outcome);
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) bytes_done: u64,
    /// The first failure, if any.
    pub(crate) failure: Option<Failure>,
}

/// The first error of a request and the tensor it struck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) index: u64,
    pub(crate) user_tag: u64,
}

impl Outcome {
    /// The outcome of a request that a defect ended.
    pub(crate) fn internal(message: &str) -> Outcome {
        let error = Error::Internal(message.to_owned());
        Outcome {
            bytes_done: 0,
            failure: Some(Failure {
                error,
                index: 0,
                user_tag: 0,
            }),
        }
    }
}

/// One contiguous range of memory and of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) file_offset: u64,
    /// The tensor's bytes and, behind them, its padding.
    pub(crate) memory: MemoryRange,
    /// Bytes at the end of `memory` that are zero and the engine's: they let an odd tail be
    /// written as a whole block without a copy. Only staging buffers have them.
    pub(crate) padding_bytes: u64,
    /// The registered buffer around `memory`, as an index into the request's buffers.
    pub(crate) buffer: Option<u32>,
    /// Index in the caller's list.
    pub(crate) index: u32,
    pub(crate) user_tag: u64,
}

impl Segment {
    pub(crate) fn len_bytes(&self) -> u64 {
        to_u64(self.memory.len()).saturating_sub(self.padding_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    /// One past the last byte in the file; tensors are checked not to overflow.
    pub(crate) fn file_end(&self) -> u64 {
        self.file_offset + self.len_bytes()
    }
}

/// What a write does to the length of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// The larger of the old length and the largest end written.
    Grow,
    /// Exactly this many bytes. The pieces of one swap-out that went through several buffers share
    /// a group: they do not wait for each other, and only the last one may shrink the file.
    Exact { bytes: u64, last: bool },
}

/// The part of a request that concerns one file.
#[derive(Debug, Clone)]
pub(crate) struct FilePart {
    /// The path with its NUL, in the request's arena.
    path: Range<usize>,
    /// Sorted by file offset.
    segments: Range<usize>,
    pub(crate) length: Length,
    /// Requests of one group order only their overlapping ranges among each other.
    pub(crate) group: u64,
    /// The file that the path must lead to: no other one is read, written or made.
    pub(crate) only: Option<FileIdentity>,
}

/// A list of tensors and paths on its way through the engine.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) direction: Direction,
    /// Foreground unless set after the request was filled.
    pub(crate) priority: Priority,
    pub(crate) files: Vec<FilePart>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) buffers: Vec<Buffer>,
    paths: Vec<u8>,
    pub(crate) total_bytes: u64,
    pub(crate) sink: Option<Arc<dyn Sink>>,
    pub(crate) token: u64,
    /// Scratch for sorting a list; kept for its capacity.
    order: Vec<u32>,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            direction: Direction::In,
            priority: Priority::Foreground,
            files: Vec::new(),
            segments: Vec::new(),
            buffers: Vec::new(),
            paths: Vec::new(),
            total_bytes: 0,
            sink: None,
            token: 0,
            order: Vec::new(),
        }
    }
}

impl Request {
    /// Forgets the content and keeps the capacity.
    pub(crate) fn clear(&mut self) {
        self.priority = Priority::Foreground;
        self.files.clear();
        self.segments.clear();
        self.buffers.clear();
        self.paths.clear();
        self.total_bytes = 0;
        self.sink = None;
        self.token = 0;
    }

    /// The path of a part, without its NUL, as the caller gave it.
    pub(crate) fn path(&self, part: &FilePart) -> &[u8] {
        let path = &self.paths[part.path.clone()];
        path.strip_suffix(&[0]).unwrap_or(path)
    }

    /// The path of a part as C knows it.
    pub(crate) fn path_c(&self, part: &FilePart) -> &CStr {
        CStr::from_bytes_with_nul(&self.paths[part.path.clone()]).unwrap_or_default()
    }

    /// The segments of a part.
    pub(crate) fn segments(&self, part: &FilePart) -> &[Segment] {
        &self.segments[part.segments.clone()]
    }

    /// Starts a part of the request; its segments follow through [`Request::push_segment`].
    pub(crate) fn push_file(&mut self, path: &CStr, length: Length, group: u64) {
        let start = self.paths.len();
        self.paths.extend_from_slice(path.to_bytes_with_nul());
        self.files.push(FilePart {
            path: start..self.paths.len(),
            segments: self.segments.len()..self.segments.len(),
            length,
            group,
            only: None,
        });
    }

    /// Demands that the path of the part started last leads to this file.
    pub(crate) fn expect_file(&mut self, only: FileIdentity) {
        if let Some(part) = self.files.last_mut() {
            part.only = Some(only);
        }
    }

    /// Demands that every path of the list leads to the file that has the same place in `only`, where
    /// there is one.
    pub(crate) fn expect_files(&mut self, paths: &[&CStr], only: &[Option<FileIdentity>]) {
        let Request {
            files, paths: own, ..
        } = self;
        for part in files {
            let path = &own[part.path.clone()];
            let listed = paths.iter().zip(only);
            let mut found = listed.filter(|(listed, _)| listed.to_bytes_with_nul() == path);
            part.only = found.next().and_then(|(_, only)| *only);
        }
    }

    /// Adds a segment to the part started last; offsets must ascend.
    pub(crate) fn push_segment(&mut self, segment: Segment) {
        self.total_bytes = self.total_bytes.saturating_add(segment.len_bytes());
        self.segments.push(segment);
        if let Some(part) = self.files.last_mut() {
            part.segments.end = self.segments.len();
        }
    }

    /// Fills the request from a caller's list; `group` is unique to this list.
    ///
    /// # Errors
    /// `InvalidArgument` for lists of different lengths, empty paths, and, when swapping out,
    /// ranges that overlap on one path.
    pub(crate) fn fill(
        &mut self,
        direction: Direction,
        tensors: &[Tensor],
        paths: &[&CStr],
        group: u64,
        find_buffer: &mut dyn FnMut(MemoryRange) -> Option<Buffer>,
    ) -> Result<()> {
        self.clear();
        self.direction = direction;
        let mut order = std::mem::take(&mut self.order);
        let sorted = sort_list(direction, tensors, paths, &mut order);
        let filled = sorted.map(|()| {
            for run in order.chunk_by(|a, b| paths[*a as usize] == paths[*b as usize]) {
                let list = run.iter().map(|index| (*index, &tensors[*index as usize]));
                let length = length_of(list.clone().map(|(_, tensor)| tensor));
                self.push_file(paths[run[0] as usize], length, group);
                for (index, tensor) in list {
                    let buffer = self.hold(tensor.memory, find_buffer);
                    self.push_segment(Segment {
                        file_offset: tensor.file_offset,
                        memory: tensor.memory,
                        padding_bytes: 0,
                        buffer,
                        index,
                        user_tag: tensor.user_tag,
                    });
                }
            }
        });
        self.order = order;
        filled
    }

    /// Keeps the registered buffer around `memory` alive as long as the request.
    fn hold(
        &mut self,
        memory: MemoryRange,
        find_buffer: &mut dyn FnMut(MemoryRange) -> Option<Buffer>,
    ) -> Option<u32> {
        let last = self.buffers.len().checked_sub(1);
        let position = match last
            .filter(|last| self.buffers[*last].contains(memory.address(), memory.len()))
        {
            Some(last) => last,
            None => {
                self.buffers.push(find_buffer(memory)?);
                self.buffers.len() - 1
            }
        };
        u32::try_from(position).ok()
    }
}

/// Orders a list by path and offset, keeping the caller's order among equals, and checks it.
pub(crate) fn sort_list(
    direction: Direction,
    tensors: &[Tensor],
    paths: &[&CStr],
    order: &mut Vec<u32>,
) -> Result<()> {
    if tensors.len() != paths.len() {
        return Err(Error::invalid("there must be one path for each tensor"));
    }
    let count = u32::try_from(tensors.len())
        .map_err(|_| Error::invalid(format!("{} tensors are too many", tensors.len())))?;
    if let Some(index) = paths.iter().position(|path| path.is_empty()) {
        return Err(Error::invalid(format!("path {index} is empty")));
    }
    order.clear();
    order.extend(0..count);
    let key = |index: &u32| {
        (
            paths[*index as usize],
            tensors[*index as usize].file_offset,
            *index,
        )
    };
    if !order.is_sorted_by_key(key) {
        order.sort_unstable_by_key(key);
    }
    if direction == Direction::In {
        return Ok(());
    }
    // An empty tensor overlaps nothing, wherever it lies.
    let mut previous: Option<usize> = None;
    for index in order.iter().map(|index| *index as usize) {
        if tensors[index].memory.is_empty() {
            continue;
        }
        if let Some(other) = previous.filter(|other| {
            paths[*other] == paths[index] && tensors[*other].file_end() > tensors[index].file_offset
        }) {
            return Err(Error::invalid(format!(
                "tensors {other} and {index} overlap in {}",
                paths[index].to_string_lossy()
            )));
        }
        previous = Some(index);
    }
    Ok(())
}

/// The rule for a file's length that follows from the tensors of one list on its path.
pub(crate) fn length_of<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone) -> Length {
    let end = tensors.clone().map(Tensor::file_end).max().unwrap_or(0);
    if tensors.clone().any(Tensor::sets_length) {
        Length::Exact {
            bytes: end,
            last: true,
        }
    } else {
        Length::Grow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_request_is_foreground_again() {
        let mut request = Request {
            priority: Priority::Background,
            ..Request::default()
        };
        request.clear();
        assert_eq!(request.priority, Priority::Foreground);
    }
}
