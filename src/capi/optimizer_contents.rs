//! What a store holds beside the states: its parameters, user data, the number of steps.

use std::ffi::c_void;

use super::guard::{self, Failure};
use super::optimizer::tsw_optimizer;
use super::optimizer_view::TSW_NO_PARAMETER;
use super::status::tsw_status;
use crate::store::USER_DATA_BYTES_MAX;

/// The most bytes of user data.
pub const TSW_USER_DATA_BYTES_MAX: usize = 1 << 20;
const _: () = assert!(TSW_USER_DATA_BYTES_MAX as u64 == USER_DATA_BYTES_MAX);

/// Tell how many parameters the store records; 0 for NULL and in a forked child.
///
/// Those of earlier runs count, whether or not they were added in this one: before the first
/// `tsw_optimizer_add_parameter` it is 0 in a store where nothing was ever committed.
///
/// Threads: any, concurrently. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_parameters_len(optimizer: *const tsw_optimizer) -> usize {
    // SAFETY: the caller's handle.
    unsafe {
        guard::value(optimizer, 0, |optimizer| {
            Ok(optimizer.optimizer.parameters_len())
        })
    }
}

/// Tell id and size of a parameter by its index, in the order of first registration.
///
/// Threads: any, concurrently.
/// Errors: INVALID_ARGUMENT beyond the last; NULL_ARGUMENT. `*id_out` is then `TSW_NO_PARAMETER`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_parameter_at(
    optimizer: *const tsw_optimizer,
    index: usize,
    id_out: *mut u64,
    numel_out: *mut u64,
) -> tsw_status {
    // SAFETY: the caller's handle and places.
    unsafe {
        if !id_out.is_null() {
            id_out.write(TSW_NO_PARAMETER);
        }
        if !numel_out.is_null() {
            numel_out.write(0);
        }
        guard::with(optimizer, |optimizer| {
            if id_out.is_null() {
                return Err(Failure::null("id_out"));
            }
            if numel_out.is_null() {
                return Err(Failure::null("numel_out"));
            }
            let found = optimizer.optimizer.parameter_at(index);
            let (id, numel) = found.ok_or_else(|| {
                let len = optimizer.optimizer.parameters_len();
                Failure::invalid(format!("index is {index}; the store has {len} parameters"))
            })?;
            id_out.write(id);
            numel_out.write(numel);
            Ok(())
        })
    }
}

/// Set the bytes that are committed with the next step.
///
/// For what a run needs to go on besides the state: learning rate, random numbers, a place in the
/// data. At most `TSW_USER_DATA_BYTES_MAX`. With `len_bytes` 0 there are none, and `data` may be
/// NULL.
///
/// Ownership: the bytes are copied.
/// Threads: one at a time for each optimizer.
/// Errors: INVALID_ARGUMENT for more bytes; NO_MEMORY; NULL_ARGUMENT; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_set_user_data(
    optimizer: *mut tsw_optimizer,
    data: *const c_void,
    len_bytes: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and bytes.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let bytes = match (data.is_null(), len_bytes) {
                (_, 0) => &[],
                (true, _) => return Err(Failure::null("data")),
                (false, 1..=TSW_USER_DATA_BYTES_MAX) => {
                    std::slice::from_raw_parts(data.cast::<u8>(), len_bytes)
                }
                (false, _) => {
                    return Err(Failure::invalid(format!(
                        "{len_bytes} bytes of user data; at most {TSW_USER_DATA_BYTES_MAX} are kept"
                    )));
                }
            };
            Ok(optimizer.optimizer.set_user_data(bytes)?)
        })
    }
}

/// Copy the user data that was set last, or that the store was opened with, and return its length.
///
/// At most `cap` bytes are written; the length returned is that of all. `buf` may be NULL where
/// `cap` is 0.
///
/// Threads: any, concurrently. Returns 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_get_user_data(
    optimizer: *const tsw_optimizer,
    buf: *mut c_void,
    cap: usize,
) -> usize {
    // SAFETY: the caller's handle and room.
    unsafe {
        guard::value(optimizer, 0, |optimizer| {
            let data = optimizer.optimizer.user_data();
            if !buf.is_null() {
                let len = data.len().min(cap);
                std::ptr::copy_nonoverlapping(data.as_ptr(), buf.cast(), len);
            }
            Ok(data.len())
        })
    }
}

/// Tell how many steps were done, counting from the store's beginning; 0 for NULL and in a forked child.
///
/// After opening it is the step the store was at; after `tsw_optimizer_step_end` the step just ended,
/// which may not be durable yet.
///
/// Threads: any, concurrently. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_number(optimizer: *const tsw_optimizer) -> u64 {
    // SAFETY: the caller's handle.
    unsafe {
        guard::value(optimizer, 0, |optimizer| {
            Ok(optimizer.optimizer.step_number())
        })
    }
}
