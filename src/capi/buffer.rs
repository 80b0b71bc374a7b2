//! `tsw_buffer`: pinned memory, the library's own or the caller's.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::engine::{clear, tsw_engine};
use super::guard::{self, Failure, Handle, Health};
use super::log::UserData;
use super::status::tsw_status;
use crate::base::sync::{Mutex, lock};
use crate::io::Engine;
use crate::memory::{Buffer, ReleaseHook};

/// Pinned memory that storage reads and writes without a copy.
///
/// Made by `tsw_buffer_new` or `tsw_buffer_register`, freed by `tsw_buffer_free`. A pointer anywhere
/// inside one counts as pinned.
pub struct tsw_buffer {
    health: Health,
    buffer: Buffer,
    /// Freeing waits for the memory; false where a hook tells of its release.
    free_waits: bool,
    holder: Mutex<Holder>,
}

/// Who has the handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// The caller, who may free it.
    Caller,
    /// A swapper, and the caller still knows it.
    Swapper,
    /// A swapper, which frees it: the caller already gave it up.
    SwapperAlone,
}

impl Handle for tsw_buffer {
    const ARGUMENT: &'static str = "buffer";
    fn health(&self) -> &Health {
        &self.health
    }
}

impl tsw_buffer {
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Whether the caller still knows the handle.
    pub(super) fn is_known(&self) -> bool {
        *lock(&self.holder) != Holder::SwapperAlone
    }

    /// Lends the handle to a swapper; false where one has it already.
    pub(super) fn lend(&self) -> bool {
        let mut holder = lock(&self.holder);
        let lent = *holder == Holder::Caller;
        if lent {
            *holder = Holder::Swapper;
        }
        lent
    }
}

/// Takes a handle back from a swapper. Frees it where the caller has freed it meanwhile, else
/// returns it.
///
/// # Safety
/// `handle` is a live handle that was lent and not taken back since, and the swapper has let go of
/// its memory.
pub(super) unsafe fn take_back(handle: *mut tsw_buffer) -> Option<*mut tsw_buffer> {
    // SAFETY: this function's contract.
    let shared = unsafe { &*handle };
    let mut holder = lock(&shared.holder);
    if *holder == Holder::Swapper {
        *holder = Holder::Caller;
        return Some(handle);
    }
    drop(holder);
    // SAFETY: the caller gave it up, and the swapper, which has it alone, frees it here.
    unsafe { release(*Box::from_raw(handle)) };
    None
}

/// Lets go of a buffer and waits for its memory where that is due.
fn release(handle: tsw_buffer) {
    let tsw_buffer {
        buffer, free_waits, ..
    } = handle;
    let released = buffer.released_latch();
    drop(buffer);
    // The driver would wait for itself; it gets to it right after the hook that it is running.
    if free_waits && !Engine::is_driver_thread() {
        released.wait();
    }
}

fn handle_of(buffer: Buffer, free_waits: bool) -> *mut tsw_buffer {
    Box::into_raw(Box::new(tsw_buffer {
        health: Health::new(),
        buffer,
        free_waits,
        holder: Mutex::new(Holder::Caller),
    }))
}

/// Allocate a pinned buffer.
///
/// Zeroed, aligned to its pages, of 2 MiB pages where they are to be had, locked in memory and
/// registered with the ring, as the keys `pin`, `huge_pages` and `register_buffers` say and the
/// system permits; `tsw_engine_describe` tells what was had.
///
/// Ownership: the buffer is the caller's, to be freed by `tsw_buffer_free`.
/// Threads: any, concurrently.
/// Errors: INVALID_ARGUMENT for 0 bytes; NO_MEMORY; MEMLOCK or UNSUPPORTED where a key says
/// require; SHUT_DOWN; NULL_ARGUMENT. `*buffer_out` is then NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_buffer_new(
    engine: *mut tsw_engine,
    len_bytes: u64,
    buffer_out: *mut *mut tsw_buffer,
) -> tsw_status {
    // SAFETY: the caller's handle and place.
    unsafe {
        clear(buffer_out);
        guard::with(engine.cast_const(), |engine| {
            if buffer_out.is_null() {
                return Err(Failure::null("buffer_out"));
            }
            let buffer = engine.engine.allocate_buffer(len_bytes)?;
            buffer_out.write(handle_of(buffer, true));
            Ok(())
        })
    }
}

/// Receives registered memory back: its owner's pointer, its address and its length.
///
/// Runs exactly once, when nothing touches the memory any more, on any thread. It may free the
/// memory. It must not throw, and must not call a function that waits.
pub type tsw_release_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, data: *mut c_void, len_bytes: u64)>;

/// Lend the caller's own memory to the engine as a pinned buffer.
///
/// For memory that came from somewhere else, such as cudaHostAlloc: any address, any length. It is
/// registered with the ring, and never locked, unmapped or freed by the library.
///
/// Ownership: the memory stays the caller's and must stay valid until it comes back: when
/// `on_release_or_null` runs, or, without one, when `tsw_buffer_free` returns. The buffer is to be
/// freed by `tsw_buffer_free`. `user_data` is only handed on. Where this function fails the hook
/// never runs.
/// Threads: any, concurrently.
/// Errors: NULL_ARGUMENT; INVALID_ARGUMENT for 0 bytes or a range that cannot be; NO_MEMORY;
/// SHUT_DOWN. `*buffer_out` is then NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_buffer_register(
    engine: *mut tsw_engine,
    data: *mut c_void,
    len_bytes: u64,
    on_release_or_null: tsw_release_fn,
    user_data: *mut c_void,
    buffer_out: *mut *mut tsw_buffer,
) -> tsw_status {
    let user_data = UserData::new(user_data);
    // Set once the buffer is the caller's: one that never was is not released either.
    let armed = Arc::new(AtomicBool::new(false));
    let armed_for_hook = Arc::clone(&armed);
    let hook = on_release_or_null.map(|function| -> ReleaseHook {
        Box::new(move |start, len_bytes| {
            // ORDERING: acquire, paired with the release below.
            if armed_for_hook.load(Ordering::Acquire) {
                // SAFETY: the caller's function, with what it gave.
                unsafe { function(user_data.get(), start.cast(), len_bytes) };
            }
        })
    });
    let free_waits = hook.is_none();
    // SAFETY: the caller's handle, place and memory, which it keeps valid as the manual says.
    unsafe {
        clear(buffer_out);
        guard::with(engine.cast_const(), |engine| {
            if buffer_out.is_null() {
                return Err(Failure::null("buffer_out"));
            }
            let buffer = engine
                .engine
                .register_buffer(data.cast(), len_bytes, hook)?;
            // ORDERING: release: whoever runs the hook sees it.
            armed.store(true, Ordering::Release);
            buffer_out.write(handle_of(buffer, free_waits));
            Ok(())
        })
    }
}

/// Tell the address of a buffer's memory; NULL for NULL.
///
/// Ownership: the memory is as the buffer: valid until `tsw_buffer_free`.
/// Threads: any, concurrently. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_buffer_data(buffer: *const tsw_buffer) -> *mut c_void {
    // SAFETY: the caller's handle.
    match unsafe { buffer.as_ref() } {
        Some(handle) => handle.buffer.as_ptr().cast(),
        None => ptr::null_mut(),
    }
}

/// Tell the length of a buffer in bytes, as it was asked for; 0 for NULL.
///
/// Threads: any, concurrently. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_buffer_len(buffer: *const tsw_buffer) -> u64 {
    // SAFETY: the caller's handle.
    unsafe { buffer.as_ref() }.map_or(0, |handle| handle.buffer.len_bytes())
}

/// Free a buffer, before or after its engine, with requests on it in flight or not. NULL is fine.
///
/// Waits until the kernel has let go of the memory, except where a hook tells of that. A buffer that
/// a swapper holds is freed when the swapper lets go of it, in `tsw_swapper_release_buffers` or
/// `tsw_swapper_free`; it is then not handed back.
///
/// Threads: any; nobody else may use the buffer any more. Errors: none. In a forked child nothing
/// happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_buffer_free(buffer: *mut tsw_buffer) {
    // SAFETY: the caller's handle.
    if !unsafe { guard::is_usable(buffer.cast_const()) } {
        return;
    }
    // SAFETY: just checked for NULL.
    let mut holder = lock(unsafe { &(*buffer).holder });
    if *holder != Holder::Caller {
        *holder = Holder::SwapperAlone;
        return;
    }
    drop(holder);
    // SAFETY: the caller gives its handle back, and no swapper has it.
    unsafe { guard::free(buffer, |handle| release(*handle)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Config;

    #[test]
    fn a_lent_buffer_is_freed_when_it_comes_back() {
        let mut config = Config::new();
        config.set("backend", "memory").unwrap();
        let engine = Engine::new(&config).unwrap();
        let handle = || handle_of(engine.allocate_buffer(4096).unwrap(), true);
        let (kept, freed) = (handle(), handle());
        // SAFETY: live handles; `freed` is freed by the last call on it.
        unsafe {
            assert!((*kept).lend() && (*freed).lend());
            assert!(!(*kept).lend(), "lent twice");
            let latch = (*freed).buffer.released_latch();
            tsw_buffer_free(freed);
            assert!(!latch.is_open());
            assert_eq!(take_back(kept), Some(kept));
            assert_eq!(take_back(freed), None);
            assert!(latch.is_open());
            assert!((*kept).lend(), "not lent again");
            assert_eq!(take_back(kept), Some(kept));
            tsw_buffer_free(kept);
        }
    }
}
