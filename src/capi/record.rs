//! Structures that the library fills in, and the rule of their `struct_size`.
//!
//! The caller writes the size that its header knows. An older caller gets the part it knows; a
//! newer one gets zeros where this library knows nothing.

use std::ptr;

use super::guard::{Failure, Outcome};

/// The largest `struct_size` taken for one: what is larger is memory that nobody filled in.
const SIZE_BYTES_MAX: usize = 4096;

/// A structure that begins with `uint32_t struct_size`.
///
/// # Safety
/// `repr(C)`, without padding, every bit pattern of its fields is valid, and the first field is
/// the `u32` that `set_struct_size` sets.
pub(super) unsafe trait Sized32: Copy {
    /// The first version's smallest sensible part.
    const SIZE_BYTES_MIN: usize;
    fn set_struct_size(&mut self, struct_size: u32);
}

/// The caller's structure: checked, cleared, and to be written at most once.
#[derive(Debug)]
pub(super) struct Record<T> {
    start: *mut T,
    struct_size: u32,
    len: usize,
}

impl<T: Sized32> Record<T> {
    /// Checks `struct_size` and clears what follows it.
    ///
    /// # Safety
    /// `start` is NULL or a structure with `struct_size` filled in, writable for that many bytes.
    pub(super) unsafe fn open(start: *mut T, argument: &'static str) -> Outcome<Record<T>> {
        // SAFETY: this function's contract.
        let record = unsafe { Record::check(start, argument) }?;
        // SAFETY: `len` bytes are the caller's, and at least four.
        unsafe { ptr::write_bytes(start.cast::<u8>().add(4), 0, record.len - 4) };
        Ok(record)
    }

    /// Checks `struct_size` and writes `nothing`, which stays there unless something is written.
    ///
    /// # Safety
    /// As [`open`](Record::open).
    pub(super) unsafe fn open_as(
        start: *mut T,
        argument: &'static str,
        nothing: T,
    ) -> Outcome<Record<T>> {
        // SAFETY: this function's contract; `len` bytes are the caller's.
        unsafe {
            let record = Record::check(start, argument)?;
            write_at(start.cast(), record.struct_size, record.len, nothing);
            Ok(record)
        }
    }

    /// As [`open`](Record::open), where NULL means that nobody wants it.
    ///
    /// # Safety
    /// As [`open`](Record::open).
    pub(super) unsafe fn open_optional(
        start: *mut T,
        argument: &'static str,
    ) -> Outcome<Option<Record<T>>> {
        if start.is_null() {
            return Ok(None);
        }
        // SAFETY: this function's contract.
        unsafe { Record::open(start, argument) }.map(Some)
    }

    /// Checks `struct_size` alone.
    ///
    /// # Safety
    /// `start` is NULL or points to a readable `struct_size`.
    pub(super) unsafe fn check(start: *mut T, argument: &'static str) -> Outcome<Record<T>> {
        if start.is_null() {
            return Err(Failure::null(argument));
        }
        // SAFETY: not NULL; every such structure begins with a `u32`.
        let struct_size = unsafe { start.cast::<u32>().read_unaligned() };
        let len = usize::try_from(struct_size).unwrap_or(usize::MAX);
        if len < T::SIZE_BYTES_MIN || len > SIZE_BYTES_MAX || !len.is_multiple_of(8) {
            return Err(Failure::invalid(format!(
                "{argument}: struct_size is {struct_size}; set it to sizeof ({} here)",
                size_of::<T>()
            )));
        }
        Ok(Record {
            start,
            struct_size,
            len,
        })
    }

    /// The size the caller knows, in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Writes the part that the caller knows.
    pub(super) fn write(self, value: T) {
        // SAFETY: `start` is valid for `len` bytes by the contract of `open`.
        unsafe { write_at(self.start.cast(), self.struct_size, self.len, value) };
    }
}

/// Writes a structure of `len` bytes, of which the library may know fewer or more.
///
/// # Safety
/// `start` is valid for writing `len` bytes.
pub(super) unsafe fn write_at<T: Sized32>(
    start: *mut u8,
    struct_size: u32,
    len: usize,
    mut value: T,
) {
    value.set_struct_size(struct_size);
    let known = len.min(size_of::<T>());
    // SAFETY: `value` has `size_of::<T>()` bytes, none of them padding; the caller's contract.
    unsafe {
        ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), start, known);
        ptr::write_bytes(start.add(known), 0, len - known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::timer::tsw_timer;

    const VALUE: tsw_timer = tsw_timer {
        struct_size: 0,
        reserved: 0,
        count: 1,
        total_ns: 2,
        min_ns: 3,
        max_ns: 4,
        p50_ns: 5,
        p99_ns: 6,
    };

    fn filled(struct_size: u32) -> Outcome<[u64; 10]> {
        let mut room = [u64::MAX; 10];
        room[0] = u64::from(struct_size) | 0xffff_ffff_0000_0000;
        // SAFETY: every size tried here that is accepted fits the room.
        unsafe { Record::<tsw_timer>::open(room.as_mut_ptr().cast(), "inout") }?.write(VALUE);
        Ok(room)
    }

    #[test]
    fn each_caller_gets_the_part_it_knows() {
        let none = u64::MAX;
        assert_eq!(
            filled(56).unwrap(),
            [56, 1, 2, 3, 4, 5, 6, none, none, none]
        );
        assert_eq!(
            filled(24).unwrap(),
            [24, 1, 2, none, none, none, none, none, none, none]
        );
        assert_eq!(filled(72).unwrap(), [72, 1, 2, 3, 4, 5, 6, 0, 0, none]);
    }

    #[test]
    fn a_size_that_nobody_filled_in_is_refused() {
        for size in [0, 1, 4, 12, 55, 57, 4104, 0xcccc_cccc, u32::MAX] {
            let failure = filled(size).unwrap_err();
            assert!(failure.message.contains("inout: struct_size"), "{size}");
        }
    }
}
