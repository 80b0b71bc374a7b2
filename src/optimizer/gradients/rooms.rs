//! Pinned buffers in which a gradient is read or converted.

use crate::base::error::Result;
use crate::base::sync::{Mutex, lock};
use crate::io::Engine;
use crate::memory::Buffer;

/// Pinned buffers that are not in use. Buffers are allocated when they are first needed and kept;
/// one that is too short is given up for a longer one, so there are never more than were in use
/// at once. Any thread.
#[derive(Debug)]
pub(super) struct Rooms {
    engine: Engine,
    free: Mutex<Vec<Buffer>>,
}

impl Rooms {
    pub(super) fn new(engine: &Engine) -> Rooms {
        Rooms {
            engine: engine.clone(),
            free: Mutex::default(),
        }
    }

    /// A buffer of at least `len_bytes`; its content is whatever it was.
    ///
    /// # Errors
    /// As [`Engine::allocate_buffer`].
    pub(super) fn take(&self, len_bytes: u64) -> Result<Buffer> {
        let short = {
            let mut free = lock(&self.free);
            let fitting = (0..free.len())
                .filter(|at| free[*at].len_bytes() >= len_bytes)
                .min_by_key(|at| free[*at].len_bytes());
            if let Some(at) = fitting {
                return Ok(free.swap_remove(at));
            }
            free.pop()
        };
        // Given back before the longer one is allocated, and outside of the lock.
        drop(short);
        self.engine.allocate_buffer(len_bytes)
    }

    /// Gives a buffer back.
    pub(super) fn give(&self, room: Buffer) {
        lock(&self.free).push(room);
    }

    /// Buffers that are not in use now.
    #[cfg(test)]
    pub(super) fn free_count(&self) -> usize {
        lock(&self.free).len()
    }
}
