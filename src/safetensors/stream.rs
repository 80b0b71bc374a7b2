//! A run of a file that is written from front to back: large aligned writes out of a few pinned pieces
//! of memory, while the next piece is filled.

use std::ffi::CStr;
use std::sync::Arc;

use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{MIB, to_u64, to_usize};
use crate::io::{Direction, Engine, FileIdentity, KEEP_LENGTH, Priority, Tensor, Waiting};
use crate::memory::{Buffer, MemoryRange};

/// Writes begin at multiples of this in the file, but for the first one.
const ROOM_BYTES: u64 = 4 * MIB;
/// Pieces of memory: one is filled, the others are under way.
const ROOMS_MAX: usize = 4;

/// What a stream writes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) engine: &'a Engine,
    /// A file that has its length already.
    pub(super) path: &'a CStr,
    /// The one file that the path may lead to.
    pub(super) only: FileIdentity,
}

#[derive(Debug)]
struct Room {
    buffer: Buffer,
    waiting: Arc<Waiting>,
    is_moving: bool,
}

/// Bytes on their way into a file. Its memory stays for the next file.
#[derive(Debug, Default)]
pub(super) struct Stream {
    rooms: Vec<Room>,
    /// The room that is being filled.
    current: usize,
    /// The place in the file of the first byte in that room.
    start: u64,
    /// The place in the file of the byte that comes next. In a room it lies as in the file: a write is
    /// aligned in memory where it is on storage.
    position: u64,
}

impl Stream {
    /// Starts anew at a place of a file. What came before was finished.
    pub(super) fn begin(&mut self, at: u64) {
        (self.start, self.position) = (at, at);
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// `NoMemory`, `Memlock`; what kept earlier bytes from being written.
    pub(super) fn push(&mut self, target: Target<'_>, bytes: &[u8]) -> Result<()> {
        self.fill(target, to_u64(bytes.len()), |room, done| {
            room.copy_into(0, &bytes[done..done + room.len()])
        })
    }

    /// Adds bytes of memory that only the caller touches.
    ///
    /// # Errors
    /// As [`push`](Stream::push).
    pub(super) fn push_memory(&mut self, target: Target<'_>, memory: MemoryRange) -> Result<()> {
        self.fill(target, to_u64(memory.len()), |room, done| {
            let part = memory.slice(done, room.len()).ok_or_else(outside)?;
            room.stream_into(0, part)
        })
    }

    /// Adds zeros.
    ///
    /// # Errors
    /// As [`push`](Stream::push).
    pub(super) fn push_zeros(&mut self, target: Target<'_>, len_bytes: u64) -> Result<()> {
        self.fill(target, len_bytes, |room, _| room.zero(0, room.len()))
    }

    /// Has `copy` fill memory, and writes what is full. It gets the memory and how many bytes came before.
    fn fill(
        &mut self,
        target: Target<'_>,
        len_bytes: u64,
        copy: impl Fn(MemoryRange, usize) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len_bytes {
            let at = self.position % ROOM_BYTES;
            let part_bytes = (ROOM_BYTES - at).min(len_bytes - done);
            let room = self.room(target.engine)?.buffer.range();
            let part = room.slice(to_usize(at)?, to_usize(part_bytes)?);
            copy(part.ok_or_else(outside)?, to_usize(done)?)?;
            done += part_bytes;
            self.position += part_bytes;
            if self.position.is_multiple_of(ROOM_BYTES) {
                self.submit(target)?;
            }
        }
        Ok(())
    }

    /// The room that is being filled.
    fn room(&mut self, engine: &Engine) -> Result<&Room> {
        if self.current == self.rooms.len() {
            self.rooms.push(Room {
                buffer: engine.allocate_buffer(ROOM_BYTES)?,
                waiting: Arc::default(),
                is_moving: false,
            });
        }
        Ok(&self.rooms[self.current])
    }

    /// Starts writing what is in the room, and makes the next one free.
    fn submit(&mut self, target: Target<'_>) -> Result<()> {
        let len_bytes = self.position - self.start;
        let room = &mut self.rooms[self.current];
        let at = to_usize(self.start % ROOM_BYTES)?;
        let memory = room.buffer.range().slice(at, to_usize(len_bytes)?);
        let tensor = Tensor {
            memory: memory.ok_or_else(outside)?,
            numel: len_bytes,
            dtype: Dtype::Bytes,
            flags: KEEP_LENGTH,
            file_offset: self.start,
            user_tag: 0,
        };
        room.waiting.begin_on(
            target.engine,
            (Direction::Out, Priority::Foreground),
            &[tensor],
            &[target.path],
            &[Some(target.only)],
        )?;
        room.is_moving = true;
        self.start = self.position;
        self.current = (self.current + 1) % ROOMS_MAX;
        match self.rooms.get_mut(self.current) {
            Some(next) => next.settle(),
            None => Ok(()),
        }
    }

    /// Writes the rest, and waits until all is written.
    ///
    /// # Errors
    /// What kept something from being written.
    pub(super) fn finish(&mut self, target: Target<'_>) -> Result<()> {
        if self.position > self.start {
            self.submit(target)?;
        }
        self.settle()
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// The first of the failures.
    pub(super) fn settle(&mut self) -> Result<()> {
        let mut settled = Ok(());
        for room in &mut self.rooms {
            settled = settled.and(room.settle());
        }
        settled
    }
}

impl Room {
    fn settle(&mut self) -> Result<()> {
        match std::mem::take(&mut self.is_moving) {
            true => self.waiting.end(),
            false => Ok(()),
        }
    }
}

fn outside() -> Error {
    Error::Internal("a part lies outside of its memory".to_owned())
}
