//! The bare ring loop: what the drive gives to a program that does nothing else.
//!
//! One thread, one ring, registered buffers where the kernel takes them, a constant depth, and a
//! refill at each completion.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::area::Area;

/// Transfers are cut into blocks of this size.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// Transfers in flight.
pub(crate) const DEPTH: u32 = 32;

/// Which way data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
}

/// One transfer, of a block or less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) direction: Direction,
    /// A file that stays open until the loop is over.
    pub(crate) file: RawFd,
    pub(crate) file_offset: usize,
    /// The index of the loop's area in which the memory lies.
    pub(crate) area: u16,
    pub(crate) address: *mut u8,
    pub(crate) len: usize,
}

/// A ring, and the areas that it may have registered.
pub(crate) struct RingLoop {
    ring: IoUring,
    registered: bool,
    depth_peak: u32,
}

impl RingLoop {
    /// The areas outlive the loop, and nobody else touches them while it runs.
    pub(crate) fn new(areas: &[Area]) -> Result<RingLoop> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(DEPTH)?;
        let vectors: Vec<_> = areas
            .iter()
            .map(|area| libc::iovec {
                iov_base: area.as_ptr().cast(),
                iov_len: area.len(),
            })
            .collect();
        // SAFETY: the areas outlive the ring: this function's own contract.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) }.is_ok();
        Ok(RingLoop {
            ring,
            registered,
            depth_peak: 0,
        })
    }

    /// The most transfers that were in flight at once.
    pub(crate) fn depth_peak(&self) -> u32 {
        self.depth_peak
    }

    fn entry(&self, transfer: &Transfer) -> Result<squeue::Entry> {
        let len = u32::try_from(transfer.len).map_err(Error::other)?;
        let offset = u64::try_from(transfer.file_offset).map_err(Error::other)?;
        let (file, address, area) = (types::Fd(transfer.file), transfer.address, transfer.area);
        let entry = match (transfer.direction, self.registered) {
            (Direction::Out, true) => opcode::WriteFixed::new(file, address, len, area)
                .offset(offset)
                .build(),
            (Direction::Out, false) => opcode::Write::new(file, address, len)
                .offset(offset)
                .build(),
            (Direction::In, true) => opcode::ReadFixed::new(file, address, len, area)
                .offset(offset)
                .build(),
            (Direction::In, false) => opcode::Read::new(file, address, len).offset(offset).build(),
        };
        Ok(entry.user_data(u64::from(len)))
    }

    /// Does one transfer after the other until there is none left, [`DEPTH`] of them at once.
    pub(crate) fn run(&mut self, next: &mut dyn FnMut() -> Result<Option<Transfer>>) -> Result<()> {
        let (mut in_flight, mut is_last) = (0, false);
        while !is_last || in_flight > 0 {
            while in_flight < DEPTH && !is_last {
                let Some(transfer) = next()? else {
                    is_last = true;
                    break;
                };
                let entry = self.entry(&transfer)?;
                // SAFETY: file and memory stay until the loop has reaped everything.
                unsafe { self.ring.submission().push(&entry) }.map_err(Error::other)?;
                in_flight += 1;
            }
            self.depth_peak = self.depth_peak.max(in_flight);
            if in_flight == 0 {
                return Ok(());
            }
            // Interrupted: a process that was stopped goes on here.
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != ErrorKind::Interrupted
            {
                return Err(error);
            }
            for completion in self.ring.completion() {
                in_flight -= 1;
                if i64::from(completion.result()) != completion.user_data().cast_signed() {
                    let result = completion.result();
                    return Err(Error::other(format!("a transfer ended with {result}")));
                }
            }
        }
        Ok(())
    }
}
