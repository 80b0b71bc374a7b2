//! Blocking calls from a few threads: what is left where there is no ring.

use std::io::{Error, Result};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use super::ring::{Direction, Transfer};
use crate::sizes::to_u64;

/// Threads, and so transfers in flight.
const THREADS: usize = 16;

/// The loop.
#[derive(Debug, Default)]
pub(crate) struct ThreadLoop {
    depth_peak: u64,
}

/// A transfer on its way to another thread.
struct Sent(Transfer);

// SAFETY: a transfer is the only one that uses its memory, whatever the thread.
unsafe impl Send for Sent {}

impl ThreadLoop {
    pub(crate) fn depth_peak(&self) -> u64 {
        self.depth_peak
    }

    /// Does all transfers, each thread the next one that nobody took.
    pub(crate) fn run(&mut self, transfers: &mut dyn Iterator<Item = Transfer>) -> Result<()> {
        let work: Vec<Sent> = transfers.map(Sent).collect();
        let threads = THREADS.min(work.len());
        let work = Mutex::new(work.into_iter());
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
            let run = || {
                while let Some(Sent(transfer)) = next() {
                    move_one(&transfer)?;
                }
                Ok(())
            };
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let ended = started.into_iter().map(|thread| thread.join());
            ended
                .map(|outcome| outcome.unwrap_or_else(|_| Err(Error::other("a thread panicked"))))
                .collect()
        });
        self.depth_peak = self.depth_peak.max(to_u64(threads));
        outcomes.into_iter().collect()
    }
}

fn move_one(transfer: &Transfer) -> Result<()> {
    // SAFETY: the file stays open until the loop is over.
    let file = unsafe { BorrowedFd::borrow_raw(transfer.file) };
    let mut done = 0;
    while done < transfer.len {
        let offset = to_u64(transfer.file_offset + done);
        let address = transfer.address.wrapping_add(done);
        // SAFETY: the memory belongs to this transfer until the loop is over.
        let rest = unsafe { std::slice::from_raw_parts_mut(address, transfer.len - done) };
        let moved = match transfer.direction {
            Direction::Out => rustix::io::pwrite(file, rest, offset),
            Direction::In => rustix::io::pread(file, rest, offset),
        };
        match moved {
            Ok(0) => return Err(Error::other("a transfer moved nothing")),
            Ok(more) => done += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
