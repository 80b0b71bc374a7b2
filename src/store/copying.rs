//! Copying durable versions from one store into another, through memory, compared with their
//! checksums on the way.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::sync::Arc;

use super::measure::part;
use super::store::Store;
use super::{Area, BLOCK_BYTES, Layout, Striping, Version};
use crate::base::checksum::Checksum;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, round_up, to_u64, to_usize};
use crate::io::{Direction, Engine, Priority, Waiting};
use crate::memory::Buffer;

/// The longest part, and the bytes of a batch.
const BATCH_BYTES: u64 = 4 * MIB;
/// Batches under way at once: half of them are read while the others are written.
const BATCHES: usize = 8;

/// A version of a record, to be copied into slot 0 of the same record in another store.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopiedVersion {
    pub(super) id: u64,
    pub(super) numel: u64,
    /// Address of the record's slot 0 in the store that is read.
    pub(super) from: u64,
    /// Address of the record's slot 0 in the store that is written.
    pub(super) to: u64,
    /// As it is in the store that is read.
    pub(super) version: Version,
}

/// Part of one state's image.
#[derive(Debug, Clone, Copy)]
struct Part {
    copied: CopiedVersion,
    state: usize,
    /// Bytes of the image before it.
    before_bytes: u64,
    len_bytes: u64,
}

/// Parts on their way.
#[derive(Debug)]
struct Batch {
    buffer: Buffer,
    parts: Vec<Part>,
    waiting: Arc<Waiting>,
}

/// One of the two stores.
#[derive(Debug)]
struct Side<'a> {
    store: &'a Store,
    striping: Arc<Striping>,
}

impl<'a> Side<'a> {
    fn new(store: &'a Store) -> Side<'a> {
        let striping = store.striping();
        Side { store, striping }
    }
}

/// What copies. One thread.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    engine: &'a Engine,
    from: Side<'a>,
    to: Side<'a>,
    layout: Layout,
    free: Vec<Buffer>,
    /// The checksum of the image that is being read, so far.
    checksum: Checksum,
}

impl<'a> Copying<'a> {
    /// Copies from one store into another one that has the same states; all records that are to be
    /// copied are registered.
    ///
    /// # Errors
    /// `NoMemory` and others of pinned memory.
    pub(super) fn new(engine: &'a Engine, from: &'a Store, to: &'a Store) -> Result<Copying<'a>> {
        let buffers = (0..BATCHES).map(|_| engine.allocate_buffer(BATCH_BYTES));
        Ok(Copying {
            engine,
            free: buffers.collect::<Result<_>>()?,
            layout: from.layout(),
            from: Side::new(from),
            to: Side::new(to),
            checksum: Checksum::new(),
        })
    }

    /// The bytes that copying a version moves.
    pub(super) fn bytes_of(&self, version: Version, numel: u64) -> u64 {
        let states = (0..self.layout.states.len()).filter(|state| !version.is_zero(*state));
        states.map(|state| self.image_bytes(state, numel)).sum()
    }

    /// Copies versions; `progress` hears of bytes that were written.
    ///
    /// # Errors
    /// `Checksum` naming parameter and state; what kept bytes from being moved. Nothing is under
    /// way any more then.
    pub(super) fn run(
        &mut self,
        versions: &[CopiedVersion],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.checksum = Checksum::new();
        let mut parts = self.parts_of(versions).into_iter().peekable();
        let (mut reading, mut writing) = (VecDeque::new(), VecDeque::new());
        let mut copied = Ok(());
        loop {
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
                    .and_then(|()| self.check(&buffer, &parts))
                    .and_then(|()| self.begin(Direction::Out, buffer, parts))
                    .map(|batch| writing.push_back(batch));
            }
            let is_over = reading.is_empty() && (copied.is_err() || parts.peek().is_none());
            while (is_over || self.free.is_empty())
                && let Some(batch) = writing.pop_front()
            {
                copied = copied.and(batch.waiting.end());
                progress(batch.parts.iter().map(|part| part.len_bytes).sum());
                self.free.push(batch.buffer);
            }
            if is_over {
                return copied;
            }
        }
    }

    /// The images that are not zero, cut into parts.
    fn parts_of(&self, versions: &[CopiedVersion]) -> Vec<Part> {
        let mut parts = Vec::new();
        for copied in versions {
            for state in 0..self.layout.states.len() {
                let image_bytes = self.image_bytes(state, copied.numel);
                let mut before_bytes = 0;
                while before_bytes < image_bytes && !copied.version.is_zero(state) {
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
        }
        parts
    }

    /// Bytes of an image with what fills its last block up.
    fn image_bytes(&self, state: usize, numel: u64) -> u64 {
        round_up(self.layout.image_bytes(state, numel), BLOCK_BYTES)
    }

    fn begin(&self, direction: Direction, buffer: Buffer, parts: Vec<Part>) -> Result<Batch> {
        let (mut tensors, mut paths) = (Vec::new(), Vec::new());
        let mut start = 0;
        for item in &parts {
            for (path, file_offset, len_bytes) in self.places_of(direction, item) {
                tensors.push(part(&buffer, start, len_bytes, file_offset)?);
                paths.push(path);
                start += len_bytes;
            }
        }
        let waiting: Arc<Waiting> = Arc::default();
        let priority = Priority::Foreground;
        waiting.begin(self.engine, direction, priority, &tensors, &paths)?;
        Ok(Batch {
            buffer,
            parts,
            waiting,
        })
    }

    /// Where a part is read from, or written to: files, offsets, bytes.
    fn places_of(
        &self,
        direction: Direction,
        part: &Part,
    ) -> impl Iterator<Item = (&'a CStr, u64, u64)> {
        let copied = &part.copied;
        let (side, offset, slot) = match direction {
            Direction::In => (&self.from, copied.from, copied.version.slot),
            Direction::Out => (&self.to, copied.to, 0),
        };
        let (area, slot) = self.layout.slot(offset, slot, copied.numel);
        let image = self.layout.image(part.state, copied.numel);
        let address = slot + image.start + part.before_bytes;
        let store = side.store;
        let pieces = side.striping.pieces(area, address, part.len_bytes);
        pieces.map(move |piece| {
            let path = store.path(area, piece.place);
            (path, piece.file_offset, piece.len_bytes)
        })
    }

    /// Compares what was read with the checksums.
    fn check(&mut self, buffer: &Buffer, parts: &[Part]) -> Result<()> {
        let mut start = 0;
        for part in parts {
            let copied = &part.copied;
            // What fills an image up is not part of its checksum.
            let bytes = self.layout.image_bytes(part.state, copied.numel);
            let left_bytes = bytes.saturating_sub(part.before_bytes);
            let counted = to_usize(left_bytes.min(part.len_bytes))?;
            let memory = buffer.range().slice(to_usize(start)?, counted);
            if let Some(memory) = memory.filter(|_| copied.version.checked) {
                memory.inspect(|bytes| self.checksum.update(bytes));
                if to_u64(counted) == left_bytes {
                    let found = std::mem::replace(&mut self.checksum, Checksum::new()).finish();
                    self.compare(part, found)?;
                }
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
        let area = Area::of_slot(copied.version.slot);
        let (_, slot) = self
            .layout
            .slot(copied.from, copied.version.slot, copied.numel);
        let address = slot + self.layout.image(part.state, copied.numel).start;
        let (path, offset) = self.from.store.find_address(area, address);
        Err(Error::Checksum(Box::new(IoFailure {
            operation: "rebalance",
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
