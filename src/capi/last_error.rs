//! The record of the last failed call of each thread.

use std::cell::RefCell;
use std::ffi::c_char;

use super::guard::Failure;
use super::text;

#[derive(Default)]
struct LastError {
    message: String,
    os_error: i32,
}

thread_local! {
    static LAST: RefCell<LastError> = const {
        RefCell::new(LastError { message: String::new(), os_error: 0 })
    };
}

/// Records a failure for this thread. A thread that is being torn down records nothing.
pub(super) fn set(failure: &Failure) {
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            last.message.clear();
            push_line(&mut last.message, &failure.message);
            last.os_error = failure.os_error;
        }
    });
}

/// Adds a text on one line: paths may hold any control character, and a message is one line.
pub(super) fn push_line(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// Copy the message of this thread's last failed call, and return its length.
///
/// One line in UTF-8 that names what was done, the path, the offset and the errno. At most
/// `cap` bytes are written, with the NUL; the length returned is that of the whole message without
/// the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. A call that succeeds leaves the
/// message as it is, so ask only after a failure; it is empty (0) before the first one.
///
/// Threads: any; each has its own message. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_last_error_message(buf: *mut c_char, cap: usize) -> usize {
    let copied = LAST.try_with(|last| match last.try_borrow() {
        // SAFETY: the caller has room for `cap` bytes at `buf`.
        Ok(last) => unsafe { text::output(&last.message, buf, cap) },
        Err(_) => 0,
    });
    copied.unwrap_or(0)
}

/// Tell the errno behind this thread's last failed call; 0 where there was none.
///
/// Threads: any; each has its own. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_last_error_os() -> i32 {
    LAST.try_with(|last| last.try_borrow().map_or(0, |last| last.os_error))
        .unwrap_or(0)
}
