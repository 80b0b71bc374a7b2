//! What the drive gives to a program that does nothing else: the bare ring loop, or a few threads
//! where the kernel permits no ring.

use std::io::Result;
use std::os::fd::AsRawFd;

use super::field::Field;
use super::files::FileSet;
use super::measure::{Kind, Mover};
use super::ring::{BLOCK_BYTES, Direction, RingLoop, Transfer};
use super::threads::ThreadLoop;

/// The raw way to move data.
pub(crate) struct RawMover {
    way: Way,
}

enum Way {
    Ring(Box<RingLoop>),
    Threads(ThreadLoop),
}

impl RawMover {
    /// The fastest way that this machine permits. The memory of `field` outlives it.
    pub(crate) fn new(field: &Field) -> RawMover {
        let way = match RingLoop::new(&[field.source, field.target]) {
            Ok(ring) => Way::Ring(Box::new(ring)),
            Err(_) => Way::Threads(ThreadLoop::default()),
        };
        RawMover { way }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.way {
            Way::Ring(_) => "io_uring",
            Way::Threads(_) => "threads",
        }
    }
}

/// The transfers of a measurement, reads and writes in turn.
struct Transfers<'a> {
    files: &'a FileSet,
    field: &'a Field,
    /// Blocks of each direction that are still to come.
    blocks: [(Direction, std::ops::Range<usize>); 2],
    per_file: usize,
    turn: usize,
}

impl Transfers<'_> {
    fn of<'a>(kind: Kind, files: &'a FileSet, field: &'a Field) -> Transfers<'a> {
        let per_file = files.file_bytes.div_ceil(BLOCK_BYTES);
        let blocks = kind
            .parts(files.len())
            .map(|(direction, range)| (direction, range.start * per_file..range.end * per_file));
        Transfers {
            files,
            field,
            blocks,
            per_file,
            turn: 0,
        }
    }
}

impl Iterator for Transfers<'_> {
    type Item = Transfer;

    fn next(&mut self) -> Option<Transfer> {
        self.turn = 1 - self.turn;
        let (first, second) = (self.turn, 1 - self.turn);
        let (way, block) = match self.blocks[first].1.next() {
            Some(block) => (first, block),
            None => (second, self.blocks[second].1.next()?),
        };
        let direction = self.blocks[way].0;
        let file_bytes = self.files.file_bytes;
        let (index, offset) = (block / self.per_file, block % self.per_file * BLOCK_BYTES);
        let (area, memory) = match direction {
            Direction::Out => (0, self.field.source),
            Direction::In => (1, self.field.target),
        };
        Some(Transfer {
            direction,
            file: self.files.open[index].as_raw_fd(),
            file_offset: offset,
            area,
            address: memory.part(index, file_bytes).as_ptr().wrapping_add(offset),
            len: BLOCK_BYTES.min(file_bytes - offset),
        })
    }
}

impl Mover for RawMover {
    fn run(&mut self, kind: Kind, files: &FileSet, field: &Field) -> Result<()> {
        let mut transfers = Transfers::of(kind, files, field);
        match &mut self.way {
            Way::Ring(ring) => ring.run(&mut || Ok(transfers.next())),
            Way::Threads(threads) => threads.run(&mut transfers),
        }
    }

    fn depth_peak(&self) -> u64 {
        match &self.way {
            Way::Ring(ring) => u64::from(ring.depth_peak()),
            Way::Threads(threads) => threads.depth_peak(),
        }
    }
}
