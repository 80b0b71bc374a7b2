//! Buffers: pinned memory that is shared by whoever still needs it.
//!
//! A [`Buffer`] is a reference; every request in flight holds one. When the last goes, the memory
//! is unmapped, or given back through its release hook. A ring that knows the memory as a
//! registered buffer must let go of it first: then the parts of the buffer travel, as
//! [`Reclaimed`], through the object given to [`set_reclaim`](Buffer::set_reclaim), and the
//! memory is released where that drops them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::events;
use super::latch::Latch;
use super::pinned::{PageKind, PinnedMemory};
use super::range::MemoryRange;
use super::registry::Registration;
use crate::base::config::Policy;
use crate::base::error::{Error, Result};
use crate::base::sync::Mutex;
use crate::base::units::{GIB, to_u64, to_usize};

/// KERNEL: a ring registers at most 1 GiB per slot, so longer buffers take several.
pub const RING_PIECE_BYTES: u64 = GIB;

/// What runs when a foreign buffer's memory goes back to its owner: it gets the address and the
/// length that were registered.
pub type ReleaseHook = Box<dyn FnOnce(*mut u8, u64) + Send>;

/// Whose memory a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferKind {
    /// The library's own, in these pages.
    Owned(PageKind),
    /// The caller's, registered.
    Foreign,
}

/// Lets go of a buffer that a ring has registered.
pub trait Reclaim: Send + Sync {
    /// Takes the parts of a buffer that nobody refers to any more, and drops them once the ring
    /// has unregistered the slots; at once where the ring is closed.
    ///
    /// Runs on the thread that dropped the last reference, which may be the driver's own, inside
    /// a destructor: must not wait and must not panic.
    fn reclaim(&self, parts: Reclaimed);
}

/// A reference to pinned memory. Cloning makes another one.
#[derive(Clone)]
pub struct Buffer(pub(super) Arc<Inner>);

/// No slot of a ring.
const NO_SLOT: u32 = u32::MAX;

pub(super) struct Inner {
    address: usize,
    len_bytes: u64,
    capacity_bytes: u64,
    kind: BufferKind,
    is_locked: bool,
    /// The ring's slot of the first piece, or `NO_SLOT`.
    ring_slot: AtomicU32,
    reclaim: OnceLock<Arc<dyn Reclaim>>,
    pub(super) registration: OnceLock<Registration>,
    released: Arc<Latch>,
    /// Taken at drop, so it is there at any other time. The lock makes a hook, which may only be
    /// sent between threads, part of what threads share; it is never taken.
    memory: Mutex<Option<Memory>>,
}

/// What a buffer's memory goes back through.
enum Memory {
    Owned(PinnedMemory),
    Foreign(Option<ReleaseHook>),
}

impl Buffer {
    /// Allocates a buffer of the library's own; see [`PinnedMemory::allocate`].
    ///
    /// # Errors
    /// As [`PinnedMemory::allocate`].
    pub fn allocate(len_bytes: u64, pin: Policy, huge: Policy) -> Result<Buffer> {
        PinnedMemory::allocate(len_bytes, pin, huge).map(Buffer::owned)
    }

    /// Makes a buffer of memory that was allocated already.
    #[must_use]
    pub fn owned(memory: PinnedMemory) -> Buffer {
        Buffer(Arc::new(Inner {
            address: memory.as_ptr().expose_provenance(),
            len_bytes: memory.len_bytes(),
            capacity_bytes: memory.mapped_bytes(),
            kind: BufferKind::Owned(memory.pages()),
            is_locked: memory.is_locked(),
            ring_slot: AtomicU32::new(NO_SLOT),
            reclaim: OnceLock::new(),
            registration: OnceLock::new(),
            released: Arc::new(Latch::new()),
            memory: Mutex::new(Some(Memory::Owned(memory))),
        }))
    }

    /// Makes a buffer of the caller's memory, at any address, of any length. Whether its pages
    /// are locked is the caller's affair; it counts as pinned.
    ///
    /// `release` runs exactly once, on any thread, when nothing touches the memory any more.
    ///
    /// # Errors
    /// `NullArgument` for the address 0, `InvalidArgument` for a length of zero and for a range
    /// that cannot be; `release` is dropped without being run then.
    ///
    /// # Safety
    /// Until `release` runs, or where there is none until [`released_latch`] opens, the memory
    /// is one live allocation that can be read and written, and the caller touches it only
    /// where no request or copy is at work.
    ///
    /// [`released_latch`]: Buffer::released_latch
    pub unsafe fn foreign(
        address: usize,
        len_bytes: u64,
        release: Option<ReleaseHook>,
    ) -> Result<Buffer> {
        if address == 0 {
            return Err(Error::NullArgument("data"));
        }
        if len_bytes == 0 {
            return Err(Error::invalid("a buffer must have at least one byte"));
        }
        let len = to_usize(len_bytes)?;
        if len > isize::MAX.unsigned_abs() || address.checked_add(len).is_none() {
            return Err(Error::invalid(format!(
                "{len_bytes} bytes at {address:#x} reach beyond the end of memory"
            )));
        }
        Ok(Buffer(Arc::new(Inner {
            address,
            len_bytes,
            capacity_bytes: len_bytes,
            kind: BufferKind::Foreign,
            is_locked: false,
            ring_slot: AtomicU32::new(NO_SLOT),
            reclaim: OnceLock::new(),
            registration: OnceLock::new(),
            released: Arc::new(Latch::new()),
            memory: Mutex::new(Some(Memory::Foreign(release))),
        })))
    }

    /// The address of the first byte.
    #[must_use]
    pub fn address(&self) -> usize {
        self.0.address
    }

    /// The first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.0.address)
    }

    /// The length that was asked for.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    /// The length that can be used: whole pages of an owned buffer, so that a tail can be padded
    /// to an alignment block in place; of a foreign one its length.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.0.capacity_bytes
    }

    /// Whose memory it is, and in what pages.
    #[must_use]
    pub fn kind(&self) -> BufferKind {
        self.0.kind
    }

    /// Whether the library has locked the pages.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.0.is_locked
    }

    /// Whether both refer to the same buffer.
    #[must_use]
    pub fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The memory up to [`len_bytes`](Buffer::len_bytes).
    ///
    /// INVARIANT: whoever uses the range holds this buffer meanwhile, and no two use the same
    /// bytes at a time unless both only read: the state machines of engine and swapper see to it.
    #[must_use]
    pub(crate) fn range(&self) -> MemoryRange {
        self.range_of(self.0.len_bytes)
    }

    /// The memory up to [`capacity_bytes`](Buffer::capacity_bytes), under the same invariant.
    #[must_use]
    pub(crate) fn whole_range(&self) -> MemoryRange {
        self.range_of(self.0.capacity_bytes)
    }

    fn range_of(&self, len_bytes: u64) -> MemoryRange {
        // Addressable: checked when the buffer was made.
        let len = usize::try_from(len_bytes).unwrap_or(0);
        // SAFETY: the memory is one live allocation until the last reference goes: our own
        // mapping, or the promise of `foreign`. Who may touch which bytes when is the invariant
        // stated at `range`, kept by its callers.
        unsafe { MemoryRange::new(self.as_ptr(), len) }
    }

    /// Names who lets go of the buffer where a ring has registered it. The first call counts;
    /// returns whether this was it.
    pub fn set_reclaim(&self, reclaim: Arc<dyn Reclaim>) -> bool {
        self.0.reclaim.set(reclaim).is_ok()
    }

    /// Notes that a ring has registered the buffer, from this slot on, one slot per piece.
    pub fn set_ring_slot(&self, first_slot: u32) {
        // ORDERING: release, paired with the acquire of `ring_slot`: who sees the slot may use
        // it, so registering must have happened before.
        self.0.ring_slot.store(first_slot, Ordering::Release);
    }

    /// Notes that no ring has the buffer registered any more.
    pub fn clear_ring_slot(&self) {
        self.set_ring_slot(NO_SLOT);
    }

    /// The ring's slot of the first piece; `None` where no ring has the buffer registered.
    #[must_use]
    pub fn ring_slot(&self) -> Option<u32> {
        self.0.ring_slot()
    }

    /// How many slots of a ring the buffer takes.
    #[must_use]
    pub fn ring_piece_count(&self) -> u32 {
        self.0.ring_piece_count()
    }

    /// Address and length of one piece, for registering it; `None` beyond the last.
    #[must_use]
    pub fn ring_piece(&self, index: u32) -> Option<(usize, usize)> {
        let offset = u64::from(index).checked_mul(RING_PIECE_BYTES)?;
        let left = self.0.capacity_bytes.checked_sub(offset)?;
        let len = usize::try_from(left.min(RING_PIECE_BYTES)).ok()?;
        let address = self.0.address.checked_add(usize::try_from(offset).ok()?)?;
        (len > 0).then_some((address, len))
    }

    /// One piece as a range, for registering it; `None` beyond the last.
    pub(crate) fn ring_piece_range(&self, index: u32) -> Option<MemoryRange> {
        let (address, len) = self.ring_piece(index)?;
        self.whole_range().slice(address - self.0.address, len)
    }

    /// Whether all of the `len` bytes at `address` are in the buffer.
    #[must_use]
    pub fn contains(&self, address: usize, len: usize) -> bool {
        let (start, end) = self.0.span();
        address >= start && address.checked_add(len).is_some_and(|last| last <= end)
    }

    /// What its pages are, in a word: `hugetlb`, `transparent`, `base` or `foreign`.
    #[must_use]
    pub fn pages_name(&self) -> &'static str {
        match self.0.kind {
            BufferKind::Owned(PageKind::HugeTlb) => "hugetlb",
            BufferKind::Owned(PageKind::Transparent) => "transparent",
            BufferKind::Owned(PageKind::Base) => "base",
            BufferKind::Foreign => "foreign",
        }
    }

    /// The slot through which a ring can transfer `len` bytes at `address`; `None` where no ring
    /// has them registered, where they are not all in the buffer, or where they lie across two
    /// pieces.
    #[must_use]
    pub fn ring_slot_of(&self, address: usize, len: usize) -> Option<u32> {
        let first_slot = self.ring_slot()?;
        let offset = to_u64(address.checked_sub(self.0.address)?);
        let end = offset.checked_add(to_u64(len))?;
        let piece = offset / RING_PIECE_BYTES;
        let inside = end <= self.0.capacity_bytes && end <= (piece + 1) * RING_PIECE_BYTES;
        first_slot.checked_add(u32::try_from(piece).ok().filter(|_| inside)?)
    }

    /// Opens once the memory is unmapped, or the release hook has returned. Whoever waits must
    /// not hold the buffer.
    #[must_use]
    pub fn released_latch(&self) -> Arc<Latch> {
        Arc::clone(&self.0.released)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("address", &format_args!("{:#x}", self.0.address))
            .field("len_bytes", &self.0.len_bytes)
            .field("kind", &self.0.kind)
            .field("ring_slot", &self.ring_slot())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn ring_slot(&self) -> Option<u32> {
        // ORDERING: acquire, paired with the release of `set_ring_slot`.
        match self.ring_slot.load(Ordering::Acquire) {
            NO_SLOT => None,
            slot => Some(slot),
        }
    }

    fn ring_piece_count(&self) -> u32 {
        // At most 2^33 pieces by arithmetic; a 47-bit address space holds 2^17.
        u32::try_from(self.capacity_bytes.div_ceil(RING_PIECE_BYTES)).unwrap_or(u32::MAX)
    }

    /// The addresses that count as pinned through this buffer.
    pub(super) fn span(&self) -> (usize, usize) {
        let len = usize::try_from(self.capacity_bytes).unwrap_or(0);
        (self.address, self.address.saturating_add(len))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // DROP ORDER: lookups forget the memory first, then the ring, then it is released.
        if let Some(registration) = self.registration.take() {
            registration.remove(self.address);
        }
        let memory = self
            .memory
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let parts = Reclaimed {
            address: self.address,
            len_bytes: self.len_bytes,
            ring_slot: self.ring_slot(),
            ring_piece_count: self.ring_piece_count(),
            released: Arc::clone(&self.released),
            memory,
        };
        match self.reclaim.take() {
            Some(reclaim) if parts.ring_slot.is_some() => reclaim.reclaim(parts),
            _ => drop(parts),
        }
    }
}

/// What is left of a buffer that nobody refers to. Dropping it releases the memory, then opens
/// the latch; the release hook runs on the thread that does so.
pub struct Reclaimed {
    address: usize,
    len_bytes: u64,
    ring_slot: Option<u32>,
    ring_piece_count: u32,
    released: Arc<Latch>,
    memory: Option<Memory>,
}

impl Reclaimed {
    /// The first of the ring's slots that are to be unregistered.
    #[must_use]
    pub fn ring_slot(&self) -> Option<u32> {
        self.ring_slot
    }

    /// How many slots, one after the other, are to be unregistered.
    #[must_use]
    pub fn ring_piece_count(&self) -> u32 {
        self.ring_piece_count
    }

    /// The address of the memory.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// The length that the buffer had.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

impl fmt::Debug for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reclaimed")
            .field("address", &format_args!("{:#x}", self.address))
            .field("len_bytes", &self.len_bytes)
            .field("ring_slot", &self.ring_slot)
            .finish_non_exhaustive()
    }
}

impl Drop for Reclaimed {
    fn drop(&mut self) {
        match self.memory.take() {
            Some(Memory::Foreign(Some(release))) => {
                let start = ptr::with_exposed_provenance_mut(self.address);
                let len_bytes = self.len_bytes;
                // A panic must not leave a destructor, and must not keep the latch shut.
                if catch_unwind(AssertUnwindSafe(move || release(start, len_bytes))).is_err() {
                    events::release_hook_panicked(self.address, len_bytes);
                }
            }
            Some(Memory::Owned(memory)) => drop(memory),
            Some(Memory::Foreign(None)) | None => {}
        }
        self.released.open();
    }
}
