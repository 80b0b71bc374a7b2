//! Memory known by address: what a request reads from or writes to.

use std::ptr;

use super::copy;
use crate::base::error::{Error, Result};

/// A range of memory that somebody vouched for.
///
/// It borrows nothing: requests carry it between threads, past every lifetime the compiler could
/// check. Making one is therefore `unsafe`, and everything done with it later relies on the
/// promise given then. Ranges cut from one are covered by its promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    address: usize,
    len: usize,
}

impl MemoryRange {
    /// No bytes, nowhere.
    pub const EMPTY: MemoryRange = MemoryRange { address: 0, len: 0 };

    /// The range of `len` bytes at `start`.
    ///
    /// # Safety
    /// Until the last use of this range, of its copies and of ranges cut from it:
    ///
    /// * the bytes are part of one live allocation, of at most `isize::MAX` bytes, that can be
    ///   read, and written where something is to be written to them;
    /// * nobody else writes bytes that are being read through the range, or touches bytes that
    ///   are being written through it.
    ///
    /// With a `len` of zero nothing is promised and nothing is touched.
    #[must_use]
    pub unsafe fn new(start: *mut u8, len: usize) -> MemoryRange {
        MemoryRange {
            address: start.expose_provenance(),
            len,
        }
    }

    /// The address of the first byte.
    #[must_use]
    pub fn address(self) -> usize {
        self.address
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The first byte, for the kernel and for copies.
    #[must_use]
    pub fn as_mut_ptr(self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address)
    }

    /// The `len` bytes from `offset` on; `None` where they are not all inside.
    #[must_use]
    pub fn slice(self, offset: usize, len: usize) -> Option<MemoryRange> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| MemoryRange {
            // No overflow: the promise of `new` is that the whole range is addressable.
            address: self.address.wrapping_add(offset),
            len,
        })
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: MemoryRange) -> bool {
        let before = |a: MemoryRange, b: MemoryRange| a.address.saturating_add(a.len) <= b.address;
        !(self.is_empty() || other.is_empty() || before(self, other) || before(other, self))
    }

    /// Copies the bytes from `offset` on into `to`, as many as that takes.
    ///
    /// # Errors
    /// `Internal` where they are not all inside; nothing is copied then.
    pub fn copy_out_of(self, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = self.part(offset, to.len())?;
        if !from.is_empty() {
            // SAFETY: `from` lies inside the range, which is readable and unwritten by others
            // (`new`); `to` is exclusive, so the two are disjoint.
            unsafe { ptr::copy_nonoverlapping(from.as_mut_ptr(), to.as_mut_ptr(), to.len()) };
        }
        Ok(())
    }

    /// Copies `from` to the bytes from `offset` on.
    ///
    /// # Errors
    /// `Internal` where they are not all inside; nothing is copied then.
    pub fn copy_into(self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.part(offset, from.len())?;
        if !to.is_empty() {
            // SAFETY: `to` lies inside the range, which is writable and untouched by others
            // (`new`), so `from`, which is borrowed, is disjoint from it.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), from.len()) };
        }
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to zero.
    ///
    /// # Errors
    /// `Internal` where they are not all inside; nothing is changed then.
    pub fn zero(self, offset: usize, len: usize) -> Result<()> {
        let part = self.part(offset, len)?;
        if !part.is_empty() {
            // SAFETY: `part` lies inside the range, which is writable and untouched by others
            // (`new`); zero is a valid byte.
            unsafe { ptr::write_bytes(part.as_mut_ptr(), 0, part.len()) };
        }
        Ok(())
    }

    /// Lets `look` read the bytes; those above that may not use `unsafe` go through here. Of an
    /// empty range it gets an empty slice.
    ///
    /// INVARIANT: as with the other accesses, nobody else writes the bytes meanwhile (`new`);
    /// `look` itself must not either, through another range of the same memory.
    pub(crate) fn inspect<R>(self, look: impl FnOnce(&[u8]) -> R) -> R {
        if self.is_empty() {
            return look(&[]);
        }
        // SAFETY: the bytes are part of one live allocation of at most `isize::MAX` bytes, and
        // nobody writes them while they are read through the range: the promise of `new`, which
        // callers keep until this returns. The slice cannot outlive the call of `look`.
        look(unsafe { std::slice::from_raw_parts(self.as_mut_ptr(), self.len) })
    }

    /// Lets `change` read and write the bytes. Of an empty range it gets an empty slice.
    ///
    /// INVARIANT: nobody else touches the bytes meanwhile (`new`); `change` itself must not
    /// either, through another range of the same memory.
    pub(crate) fn update<R>(self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        if self.is_empty() {
            return change(&mut []);
        }
        // SAFETY: the bytes are part of one live, writable allocation of at most `isize::MAX`
        // bytes, and nobody else touches them while they are written through the range: the
        // promise of `new`, which callers keep until this returns. The slice cannot outlive the
        // call of `change`, so there is never a second one.
        change(unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) })
    }

    /// Copies `from`, all of it, to the bytes from `offset` on, past the caches where it is long:
    /// for memory that only storage reads next. The two may overlap.
    ///
    /// # Errors
    /// `Internal` where they are not all inside; nothing is copied then.
    pub fn stream_into(self, offset: usize, from: MemoryRange) -> Result<()> {
        let to = self.part(offset, from.len())?;
        if to.is_empty() {
            return Ok(());
        }
        if to.overlaps(from) {
            // SAFETY: both lie inside ranges vouched for (`new`); overlap is allowed here.
            unsafe { ptr::copy(from.as_mut_ptr(), to.as_mut_ptr(), from.len()) };
        } else {
            // SAFETY: both lie inside ranges vouched for (`new`), and they are disjoint.
            unsafe { copy::stream_raw(to.as_mut_ptr(), from.as_mut_ptr(), from.len()) };
        }
        Ok(())
    }

    /// [`slice`](MemoryRange::slice) for copies: being outside is a defect of ours.
    fn part(self, offset: usize, len: usize) -> Result<MemoryRange> {
        self.slice(offset, len).ok_or_else(|| {
            Error::Internal(format!(
                "{len} bytes at {offset} are not within a range of {} bytes",
                self.len
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range_of(bytes: &mut [u8]) -> MemoryRange {
        // SAFETY: each test keeps the slice alive and untouched until it is done with the range.
        unsafe { MemoryRange::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn parts_are_checked_without_wrapping() {
        let mut bytes = [0; 16];
        let range = range_of(&mut bytes);
        let part = range.slice(4, 12).unwrap();
        assert_eq!((part.address(), part.len()), (range.address() + 4, 12));
        assert!(range.slice(16, 0).unwrap().is_empty());
        for (offset, len) in [(17, 0), (4, 13), (usize::MAX, 2), (2, usize::MAX)] {
            assert_eq!(range.slice(offset, len), None, "{offset} {len}");
        }
        assert_eq!(
            part.slice(12, 1),
            None,
            "a part does not reach beyond itself"
        );
    }

    #[test]
    fn copies_reach_exactly_the_bytes_they_name() {
        let mut bytes = [9_u8; 8];
        let range = range_of(&mut bytes);
        range.copy_into(2, &[1, 2, 3]).unwrap();
        range.zero(6, 2).unwrap();
        let mut out = [0; 5];
        range.copy_out_of(1, &mut out).unwrap();
        assert_eq!(out, [9, 1, 2, 3, 9]);
        assert!(range.copy_into(6, &[0; 3]).is_err());
        assert!(range.copy_out_of(8, &mut [0]).is_err());
        assert!(range.zero(0, 9).is_err());
        assert!(range.stream_into(1, range).is_err());
        assert_eq!(bytes, [9, 9, 1, 2, 3, 9, 0, 0]);
    }

    #[test]
    fn bytes_are_seen_and_changed_in_place() {
        let mut bytes = [1_u8, 2, 3, 4];
        let part = range_of(&mut bytes).slice(1, 2).unwrap();
        let sum = part.inspect(|bytes| bytes.iter().sum::<u8>());
        assert_eq!(sum, 5);
        part.update(|bytes| bytes.reverse());
        assert_eq!(bytes, [1, 3, 2, 4]);
        assert!(MemoryRange::EMPTY.inspect(<[u8]>::is_empty));
        assert_eq!(MemoryRange::EMPTY.update(|bytes| bytes.len()), 0);
    }

    #[test]
    fn an_overlapping_stream_moves() {
        let mut bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut expected = bytes.clone();
        expected.copy_within(0..90_000, 7);
        let range = range_of(&mut bytes);
        range
            .stream_into(7, range.slice(0, 90_000).unwrap())
            .unwrap();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn overlap_is_a_common_byte() {
        let mut bytes = [0; 16];
        let range = range_of(&mut bytes);
        let part = |offset, len| range.slice(offset, len).unwrap();
        assert!(part(0, 8).overlaps(part(7, 1)));
        assert!(!part(0, 8).overlaps(part(8, 8)));
        assert!(!part(4, 0).overlaps(range));
    }
}
