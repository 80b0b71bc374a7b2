//! Records one by one, in the caller's order.

use super::guard;
use super::optimizer::{flag, run, tsw_optimizer};
use super::optimizer_view::{TSW_NO_PARAMETER, tsw_parameter_view};
use super::record::Record;
use super::status::tsw_status;

/// Bring a parameter into memory, and begin to bring in the next.
///
/// `next_id` is the parameter that will be asked for next, or `TSW_NO_PARAMETER`: it is read in the
/// background (key `pipeline_read`) and must then be the next one swapped in, or be released.
/// The parameter is the caller's until `tsw_optimizer_swap_out_state` or
/// `tsw_optimizer_release_state`. `inout->struct_size` is `sizeof(tsw_parameter_view)`.
///
/// Ownership: the memory that the view shows is the optimizer's, lent.
/// Threads: one at a time for each optimizer.
/// Errors: BUSY naming the parameter where it is in already, another one was announced, or a step is
/// open; INVALID_ARGUMENT for a `next_id` that is `id`; NO_BUFFERS with `views_max` parameters in;
/// BUDGET with the bytes needed where `pinned_bytes` is too small; UNKNOWN_PARAMETER; CHECKSUM where
/// storage does not hold what was written; what an earlier write-back of the parameter, or storage,
/// has to say; NULL_ARGUMENT. `inout->id` is then `TSW_NO_PARAMETER` and the parameter is not in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_swap_in_state(
    optimizer: *mut tsw_optimizer,
    id: u64,
    next_id: u64,
    inout: *mut tsw_parameter_view,
) -> tsw_status {
    // SAFETY: the caller's handle and structure.
    unsafe {
        let record = Record::open_as(inout, "inout", tsw_parameter_view::none(None));
        guard::with(optimizer.cast_const(), |optimizer| {
            let record = record?;
            let next = (next_id != TSW_NO_PARAMETER).then_some(next_id);
            record.write(optimizer.optimizer.swap_in_state(id, next)?.into());
            Ok(())
        })
    }
}

/// Write a parameter that was brought in back, and give its memory up.
///
/// With `async` 1 it returns at once and the write goes on in the background (key
/// `pipeline_write`); with 0 it returns when the write is done. Durable with the next
/// `tsw_optimizer_commit`, which then counts a step. The parameter's gradient ends here.
///
/// Ownership: the memory of the view is the optimizer's again.
/// Threads: one at a time for each optimizer.
/// Errors: BUSY where the parameter is not in; INVALID_ARGUMENT for another `async`;
/// UNKNOWN_PARAMETER; with `async` 0 what storage has to say. An error of a write in the background
/// comes with the next call on the parameter, and with the commit; the version before stays
/// readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_swap_out_state(
    optimizer: *mut tsw_optimizer,
    id: u64,
    r#async: u32,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let asynchronous = flag(r#async, "async")?;
            Ok(optimizer.optimizer.swap_out_state(id, asynchronous)?)
        })
    }
}

/// Give a parameter's memory up without writing it.
///
/// For one that was announced as the next and is not wanted after all, or one that was only looked
/// at: the caller vouches that nothing in the view was changed. Its gradient stays.
///
/// Ownership: the memory of the view is the optimizer's again.
/// Threads: one at a time for each optimizer.
/// Errors: BUSY where the parameter is not in; UNKNOWN_PARAMETER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_release_state(
    optimizer: *mut tsw_optimizer,
    id: u64,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, |optimizer| optimizer.release_state(id)) }
}
