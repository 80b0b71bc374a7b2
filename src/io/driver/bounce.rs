//! Bounce blocks: pinned memory of the engine for what cannot move straight, and the copies to and
//! from it.
//!
//! Made for each device when first needed there, so that an engine whose tensors are all aligned
//! never pays for it, and a device that hangs keeps no block from another.

use crate::base::config::Policy;
use crate::base::error::Result;
use crate::base::units::{MIB, to_usize};
use crate::io::planner::{self, Operation};
use crate::io::request::{Direction, Segment};
use crate::memory::{Buffer, MemoryRange};

/// The bounce blocks of one device take at most this.
const POOL_BYTES_MAX: u64 = 64 * MIB;

/// How many blocks of what size, and in what memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct BounceOptions {
    pub(super) block_bytes: u64,
    /// Blocks that are worth having; fewer where they would take too much memory.
    pub(super) blocks_count: usize,
    pub(super) pin: Policy,
    pub(super) huge_pages: Policy,
}

/// A fixed number of blocks of one size.
#[derive(Debug)]
pub(super) struct BouncePool {
    options: BounceOptions,
    memory: Option<Buffer>,
    free: Vec<usize>,
}

impl BouncePool {
    /// A pool as told; allocates nothing yet.
    pub(super) fn new(options: BounceOptions) -> BouncePool {
        let fit = usize::try_from(POOL_BYTES_MAX / options.block_bytes)
            .unwrap_or(usize::MAX)
            .max(4);
        BouncePool {
            options: BounceOptions {
                blocks_count: options.blocks_count.min(fit),
                // A request never fails because huge pages cannot be had for its bounce block.
                huge_pages: if options.huge_pages == Policy::Off {
                    Policy::Off
                } else {
                    Policy::Prefer
                },
                ..options
            },
            memory: None,
            free: Vec::new(),
        }
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.options.block_bytes
    }

    /// Takes a block; `None` while all are in use.
    pub(super) fn take(&mut self) -> Result<Option<(usize, MemoryRange)>> {
        let BounceOptions {
            block_bytes,
            blocks_count,
            pin,
            huge_pages,
        } = self.options;
        if self.memory.is_none() {
            let len_bytes = block_bytes.saturating_mul(crate::base::units::to_u64(blocks_count));
            self.memory = Some(Buffer::allocate(len_bytes, pin, huge_pages)?);
            self.free = (0..blocks_count).rev().collect();
        }
        let Some(memory) = &self.memory else {
            return Ok(None);
        };
        let Some(block) = self.free.pop() else {
            return Ok(None);
        };
        let len = to_usize(block_bytes)?;
        match memory.range().slice(block * len, len) {
            Some(range) => Ok(Some((block, range))),
            None => Ok(None),
        }
    }

    /// Gives a block back, after everything in flight over it was reaped.
    pub(super) fn give_back(&mut self, block: usize) {
        self.free.push(block);
    }
}

/// The part of an operation's memory; INVARIANT: the planner stays inside its segments and blocks.
pub(super) fn slice(memory: MemoryRange, offset: u64, len_bytes: u64) -> MemoryRange {
    let part = to_usize(offset).and_then(|offset| Ok((offset, to_usize(len_bytes)?)));
    let part = part
        .ok()
        .and_then(|(offset, len)| memory.slice(offset, len));
    debug_assert!(part.is_some(), "an operation outside of its memory");
    part.unwrap_or(MemoryRange::EMPTY)
}

/// Fills an operation's block with the segments' bytes, and zeros between and behind them.
pub(super) fn gather(operation: &Operation, segments: &[Segment], block: MemoryRange) {
    if operation.payload_bytes < operation.len_bytes {
        zero(block);
    }
    overlay(operation, segments, block);
}

/// Copies the segments' bytes over an operation's block.
pub(super) fn overlay(operation: &Operation, segments: &[Segment], block: MemoryRange) {
    planner::for_each_piece(
        operation,
        Direction::Out,
        segments,
        |at, segment, from, len| {
            copy(
                slice(block, at, len),
                slice(segments[segment].memory, from, len),
            );
        },
    );
}

/// Copies an operation's block to the segment it was read for.
pub(super) fn scatter(operation: &Operation, segments: &[Segment], block: MemoryRange) {
    planner::for_each_piece(
        operation,
        Direction::In,
        segments,
        |at, segment, to, len| {
            copy(
                slice(segments[segment].memory, to, len),
                slice(block, at, len),
            );
        },
    );
}

/// Copies between ranges of one length; INVARIANT: both are.
fn copy(to: MemoryRange, from: MemoryRange) {
    let copied = to.stream_into(0, from);
    debug_assert!(copied.is_ok(), "{copied:?}");
}

pub(super) fn zero(range: MemoryRange) {
    let zeroed = range.zero(0, range.len());
    debug_assert!(zeroed.is_ok(), "{zeroed:?}");
}
