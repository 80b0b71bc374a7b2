//! The bare ring loop over the files of a scenario: open in advance, blocks in order.

use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::common::area::Area;
use crate::common::figures::cpu_seconds;
use crate::common::ring::{BLOCK_BYTES, DEPTH, RingLoop, Transfer};
use crate::contestants::{Contestant, Direction, Job};
use crate::data::Files;

/// Files open at once; the clock stops while others are opened.
const FILES_OPEN_MAX: usize = 4096;

/// The loop and its memory.
pub(crate) struct BareLoop {
    ring: RingLoop,
    files: Vec<File>,
    source: Area,
    target: Area,
}

impl BareLoop {
    pub(crate) fn new(source: Area, target: Area) -> Result<BareLoop> {
        // The scenario owns both areas and drops them last.
        Ok(BareLoop {
            ring: RingLoop::new(&[source, target])?,
            files: Vec::new(),
            source,
            target,
        })
    }

    /// Moves all blocks of some files.
    fn transfer(&mut self, job: &Job<'_>, files: Range<usize>) -> Result<()> {
        let file_bytes = job.files.file_bytes;
        let per_file = file_bytes.div_ceil(BLOCK_BYTES);
        let (area, memory) = match job.direction {
            Direction::Out => (0, self.source),
            Direction::In => (1, self.target),
        };
        let opened = &mut self.files;
        let mut blocks = files.start * per_file..files.end * per_file;
        self.ring.run(&mut || {
            let Some(block) = blocks.next() else {
                return Ok(None);
            };
            let (index, offset) = (block / per_file, block % per_file * BLOCK_BYTES);
            if job.new && offset == 0 {
                opened.push(create(&job.files.paths[index], file_bytes)?);
            }
            Ok(Some(Transfer {
                direction: job.direction,
                file: opened[index - files.start].as_raw_fd(),
                file_offset: offset,
                area,
                address: memory.part(index, file_bytes).as_ptr().wrapping_add(offset),
                len: BLOCK_BYTES.min(file_bytes - offset),
            }))
        })
    }
}

/// A new file with its space reserved, which is the fastest way known to fill one.
fn create(path: &Path, file_bytes: usize) -> Result<File> {
    let file = Files::open(path, true)?;
    let len = libc::off_t::try_from(file_bytes).map_err(Error::other)?;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } {
        0 => Ok(file),
        _ => Err(Error::last_os_error()),
    }
}

impl Contestant for BareLoop {
    fn name(&self) -> &'static str {
        "bare ring loop"
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let (mut seconds, mut cpu) = (0.0, 0.0);
        for first in (0..job.files.paths.len()).step_by(FILES_OPEN_MAX) {
            let end = job.files.paths.len().min(first + FILES_OPEN_MAX);
            self.files.clear();
            if !job.new {
                let open = |path: &PathBuf| Files::open(path, false);
                let paths = &job.files.paths[first..end];
                self.files = paths.iter().map(open).collect::<Result<_>>()?;
            }
            let (start, cpu_before) = (Instant::now(), cpu_seconds());
            self.transfer(job, first..end)?;
            seconds += start.elapsed().as_secs_f64();
            cpu += cpu_seconds() - cpu_before;
        }
        Ok(Some((seconds, cpu)))
    }

    fn finish(&mut self, _job: &Job<'_>) {
        self.files.clear();
    }

    fn depth_peak(&self) -> Option<u64> {
        Some(u64::from(DEPTH))
    }

    fn source(&mut self) -> Option<Area> {
        Some(self.source)
    }

    fn target(&mut self) -> Option<Area> {
        Some(self.target)
    }
}
