//! Copying durable versions out of a store, through memory, compared with their checksums on the
//! way: into another store, or into a snapshot.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::sync::Arc;

use super::measure::part;
use super::store::Store;
use super::table::RecordIndex;
use super::{BLOCK_BYTES, Layout, Piece, Version};
use crate::base::checksum::Checksum;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, round_up, to_u64, to_usize};
use crate::io::{Direction, Engine, FileIdentity, Priority, Waiting};
use crate::memory::Buffer;

/// The longest part, and the bytes of a batch.
const BATCH_BYTES: u64 = 4 * MIB;
/// Batches under way at once: half of them are read while the others are written.
const BATCHES: usize = 8;

/// A version of a record, to be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopiedVersion {
    pub(crate) index: RecordIndex,
    pub(crate) id: u64,
    pub(crate) numel: u64,
    /// Address of the record's slot 0.
    pub(crate) offset: u64,
    pub(crate) version: Version,
}

/// Part of one state's image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) copied: CopiedVersion,
    pub(crate) state: usize,
    /// Bytes of the image before it.
    pub(crate) before_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// A range of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileRange<'a> {
    pub(crate) path: &'a CStr,
    /// The one file that the path may lead to.
    pub(crate) only: Option<FileIdentity>,
    pub(crate) offset: u64,
    pub(crate) len_bytes: u64,
}

/// Where copies go.
pub(crate) trait Destination: std::fmt::Debug {
    /// Where a part goes, in the order of its bytes.
    fn ranges(&self, part: &Part) -> Vec<FileRange<'_>>;
}

/// Who is told how a copy goes on.
pub(crate) trait Observer {
    /// Called between batches.
    ///
    /// # Errors
    /// Ends the copy.
    fn go_on(&mut self) -> Result<()> {
        Ok(())
    }

    /// All of this version was read, and is as it was written.
    fn was_read(&mut self, _copied: &CopiedVersion) {}

    /// So many bytes more are where they belong.
    fn was_written(&mut self, bytes: u64);
}

/// Parts on their way.
#[derive(Debug)]
struct Batch {
    buffer: Buffer,
    parts: Vec<Part>,
    waiting: Arc<Waiting>,
}

/// What copies. One thread.
#[derive(Debug)]
pub(crate) struct Copying<'a> {
    /// For messages.
    operation: &'static str,
    engine: &'a Engine,
    priority: Priority,
    from: &'a Store,
    layout: Layout,
    to: &'a dyn Destination,
    free: Vec<Buffer>,
    /// The checksum of the image that is being read, so far.
    checksum: Checksum,
}

impl<'a> Copying<'a> {
    /// Copies from a store.
    ///
    /// # Errors
    /// `NoMemory` and others of pinned memory.
    pub(crate) fn new(
        operation: &'static str,
        (engine, priority): (&'a Engine, Priority),
        from: &'a Store,
        to: &'a dyn Destination,
    ) -> Result<Copying<'a>> {
        let buffers = (0..BATCHES).map(|_| engine.allocate_buffer(BATCH_BYTES));
        Ok(Copying {
            operation,
            engine,
            priority,
            free: buffers.collect::<Result<_>>()?,
            layout: from.layout(),
            from,
            to,
            checksum: Checksum::new(),
        })
    }

    /// Copies versions in their order.
    ///
    /// # Errors
    /// `Checksum` naming parameter and state; what kept bytes from being moved; the observer's.
    /// Nothing is under way any more then.
    pub(crate) fn run(
        &mut self,
        versions: &[CopiedVersion],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.checksum = Checksum::new();
        let parts = versions
            .iter()
            .flat_map(|copied| self.layout.parts_of(copied));
        let mut parts = parts.collect::<Vec<Part>>().into_iter().peekable();
        let (mut reading, mut writing) = (VecDeque::new(), VecDeque::new());
        let mut copied = Ok(());
        loop {
            copied = copied.and_then(|()| observer.go_on());
            // Reads are begun as long as there are buffers, and what was read is written.
            while copied.is_ok()
                && parts.peek().is_some()
                && let Some(buffer) = self.free.pop()
            {
                let mut left_bytes = BATCH_BYTES;
                let mut list = Vec::new();
                while let Some(part) = parts.next_if(|part| part.len_bytes <= left_bytes) {
                    left_bytes -= part.len_bytes;
                    list.push(part);
                }
                copied = self
                    .begin(Direction::In, buffer, list)
                    .map(|batch| reading.push_back(batch));
            }
            if let Some(Batch {
                buffer,
                parts,
                waiting,
            }) = reading.pop_front()
            {
                // What was begun is waited for also after a failure.
                let read = waiting.end();
                copied = copied
                    .and(read)
                    .and_then(|()| self.check(&buffer, &parts, observer))
                    .and_then(|()| self.begin(Direction::Out, buffer, parts))
                    .map(|batch| writing.push_back(batch));
            }
            let is_over = reading.is_empty() && (copied.is_err() || parts.peek().is_none());
            while (is_over || self.free.is_empty())
                && let Some(batch) = writing.pop_front()
            {
                let written = batch.waiting.end();
                if written.is_ok() {
                    observer.was_written(batch.parts.iter().map(|part| part.len_bytes).sum());
                }
                copied = copied.and(written);
                self.free.push(batch.buffer);
            }
            if is_over {
                return copied;
            }
        }
    }

    fn begin(&self, direction: Direction, buffer: Buffer, parts: Vec<Part>) -> Result<Batch> {
        let (mut tensors, mut paths, mut only) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for item in &parts {
            let ranges = match direction {
                Direction::In => self.from.ranges_of(item),
                Direction::Out => self.to.ranges(item),
            };
            for range in ranges {
                tensors.push(part(&buffer, start, range.len_bytes, range.offset)?);
                paths.push(range.path);
                only.push(range.only);
                start += range.len_bytes;
            }
        }
        let waiting: Arc<Waiting> = Arc::default();
        let way = (direction, self.priority);
        waiting.begin_on(self.engine, way, &tensors, &paths, &only)?;
        Ok(Batch {
            buffer,
            parts,
            waiting,
        })
    }

    /// Compares what was read with the checksums.
    fn check(
        &mut self,
        buffer: &Buffer,
        parts: &[Part],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let mut start = 0;
        for part in parts {
            let copied = &part.copied;
            // What fills an image up is not part of its checksum.
            let bytes = self.layout.image_bytes(part.state, copied.numel);
            let left_bytes = bytes.saturating_sub(part.before_bytes);
            let counted = to_usize(left_bytes.min(part.len_bytes))?;
            let is_last = to_u64(counted) == left_bytes;
            let memory = buffer.range().slice(to_usize(start)?, counted);
            if let Some(memory) = memory.filter(|_| copied.version.checked) {
                memory.inspect(|bytes| self.checksum.update(bytes));
                if is_last {
                    let found = std::mem::replace(&mut self.checksum, Checksum::new()).finish();
                    self.compare(part, found)?;
                }
            }
            let mut states = (0..self.layout.states.len()).rev();
            let last_state = states.find(|state| !copied.version.is_zero(*state));
            if is_last && last_state == Some(part.state) {
                observer.was_read(copied);
            }
            start += part.len_bytes;
        }
        Ok(())
    }

    fn compare(&self, part: &Part, found: u32) -> Result<()> {
        let copied = &part.copied;
        let expected = copied.version.checksums[part.state];
        if found == expected {
            return Ok(());
        }
        let first = Part {
            before_bytes: 0,
            ..*part
        };
        let ranges = self.from.ranges_of(&first);
        let (path, offset) = ranges
            .first()
            .map_or((c"", 0), |range| (range.path, range.offset));
        Err(Error::Checksum(Box::new(IoFailure {
            operation: self.operation,
            path: path.to_string_lossy().into_owned(),
            offset_bytes: Some(offset),
            errno: 0,
            detail: format!(
                "{} of parameter {} has the checksum {found:08x}, and {expected:08x} was recorded",
                self.layout.states[part.state].name, copied.id
            ),
        })))
    }
}

impl Layout {
    /// The images of a version that are not zero, cut into parts.
    fn parts_of(&self, copied: &CopiedVersion) -> Vec<Part> {
        let mut parts = Vec::new();
        let states = (0..self.states.len()).filter(|state| !copied.version.is_zero(*state));
        for state in states {
            let image_bytes = self.copied_bytes(state, copied.numel);
            let mut before_bytes = 0;
            while before_bytes < image_bytes {
                let len_bytes = BATCH_BYTES.min(image_bytes - before_bytes);
                parts.push(Part {
                    copied: *copied,
                    state,
                    before_bytes,
                    len_bytes,
                });
                before_bytes += len_bytes;
            }
        }
        parts
    }

    /// What is copied of an image: its bytes, with what fills its last block up.
    pub(crate) fn copied_bytes(&self, state: usize, numel: u64) -> u64 {
        round_up(self.image_bytes(state, numel), BLOCK_BYTES)
    }
}

impl Store {
    /// What copying a version consists of.
    pub(crate) fn parts_of(&self, copied: &CopiedVersion) -> Vec<Part> {
        self.layout().parts_of(copied)
    }

    /// Where a part of one of its versions lies.
    pub(crate) fn ranges_of(&self, part: &Part) -> Vec<FileRange<'_>> {
        let copied = &part.copied;
        let layout = self.layout();
        let (area, slot) = layout.slot(copied.offset, copied.version.slot, copied.numel);
        let image = layout.image(part.state, copied.numel);
        let address = slot + image.start + part.before_bytes;
        let striping = self.striping();
        let range_of = |piece: Piece| FileRange {
            path: self.path(area, piece.place),
            only: self.file_identity(area, piece.place),
            offset: piece.file_offset,
            len_bytes: piece.len_bytes,
        };
        let pieces = striping.pieces(area, address, part.len_bytes);
        pieces.map(range_of).collect()
    }
}

/// A copy of a store has its records in their slots 0. They are registered before they are copied.
impl Destination for Store {
    fn ranges(&self, part: &Part) -> Vec<FileRange<'_>> {
        let Some(own) = self.record(part.copied.index) else {
            return Vec::new();
        };
        let slot_zero = CopiedVersion {
            offset: own.offset,
            version: Version {
                slot: 0,
                ..part.copied.version
            },
            ..part.copied
        };
        self.ranges_of(&Part {
            copied: slot_zero,
            ..*part
        })
    }
}
