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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::base::error::Status;
    use crate::base::sync::lock;

    /// A buffer over leaked memory, which counts how often it is released.
    fn counted(len: usize) -> (Buffer, Arc<AtomicUsize>) {
        let bytes: &'static mut [u8] = Box::leak(vec![0_u8; len].into_boxed_slice());
        let address = bytes.as_mut_ptr().expose_provenance();
        let count = Arc::new(AtomicUsize::new(0));
        let hook_count = Arc::clone(&count);
        let hook: ReleaseHook = Box::new(move |start, len_bytes| {
            assert_eq!((start.addr(), len_bytes), (address, to_u64(len)));
            hook_count.fetch_add(1, Ordering::Relaxed);
        });
        // SAFETY: leaked, so alive for ever; touched by nothing.
        let buffer = unsafe { Buffer::foreign(address, to_u64(len), Some(hook)) }.unwrap();
        (buffer, count)
    }

    /// Keeps what it is given, as a ring does that has not let go yet.
    #[derive(Default)]
    struct Keeper(Mutex<Vec<Reclaimed>>);

    impl Reclaim for Keeper {
        fn reclaim(&self, parts: Reclaimed) {
            lock(&self.0).push(parts);
        }
    }

    #[test]
    fn the_hook_runs_once_when_the_last_of_many_threads_lets_go() {
        for _ in 0..20 {
            let (buffer, count) = counted(100);
            let latch = buffer.released_latch();
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    let clone = buffer.clone();
                    scope.spawn(move || {
                        for _ in 0..100 {
                            drop(clone.clone());
                        }
                        drop(clone);
                    });
                }
                assert_eq!(count.load(Ordering::Relaxed), 0);
                assert!(!latch.is_open());
                drop(buffer);
            });
            latch.wait();
            assert_eq!(count.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn a_registered_buffer_is_released_where_its_parts_are_dropped() {
        let keeper = Arc::new(Keeper::default());
        let (buffer, count) = counted(100);
        assert!(buffer.set_reclaim(Arc::clone(&keeper) as Arc<dyn Reclaim>));
        assert!(!buffer.set_reclaim(Arc::new(Keeper::default())));
        buffer.set_ring_slot(7);
        let latch = buffer.released_latch();
        drop(buffer);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        assert!(!latch.is_open());

        let parts = lock(&keeper.0).pop().unwrap();
        assert_eq!((parts.ring_slot(), parts.ring_piece_count()), (Some(7), 1));
        std::thread::scope(|scope| {
            scope.spawn(|| latch.wait());
            drop(parts);
        });
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_buffer_without_a_slot_is_released_in_place() {
        let keeper = Arc::new(Keeper::default());
        let (buffer, count) = counted(100);
        buffer.set_reclaim(Arc::clone(&keeper) as Arc<dyn Reclaim>);
        buffer.set_ring_slot(3);
        buffer.clear_ring_slot();
        drop(buffer);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(lock(&keeper.0).is_empty());
    }

    #[test]
    fn a_hook_that_panics_opens_the_latch_all_the_same() {
        let mut byte = 0_u8;
        let hook: ReleaseHook = Box::new(|_, _| panic!("expected by the test"));
        // SAFETY: nothing touches the byte.
        let buffer = unsafe { Buffer::foreign((&raw mut byte).addr(), 1, Some(hook)) }.unwrap();
        let latch = buffer.released_latch();
        drop(buffer);
        assert!(latch.is_open());
    }

    #[test]
    fn impossible_foreign_memory_is_refused() {
        let status = |address, len| {
            // SAFETY: none of these becomes a buffer.
            let made = unsafe { Buffer::foreign(address, len, None) };
            made.unwrap_err().status()
        };
        assert_eq!(status(0, 10), Status::NullArgument);
        assert_eq!(status(4096, 0), Status::InvalidArgument);
        assert_eq!(status(4096, u64::MAX), Status::InvalidArgument);
        assert_eq!(status(usize::MAX, 2), Status::InvalidArgument);
    }

    #[test]
    fn owned_memory_is_usable_up_to_its_capacity() {
        let buffer = Buffer::allocate(5000, Policy::Off, Policy::Prefer).unwrap();
        assert_eq!(buffer.len_bytes(), 5000);
        assert!(buffer.capacity_bytes() >= 8192);
        assert_eq!(buffer.kind(), BufferKind::Owned(PageKind::Base));
        buffer.whole_range().copy_into(5000, &[1; 3000]).unwrap();
        assert!(buffer.range().copy_into(5000, &[1]).is_err());
        assert!(buffer.is_same(&buffer.clone()));
        let latch = buffer.released_latch();
        drop(buffer);
        assert!(latch.is_open());
    }

    #[test]
    fn long_buffers_have_a_slot_for_every_gibibyte() {
        let address = 0x10_0000_usize;
        let gib = usize::try_from(GIB).unwrap();
        // SAFETY: only arithmetic is done with it; nothing touches the memory.
        let buffer = unsafe { Buffer::foreign(address, 2 * GIB + 5, None) }.unwrap();
        assert_eq!(buffer.ring_piece_count(), 3);
        assert_eq!(buffer.ring_piece(0), Some((address, gib)));
        assert_eq!(buffer.ring_piece(2), Some((address + 2 * gib, 5)));
        assert_eq!(buffer.ring_piece(3), None);
        assert_eq!(buffer.ring_slot_of(address, 1), None);
        buffer.set_ring_slot(10);
        assert_eq!(buffer.ring_slot_of(address, gib), Some(10));
        assert_eq!(buffer.ring_slot_of(address, gib + 1), None);
        assert_eq!(buffer.ring_slot_of(address + gib, gib), Some(11));
        assert_eq!(buffer.ring_slot_of(address + 2 * gib, 5), Some(12));
        assert_eq!(buffer.ring_slot_of(address + 2 * gib, 6), None);
        assert_eq!(buffer.ring_slot_of(address - 1, 1), None);
        assert_eq!(buffer.ring_slot_of(address + 1, usize::MAX), None);
    }
}
