//! `tsw_ticket` and `tsw_completion`: how a request ends.

use std::ffi::c_char;

use super::engine::{timeout, tsw_engine};
use super::guard::{self, Failure};
use super::last_error::push_line;
use super::record::{Record, Sized32, write_at};
use super::status::{TSW_OK, tsw_status};
use super::text::{boundary_above, boundary_below};
use crate::base::error::{Error, IoFailure};
use crate::io::Completion;

/// One pending request. 0 is never valid; a ticket that has ended is recognized and refused.
pub type tsw_ticket = u64;

/// Room for a message and its NUL.
const MESSAGE_BYTES: usize = 192;

/// How a request ended.
///
/// Set `struct_size` to `sizeof(tsw_completion)` before the call that fills it in; in an array, that
/// of the first element, which is the distance of the elements.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_completion {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// `TSW_OK`, or the first error of the request.
    pub status: tsw_status,
    /// The errno behind it; 0 where there is none.
    pub os_error: i32,
    /// Zero.
    pub reserved: u32,
    /// Index in the request's list of the tensor that failed first; UINT64_MAX where none did.
    pub failed_index: u64,
    /// The ticket that ended with this.
    pub ticket: tsw_ticket,
    /// Bytes of tensors that were moved.
    pub bytes_done: u64,
    /// Nanoseconds from submission to completion.
    pub elapsed_ns: u64,
    /// The tag of the failed tensor, else of the first one.
    pub user_tag: u64,
    /// What happened, in one line; empty on success. Of a long path only the end is kept.
    pub message: [c_char; 192],
}

// SAFETY: `repr(C)`; four 32-bit numbers, five 64-bit ones and bytes leave no padding (a test
// compares the sum), and any bits are valid for each.
unsafe impl Sized32 for tsw_completion {
    const SIZE_BYTES_MIN: usize = 16;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl tsw_completion {
    /// A completion that tells no more than why there is none.
    fn refused(error: &Error) -> tsw_completion {
        tsw_completion {
            struct_size: 0,
            status: error.status() as tsw_status,
            os_error: error.os_error(),
            reserved: 0,
            failed_index: u64::MAX,
            ticket: 0,
            bytes_done: 0,
            elapsed_ns: 0,
            user_tag: 0,
            message: message_of(error),
        }
    }

    fn of(completion: &Completion) -> tsw_completion {
        let failed = completion.outcome.as_ref().err();
        tsw_completion {
            struct_size: 0,
            status: failed.map_or(TSW_OK, |error| error.status() as tsw_status),
            os_error: failed.map_or(0, Error::os_error),
            reserved: 0,
            failed_index: completion.failed_index.unwrap_or(u64::MAX),
            ticket: completion.ticket,
            bytes_done: completion.bytes_done,
            elapsed_ns: completion.elapsed_ns,
            user_tag: completion.user_tag,
            message: failed.map_or([0; MESSAGE_BYTES], message_of),
        }
    }
}

/// The message in the room there is: what is too long loses the beginning of its path, and only
/// then its own end.
fn message_of(error: &Error) -> [c_char; MESSAGE_BYTES] {
    let mut line = String::new();
    push_line(&mut line, &error.to_string());
    if let Some(over) = line.len().checked_sub(MESSAGE_BYTES - 1)
        && over > 0
        && let Error::Io(failure) | Error::SizeMismatch(failure) = error
    {
        line = shortened(failure, over);
    }
    line.truncate(boundary_below(&line, MESSAGE_BYTES - 1));
    let mut message = [0; MESSAGE_BYTES];
    for (to, from) in message.iter_mut().zip(line.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    message
}

/// The message without the first `over` bytes of its path, and with dots in their place.
fn shortened(failure: &IoFailure, over: usize) -> String {
    const DOTS: &str = "...";
    let mut path = String::new();
    push_line(&mut path, &failure.path);
    let from = boundary_above(&path, over + DOTS.len());
    let mut line = String::new();
    let shorter = IoFailure {
        path: format!("{DOTS}{}", &path[from..]),
        ..failure.clone()
    };
    push_line(&mut line, &shorter.to_string());
    line
}

/// Wait until a request is over, and end its ticket.
///
/// Returns the request's own status, with the whole message as the last error. `timeout_ns` 0 asks
/// without waiting, `TSW_WAIT_FOREVER` waits as long as it takes. `inout_or_null` receives the
/// completion; with NULL the status is all there is. In one that was not delivered `ticket` is 0.
///
/// Threads: any; one thread for each ticket.
/// Errors: TIMED_OUT: the ticket stays valid; BAD_TICKET where it has ended or never was; BUSY where
/// another thread waits for it; INVALID_ARGUMENT for a `struct_size` that cannot be, and the ticket
/// stays valid; and whatever the request says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_ticket_wait(
    engine: *mut tsw_engine,
    ticket: tsw_ticket,
    timeout_ns: u64,
    inout_or_null: *mut tsw_completion,
) -> tsw_status {
    // SAFETY: the caller's handle and structure.
    unsafe {
        let record = Record::open_optional(inout_or_null, "inout_or_null");
        guard::with(engine.cast_const(), |engine| {
            let record = record?;
            let completion = match engine.engine.wait(ticket, timeout(timeout_ns)) {
                Ok(completion) => completion,
                Err(error) => {
                    if let Some(record) = record {
                        record.write(tsw_completion::refused(&error));
                    }
                    return Err(error.into());
                }
            };
            if let Some(record) = record {
                record.write(tsw_completion::of(&completion));
            }
            Ok(completion.outcome?)
        })
    }
}

/// Deliver the requests that are over, oldest first, and end their tickets.
///
/// Fills in at most `cap` elements of `array` and tells in `*len_out` how many; 0 where nothing is
/// over. Never waits. `array[0].struct_size` is `sizeof(tsw_completion)`, set by the caller before
/// every call; with `cap` 0 `array` may be NULL. A ticket on which a thread waits is left to it.
///
/// Each completion has its own status: this function succeeds where the requests failed.
///
/// Threads: any, concurrently; each completion is delivered once.
/// Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_ticket_poll(
    engine: *mut tsw_engine,
    array: *mut tsw_completion,
    cap: usize,
    len_out: *mut usize,
) -> tsw_status {
    // SAFETY: the caller's handle, array and place.
    unsafe {
        if !len_out.is_null() {
            len_out.write(0);
        }
        guard::with(engine.cast_const(), |engine| {
            if len_out.is_null() {
                return Err(Failure::null("len_out"));
            }
            if cap == 0 {
                return Ok(());
            }
            let record = Record::check(array, "array[0]")?;
            let struct_size = array.cast::<u32>().read();
            let mut next = array.cast::<u8>();
            let len = engine.engine.poll(cap, &mut |completion| {
                let value = tsw_completion::of(&completion);
                write_at(next, struct_size, record.len(), value);
                next = next.wrapping_add(record.len());
            })?;
            len_out.write(len);
            Ok(())
        })
    }
}

/// Ask for a request to stop.
///
/// Only asks: the ticket still completes, with CANCELLED or, where it was too late, as if nothing
/// had been asked, and is to be waited for or polled. What a swap-out that is CANCELLED, or fails, had
/// begun to write cannot be read through this engine until it is written again; what it had not begun
/// to write is as before. A file that it made stays, and may be empty.
///
/// Threads: any. Errors: BAD_TICKET.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_ticket_cancel(
    engine: *mut tsw_engine,
    ticket: tsw_ticket,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(engine.cast_const(), |engine| {
            Ok(engine.engine.cancel(ticket)?)
        })
    }
}

/// Tell how far a request is: bytes moved, and bytes in all, which may be 0.
///
/// Threads: any. Errors: BAD_TICKET; NULL_ARGUMENT. Both numbers are then 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_ticket_progress(
    engine: *mut tsw_engine,
    ticket: tsw_ticket,
    done_bytes_out: *mut u64,
    total_bytes_out: *mut u64,
) -> tsw_status {
    // SAFETY: the caller's handle and places.
    unsafe {
        for out in [done_bytes_out, total_bytes_out] {
            if !out.is_null() {
                out.write(0);
            }
        }
        guard::with(engine.cast_const(), |engine| {
            if done_bytes_out.is_null() {
                return Err(Failure::null("done_bytes_out"));
            }
            if total_bytes_out.is_null() {
                return Err(Failure::null("total_bytes_out"));
            }
            let (done_bytes, total_bytes) = engine.engine.progress(ticket)?;
            done_bytes_out.write(done_bytes);
            total_bytes_out.write(total_bytes);
            Ok(())
        })
    }
}

const _: () = assert!(size_of::<tsw_completion>() == 4 * 4 + 5 * 8 + MESSAGE_BYTES);

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use proptest::prelude::*;

    use super::*;

    fn text(error: &Error) -> String {
        let message = message_of(error);
        assert_eq!(message[MESSAGE_BYTES - 1], 0);
        // SAFETY: the last byte is a NUL.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        text.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_long_path_keeps_its_end_and_what_follows() {
        let path = format!("/mnt/{}/layer7/weights", "ä".repeat(5000));
        let error = Error::io(
            "swap_out",
            path.as_bytes(),
            Some(4096),
            libc::ENOSPC,
            "full",
        );
        let text = text(&error);
        assert!(text.starts_with("swap_out ...ä"), "{text}");
        assert!(
            text.ends_with("/layer7/weights at 4096: ENOSPC (full)"),
            "{text}"
        );
        assert!(
            (MESSAGE_BYTES - 3..MESSAGE_BYTES).contains(&text.len()),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn any_message_fits_on_one_line(path in ".{0,300}", detail in ".{0,250}") {
            let error = Error::io("swap_in", path.as_bytes(), None, libc::EIO, detail);
            let text = text(&error);
            prop_assert!(text.starts_with("swap_in ") && !text.chars().any(char::is_control));
            let whole = error.to_string();
            if whole.len() < MESSAGE_BYTES && !whole.chars().any(char::is_control) {
                prop_assert_eq!(text, whole);
            }
        }
    }

    #[test]
    fn a_completion_carries_what_the_request_had() {
        let error = Error::io("open", b"/a", None, libc::ENOENT, "");
        let completion = Completion {
            ticket: 7,
            outcome: Err(error),
            failed_index: Some(3),
            bytes_done: 5,
            elapsed_ns: 6,
            user_tag: 9,
        };
        let c = tsw_completion::of(&completion);
        assert_eq!((c.status, c.os_error), (-42, libc::ENOENT));
        assert_eq!((c.ticket, c.failed_index, c.user_tag), (7, 3, 9));
        let good = Completion {
            outcome: Ok(()),
            failed_index: None,
            ..completion
        };
        let c = tsw_completion::of(&good);
        assert_eq!(
            (c.status, c.failed_index, c.message[0]),
            (TSW_OK, u64::MAX, 0)
        );
    }
}
