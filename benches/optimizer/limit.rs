//! The drive's share of the floor: as many bytes as a step moves, by a bare ring loop.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tensorswap::base::config::Policy;
use tensorswap::memory::PinnedMemory;

use crate::common::area::Area;
use crate::common::ring::{BLOCK_BYTES, Direction, RingLoop, Transfer};

/// Blocks of memory for each direction: more than are in flight at once, so none is used twice.
const BLOCKS: usize = 64;

/// A preallocated file of two slots, and a loop that reads one and writes the other.
pub(crate) struct Limit {
    ring: RingLoop,
    /// What is read goes to the first half, what is written comes from the second.
    area: Area,
    file: File,
    path: PathBuf,
    slot_bytes: usize,
    /// The slot that is read next.
    slot: usize,
    // DROP ORDER: after the ring, which may have it registered.
    _memory: PinnedMemory,
}

impl Limit {
    /// Makes the file and writes all of it, as a store is after two steps.
    pub(crate) fn new(directory: &Path, state_bytes: usize) -> Result<Limit> {
        let slot_bytes = state_bytes.next_multiple_of(BLOCK_BYTES);
        let len = 2 * BLOCKS * BLOCK_BYTES;
        let len_bytes = u64::try_from(len).map_err(Error::other)?;
        let memory = PinnedMemory::allocate(len_bytes, Policy::Prefer, Policy::Prefer)
            .map_err(Error::other)?;
        // SAFETY: the memory is kept with the area, and only the loop uses it.
        let mut area = unsafe { Area::new(memory.as_ptr(), len) };
        area.randomize(1);
        let path = directory.join("limit");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(&path)?;
        let reserved = libc::off_t::try_from(2 * slot_bytes).map_err(Error::other)?;
        // SAFETY: the descriptor is open for the call; no memory is involved.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, reserved) } != 0 {
            return Err(Error::last_os_error());
        }
        let mut limit = Limit {
            ring: RingLoop::new(&[area])?,
            area,
            file,
            path,
            slot_bytes,
            slot: 0,
            _memory: memory,
        };
        for _ in 0..2 {
            limit.seconds(0, slot_bytes)?;
        }
        Ok(limit)
    }

    /// Has what is written next go to space that is reserved and was never written, as in a new file.
    #[allow(dead_code, reason = "one benchmark makes new stores")]
    pub(crate) fn renew(&self) -> Result<()> {
        let length = |bytes: usize| libc::off_t::try_from(bytes).map_err(Error::other);
        let start = length((1 - self.slot) * self.slot_bytes)?;
        for mode in [libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0] {
            let (file, len) = (self.file.as_raw_fd(), length(self.slot_bytes)?);
            // SAFETY: the descriptor is open for the call; no memory is involved.
            if unsafe { libc::fallocate(file, mode, start, len) } != 0 {
                return Err(Error::last_os_error());
            }
        }
        Ok(())
    }

    /// How long it takes to move so many bytes, reads and writes in turn.
    pub(crate) fn seconds(&mut self, read_bytes: usize, written_bytes: usize) -> Result<f64> {
        let slots = [self.slot, 1 - self.slot].map(|slot| slot * self.slot_bytes);
        self.slot = 1 - self.slot;
        let (file, area) = (self.file.as_raw_fd(), self.area);
        let totals = [read_bytes, written_bytes].map(|bytes| bytes.min(self.slot_bytes));
        let mut done = [0, 0];
        let start = Instant::now();
        self.ring.run(&mut || {
            // Whichever is further behind its share comes next.
            let is_behind = done[1] * totals[0] < done[0] * totals[1];
            let way = match (done[0] < totals[0], done[1] < totals[1]) {
                (false, false) => return Ok(None),
                (true, false) => 0,
                (false, true) => 1,
                (true, true) => usize::from(is_behind),
            };
            let at = done[way];
            let len = BLOCK_BYTES.min((totals[way] - at).next_multiple_of(4096));
            done[way] += len;
            let block = way * BLOCKS + at / BLOCK_BYTES % BLOCKS;
            Ok(Some(Transfer {
                direction: [Direction::In, Direction::Out][way],
                file,
                file_offset: slots[way] + at,
                area: 0,
                address: area.part(block, BLOCK_BYTES).as_ptr(),
                len,
            }))
        })?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
