//! The io_uring backend: one ring, owned by the driver thread.
//!
//! Transfers become `READ`/`WRITE`, or their `_FIXED` forms where the memory is registered. A read
//! on an event descriptor stays armed in the ring, so that other threads can end a wait.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::{Backend, Reaped, Transfer, Wake};
use crate::base::observe::events;
use crate::io::request::Direction;
use crate::io::storage::{Errno, FileHandle};
use crate::memory::MemoryRange;
use crate::sys;

/// user_data of the read on the event descriptor; keys of transfers never reach it.
const WAKE_KEY: u64 = u64::MAX;
/// Buffers that can be registered at once.
pub(crate) const RING_SLOTS: u16 = 1024;
/// Milliseconds that an idle SQPOLL thread spins.
const SQPOLL_IDLE_MS: u32 = 50;

/// How often entering a broken ring is tried, 10 ms apart, before it is given up.
const ENTER_FAILURES_MAX: u32 = 100;

#[derive(Debug)]
struct EventDescriptor(OwnedFd);

impl Wake for EventDescriptor {
    fn wake(&self) {
        // Non-blocking and never near its maximum: it cannot fail, and a counter that is already
        // non-zero wakes as well.
        let _written = sys::event_signal(self.0.as_fd());
    }
}

/// A ring and what it must not outlive.
pub(crate) struct UringBackend {
    // DROP ORDER: the ring is closed before the memory and descriptors that it may touch; `drop`
    // reaps everything in flight first.
    ring: IoUring,
    event: Arc<EventDescriptor>,
    /// Where the kernel writes the event counter.
    event_value: Box<u64>,
    /// What is in flight, whose files stay open; as long as it ever was.
    transfers: Vec<Option<Transfer>>,
    in_flight: usize,
    wake_armed: bool,
    registers: bool,
    /// Flags of the ring that the kernel granted, for `describe`.
    features: &'static str,
}

impl UringBackend {
    /// Sets up a ring for `depth` transfers on each of some devices.
    ///
    /// # Errors
    /// The errno of the refusal: `EPERM` or `ENOSYS` where seccomp or the kernel forbids it.
    pub(crate) fn new(depth: u32, sqpoll: bool, registers: bool) -> Result<UringBackend, Errno> {
        let event = sys::event_new()?;
        // One entry more for the read on the event descriptor.
        let entries = depth.saturating_add(1).next_power_of_two();
        // KERNEL: io_uring_setup(2): there is room for twice as many completions, which is enough
        // for two devices. Further ones are kept until they are waited for (IORING_FEAT_NODROP,
        // 5.5). A longer queue would be locked memory, of which there may be as little as 64 KiB.
        let (ring, features) = set_up(entries, sqpoll).map_err(|error| errno_of(&error))?;
        let registers = registers
            && ring
                .submitter()
                .register_buffers_sparse(u32::from(RING_SLOTS))
                .is_ok();
        Ok(UringBackend {
            ring,
            event: Arc::new(EventDescriptor(event)),
            event_value: Box::new(0),
            transfers: Vec::new(),
            in_flight: 0,
            wake_armed: false,
            registers,
            features,
        })
    }

    /// The ring's set-up flags in words.
    pub(crate) fn features(&self) -> &'static str {
        self.features
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the entry's memory and descriptor stay valid until its completion is reaped:
            // transfers by the contract of `Transfer` (kept by the driver, which releases a
            // buffer only after reaping) and by `transfers`; the event counter by `event_value`,
            // which `drop` outlasts.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full of entries that were not yet given to the kernel.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let value: *mut u64 = &mut *self.event_value;
        let read = opcode::Read::new(types::Fd(self.event.0.as_raw_fd()), value.cast(), 8)
            .build()
            .user_data(WAKE_KEY);
        self.push(&read);
        self.wake_armed = true;
    }

    /// Moves completions out of the ring.
    fn reap(&mut self, reaped: &mut Vec<Reaped>) {
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE_KEY {
                self.wake_armed = false;
                continue;
            }
            self.in_flight -= 1;
            let key = entry.user_data();
            let transfer = self.transfers.get_mut(slot_of(key)).and_then(Option::take);
            let result = usize::try_from(entry.result()).map_err(|_| -entry.result());
            if let (Some(transfer), Ok(done_bytes)) = (transfer, result)
                && let (Direction::Out, FileHandle::Disk(file)) =
                    (transfer.direction, &*transfer.file)
            {
                sys::written(
                    file.as_fd(),
                    transfer.memory,
                    done_bytes,
                    transfer.file_offset,
                );
            }
            reaped.push(Reaped { key, result });
        }
    }
}

/// The low half of a key is the driver's operation slot.
fn slot_of(key: u64) -> usize {
    usize::try_from(key & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

/// The best ring this kernel grants.
fn set_up(entries: u32, sqpoll: bool) -> std::io::Result<(IoUring, &'static str)> {
    if sqpoll {
        let ring = IoUring::builder()
            .setup_sqpoll(SQPOLL_IDLE_MS)
            .build(entries)?;
        return Ok((ring, "SQPOLL"));
    }
    // KERNEL: SINGLE_ISSUER since 6.0, DEFER_TASKRUN since 6.1, COOP_TASKRUN since 5.19.
    let modern = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        // Lets an enter that does not wait see that completions are to be had.
        .setup_taskrun_flag()
        .build(entries);
    match modern {
        Ok(ring) => Ok((ring, "SINGLE_ISSUER, DEFER_TASKRUN, COOP_TASKRUN")),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let ring = IoUring::builder().build(entries)?;
            Ok((ring, "none"))
        }
        Err(error) => Err(error),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl Backend for UringBackend {
    fn submit(&mut self, key: u64, transfer: Transfer) {
        let FileHandle::Disk(descriptor) = &*transfer.file else {
            debug_assert!(false, "a file of the memory backend in the ring");
            return;
        };
        let file = types::Fd(descriptor.as_raw_fd());
        let address = transfer.memory.as_mut_ptr();
        // BOUND: the planner's operations are at most 1 GiB.
        let len = u32::try_from(transfer.memory.len()).unwrap_or(u32::MAX);
        let offset = transfer.file_offset;
        let entry = match (transfer.direction, transfer.ring_slot) {
            (Direction::In, None) => opcode::Read::new(file, address, len).offset(offset).build(),
            (Direction::In, Some(slot)) => opcode::ReadFixed::new(file, address, len, slot)
                .offset(offset)
                .build(),
            (Direction::Out, None) => opcode::Write::new(file, address, len)
                .offset(offset)
                .build(),
            (Direction::Out, Some(slot)) => opcode::WriteFixed::new(file, address, len, slot)
                .offset(offset)
                .build(),
        };
        let slot = slot_of(key);
        if slot >= self.transfers.len() {
            self.transfers.resize(slot + 1, None);
        }
        self.transfers[slot] = Some(transfer);
        self.in_flight += 1;
        self.push(&entry.user_data(key));
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        let before = reaped.len();
        let armed = self.wake_armed;
        self.reap(reaped);
        // A wake-up that was just reaped counts: whoever rang believes us awake and will not ring
        // again.
        let woken = armed && !self.wake_armed;
        let wait = wait && !woken && reaped.len() == before;
        if wait {
            self.arm_wake();
        }
        let entered = if wait {
            self.ring.submit_and_wait(1)
        } else {
            // With DEFER_TASKRUN completions appear only on entering with GETEVENTS.
            self.ring.submitter().submit_and_wait(0)
        };
        match entered {
            Ok(_) => {}
            // The completion queue must be emptied first, or a signal came: both pass.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) => {}
            Err(error) => return Err(errno_of(&error)),
        }
        self.reap(reaped);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.event) as Arc<dyn Wake>
    }

    fn register(&mut self, slot: u16, memory: MemoryRange) -> Result<(), Errno> {
        if !self.registers {
            return Err(libc::EOPNOTSUPP);
        }
        let vector = libc::iovec {
            iov_base: memory.as_mut_ptr().cast(),
            iov_len: memory.len(),
        };
        // SAFETY: the buffer stays mapped until `unregister`: the driver owns its memory from
        // here on through the buffer's reclaim, which unregisters first.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(u32::from(slot), &[vector], None)
        }
        .map(|_| ())
        .map_err(|error| errno_of(&error))
    }

    fn unregister(&mut self, slot: u16) {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: an empty vector clears the slot and names no memory.
        let cleared = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(u32::from(slot), &[empty], None)
        };
        if let Err(error) = cleared {
            // The kernel keeps the pages until the ring is closed; nothing is written to them.
            events::slot_not_cleared(slot, errno_of(&error));
        }
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        // Closing the ring does not stop disk I/O, and the memory is released after this: wait.
        let mut reaped = Vec::new();
        let mut failures_count = 0;
        // BOUND: a ring that cannot be entered any more (somebody closed its descriptor) never
        // tells; the kernel ends what is in flight by itself, for which a second is plenty.
        while self.in_flight > 0 && failures_count < ENTER_FAILURES_MAX {
            reaped.clear();
            if self.drive(true, &mut reaped).is_err() {
                failures_count += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}
