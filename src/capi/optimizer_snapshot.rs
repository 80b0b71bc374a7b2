//! Snapshots of a store, and bringing them back.

use std::ffi::c_char;

use super::guard::{self, Failure};
use super::optimizer::tsw_optimizer;
use super::status::tsw_status;
use super::text;
use super::ticket::tsw_ticket;

/// Start a snapshot: a copy of the step that was committed last, in a directory of its own.
///
/// It holds all states of all parameters, the step's number and the user data, independent of rank
/// and directories, and verifiable by itself. `directory` must not exist, or be empty; those above it
/// are made. It appears there whole, by one rename, or not at all. This waits for a commit that is
/// under way, and returns then; the ticket is one of the engine's: wait for it, ask for its progress,
/// cancel it. The progress counts bytes copied; only the ticket's end says that it is there. Training
/// goes on meanwhile: the copy has low priority, and what is written goes elsewhere (the store's
/// files grow by up to half while it lasts; without that space, steps wait for the copy of what they
/// are about to write over). Where the file system shares blocks between files (btrfs, xfs) it takes
/// moments and no space. With several ranks give each its own directory: `snap/rank0`, `snap/rank1`,
/// … as `tensorswap reshard` expects.
///
/// Ownership: the path is copied. `tsw_optimizer_free` cancels a snapshot; its ticket ends all the
/// same.
/// Threads: one at a time for each optimizer.
/// Errors: INVALID_ARGUMENT where nothing was committed yet, or for a path that does not end in a
/// name; IO with EEXIST where there is something else of that name; NO_SPACE naming the bytes needed;
/// LOCKED where somebody else is making the same one; BUSY while another one is being made, and with
/// `tickets_max` tickets alive; UNSUPPORTED with the memory backend; NULL_ARGUMENT. `*ticket_out` is
/// then 0. The ticket ends with CHECKSUM where a parameter is not what was written, with CANCELLED,
/// or with what storage has to say; then nothing is left of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_snapshot(
    optimizer: *mut tsw_optimizer,
    directory: *const c_char,
    ticket_out: *mut tsw_ticket,
) -> tsw_status {
    // SAFETY: the caller's handle, text and place.
    unsafe {
        if !ticket_out.is_null() {
            ticket_out.write(0);
        }
        guard::with(optimizer.cast_const(), |optimizer| {
            if ticket_out.is_null() {
                return Err(Failure::null("ticket_out"));
            }
            let directory = text::path_input(directory, "directory")?;
            ticket_out.write(optimizer.optimizer.snapshot(directory)?);
            Ok(())
        })
    }
}

/// Bring a snapshot back, into a new store.
///
/// Call it after `tsw_optimizer_add_state`, with the names of the snapshot's states; it registers the
/// parameters, so that nothing is to be added afterwards, verifies every byte, and commits, so that
/// the store is then at the snapshot's step, with its user data. Directories, pinned memory, rank,
/// and the states' types in memory and on storage may be others than those that it was made with;
/// values that get a narrower type on storage are rounded to the nearest.
///
/// Threads: one at a time for each optimizer.
/// Errors: NOT_FOUND where there is no snapshot; CORRUPT where its manifest is damaged; CHECKSUM
/// naming the parameter where its data is; UNSUPPORTED for a later version of the format;
/// SIZE_MISMATCH for other states; INVALID_ARGUMENT where the store has parameters already;
/// NO_SPACE naming the bytes needed; NULL_ARGUMENT; what storage has to say. Nothing is
/// committed then; parameters may have been registered, so free the optimizer, and make it again
/// before the next attempt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_restore(
    optimizer: *mut tsw_optimizer,
    directory: *const c_char,
) -> tsw_status {
    // SAFETY: the caller's handle and text.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            Ok(optimizer
                .optimizer
                .restore(text::path_input(directory, "directory")?)?)
        })
    }
}
