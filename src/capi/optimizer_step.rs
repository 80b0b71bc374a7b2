//! A whole step: the engine chooses the order and keeps the pipeline full.

use super::guard;
use super::list;
use super::optimizer::{flag, run, tsw_optimizer};
use super::optimizer_view::tsw_parameter_view;
use super::record::Record;
use super::status::{TSW_END, TSW_OK, tsw_status};
use crate::optimizer::Optimizer;

/// Begin a step over some parameters, or over all that were added.
///
/// `ids_or_null` NULL with `count` 0 means all; a list that is not NULL with `count` 0 is a step over
/// none of them. Reading begins at once, in an order that the optimizer chooses. Then call
/// `tsw_optimizer_step_next` and `tsw_optimizer_step_done` until there are no more, and
/// `tsw_optimizer_step_end`. With `sync` at commit it first commits, as `tsw_optimizer_commit` does,
/// what was changed between steps and could not be taken back otherwise.
///
/// Ownership: the list is copied.
/// Threads: one at a time for each optimizer.
/// Errors: BUSY where a step is open or a parameter is in; UNKNOWN_PARAMETER; INVALID_ARGUMENT for
/// an id given twice; BUDGET with the bytes needed where `pinned_bytes` is too small; NULL_ARGUMENT
/// for NULL with a `count`; what the background commit of an earlier step has to say (see
/// `tsw_optimizer_step_end`). No step is open then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_begin(
    optimizer: *mut tsw_optimizer,
    ids_or_null: *const u64,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and list.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let ids = match (ids_or_null.is_null(), count) {
                (true, 0) => None,
                _ => Some(list::numbers(ids_or_null, "ids_or_null", count)?),
            };
            Ok(optimizer.optimizer.step_begin(ids)?)
        })
    }
}

/// Get the next parameter to update; `TSW_END` when all were given out.
///
/// It waits until the parameter is in memory. Update the states in the view in place, then call
/// `tsw_optimizer_step_done`. `inout->struct_size` is `sizeof(tsw_parameter_view)`; where no
/// parameter is given out, `inout->id` is `TSW_NO_PARAMETER`.
///
/// Ownership: the memory that the view shows is the optimizer's, lent until `tsw_optimizer_step_done`.
/// Threads: any, concurrently: several threads may each loop over it.
/// Errors: NO_BUFFERS at once with `views_max` views out: set the key to the number of threads.
/// Where a record cannot be read, what storage had to say, CHECKSUM among it, with `inout->id` set:
/// that parameter counts as given back, go on with the others; `tsw_optimizer_step_end` returns the
/// error once more and commits nothing. CANCELLED after `tsw_optimizer_step_abort` was called; BUSY
/// without a step; NULL_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_next(
    optimizer: *mut tsw_optimizer,
    inout: *mut tsw_parameter_view,
) -> tsw_status {
    let mut ended = false;
    // SAFETY: the caller's handle and structure.
    let status = unsafe {
        let record = Record::open_as(inout, "inout", tsw_parameter_view::none(None));
        guard::with(optimizer.cast_const(), |optimizer| {
            let record = record?;
            match optimizer.optimizer.step_next() {
                Ok(Some(view)) => record.write(view.into()),
                Ok(None) => ended = true,
                Err(failed) => {
                    record.write(tsw_parameter_view::none(failed.id));
                    return Err(failed.error.into());
                }
            }
            Ok(())
        })
    };
    match status {
        TSW_OK if ended => TSW_END,
        status => status,
    }
}

/// Give a parameter back.
///
/// With `changed` 1 it is written back in the background; with 0 the caller vouches that nothing in
/// the view was changed, and nothing is written.
///
/// Ownership: the memory of the view is the optimizer's again.
/// Threads: any, concurrently; it need not be the thread that got the view.
/// Errors: BUSY where the parameter is not out; INVALID_ARGUMENT for another `changed`;
/// UNKNOWN_PARAMETER. What the write has to say comes with `tsw_optimizer_step_end`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_done(
    optimizer: *mut tsw_optimizer,
    id: u64,
    changed: u32,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let changed = flag(changed, "changed")?;
            Ok(optimizer.optimizer.step_done(id, changed)?)
        })
    }
}

/// End a step: count it, with the user data, and forget its gradients.
///
/// With `sync` at commit the step becomes durable in the background: the next one may begin
/// meanwhile. Where that fails, the next call on records returns the error, once, and everything is
/// back at the last durable step, which `tsw_optimizer_step_number` then tells; a step that was begun
/// meanwhile is to be aborted. With `sync` at none nothing becomes durable before
/// `tsw_optimizer_commit`. After a crash the store opens at the last durable step, never at a mix.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY before `tsw_optimizer_step_next` returned `TSW_END`, or with views out: the step
/// stays open; the first error of a read or write-back of this step: nothing is committed and the
/// step stays open, so call `tsw_optimizer_step_abort`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_end(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::step_end) }
}

/// Undo a step: all is as if it had not been begun, but this step's gradients are gone.
///
/// With views out it returns BUSY and takes effect all the same: `tsw_optimizer_step_next` returns
/// CANCELLED from then on, `tsw_optimizer_step_done` drops what was changed, and this is called again
/// when all are back.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY with views out, or without a step; UNSUPPORTED with `sync` at none once a write-back
/// has begun, or a parameter was given out whose newest version only memory had: look at
/// `tsw_optimizer_gradient_norm` before the step instead. A step that failed can be aborted even then:
/// everything is back at the last commit, which `tsw_optimizer_step_number` tells. What made the commit
/// of the step before fail, if no call has said so yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_step_abort(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::step_abort) }
}

/// Make all that is done durable, and wait for it.
///
/// Takes in what is pending: initialization, `tsw_optimizer_write_state`,
/// `tsw_optimizer_purge_state`, user data, records swapped out. It counts a step only where
/// `tsw_optimizer_swap_out_state` was called since the last commit.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY while a step is open or a parameter is in; the first error of a write-back, a sync or
/// the log: the store is then at the step that was durable before. A failed sync is never tried
/// again: every later commit of this optimizer fails with it. Where space ran out, a later commit may
/// succeed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_commit(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::commit) }
}
