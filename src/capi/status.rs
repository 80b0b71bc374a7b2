//! Status numbers and their names.

use std::ffi::c_char;

use super::text::{Name, name};
use crate::base::error::Status;

/// The outcome of a call: 0 is success, positive is information, negative is an error. The numbers
/// are frozen for ever; a later version may add some, so treat an unknown negative one as an error.
pub type tsw_status = i32;

/// Success.
pub const TSW_OK: tsw_status = 0;
/// No more items. Information, not an error.
pub const TSW_END: tsw_status = 1;
/// A pointer that must not be NULL is NULL; the message names it.
pub const TSW_ERR_NULL_ARGUMENT: tsw_status = -1;
/// An argument is outside of what the function accepts; mend the call.
pub const TSW_ERR_INVALID_ARGUMENT: tsw_status = -2;
/// The tensor's element type is not the one agreed on; mend the call.
pub const TSW_ERR_DTYPE_MISMATCH: tsw_status = -3;
/// The ticket was never given out, or its completion was delivered already.
pub const TSW_ERR_BAD_TICKET: tsw_status = -4;
/// No parameter has this id.
pub const TSW_ERR_UNKNOWN_PARAMETER: tsw_status = -5;
/// A configuration key or value is not legal; the message lists what is.
pub const TSW_ERR_CONFIG: tsw_status = -6;
/// The object belongs to the parent of this forked process; make a new one.
pub const TSW_ERR_FORKED: tsw_status = -7;
/// The object is in use, or a bound is reached; later it can succeed.
pub const TSW_ERR_BUSY: tsw_status = -20;
/// No pinned buffer is to be had; give buffers first.
pub const TSW_ERR_NO_BUFFERS: tsw_status = -21;
/// The engine takes nothing any more.
pub const TSW_ERR_SHUT_DOWN: tsw_status = -22;
/// The library met a defect inside this object earlier; it can only be freed.
pub const TSW_ERR_POISONED: tsw_status = -23;
/// The time given for waiting is over; wait again.
pub const TSW_ERR_TIMED_OUT: tsw_status = -24;
/// The operation was cancelled.
pub const TSW_ERR_CANCELLED: tsw_status = -25;
/// Another object, of this process or another one, holds the lock.
pub const TSW_ERR_LOCKED: tsw_status = -26;
/// Storage failed; `tsw_last_error_os` tells the errno.
pub const TSW_ERR_IO: tsw_status = -40;
/// Storage, or the quota on it, is full.
pub const TSW_ERR_NO_SPACE: tsw_status = -41;
/// A file or directory does not exist.
pub const TSW_ERR_NOT_FOUND: tsw_status = -42;
/// What is stored is shorter, or of another size, than asked for.
pub const TSW_ERR_SIZE_MISMATCH: tsw_status = -43;
/// What is stored is not what was written.
pub const TSW_ERR_CHECKSUM: tsw_status = -44;
/// Access is not permitted.
pub const TSW_ERR_PERMISSION: tsw_status = -45;
/// The structure on storage is damaged.
pub const TSW_ERR_CORRUPT: tsw_status = -46;
/// Memory could not be allocated.
pub const TSW_ERR_NO_MEMORY: tsw_status = -60;
/// Memory could not be locked: raise RLIMIT_MEMLOCK or set `pin` to prefer.
pub const TSW_ERR_MEMLOCK: tsw_status = -61;
/// The budget of pinned memory is too small; the message names the bytes needed.
pub const TSW_ERR_BUDGET: tsw_status = -62;
/// The kernel, the file system or this build cannot do it.
pub const TSW_ERR_UNSUPPORTED: tsw_status = -63;
/// A defect of the library; the object is poisoned.
pub const TSW_ERR_INTERNAL: tsw_status = -90;

/// The names, by position in `Status::ALL`.
static NAMES: [Name; Status::ALL.len()] = {
    let mut names = [name(""); Status::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = name(Status::ALL[index].name());
        index += 1;
    }
    names
};

/// Tell the name of a status, such as "TSW_ERR_NO_SPACE".
///
/// Never NULL: a number that is no status gives "TSW_ERR_UNKNOWN".
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_status_name(status: tsw_status) -> *const c_char {
    let index = Status::ALL.iter().position(|each| *each as i32 == status);
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => name.as_ptr().cast(),
        None => c"TSW_ERR_UNKNOWN".as_ptr(),
    }
}

/// Tell whether the same call can succeed later without the caller changing its arguments: 1 for
/// such a status, else 0.
///
/// Those are BUSY, NO_BUFFERS, TIMED_OUT, CANCELLED, LOCKED, NO_SPACE, NO_MEMORY and MEMLOCK. Reading
/// what a cancelled swap-out left is CANCELLED until somebody writes it again: bound your attempts.
///
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_status_is_retryable(status: tsw_status) -> u32 {
    Status::from_number(status)
        .is_some_and(Status::is_retryable)
        .into()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    /// Every constant of the header, to be compared with the statuses below it.
    const CONSTANTS: &[(&str, tsw_status)] = &[
        ("TSW_OK", TSW_OK),
        ("TSW_END", TSW_END),
        ("TSW_ERR_NULL_ARGUMENT", TSW_ERR_NULL_ARGUMENT),
        ("TSW_ERR_INVALID_ARGUMENT", TSW_ERR_INVALID_ARGUMENT),
        ("TSW_ERR_DTYPE_MISMATCH", TSW_ERR_DTYPE_MISMATCH),
        ("TSW_ERR_BAD_TICKET", TSW_ERR_BAD_TICKET),
        ("TSW_ERR_UNKNOWN_PARAMETER", TSW_ERR_UNKNOWN_PARAMETER),
        ("TSW_ERR_CONFIG", TSW_ERR_CONFIG),
        ("TSW_ERR_FORKED", TSW_ERR_FORKED),
        ("TSW_ERR_BUSY", TSW_ERR_BUSY),
        ("TSW_ERR_NO_BUFFERS", TSW_ERR_NO_BUFFERS),
        ("TSW_ERR_SHUT_DOWN", TSW_ERR_SHUT_DOWN),
        ("TSW_ERR_POISONED", TSW_ERR_POISONED),
        ("TSW_ERR_TIMED_OUT", TSW_ERR_TIMED_OUT),
        ("TSW_ERR_CANCELLED", TSW_ERR_CANCELLED),
        ("TSW_ERR_LOCKED", TSW_ERR_LOCKED),
        ("TSW_ERR_IO", TSW_ERR_IO),
        ("TSW_ERR_NO_SPACE", TSW_ERR_NO_SPACE),
        ("TSW_ERR_NOT_FOUND", TSW_ERR_NOT_FOUND),
        ("TSW_ERR_SIZE_MISMATCH", TSW_ERR_SIZE_MISMATCH),
        ("TSW_ERR_CHECKSUM", TSW_ERR_CHECKSUM),
        ("TSW_ERR_PERMISSION", TSW_ERR_PERMISSION),
        ("TSW_ERR_CORRUPT", TSW_ERR_CORRUPT),
        ("TSW_ERR_NO_MEMORY", TSW_ERR_NO_MEMORY),
        ("TSW_ERR_MEMLOCK", TSW_ERR_MEMLOCK),
        ("TSW_ERR_BUDGET", TSW_ERR_BUDGET),
        ("TSW_ERR_UNSUPPORTED", TSW_ERR_UNSUPPORTED),
        ("TSW_ERR_INTERNAL", TSW_ERR_INTERNAL),
    ];

    fn name_of(status: tsw_status) -> &'static str {
        // SAFETY: a text of the library.
        unsafe { CStr::from_ptr(tsw_status_name(status)) }
            .to_str()
            .unwrap()
    }

    #[test]
    fn every_status_has_its_constant_and_its_name() {
        let statuses: Vec<_> = Status::ALL
            .iter()
            .map(|status| (status.name(), *status as i32))
            .collect();
        assert_eq!(CONSTANTS, statuses);
        for (name, number) in CONSTANTS {
            assert_eq!(name_of(*number), *name);
        }
        for unknown in [2, -8, -91, i32::MIN, i32::MAX] {
            assert_eq!(name_of(unknown), "TSW_ERR_UNKNOWN");
            assert_eq!(tsw_status_is_retryable(unknown), 0);
        }
        assert_eq!(tsw_status_is_retryable(TSW_ERR_BUSY), 1);
        assert_eq!(tsw_status_is_retryable(TSW_ERR_IO), 0);
    }
}
