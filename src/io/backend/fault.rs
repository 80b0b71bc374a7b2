//! Seeded faults around another backend and another storage, for tests.
//!
//! The same seed and the same sequence of calls give the same faults. Short transfers and errors
//! after a part was moved really move that part; delays hold completions back for some calls of
//! `drive`; held completions come out in a random order.

use std::ffi::CStr;
use std::sync::Arc;

use super::{Backend, Reaped, Transfer, Wake};
use crate::base::sync::{Mutex, lock};
use crate::io::request::Direction;
use crate::io::storage::{Access, Errno, FileHandle, FileIdentity, OpenedFile, Storage};
use crate::memory::MemoryRange;

/// Transfers are cut short at multiples of this, as a disk would.
const SECTOR_BYTES: usize = 512;

/// What goes wrong and how often, in thousandths of all operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Chooses which operations are struck.
    pub seed: u64,
    /// Transfers that move only a part and report it.
    pub short_per_mille: u16,
    /// Transfers that report `EIO`, half of them after a part was moved.
    pub eio_per_mille: u16,
    /// Writes that report `ENOSPC`, half of them after a part was moved.
    pub enospc_per_mille: u16,
    /// Transfers that report `EINTR` or `EAGAIN` and are to be tried again.
    pub retry_per_mille: u16,
    /// Completions held back and delivered out of order.
    pub delay_per_mille: u16,
    /// Opening, reserving and setting the length that report `EIO`, `EACCES` or `ENOSPC`.
    pub metadata_per_mille: u16,
    /// Transfers refused with `EINVAL` until direct I/O is turned off for their file, as on file
    /// systems that accept it at the open only.
    pub refuse_direct: bool,
    /// Reserving space reports `EOPNOTSUPP`, as on file systems without `fallocate`.
    pub refuse_reserve: bool,
}

/// Files for which direct I/O was turned off, by the address of their handle.
#[derive(Debug, Default)]
pub(crate) struct BufferedFiles(Mutex<Vec<usize>>);

impl BufferedFiles {
    fn add(&self, file: &FileHandle) {
        lock(&self.0).push(std::ptr::from_ref(file).addr());
    }

    fn contains(&self, file: &FileHandle) -> bool {
        lock(&self.0).contains(&std::ptr::from_ref(file).addr())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough randomness for choosing faults.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    fn strikes(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.below(1000) < usize::from(per_mille)
    }
}

/// A completion that is to be changed or held back.
#[derive(Debug)]
struct Held {
    reaped: Reaped,
    /// Calls of `drive` until it is delivered.
    rounds: u8,
}

/// Faults around another backend.
pub(crate) struct FaultBackend {
    inner: Box<dyn Backend>,
    plan: FaultPlan,
    dice: Dice,
    inner_in_flight: usize,
    /// Keys whose result is replaced when the inner backend delivers it.
    replaced: Vec<(u64, Errno)>,
    held: Vec<Held>,
    scratch: Vec<Reaped>,
    buffered: Arc<BufferedFiles>,
}

impl FaultBackend {
    pub(crate) fn new(
        inner: Box<dyn Backend>,
        plan: FaultPlan,
        buffered: Arc<BufferedFiles>,
    ) -> FaultBackend {
        FaultBackend {
            inner,
            plan,
            dice: Dice(plan.seed),
            inner_in_flight: 0,
            replaced: Vec::new(),
            held: Vec::new(),
            scratch: Vec::new(),
            buffered,
        }
    }

    fn deliver(&mut self, reaped: Reaped) {
        let rounds = if self.dice.strikes(self.plan.delay_per_mille) {
            u8::try_from(self.dice.below(8)).unwrap_or(0) + 1
        } else {
            0
        };
        self.held.push(Held { reaped, rounds });
    }

    fn pass(&mut self, key: u64, transfer: Transfer) {
        self.inner_in_flight += 1;
        self.inner.submit(key, transfer);
    }

    /// A part of the transfer that a disk could have moved before it stopped.
    fn part_of(&mut self, memory: MemoryRange) -> Option<MemoryRange> {
        let sectors = memory.len().div_ceil(SECTOR_BYTES);
        let len = self.dice.below(sectors) * SECTOR_BYTES;
        memory.slice(0, len).filter(|part| !part.is_empty())
    }

    fn errno_for(&mut self, transfer: &Transfer) -> Option<Errno> {
        if self.dice.strikes(self.plan.eio_per_mille) {
            return Some(libc::EIO);
        }
        let out = transfer.direction == Direction::Out;
        (out && self.dice.strikes(self.plan.enospc_per_mille)).then_some(libc::ENOSPC)
    }
}

impl Backend for FaultBackend {
    fn submit(&mut self, key: u64, mut transfer: Transfer) {
        if self.plan.refuse_direct && !self.buffered.contains(&transfer.file) {
            self.deliver(Reaped {
                key,
                result: Err(libc::EINVAL),
            });
        } else if self.dice.strikes(self.plan.retry_per_mille) {
            let errno = if self.dice.below(2) == 0 {
                libc::EINTR
            } else {
                libc::EAGAIN
            };
            self.deliver(Reaped {
                key,
                result: Err(errno),
            });
        } else if let Some(errno) = self.errno_for(&transfer) {
            match self
                .part_of(transfer.memory)
                .filter(|_| self.dice.below(2) == 0)
            {
                Some(part) => {
                    transfer.memory = part;
                    self.replaced.push((key, errno));
                    self.pass(key, transfer);
                }
                None => self.deliver(Reaped {
                    key,
                    result: Err(errno),
                }),
            }
        } else {
            if self.dice.strikes(self.plan.short_per_mille)
                && let Some(part) = self.part_of(transfer.memory)
            {
                transfer.memory = part;
            }
            self.pass(key, transfer);
        }
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        let wait = wait && self.held.is_empty();
        let mut arrived = std::mem::take(&mut self.scratch);
        self.inner.drive(wait, &mut arrived)?;
        for mut each in arrived.drain(..) {
            self.inner_in_flight -= 1;
            if let Some(at) = self.replaced.iter().position(|(key, _)| *key == each.key) {
                each.result = Err(self.replaced.swap_remove(at).1);
            }
            self.deliver(each);
        }
        self.scratch = arrived;
        let mut index = 0;
        while index < self.held.len() {
            if self.held[index].rounds == 0 {
                reaped.push(self.held.swap_remove(index).reaped);
            } else {
                self.held[index].rounds -= 1;
                index += 1;
            }
        }
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }

    fn register(&mut self, slot: u16, memory: MemoryRange) -> Result<(), Errno> {
        self.inner.register(slot, memory)
    }

    fn unregister(&mut self, slot: u16) {
        self.inner.unregister(slot);
    }
}

/// Faults around another storage.
#[derive(Debug)]
pub(crate) struct FaultStorage {
    inner: Arc<dyn Storage>,
    plan: FaultPlan,
    dice: Mutex<Dice>,
    buffered: Arc<BufferedFiles>,
}

impl FaultStorage {
    pub(crate) fn new(
        inner: Arc<dyn Storage>,
        plan: FaultPlan,
        buffered: Arc<BufferedFiles>,
    ) -> FaultStorage {
        FaultStorage {
            inner,
            plan,
            dice: Mutex::new(Dice(!plan.seed)),
            buffered,
        }
    }

    fn fault(&self, errnos: &[Errno]) -> Result<(), Errno> {
        let mut dice = lock(&self.dice);
        if dice.strikes(self.plan.metadata_per_mille) {
            return Err(errnos[dice.below(errnos.len())]);
        }
        Ok(())
    }
}

impl Storage for FaultStorage {
    fn identify(&self, path: &CStr) -> Option<(FileIdentity, u64)> {
        self.inner.identify(path)
    }

    fn open(&self, path: &CStr, access: Access) -> Result<OpenedFile, Errno> {
        self.fault(&[libc::EIO, libc::EACCES])?;
        self.inner.open(path, access)
    }

    fn reserve(&self, file: &FileHandle, from: u64, end: u64) -> Result<(), Errno> {
        if self.plan.refuse_reserve {
            return Err(libc::EOPNOTSUPP);
        }
        self.fault(&[libc::EIO, libc::ENOSPC])?;
        self.inner.reserve(file, from, end)
    }

    fn set_len(&self, file: &FileHandle, len_bytes: u64) -> Result<(), Errno> {
        self.fault(&[libc::EIO])?;
        self.inner.set_len(file, len_bytes)
    }

    fn len_bytes(&self, file: &FileHandle) -> Result<u64, Errno> {
        self.inner.len_bytes(file)
    }

    fn clear_direct(&self, file: &FileHandle) -> Result<(), Errno> {
        self.buffered.add(file);
        self.inner.clear_direct(file)
    }
}
