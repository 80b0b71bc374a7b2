//! The memory backend: transfers to and from [`crate::io::storage::memory`], done at once.

use std::sync::Arc;

use super::{Backend, Reaped, Transfer, Wake};
use crate::base::sync::{Condvar, Mutex, lock};
use crate::io::request::Direction;
use crate::io::storage::{Errno, FileHandle};

/// A flag with a condition variable: the wake-up of backends without a kernel queue.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *lock(&self.rung) = true;
        self.ring.notify_one();
    }
}

impl Bell {
    /// Blocks until the bell was rung since the last call.
    fn wait(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = self
                .ring
                .wait(rung)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *rung = false;
    }
}

/// Copies between tensors and files in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryBackend {
    done: Vec<Reaped>,
    bell: Arc<Bell>,
}

impl Backend for MemoryBackend {
    fn submit(&mut self, key: u64, transfer: Transfer) {
        self.done.push(Reaped {
            key,
            result: move_bytes(&transfer),
        });
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        if wait && self.done.is_empty() {
            self.bell.wait();
        }
        reaped.append(&mut self.done);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.bell) as Arc<dyn Wake>
    }
}

fn move_bytes(transfer: &Transfer) -> Result<usize, Errno> {
    let FileHandle::Memory(file) = &*transfer.file else {
        return Err(libc::EBADF);
    };
    match transfer.direction {
        Direction::Out => file.write(transfer.file_offset, transfer.memory),
        Direction::In => file.read(transfer.file_offset, transfer.memory),
    }
}
