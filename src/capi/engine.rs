//! `tsw_engine`: the object that does the I/O.

use std::ffi::c_char;
use std::ptr;
use std::time::Duration;

use super::config::{self, tsw_config};
use super::engine_stats::tsw_engine_stats;
use super::guard::{self, Failure, Handle, Health};
use super::list;
use super::record::Record;
use super::status::tsw_status;
use super::tensor::tsw_tensor;
use super::text;
use super::ticket::tsw_ticket;
use crate::base::observe::events;
use crate::io::{Completion, Engine};

/// Timeout of a function that waits: as long as it takes.
pub const TSW_WAIT_FOREVER: u64 = u64::MAX;

/// An engine: moves tensors between memory and files.
///
/// Made by `tsw_engine_new`, freed by `tsw_engine_free`. Buffers and swappers made with it keep what
/// they need of it alive, so the order of freeing is free.
pub struct tsw_engine {
    health: Health,
    pub(super) engine: Engine,
}

impl Handle for tsw_engine {
    const ARGUMENT: &'static str = "engine";
    fn health(&self) -> &Health {
        &self.health
    }
}

/// A timeout as the layers below know it.
pub(super) fn timeout(timeout_ns: u64) -> Option<Duration> {
    (timeout_ns != TSW_WAIT_FOREVER).then(|| Duration::from_nanos(timeout_ns))
}

/// Sets an output pointer to NULL, where there is one.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn clear<T>(out: *mut *mut T) {
    if !out.is_null() {
        // SAFETY: this function's contract.
        unsafe { out.write(ptr::null_mut()) };
    }
}

/// Start an engine.
///
/// `config_or_null` is copied; NULL takes the defaults. With the key `backend` at auto the engine
/// uses io_uring, or a pool of threads where the kernel or a container forbids it;
/// `tsw_engine_describe` tells which, and why.
///
/// Ownership: the engine is the caller's, to be freed by `tsw_engine_free`.
/// Threads: any.
/// Errors: CONFIG for options that exclude each other; UNSUPPORTED where the backend asked for
/// cannot be had; NO_MEMORY; NULL_ARGUMENT. `*engine_out` is then NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_new(
    config_or_null: *const tsw_config,
    engine_out: *mut *mut tsw_engine,
) -> tsw_status {
    // SAFETY: the caller's place for the result.
    unsafe { clear(engine_out) };
    guard::call(|| {
        if engine_out.is_null() {
            return Err(Failure::null("engine_out"));
        }
        // SAFETY: the caller's handle, or NULL.
        let config = unsafe { config::copy_of(config_or_null) }?.unwrap_or_default();
        let engine = Box::new(tsw_engine {
            health: Health::new(),
            engine: Engine::new(&config)?,
        });
        // SAFETY: not NULL, and the caller's.
        unsafe { engine_out.write(Box::into_raw(engine)) };
        Ok(())
    })
}

/// Take nothing more, and wait until everything under way is over.
///
/// Completions that were not delivered stay to be waited for or polled. New requests and buffers
/// are refused with SHUT_DOWN from now on; a snapshot that is being made ends with it, and leaves
/// nothing.
///
/// Threads: any.
/// Errors: TIMED_OUT after `timeout_ns` nanoseconds: nothing more is taken all the same, and the
/// call may be repeated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_shutdown(
    engine: *mut tsw_engine,
    timeout_ns: u64,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(engine.cast_const(), |engine| {
            Ok(engine.engine.shutdown(timeout(timeout_ns))?)
        })
    }
}

/// Free an engine, after everything under way is over, snapshots too. NULL is fine.
///
/// Tickets end with it, delivered or not, and its event descriptor is closed. What swappers and
/// buffers of this engine need stays alive until they are freed too; the hooks of registered
/// buffers that were freed before have run when this returns.
///
/// Threads: any; nobody else may use the engine any more. Not from inside a callback.
/// Errors: none. An error of a request that nobody waited for is lost with its ticket, so wait
/// first. In a forked child nothing happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_free(engine: *mut tsw_engine) {
    // SAFETY: the caller gives its handle back.
    unsafe {
        guard::free(engine, |handle| {
            let engine = &handle.engine;
            if !Engine::is_driver_thread() {
                // Fails only after a defect; then nothing is under way any more.
                let _poisoned = engine.quiesce(None);
                engine.fence();
                let mut tell = |completion: Completion| {
                    if let Err(error) = completion.outcome {
                        events::request_error_unseen(&error.to_string());
                    }
                };
                let _nothing_to_tell = engine.poll(usize::MAX, &mut tell);
            }
            drop(handle);
        });
    }
}

/// Write what is in effect, and why, as one JSON object, and return its length.
///
/// It tells the backend and the reason for it, the options, and each buffer with its kind of pages.
/// At most `cap` bytes are written, with the NUL; the length returned is that of the whole text
/// without the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. The text may have grown by
/// the next call.
///
/// Threads: any, concurrently. Returns 0 where the engine is NULL or cannot be used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_describe(
    engine: *const tsw_engine,
    buf: *mut c_char,
    cap: usize,
) -> usize {
    // SAFETY: the caller's handle and room.
    unsafe { text_of(engine, Engine::describe, buf, cap) }
}

/// Write the figures of the engine, its swappers and its optimizers as text for Prometheus, and
/// return its length.
///
/// The swappers of an engine are told apart by the label `swapper`, its optimizers by the label
/// `optimizer`, each counted from 0.
///
/// At most `cap` bytes are written, with the NUL; the length returned is that of the whole text
/// without the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. The text may have grown by
/// the next call.
///
/// Threads: any, concurrently. Returns 0 where the engine is NULL or cannot be used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_prometheus(
    engine: *const tsw_engine,
    buf: *mut c_char,
    cap: usize,
) -> usize {
    // SAFETY: the caller's handle and room.
    unsafe { text_of(engine, Engine::prometheus, buf, cap) }
}

/// Puts a text about the engine into the caller's room, and returns the length it needs.
///
/// # Safety
/// `engine` is NULL or a live handle; `buf` is NULL or has room for `cap` bytes.
unsafe fn text_of(
    engine: *const tsw_engine,
    tell: fn(&Engine) -> String,
    buf: *mut c_char,
    cap: usize,
) -> usize {
    // SAFETY: this function's contract.
    unsafe {
        guard::value(engine, 0, |engine| {
            Ok(text::output(&tell(&engine.engine), buf, cap))
        })
    }
}

/// Fill in what the engine has done, and what it is doing.
///
/// `inout->struct_size` is `sizeof(tsw_engine_stats)`, set by the caller.
///
/// Threads: any, concurrently.
/// Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_get_stats(
    engine: *const tsw_engine,
    inout: *mut tsw_engine_stats,
) -> tsw_status {
    // SAFETY: the caller's handle and structure.
    unsafe {
        let record = Record::open(inout, "inout");
        guard::with(engine, |engine| {
            record?.write(engine.engine.stats().into());
            Ok(())
        })
    }
}

/// Get the descriptor that is readable while a completion waits to be delivered.
///
/// For poll, epoll and event loops: when it is readable, call `tsw_ticket_poll`. A ticket on which a
/// thread waits does not make it readable.
///
/// Ownership: the engine's, valid until its free, non-blocking. Do not read, write or close it.
/// Threads: any.
/// Errors: UNSUPPORTED where the system makes none; NULL_ARGUMENT. `*fd_out` is then -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_event_fd(
    engine: *const tsw_engine,
    fd_out: *mut i32,
) -> tsw_status {
    if !fd_out.is_null() {
        // 0 would be a descriptor of somebody else.
        // SAFETY: the caller's place for the result.
        unsafe { fd_out.write(-1) };
    }
    // SAFETY: the caller's handle and place.
    unsafe {
        guard::with(engine, |engine| {
            if fd_out.is_null() {
                return Err(Failure::null("fd_out"));
            }
            fd_out.write(engine.engine.event_fd()?);
            Ok(())
        })
    }
}

/// Start writing tensors to files.
///
/// `tensors[i]` goes to `paths[i]`, at its `file_offset`; several may go to one file. A file that
/// does not exist is made, a directory is not. The file then ends with the largest end of this list
/// where the list has a tensor at offset 0 without `TSW_TENSOR_KEEP_LENGTH`, shorter or longer than
/// before; else it only grows. It is never padded. Two requests on one file whose ranges overlap
/// take effect in the order submitted. With `count` 0 both lists may be NULL, and the ticket
/// completes at once.
///
/// Ownership: both lists are copied. The memory the tensors name is the engine's until the ticket
/// is done: do not write or free it. `*ticket_out` is to be ended by `tsw_ticket_wait` or
/// `tsw_ticket_poll`.
/// Threads: any, concurrently. Never blocks.
/// Errors: INVALID_ARGUMENT for a tensor that cannot be, or ranges of one path that overlap;
/// NULL_ARGUMENT; BUSY with `tickets_max` tickets alive; NO_MEMORY; SHUT_DOWN. `*ticket_out` is
/// then 0, and nothing was started. What files have to say comes with the ticket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_swap_out(
    engine: *mut tsw_engine,
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
    ticket_out: *mut tsw_ticket,
) -> tsw_status {
    // SAFETY: the caller's handle, lists and place.
    unsafe {
        submit(engine, ticket_out, |engine| {
            list::with_list(tensors, paths, count, |tensors, paths| {
                Ok(engine.swap_out(tensors, paths)?)
            })
        })
    }
}

/// Start reading tensors from files.
///
/// `tensors[i]` is read from `paths[i]`, at its `file_offset`. The data is there when the ticket is
/// done. With `count` 0 both lists may be NULL, and the ticket completes at once.
///
/// Ownership: both lists are copied. The memory the tensors name is the engine's until the ticket
/// is done: do not touch or free it. If the request fails its content is undefined.
/// Threads: any, concurrently. Never blocks.
/// Errors: as `tsw_engine_swap_out`. A file that is too short gives SIZE_MISMATCH with the ticket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_swap_in(
    engine: *mut tsw_engine,
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
    ticket_out: *mut tsw_ticket,
) -> tsw_status {
    // SAFETY: the caller's handle, lists and place.
    unsafe {
        submit(engine, ticket_out, |engine| {
            list::with_list(tensors, paths, count, |tensors, paths| {
                Ok(engine.swap_in(tensors, paths)?)
            })
        })
    }
}

/// # Safety
/// `engine` is NULL or a live handle, `ticket_out` NULL or writable.
unsafe fn submit(
    engine: *mut tsw_engine,
    ticket_out: *mut tsw_ticket,
    start: impl FnOnce(&Engine) -> guard::Outcome<tsw_ticket>,
) -> tsw_status {
    // SAFETY: this function's contract.
    unsafe {
        if !ticket_out.is_null() {
            ticket_out.write(0);
        }
        guard::with(engine.cast_const(), |engine| {
            if ticket_out.is_null() {
                return Err(Failure::null("ticket_out"));
            }
            ticket_out.write(start(&engine.engine)?);
            Ok(())
        })
    }
}

/// Wait for every request submitted before this call; deliver none.
///
/// With nothing pending it returns at once.
///
/// Threads: any, concurrently.
/// Errors: the first error among those requests, which their own completions still tell; TIMED_OUT
/// after `timeout_ns` nanoseconds, with 0 at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_engine_wait_all(
    engine: *mut tsw_engine,
    timeout_ns: u64,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(engine.cast_const(), |engine| {
            Ok(engine.engine.wait_all(timeout(timeout_ns))?)
        })
    }
}
