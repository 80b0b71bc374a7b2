//! Copying pinned records into a snapshot: as shared blocks where the file systems can, else
//! through memory, beside whatever else the drives have to do.
//!
//! What goes through memory is compared with its checksums on the way. Blocks that are shared are
//! not read; whoever restores the snapshot compares them.

use std::collections::VecDeque;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::shared::Shared;
use crate::base::checksum::Checksum;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, to_u64, to_usize};
use crate::io::{Direction, KEEP_LENGTH, Priority, Tensor, Waiting};
use crate::memory::Buffer;
use crate::snapshot::{Manifest, SnapshotWriter, StateImage};
use crate::store::{Area, Layout, Piece, Striping, Version};

/// Bytes that are read, and written, by one request.
const BATCH_BYTES: u64 = 4 * MIB;
/// Batches under way at once: half of them are read while the others are written.
const BATCHES: usize = 8;

/// A record of which a snapshot is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct PinnedRecord {
    pub(super) index: u32,
    pub(super) id: u64,
    pub(super) numel: u64,
    /// Address of slot 0.
    pub(super) offset: u64,
    pub(super) version: Version,
}

/// Part of one state's image, in a batch.
#[derive(Debug, Clone, Copy)]
struct Part {
    record: PinnedRecord,
    state: usize,
    /// Bytes of the image before it.
    before_bytes: u64,
    len_bytes: u64,
}

/// Parts that follow each other in the snapshot, on their way.
#[derive(Debug)]
struct Batch {
    buffer: Buffer,
    parts: Vec<Part>,
    len_bytes: u64,
    /// Offset in the snapshot's data.
    to: u64,
    waiting: Arc<Waiting>,
}

/// One copy in progress.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    shared: &'a Arc<Shared>,
    writer: &'a SnapshotWriter,
    manifest: &'a Manifest,
    layout: Layout,
    striping: Arc<Striping>,
    /// The checksum of the image that is being copied, so far.
    checksum: Checksum,
}

impl<'a> Copying<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        writer: &'a SnapshotWriter,
        manifest: &'a Manifest,
    ) -> Copying<'a> {
        Copying {
            shared,
            writer,
            manifest,
            layout: shared.store.layout(),
            striping: shared.store.striping(),
            checksum: Checksum::new(),
        }
    }

    /// Copies the records in their order; `progress` hears which ones are done with, and how many
    /// bytes were copied.
    ///
    /// # Errors
    /// `Cancelled`; `Checksum` naming the parameter and the state; what kept bytes from being moved.
    pub(super) fn run(
        mut self,
        records: &[PinnedRecord],
        is_cancelled: &dyn Fn() -> bool,
        progress: &dyn Fn(&[u32], u64),
    ) -> Result<()> {
        let stop = || match is_cancelled() {
            true => Err(Error::Cancelled("the snapshot was cancelled".to_owned())),
            false => Ok(()),
        };
        let cloned = self.clone_all(records, &stop, progress)?;
        if cloned == records.len() {
            return Ok(());
        }
        self.writer.reserve()?;
        self.shared.add_third_slots()?;
        self.copy_all(&records[cloned..], &stop, progress)
    }

    /// Shares blocks as long as that can be done; says how many records it was done for.
    fn clone_all(
        &self,
        records: &[PinnedRecord],
        stop: &dyn Fn() -> Result<()>,
        progress: &dyn Fn(&[u32], u64),
    ) -> Result<usize> {
        let mut files = Files::default();
        for (number, record) in records.iter().enumerate() {
            stop()?;
            let mut record_bytes = 0;
            for state in self.states_of(record) {
                let (to, len_bytes) = self.image_of(record, state);
                for piece in self.pieces(record, state, 0, len_bytes) {
                    let file = files.get(self.path(record, piece))?;
                    let to = to + piece.before_bytes;
                    if !self.writer.clone_range(
                        file.as_fd(),
                        piece.file_offset,
                        piece.len_bytes,
                        to,
                    )? {
                        return Ok(number);
                    }
                }
                record_bytes += len_bytes;
            }
            progress(&[record.index], record_bytes);
        }
        Ok(records.len())
    }

    fn copy_all(
        &mut self,
        records: &[PinnedRecord],
        stop: &dyn Fn() -> Result<()>,
        progress: &dyn Fn(&[u32], u64),
    ) -> Result<()> {
        let mut free = Vec::new();
        for _ in 0..BATCHES {
            free.push(self.shared.engine.allocate_buffer(BATCH_BYTES)?);
        }
        let mut plan = Plan::new(self, records);
        let (mut reading, mut writing) = (VecDeque::new(), VecDeque::new());
        let mut copied = Ok(());
        loop {
            copied = copied.and_then(|()| stop());
            // Reads are begun as long as there are buffers, and what was read is written.
            while copied.is_ok()
                && let Some(parts) = (!free.is_empty()).then(|| plan.next()).flatten()
            {
                let Some(buffer) = free.pop() else { break };
                copied = self
                    .begin_read(buffer, parts)
                    .map(|batch| reading.push_back(batch));
            }
            if let Some(batch) = reading.pop_front() {
                // What was begun is waited for also after a failure.
                let read = batch.waiting.end();
                copied = copied.and(read).and_then(|()| self.check(&batch));
                if copied.is_ok() {
                    // Its slots may be written from now on.
                    progress(&self.records_over(&batch), 0);
                    copied = self
                        .begin_write(batch)
                        .map(|batch| writing.push_back(batch));
                }
            }
            let is_over = reading.is_empty() && (copied.is_err() || plan.is_over());
            while (is_over || free.is_empty())
                && let Some(batch) = writing.pop_front()
            {
                let written = batch.waiting.end();
                if written.is_ok() {
                    progress(&[], batch.len_bytes);
                }
                copied = copied.and(written);
                free.push(batch.buffer);
            }
            if is_over {
                return copied;
            }
        }
    }

    fn begin_read(&self, buffer: Buffer, parts: Vec<Part>) -> Result<Batch> {
        let (mut tensors, mut paths) = (Vec::new(), Vec::new());
        let mut len_bytes = 0;
        for part in &parts {
            let pieces = self.pieces(&part.record, part.state, part.before_bytes, part.len_bytes);
            for piece in pieces {
                let start = len_bytes + piece.before_bytes;
                tensors.push(bytes_of(
                    &buffer,
                    start,
                    piece.len_bytes,
                    piece.file_offset,
                )?);
                paths.push(self.path(&part.record, piece));
            }
            len_bytes += part.len_bytes;
        }
        let first = &parts[0];
        let batch = Batch {
            to: self.image_of(&first.record, first.state).0 + first.before_bytes,
            len_bytes,
            waiting: Arc::default(),
            buffer,
            parts,
        };
        let background = Priority::Background;
        batch.waiting.begin(
            &self.shared.engine,
            Direction::In,
            background,
            &tensors,
            &paths,
        )?;
        Ok(batch)
    }

    fn begin_write(&self, batch: Batch) -> Result<Batch> {
        let tensor = bytes_of(&batch.buffer, 0, batch.len_bytes, batch.to)?;
        let (engine, path) = (&self.shared.engine, self.writer.data_path());
        let background = Priority::Background;
        batch
            .waiting
            .begin(engine, Direction::Out, background, &[tensor], &[path])?;
        Ok(batch)
    }

    /// The records that end with a batch.
    fn records_over(&self, batch: &Batch) -> Vec<u32> {
        let is_last = |part: &&Part| {
            let record = &part.record;
            let end_bytes = part.before_bytes + part.len_bytes;
            self.states_of(record).last() == Some(part.state)
                && end_bytes == self.image_of(record, part.state).1
        };
        let over = batch.parts.iter().filter(is_last);
        over.map(|part| part.record.index).collect()
    }

    /// Compares what was read with the checksums; images come in the order of the snapshot.
    fn check(&mut self, batch: &Batch) -> Result<()> {
        let mut start = 0;
        for part in &batch.parts {
            let image_bytes = self.manifest.image_bytes(part.state, part.record.numel);
            // What fills an image up is not part of its checksum.
            let left_bytes = image_bytes.saturating_sub(part.before_bytes);
            let counted = to_usize(part.len_bytes.min(left_bytes))?;
            let memory = batch.buffer.range().slice(to_usize(start)?, counted);
            if let Some(memory) = memory.filter(|_| part.record.version.checked) {
                memory.inspect(|bytes| self.checksum.update(bytes));
                if part.before_bytes + part.len_bytes >= image_bytes && left_bytes > 0 {
                    let found = std::mem::replace(&mut self.checksum, Checksum::new()).finish();
                    self.compare(part, found)?;
                }
            }
            start += part.len_bytes;
        }
        Ok(())
    }

    fn compare(&self, part: &Part, found: u32) -> Result<()> {
        let record = &part.record;
        let recorded = record.version.checksums[part.state];
        if found == recorded {
            return Ok(());
        }
        let first = self.pieces(record, part.state, 0, 1).next();
        let place = first.map(|piece| (self.path(record, piece), piece.file_offset));
        let (path, offset) = place.unwrap_or((c"", 0));
        Err(Error::Checksum(Box::new(IoFailure {
            operation: "snapshot",
            path: path.to_string_lossy().into_owned(),
            offset_bytes: Some(offset),
            errno: 0,
            detail: format!(
                "state {} of parameter {} is not what was written (generation {})",
                self.manifest.states[part.state].name, record.id, record.version.generation
            ),
        })))
    }

    /// The states of a record that are not all zeros.
    fn states_of(&self, record: &PinnedRecord) -> impl Iterator<Item = usize> + use<> {
        let version = record.version;
        (0..self.manifest.states.len()).filter(move |state| !version.is_zero(*state))
    }

    /// Where an image lies in the snapshot, and its bytes, what fills it up included.
    fn image_of(&self, record: &PinnedRecord, state: usize) -> (u64, u64) {
        let image = self.layout.image(state, record.numel);
        let parameter = &self.manifest.parameters[record.index as usize];
        let to = match parameter.states[state] {
            StateImage::At { offset_bytes, .. } => offset_bytes,
            StateImage::Zero => 0,
        };
        (to, image.end - image.start)
    }

    /// Where a part of an image lies on storage.
    fn pieces(
        &self,
        record: &PinnedRecord,
        state: usize,
        before_bytes: u64,
        len_bytes: u64,
    ) -> impl Iterator<Item = Piece> + '_ {
        let slot = record.version.slot;
        let (area, slot) = self.layout.slot(record.offset, slot, record.numel);
        let address = slot + self.layout.image(state, record.numel).start + before_bytes;
        self.striping.pieces(area, address, len_bytes)
    }

    fn path(&self, record: &PinnedRecord, piece: Piece) -> &'a CStr {
        let area = Area::of_slot(record.version.slot);
        self.shared.store.path(area, piece.place)
    }
}

/// Cuts images into parts, and gathers parts into batches.
struct Plan {
    images: Vec<Part>,
    next: usize,
    before_bytes: u64,
}

impl Plan {
    fn new(copying: &Copying<'_>, records: &[PinnedRecord]) -> Plan {
        let images = records.iter().flat_map(|record| {
            copying.states_of(record).map(|state| Part {
                record: *record,
                state,
                before_bytes: 0,
                len_bytes: copying.image_of(record, state).1,
            })
        });
        Plan {
            images: images.collect(),
            next: 0,
            before_bytes: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.next == self.images.len()
    }

    /// The parts of the next batch; `None` after the last one.
    fn next(&mut self) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        let mut room_bytes = BATCH_BYTES;
        while room_bytes > 0
            && let Some(image) = self.images.get(self.next)
        {
            let left_bytes = image.len_bytes - self.before_bytes;
            let len_bytes = left_bytes.min(room_bytes);
            parts.push(Part {
                before_bytes: self.before_bytes,
                len_bytes,
                ..*image
            });
            room_bytes -= len_bytes;
            self.before_bytes += len_bytes;
            if len_bytes == left_bytes {
                self.next += 1;
                self.before_bytes = 0;
            }
        }
        (!parts.is_empty()).then_some(parts)
    }
}

/// Files that blocks are shared with, open.
#[derive(Default)]
struct Files<'a>(Vec<(&'a CStr, File)>);

impl<'a> Files<'a> {
    fn get(&mut self, path: &'a CStr) -> Result<&File> {
        let at = match self.0.iter().position(|(known, _)| *known == path) {
            Some(at) => at,
            None => {
                let failed = |error: std::io::Error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    Error::io("open", path.to_bytes(), None, errno, "")
                };
                let opened = std::fs::File::options()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(OsStr::from_bytes(path.to_bytes()));
                self.0.push((path, opened.map_err(failed)?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }
}

/// Bytes of a buffer, to be moved to or from a file.
fn bytes_of(buffer: &Buffer, start: u64, len_bytes: u64, file_offset: u64) -> Result<Tensor> {
    let memory = buffer
        .range()
        .slice(to_usize(start)?, to_usize(len_bytes)?)
        .ok_or_else(|| Error::Internal("a part lies outside of its buffer".to_owned()))?;
    Ok(Tensor {
        memory,
        numel: to_u64(memory.len()),
        dtype: Dtype::Bytes,
        flags: KEEP_LENGTH,
        file_offset,
        user_tag: 0,
    })
}
