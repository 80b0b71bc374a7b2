//! Gradients on their way to the update.

use super::guard::{self, Failure};
use super::list;
use super::optimizer::{run, tsw_optimizer};
use super::status::tsw_status;
use super::tensor::tsw_tensor;
use crate::optimizer::Optimizer;

/// Say that a backward pass begins. Optional.
///
/// It clears nothing: with micro-batches several backward passes add up before a step.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_pre_backward(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::pre_backward) }
}

/// Hand over regions of a parameter's gradient.
///
/// `gradients[i]` is the region that begins `offsets[i]` elements into the parameter, any length at
/// any offset, f32, f16 or bf16, in any memory; its `file_offset` has no meaning. A region replaces
/// what was there, or with `TSW_TENSOR_ACCUMULATE` is added to it. They wait for the update in
/// memory, or where the key `gradients` says so on storage, and end at `tsw_optimizer_step_end`,
/// `tsw_optimizer_step_abort`, `tsw_optimizer_swap_out_state` of the parameter, or
/// `tsw_optimizer_discard_gradients`. With `count` 0 nothing happens.
///
/// Ownership: both lists are copied; the memory is the caller's again when this returns.
/// Threads: one at a time for each optimizer.
/// Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a region beyond the parameter's end;
/// DTYPE_MISMATCH for one that is not f32, f16 or bf16; BUSY while the parameter is out or a step is
/// open; NULL_ARGUMENT; NO_MEMORY; what storage has to say. A list is validated whole before anything
/// is taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_swap_out_gradients(
    optimizer: *mut tsw_optimizer,
    id: u64,
    offsets: *const u64,
    gradients: *const tsw_tensor,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and lists.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let offsets = list::numbers(offsets, "offsets", count)?;
            list::with_tensors(gradients, "gradients", count, |gradients| {
                let optimizer = &optimizer.optimizer;
                Ok(optimizer.swap_out_gradients(id, offsets, gradients)?)
            })
        })
    }
}

/// Wait until the gradients that go to storage are there, and hear of their errors.
///
/// Views show a gradient that is still on its way all the same; this is for those who want the
/// error, or the time, at a place of their choice.
///
/// Threads: one at a time for each optimizer.
/// Errors: what storage has to say; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_flush_gradients(
    optimizer: *mut tsw_optimizer,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::flush_gradients) }
}

/// Say that a backward pass is over.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_post_backward(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::post_backward) }
}

/// Compute the sum of squares of a parameter's gradient, and count what is not finite.
///
/// The sum is over finite elements, in f64 and in a fixed order; 0 where no region was swapped out.
/// It answers before the step begins whether to clip, or whether a loss scale overflowed and the
/// step is better not begun.
///
/// Threads: one at a time for each optimizer.
/// Errors: UNKNOWN_PARAMETER; BUSY; NULL_ARGUMENT; what storage has to say of gradients there. Both
/// results are then 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_gradient_norm(
    optimizer: *mut tsw_optimizer,
    id: u64,
    sum_of_squares_out: *mut f64,
    nonfinite_count_out: *mut u64,
) -> tsw_status {
    // SAFETY: the caller's handle and places.
    unsafe {
        if !sum_of_squares_out.is_null() {
            sum_of_squares_out.write(0.0);
        }
        if !nonfinite_count_out.is_null() {
            nonfinite_count_out.write(0);
        }
        guard::with(optimizer.cast_const(), |optimizer| {
            if sum_of_squares_out.is_null() {
                return Err(Failure::null("sum_of_squares_out"));
            }
            if nonfinite_count_out.is_null() {
                return Err(Failure::null("nonfinite_count_out"));
            }
            let norm = optimizer.optimizer.gradient_norm(id)?;
            sum_of_squares_out.write(norm.sum_of_squares);
            nonfinite_count_out.write(norm.nonfinite_count);
            Ok(())
        })
    }
}

/// Forget all gradients.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY while a step is open or a parameter is out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_discard_gradients(
    optimizer: *mut tsw_optimizer,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::discard_gradients) }
}
