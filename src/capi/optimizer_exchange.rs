//! States in files that others read and write.

use std::ffi::c_char;

use super::guard::{self, Failure, Outcome};
use super::list;
use super::optimizer::tsw_optimizer;
use super::status::tsw_status;
use super::text;
use crate::base::error::Error;

/// Write all states of all parameters to a safetensors file.
///
/// For other programs, such as Python's `safetensors`: the masters and moments of every parameter that
/// this run added, what `tsw_optimizer_read_state` would read, committed or not. `file` is replaced
/// where it exists. State 0 has the name of its parameter, or `parameter.<id>` where that has none; the
/// others `<that name>.<name of the state>`. Each tensor has one dimension, and the type that the state
/// has on storage, so that no value is rounded; TSW_BYTES becomes U8. The metadata holds `format` (pt),
/// `step` and `tensorswap` (the version).
///
/// With a `shard_bytes_max` other than 0 that the data exceeds, it is cut between tensors, into
/// `name-00001-of-00003.safetensors` and so on for a `file` of `name.safetensors`, and
/// `name.safetensors.index.json` tells which tensor is where, as Hugging Face's libraries have it. A
/// tensor longer than that has a file of its own.
///
/// The files are written as `<file>.partial`, synced, and renamed when all are whole, the index last, in
/// place of files and links of these names. What an earlier export to `file` that was cut otherwise left
/// stays beside them, an index beside one file or the reverse: remove it, or programs may read the old
/// one. It takes at most 64 MiB of memory besides the optimizer's own.
///
/// Threads: one at a time for each optimizer; training waits.
/// Errors: BUSY while a step is open or a parameter is in use; INVALID_ARGUMENT where two tensors would
/// have one name, naming both, or none of the store's parameters was added; UNSUPPORTED where a device,
/// pipe or socket has one of the names; LOCKED where another export is writing the same files; NO_SPACE
/// with the bytes needed; NOT_FOUND for a directory that is missing; CHECKSUM naming the parameter where
/// storage does not hold what was written; NULL_ARGUMENT; what storage has to say. No file is left then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_export_safetensors(
    optimizer: *mut tsw_optimizer,
    file: *const c_char,
    shard_bytes_max: u64,
) -> tsw_status {
    // SAFETY: the caller's handle and text.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let file = text::path_input(file, "file")?;
            Ok(optimizer
                .optimizer
                .export_safetensors(file, shard_bytes_max)?)
        })
    }
}

/// Give parameters the values of their master from a safetensors file.
///
/// `file` is one such file, or the index of several (its name ends in `.index.json`). Parameter
/// `ids[i]` becomes the tensor `names[i]`, which has as many elements, in any shape, in f32, f16 or
/// bf16. Where `names` or one of them is NULL it is the name that `tsw_optimizer_export_safetensors`
/// gives to the parameter. Other states become zero. Pending until the next commit, as with
/// `tsw_optimizer_initialize_parameters`. With `count` 0 nothing happens.
///
/// The data is read by the engine, past the page cache, and not mapped into memory: a file that is cut
/// meanwhile, or a drive that fails, is an error and not a signal.
///
/// Ownership: the lists are copied.
/// Threads: one at a time for each optimizer.
/// Errors: CORRUPT for a file that is no safetensors file or whose header is wrong; NOT_FOUND for a file
/// that is missing or a name that no tensor has, naming both; SIZE_MISMATCH for a tensor with another
/// number of elements; DTYPE_MISMATCH for another type; UNKNOWN_PARAMETER; INVALID_ARGUMENT for an id
/// given twice; BUSY while a step is open or one of them is in use; NULL_ARGUMENT. Nothing has changed
/// then. What storage has to say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_initialize_from_safetensors(
    optimizer: *mut tsw_optimizer,
    file: *const c_char,
    ids: *const u64,
    names: *const *const c_char,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle, text and lists.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let file = text::path_input(file, "file")?;
            let ids = list::numbers(ids, "ids", count)?;
            let names = checked_names(names, count)?;
            Ok(optimizer
                .optimizer
                .initialize_from_safetensors(file, ids, &names)?)
        })
    }
}

/// Checks a caller's names, each of which, or all, may be NULL.
///
/// # Safety
/// `names` is NULL or has `count` elements, each NULL or a text ending in NUL that stays for `'a`.
unsafe fn checked_names<'a>(
    names: *const *const c_char,
    count: usize,
) -> Outcome<Vec<Option<&'a str>>> {
    let mut checked = Vec::new();
    checked
        .try_reserve_exact(count)
        .map_err(|_| Failure::from(Error::NoMemory(format!("a list of {count} names"))))?;
    for index in 0..count {
        // SAFETY: not NULL, and `index` is below `count`.
        let name = (!names.is_null()).then(|| unsafe { *names.add(index) });
        let name = name.filter(|name| !name.is_null());
        // SAFETY: this function's contract.
        let name = name.map(|name| unsafe { text::name_input(name, "name") });
        checked.push(
            name.transpose()
                .map_err(|failure| failure.at("names", index))?,
        );
    }
    Ok(checked)
}
