//! The log, for programs that know no `tracing`.

use std::ffi::{CString, c_char, c_void};

use super::guard;
use super::status::tsw_status;
use crate::base::observe::log;

/// Log level: nothing.
pub const TSW_LOG_OFF: u32 = 0;
/// Log level: something is lost.
pub const TSW_LOG_ERROR: u32 = 1;
/// Log level: it works, but not as asked.
pub const TSW_LOG_WARN: u32 = 2;
/// Log level: worth knowing once.
pub const TSW_LOG_INFO: u32 = 3;
/// Log level: for finding defects.
pub const TSW_LOG_DEBUG: u32 = 4;
/// Log level: all there is. What every operation did is in the timeline (key `trace`), not in the log.
pub const TSW_LOG_TRACE: u32 = 5;

/// Receives an event of the library: a level (`TSW_LOG_ERROR` to `TSW_LOG_TRACE`), the part of the
/// library it comes from, and one line of text.
///
/// It runs on the thread on which the event happens, and on several at once. The texts are valid
/// during the call only. It must not throw, must not call `tsw_set_log`, and must not call a
/// function that waits or frees.
pub type tsw_log_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: u32,
        target: *const c_char,
        message: *const c_char,
    ),
>;

/// The caller's pointer, handed back to it on any thread.
#[derive(Clone, Copy)]
pub(super) struct UserData(*mut c_void);

// SAFETY: never dereferenced here; the manual says that callbacks run on any thread, so whoever
// gives the pointer vouches for that.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    pub(super) fn new(pointer: *mut c_void) -> UserData {
        UserData(pointer)
    }

    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}

/// Receive the library's log, up to a level.
///
/// The library prints nothing by itself; without this call its events go nowhere. The callback is
/// the process's: setting another one replaces it, and NULL or `TSW_LOG_OFF` ends it. When this
/// function returns, no call of the earlier callback runs or will begin.
///
/// Ownership: `user_data` stays the caller's and must stay valid until the callback is replaced.
/// Threads: any, except from inside a callback.
/// Errors: INVALID_ARGUMENT for a level above `TSW_LOG_TRACE`; BUSY from inside a callback, or
/// where a Rust program has installed another receiver. The earlier callback then stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_set_log(
    fn_or_null: tsw_log_fn,
    user_data: *mut c_void,
    level: u32,
) -> tsw_status {
    let user_data = UserData::new(user_data);
    guard::call(|| {
        let callback = fn_or_null.map(|function| -> log::Callback {
            Box::new(move |level, target, message| {
                // Neither holds a NUL: targets are ours, and control characters are escaped.
                let target = CString::new(target).unwrap_or_default();
                let message = CString::new(message).unwrap_or_default();
                // SAFETY: the caller's function with its own pointer; both texts outlive the call.
                unsafe { function(user_data.get(), level, target.as_ptr(), message.as_ptr()) };
            })
        });
        Ok(log::set_callback(callback, level)?)
    })
}
