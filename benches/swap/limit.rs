//! The bare ring loop: what the drive gives to a program that does nothing else.
//!
//! One thread, one ring, files open in advance, blocks in order, refilled on each completion.

use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};

use crate::contestants::{Contestant, Direction, Job};
use crate::data::{Area, Files};
use crate::round::cpu_seconds;

const BLOCK_BYTES: usize = 1 << 20;
const DEPTH: u32 = 32;
/// Files open at once; the clock stops while others are opened.
const FILES_OPEN_MAX: usize = 4096;

/// The loop and its memory.
pub(crate) struct BareLoop {
    ring: IoUring,
    files: Vec<File>,
    /// Index of the first of these files.
    first: usize,
    source: Area,
    target: Area,
    /// Whether the kernel took the memory as registered buffers: 0 the source, 1 the target.
    registered: bool,
}

impl BareLoop {
    pub(crate) fn new(source: Area, target: Area) -> Result<BareLoop> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(DEPTH)?;
        let vectors = [source, target].map(|area| libc::iovec {
            iov_base: area.as_ptr().cast(),
            iov_len: area.len(),
        });
        // SAFETY: both areas outlive the ring: the scenario owns them and drops them last.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) }.is_ok();
        Ok(BareLoop {
            ring,
            files: Vec::new(),
            first: 0,
            source,
            target,
            registered,
        })
    }

    /// One transfer of a whole block, or of what is left of the file.
    fn entry(&self, job: &Job<'_>, block: usize) -> Result<squeue::Entry> {
        let file_bytes = job.files.file_bytes;
        let per_file = file_bytes.div_ceil(BLOCK_BYTES);
        let (index, offset) = (block / per_file, block % per_file * BLOCK_BYTES);
        let file = types::Fd(self.files[index - self.first].as_raw_fd());
        let len = u32::try_from(BLOCK_BYTES.min(file_bytes - offset)).map_err(Error::other)?;
        let area = match job.direction {
            Direction::Out => self.source,
            Direction::In => self.target,
        };
        let address = area.part(index, file_bytes).as_ptr().wrapping_add(offset);
        let at = u64::try_from(offset).map_err(Error::other)?;
        let entry = match (job.direction, self.registered) {
            (Direction::Out, true) => opcode::WriteFixed::new(file, address, len, 0)
                .offset(at)
                .build(),
            (Direction::Out, false) => opcode::Write::new(file, address, len).offset(at).build(),
            (Direction::In, true) => opcode::ReadFixed::new(file, address, len, 1)
                .offset(at)
                .build(),
            (Direction::In, false) => opcode::Read::new(file, address, len).offset(at).build(),
        };
        Ok(entry.user_data(u64::from(len)))
    }

    /// Moves all blocks of some files.
    fn transfer(&mut self, job: &Job<'_>, files: Range<usize>) -> Result<()> {
        let per_file = job.files.file_bytes.div_ceil(BLOCK_BYTES);
        let (mut next, end) = (files.start * per_file, files.end * per_file);
        let mut in_flight = 0;
        while next < end || in_flight > 0 {
            while in_flight < DEPTH && next < end {
                if job.new && next % per_file == 0 {
                    self.create(job, next / per_file)?;
                }
                let entry = self.entry(job, next)?;
                // SAFETY: the files and the memory stay until the loop has reaped everything.
                unsafe { self.ring.submission().push(&entry) }.map_err(Error::other)?;
                next += 1;
                in_flight += 1;
            }
            self.ring.submit_and_wait(1)?;
            for completion in self.ring.completion() {
                in_flight -= 1;
                if i64::from(completion.result()) != completion.user_data().cast_signed() {
                    return Err(Error::other(format!(
                        "a transfer ended with {}",
                        completion.result()
                    )));
                }
            }
        }
        Ok(())
    }

    /// A new file with its space reserved, which is the fastest way known to fill one.
    fn create(&mut self, job: &Job<'_>, index: usize) -> Result<()> {
        let file = Files::open(&job.files.paths[index], true)?;
        let len = libc::off_t::try_from(job.files.file_bytes).map_err(Error::other)?;
        // SAFETY: the descriptor is open for the call; no memory is involved.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } != 0 {
            return Err(Error::last_os_error());
        }
        self.files.push(file);
        Ok(())
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
            self.first = first;
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
