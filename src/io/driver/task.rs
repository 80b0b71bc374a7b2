//! A task: the part of one request that concerns one file, and its order among the others.
//!
//! Life: resolving (a metadata thread finds the file) → queued (waits for earlier tasks whose
//! ranges overlap) → reserving (writers that make the file longer) → running (operations are
//! planned and in flight) → settling (the file's length is set) → over. Pure.

use std::ops::Range;

use super::metadata::Found;
use crate::base::units::{MIB, round_down, round_up};
use crate::io::planner::{Cursor, Geometry};
use crate::io::request::{Direction, Length, Priority, Request, Segment};
use crate::io::storage::{Alignment, Errno};

/// Where a task is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// A metadata thread looks for the file.
    Resolving,
    /// Found, but earlier requests are not yet.
    Resolved(Result<Found, Errno>),
    /// Too many files are open; resolved again when a task ends.
    Starved,
    /// Admitted; waits for its blockers, or for the file's length to settle.
    Queued,
    /// A metadata thread reserves space.
    Reserving,
    /// Operations are planned and in flight.
    Running,
    /// All operations are over; the length is being set.
    Settling,
}

/// One file's part of one request.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) request: usize,
    pub(super) part: usize,
    pub(super) direction: Direction,
    pub(super) priority: Priority,
    pub(super) length: Length,
    pub(super) group: u64,
    pub(super) phase: Phase,
    /// When a metadata thread was last asked for the file.
    pub(super) resolved_at: u64,
    /// Key of the file, once admitted.
    pub(super) file: usize,
    /// Earlier tasks on the file that must end first.
    pub(super) blockers: usize,
    /// From the first to the last byte, rounded out to blocks.
    blocks: Range<u64>,
    /// Bytes that may come into being with this task, written by it or not.
    growth: Range<u64>,
    /// From the first to the last byte.
    pub(super) bytes: Range<u64>,
    /// The largest end in the list; an empty tensor has one too.
    list_end: u64,
    pub(super) cursor: Cursor,
    pub(super) geometry: Geometry,
    pub(super) in_flight: usize,
    pub(super) done_bytes: u64,
    /// How far space was asked for.
    pub(super) reserved_end: u64,
    /// When it was asked for.
    pub(super) reserving_at: u64,
    /// One past the last byte that operations may have written, padding included.
    pub(super) written_end: u64,
    /// Every operation was planned; those in flight are the last.
    pub(super) planned: bool,
    /// An operation may have changed the file.
    pub(super) touched: bool,
    pub(super) failed: bool,
}

impl Task {
    pub(super) fn new(request: usize, part: usize, of: &Request) -> Task {
        let file_part = &of.files[part];
        let segments = of.segments(file_part);
        Task {
            request,
            part,
            direction: of.direction,
            priority: of.priority,
            length: file_part.length,
            group: file_part.group,
            phase: Phase::Resolving,
            resolved_at: 0,
            file: usize::MAX,
            blockers: 0,
            blocks: 0..0,
            growth: 0..0,
            bytes: hull(segments),
            list_end: segments.iter().map(Segment::file_end).max().unwrap_or(0),
            cursor: Cursor::default(),
            geometry: Geometry {
                offset_align_bytes: 1,
                memory_align_bytes: 1,
                block_bytes: 1,
                bounce_bytes: 1,
                file_len_bytes: 0,
            },
            in_flight: 0,
            done_bytes: 0,
            reserved_end: 0,
            reserving_at: 0,
            written_end: 0,
            planned: false,
            touched: false,
            failed: false,
        }
    }

    /// Fixes what the task concerns of a file that is at least `len_bytes` long when its turn
    /// comes: blocks of the file's alignment, and what a write beyond the end adds in between.
    pub(super) fn concern(&mut self, alignment: Alignment, len_bytes: u64) {
        let align = alignment.offset_bytes;
        self.blocks = if self.bytes.is_empty() {
            0..0
        } else {
            round_down(self.bytes.start, align)..round_up(self.bytes.end, align)
        };
        self.growth = match self.direction {
            Direction::Out => len_bytes.min(self.list_end)..self.list_end,
            Direction::In => 0..0,
        };
    }

    /// Whether this task, submitted later, must wait for `earlier` on the same file.
    ///
    /// A write that sets the length conflicts with everything, except with pieces of the same
    /// swap-out, which agree on the length. A write beyond the end conflicts with reads beyond
    /// it: before, those bytes do not exist.
    pub(super) fn must_wait_for(&self, earlier: &Task) -> bool {
        let both_read = self.direction == Direction::In && earlier.direction == Direction::In;
        if both_read {
            return false;
        }
        let same_group = self.group == earlier.group;
        if !same_group && (self.sets_length() || earlier.sets_length()) {
            return true;
        }
        overlap(&self.blocks, &earlier.blocks)
            || overlap(&self.blocks, &earlier.growth) && self.direction == Direction::In
            || overlap(&self.growth, &earlier.blocks) && earlier.direction == Direction::In
    }

    pub(super) fn sets_length(&self) -> bool {
        self.direction == Direction::Out && matches!(self.length, Length::Exact { .. })
    }

    /// How long the file must be before this task writes: what is to be reserved.
    pub(super) fn target_len(&self) -> u64 {
        match self.length {
            Length::Exact { bytes, .. } => bytes,
            Length::Grow => self.list_end,
        }
    }

    /// Bytes of the file that still exist when the task is over; writes beyond may be padded.
    pub(super) fn surviving_len(&self, len_bytes: u64) -> u64 {
        match self.length {
            Length::Exact { bytes, .. } => len_bytes.min(bytes),
            Length::Grow => len_bytes,
        }
    }

    /// The file's length after the task, from the length before.
    pub(super) fn final_len(&self, len_bytes: u64) -> u64 {
        match self.length {
            Length::Exact { bytes, last: true } => bytes,
            Length::Exact { last: false, .. } | Length::Grow => len_bytes.max(self.list_end),
        }
    }

    /// What to reserve before the task writes to a file of `len_bytes`; empty if nothing.
    pub(super) fn reservation(&self, len_bytes: u64, segments: &[Segment]) -> Range<u64> {
        match self.length {
            // A piece of something longer: all of it at once, so that it lies together.
            Length::Exact { bytes, .. } if bytes > self.list_end => len_bytes..bytes,
            // Far apart, only the last of them: the hole before it takes no space.
            _ => match runs(segments, HOLE_BYTES).last() {
                Some(run) => run.start.max(len_bytes)..run.end,
                None => 0..0,
            },
        }
    }
}

/// Gaps from this on are left as holes.
const HOLE_BYTES: u64 = MIB;

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// From the first to the last byte of segments sorted by offset; empty ones do not count.
fn hull(segments: &[Segment]) -> Range<u64> {
    let full = || segments.iter().filter(|segment| !segment.is_empty());
    let start = full().map(|segment| segment.file_offset).min().unwrap_or(0);
    let end = full().map(Segment::file_end).max().unwrap_or(0);
    start..end
}

/// The ranges of segments sorted by offset, joined where the gap between is at most `gap_bytes`;
/// empty segments do not count.
pub(super) fn runs(segments: &[Segment], gap_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let mut full = segments
        .iter()
        .filter(|segment| !segment.is_empty())
        .peekable();
    std::iter::from_fn(move || {
        let first = full.next()?;
        let mut end = first.file_end();
        while let Some(next) =
            full.next_if(|next| next.file_offset <= end.saturating_add(gap_bytes))
        {
            end = end.max(next.file_end());
        }
        Some(first.file_offset..end)
    })
}
