//! The planner: cuts the segments of one file into operations. Pure.
//!
//! Direct I/O moves whole blocks between aligned addresses. What is aligned moves straight between
//! the caller's memory and the file, up to `block_bytes` at a time; heads, tails and misaligned
//! memory go through a bounce block. A block that is only partly written is read first where its
//! other bytes exist in the file ([`Operation::read_first`]), and padded with zeros where they do
//! not; so a neighbour is never touched. Several segments inside one block share one operation.
//!
//! INVARIANT: the operations of one plan never overlap, and together they cover each byte of each
//! segment exactly once.

use crate::base::units::{round_down, round_up};
use crate::io::request::{Direction, Segment};

/// What the file and the engine demand of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// File offsets and lengths are multiples of this (1 without direct I/O).
    pub(crate) offset_align_bytes: u64,
    /// Addresses are multiples of this (1 without direct I/O).
    pub(crate) memory_align_bytes: u64,
    /// The longest operation.
    pub(crate) block_bytes: u64,
    /// The longest operation through a bounce block.
    pub(crate) bounce_bytes: u64,
    /// Bytes of the file that exist; writes beyond need not read first.
    pub(crate) file_len_bytes: u64,
}

/// Where an operation's data lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this offset of the operation's first segment, without a copy.
    Direct { segment_offset: u64 },
    /// In a bounce block, copied from or to all segments that overlap the operation.
    Bounce,
}

/// One system call's worth of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) file_offset: u64,
    pub(crate) len_bytes: u64,
    pub(crate) place: Place,
    /// The first segment this operation concerns.
    pub(crate) segment: usize,
    /// The block must be read before it is changed and written.
    pub(crate) read_first: bool,
    /// Bytes from the operation's start that a read must deliver; the rest may lie beyond the end.
    pub(crate) required_bytes: u64,
    /// Bytes of the caller's tensors that this operation moves.
    pub(crate) payload_bytes: u64,
}

impl Operation {
    pub(crate) fn file_end(&self) -> u64 {
        self.file_offset + self.len_bytes
    }
}

/// How far the plan of one file has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    segment: usize,
    /// Bytes of that segment already planned.
    done_bytes: u64,
}

/// The next operation of a plan; `None` at its end.
pub(crate) fn next(
    cursor: &mut Cursor,
    direction: Direction,
    segments: &[Segment],
    geometry: &Geometry,
) -> Option<Operation> {
    while cursor.done_bytes >= segments.get(cursor.segment)?.len_bytes() {
        *cursor = Cursor {
            segment: cursor.segment + 1,
            done_bytes: 0,
        };
    }
    let operation = direct(cursor, direction, segments, geometry)
        .unwrap_or_else(|| bounce(cursor, direction, segments, geometry));
    advance(cursor, direction, segments, operation.file_end());
    Some(operation)
}

/// Moves the cursor to the first byte that no operation up to `end` covers.
fn advance(cursor: &mut Cursor, direction: Direction, segments: &[Segment], end: u64) {
    while let Some(segment) = segments.get(cursor.segment) {
        if segment.file_end() > end {
            cursor.done_bytes = cursor
                .done_bytes
                .max(end.saturating_sub(segment.file_offset));
            return;
        }
        *cursor = Cursor {
            segment: cursor.segment + 1,
            done_bytes: 0,
        };
        // Segments of a read may overlap: each is planned by itself.
        if direction == Direction::In {
            return;
        }
    }
}

/// An operation without a copy, where alignment allows one.
fn direct(
    cursor: &Cursor,
    direction: Direction,
    segments: &[Segment],
    geometry: &Geometry,
) -> Option<Operation> {
    let segment = &segments[cursor.segment];
    let position = segment.file_offset + cursor.done_bytes;
    if !is_aligned(segment, position, geometry) {
        return None;
    }
    let align = geometry.offset_align_bytes;
    let left = segment.len_bytes() - cursor.done_bytes;
    let whole = round_down(left, align);
    let tail = left - whole;
    let padded = direction == Direction::Out
        && tail > 0
        && whole + align <= geometry.block_bytes
        && segment.padding_bytes >= align - tail
        && is_free(segments, cursor.segment, segment.file_end(), geometry);
    let (len_bytes, payload_bytes) = if padded {
        (whole + align, left)
    } else {
        let len_bytes = whole.min(geometry.block_bytes);
        (len_bytes, len_bytes)
    };
    (len_bytes > 0).then_some(Operation {
        file_offset: position,
        len_bytes,
        place: Place::Direct {
            segment_offset: cursor.done_bytes,
        },
        segment: cursor.segment,
        read_first: false,
        required_bytes: len_bytes,
        payload_bytes,
    })
}

/// Whether the file position and the address that belongs to it are both aligned.
fn is_aligned(segment: &Segment, position: u64, geometry: &Geometry) -> bool {
    let offset = position - segment.file_offset;
    position.is_multiple_of(geometry.offset_align_bytes)
        && (crate::base::units::to_u64(segment.memory.address()).wrapping_add(offset))
            .is_multiple_of(geometry.memory_align_bytes)
}

/// Whether nothing follows `end` in its block: neither bytes of the file nor another segment.
fn is_free(segments: &[Segment], current: usize, end: u64, geometry: &Geometry) -> bool {
    let block_end = round_up(end, geometry.offset_align_bytes);
    end >= geometry.file_len_bytes
        && segments[current + 1..]
            .iter()
            .find(|segment| !segment.is_empty())
            .is_none_or(|segment| segment.file_offset >= block_end)
}

/// An operation through a bounce block.
fn bounce(
    cursor: &Cursor,
    direction: Direction,
    segments: &[Segment],
    geometry: &Geometry,
) -> Operation {
    let align = geometry.offset_align_bytes;
    let segment = &segments[cursor.segment];
    let position = segment.file_offset + cursor.done_bytes;
    let start = round_down(position, align);
    let limit = start + geometry.bounce_bytes.max(align);
    let whole = |end, read_first| describe(cursor, direction, segments, start..end, read_first);
    if direction == Direction::In {
        // Stop where the rest can move without a copy.
        let first_end = start + align;
        let end = if is_direct_from(segment, first_end, geometry) {
            first_end
        } else {
            limit
        };
        return whole(round_up(segment.file_end(), align).min(end), false);
    }
    // A head that shares its block with existing bytes is done by itself.
    if position > start && start < geometry.file_len_bytes {
        return whole(start + align, true);
    }
    let end = covered_end(cursor, segments, position, limit, geometry);
    let last_block = round_down(end, align);
    if end == last_block {
        return whole(end, false);
    }
    if last_block > start && !is_padding(segments, cursor.segment, last_block, end, geometry) {
        return whole(last_block, false);
    }
    let read_first = has_existing_gap(&segments[cursor.segment..], start, start + align, geometry);
    if last_block > start {
        whole(last_block + align, false)
    } else {
        whole(start + align, read_first)
    }
}

/// Whether the segment has a whole block at `position` that can move without a copy.
fn is_direct_from(segment: &Segment, position: u64, geometry: &Geometry) -> bool {
    position + geometry.offset_align_bytes <= segment.file_end()
        && position > segment.file_offset
        && is_aligned(segment, position, geometry)
}

/// How far contiguous segments reach from `position`, up to `limit` or to where a copy is not
/// needed any more.
fn covered_end(
    cursor: &Cursor,
    segments: &[Segment],
    position: u64,
    limit: u64,
    geometry: &Geometry,
) -> u64 {
    let mut end = position;
    for (index, segment) in segments[cursor.segment..].iter().enumerate() {
        if segment.is_empty() {
            continue;
        }
        if index > 0 && segment.file_offset != end {
            break;
        }
        let next_block = round_up(
            end.max(segment.file_offset) + 1,
            geometry.offset_align_bytes,
        );
        let next_block = if end.is_multiple_of(geometry.offset_align_bytes) && index > 0 {
            end
        } else {
            next_block
        };
        if next_block > position
            && next_block < limit
            && is_direct_at(segment, next_block, geometry)
        {
            return next_block;
        }
        end = segment.file_end().min(limit);
        if end == limit {
            break;
        }
    }
    end
}

/// Like [`is_direct_from`], also at the segment's first byte.
fn is_direct_at(segment: &Segment, position: u64, geometry: &Geometry) -> bool {
    position >= segment.file_offset
        && position + geometry.offset_align_bytes <= segment.file_end()
        && is_aligned(segment, position, geometry)
}

/// Whether the rest of the block behind `end` holds nothing, so that it may be padded.
fn is_padding(
    segments: &[Segment],
    from: usize,
    block: u64,
    end: u64,
    geometry: &Geometry,
) -> bool {
    let block_end = block + geometry.offset_align_bytes;
    end >= geometry.file_len_bytes
        && !segments[from..].iter().any(|segment| {
            !segment.is_empty() && segment.file_offset >= end && segment.file_offset < block_end
        })
}

/// Whether bytes of the file between `start` and `end` exist that no segment covers.
fn has_existing_gap(segments: &[Segment], start: u64, end: u64, geometry: &Geometry) -> bool {
    let end = end.min(geometry.file_len_bytes);
    let mut covered = start;
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        if segment.file_offset > covered || covered >= end {
            break;
        }
        covered = covered.max(segment.file_end());
    }
    covered < end
}

/// The operation over `range`, with what it moves.
fn describe(
    cursor: &Cursor,
    direction: Direction,
    segments: &[Segment],
    range: std::ops::Range<u64>,
    read_first: bool,
) -> Operation {
    let position = segments[cursor.segment].file_offset + cursor.done_bytes;
    let mut payload_bytes = 0;
    let mut required_end = range.start;
    for (index, segment) in segments[cursor.segment..].iter().enumerate() {
        if segment.file_offset >= range.end || (index > 0 && direction == Direction::In) {
            break;
        }
        let from = segment.file_offset.max(position);
        let to = segment.file_end().min(range.end);
        payload_bytes += to.saturating_sub(from);
        required_end = required_end.max(to);
    }
    Operation {
        file_offset: range.start,
        len_bytes: range.end - range.start,
        place: Place::Bounce,
        segment: cursor.segment,
        read_first,
        required_bytes: required_end - range.start,
        payload_bytes,
    }
}

/// Calls `copy(offset in the block, segment index, offset in the segment, length)` for each piece
/// of caller's memory that lies in a bounce operation.
///
/// A segment that began before this operation is copied from the operation's start on: bytes of it
/// in this block that an earlier operation moved do not exist, because blocks are never shared.
pub(crate) fn for_each_piece(
    operation: &Operation,
    direction: Direction,
    segments: &[Segment],
    mut copy: impl FnMut(u64, usize, u64, u64),
) {
    for (index, segment) in segments.iter().enumerate().skip(operation.segment) {
        if segment.file_offset >= operation.file_end()
            || (index > operation.segment && direction == Direction::In)
        {
            break;
        }
        let from = segment.file_offset.max(operation.file_offset);
        let to = segment.file_end().min(operation.file_end());
        if from < to {
            copy(
                from - operation.file_offset,
                index,
                from - segment.file_offset,
                to - from,
            );
        }
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
