//! `tsw_optimizer`: the optimizer swapper; making and freeing it, and what it keeps.

use std::ffi::c_char;

use super::config::{self, tsw_config};
use super::engine::{clear, tsw_engine};
use super::guard::{self, Failure, Handle, Health, Outcome};
use super::list;
use super::partition::{self, tsw_partition};
use super::status::tsw_status;
use super::tensor::tsw_tensor;
use super::text;
use crate::base::dtype::Dtype;
use crate::base::error::Error;
use crate::optimizer::Optimizer;

/// Keeps the optimizer state of parameters in a store on storage, and brings it in to be updated.
///
/// Every parameter has a record: all of its states together, the master parameter first, then the
/// moments. Made by `tsw_optimizer_new`, freed by `tsw_optimizer_free`. Used by one thread at a
/// time, but for `tsw_optimizer_step_next`, `tsw_optimizer_step_done` and every function that takes
/// a const optimizer, which any number of threads may call at once.
pub struct tsw_optimizer {
    health: Health,
    pub(super) optimizer: Optimizer,
}

impl Handle for tsw_optimizer {
    const ARGUMENT: &'static str = "optimizer";
    fn health(&self) -> &Health {
        &self.health
    }
}

/// Runs one step of the layer below for a function that has nothing to translate.
///
/// # Safety
/// `optimizer` is NULL or a live handle.
pub(super) unsafe fn run(
    optimizer: *mut tsw_optimizer,
    body: impl FnOnce(&Optimizer) -> Result<(), Error>,
) -> tsw_status {
    // SAFETY: this function's contract.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            Ok(body(&optimizer.optimizer)?)
        })
    }
}

/// A number that stands for no or yes.
pub(super) fn flag(value: u32, argument: &str) -> Outcome<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::invalid(format!(
            "{argument} is {value}; 0 and 1 are legal"
        ))),
    }
}

/// Open the store that the configuration names, or make one.
///
/// The store is the directory `rank<N>` under the key `path`, N being the key `rank`. `path` names
/// one directory or several, `/a,/b=2`: the same ones in the same order every time. A weight is 1
/// where only others are given, and measured where none is. Key `store` tells whether a store may be
/// made (new, which removes the store that was there), must be there (existing), or either (auto). To
/// make one, directories that are missing are made, with those above them: a run that must go on is
/// safer with existing, or a drive that is not mounted is a new store. The log says at level INFO which
/// it was.
///
/// Next call `tsw_optimizer_add_state` for each state and `tsw_optimizer_add_parameter` for each
/// parameter: in a store that was there they attach to what is recorded. It opens at the last step
/// that is durable; `tsw_optimizer_step_number` tells which. A relative path, as those of snapshots
/// and exports, is that of the directory the process works in now; it may work in another one later.
/// With `backend` at memory nothing outlives the engine. NULL takes the engine's configuration.
///
/// Ownership: the optimizer is the caller's, to be freed by `tsw_optimizer_free`; it keeps what it
/// needs of the engine alive. The configuration is copied.
/// Threads: any.
/// Errors: CONFIG without a `path`; LOCKED where another optimizer, of this process or another one,
/// has the store open; NOT_FOUND where there is none and `store` is existing; CORRUPT where the
/// store is damaged, or its directories are not all of its own in their order; UNSUPPORTED for a later
/// version of the format; NO_SPACE, PERMISSION, IO; NO_MEMORY; NULL_ARGUMENT. `*optimizer_out` is then
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_new(
    engine: *mut tsw_engine,
    config_or_null: *const tsw_config,
    optimizer_out: *mut *mut tsw_optimizer,
) -> tsw_status {
    // SAFETY: the caller's handles and place.
    unsafe {
        clear(optimizer_out);
        guard::with(engine.cast_const(), |engine| {
            if optimizer_out.is_null() {
                return Err(Failure::null("optimizer_out"));
            }
            let config = config::copy_of(config_or_null)?;
            let config = config.as_ref().unwrap_or_else(|| engine.engine.config());
            let optimizer = Box::new(tsw_optimizer {
                health: Health::new(),
                optimizer: Optimizer::new(&engine.engine, config)?,
            });
            optimizer_out.write(Box::into_raw(optimizer));
            Ok(())
        })
    }
}

/// Free an optimizer. NULL is fine.
///
/// What was not committed is dropped: the store stays at its last durable step. A commit that is
/// under way in the background is waited for; call `tsw_optimizer_commit` first to be sure of the
/// last step and to hear of its errors. Views that are still out must not be touched any more.
///
/// Threads: any; nobody else may use the optimizer any more. Errors: none. In a forked child nothing
/// happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_free(optimizer: *mut tsw_optimizer) {
    // SAFETY: the caller gives its handle back.
    unsafe { guard::free(optimizer, drop) };
}

/// Add a state that every parameter has.
///
/// Call it before any parameter is added, at most `TSW_STATES_MAX` times, in the same order in every
/// run. State 0 is the master parameter. `dtype` is the type in memory, which views show;
/// `disk_dtype` the one on storage. Where they differ, both are of f32, f16 and bf16: values are
/// rounded (key `rounding`) when a record is given back and widened when it is brought in, so that
/// what is computed does not depend on what happens to be cached.
///
/// Ownership: the name is copied. It is UTF-8 text of at most 4096 bytes.
/// Threads: one at a time for each optimizer.
/// Errors: SIZE_MISMATCH where the store has another state at this place, with both in the message;
/// UNSUPPORTED where there is no conversion between the types, or for a state 0 that is not f32, f16
/// or bf16; INVALID_ARGUMENT for a name used twice or unfit, too many states, an unknown type, or a
/// state after the first parameter; NULL_ARGUMENT; BUSY. Nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_add_state(
    optimizer: *mut tsw_optimizer,
    name: *const c_char,
    dtype: u32,
    disk_dtype: u32,
) -> tsw_status {
    // SAFETY: the caller's handle and text.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let name = text::name_input(name, "name")?;
            let dtype = Dtype::from_number(dtype)?;
            let disk_dtype = Dtype::from_number(disk_dtype)?;
            Ok(optimizer.optimizer.add_state(name, dtype, disk_dtype)?)
        })
    }
}

/// Register a parameter of `numel` elements under an id of the caller's.
///
/// Ids are stable names: use the same ones in every run. In a store that was there this attaches to
/// what is recorded; else it reserves the space of two versions of the record. A parameter that is
/// never initialized is zero in all of its states.
///
/// Ownership: the name is copied; it is UTF-8 text of at most 4096 bytes, for messages and exports.
/// Threads: one at a time for each optimizer.
/// Errors: SIZE_MISMATCH where the store has this id with another `numel` or another name, or with
/// more states than were added, with both in the message; INVALID_ARGUMENT for `TSW_NO_PARAMETER`, an
/// id given twice, no elements, or no state yet; NO_SPACE where the disk cannot hold it;
/// NULL_ARGUMENT; BUSY. Nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_add_parameter(
    optimizer: *mut tsw_optimizer,
    id: u64,
    name_or_null: *const c_char,
    numel: u64,
) -> tsw_status {
    // SAFETY: the caller's handle and text.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let name = match name_or_null.is_null() {
                true => None,
                false => Some(text::name_input(name_or_null, "name_or_null")?),
            };
            Ok(optimizer.optimizer.add_parameter(id, name, numel)?)
        })
    }
}

/// Give parameters the values of their master, and zero to their other states.
///
/// `sources[i]` holds all elements of `ids[i]`, in f32, f16 or bf16, in any memory; its
/// `file_offset` has no meaning. Pending until the next commit: call `tsw_optimizer_commit`, which
/// makes it durable as step 0. With `count` 0 nothing happens.
///
/// Ownership: both lists are copied; the memory is the caller's again when this returns.
/// Threads: one at a time for each optimizer.
/// Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a source with another number of elements;
/// DTYPE_MISMATCH for a source that is not f32, f16 or bf16; BUSY while a step is open or one of them
/// is in use; NO_BUFFERS with `views_max` parameters in; NULL_ARGUMENT; what storage has to say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_initialize_parameters(
    optimizer: *mut tsw_optimizer,
    ids: *const u64,
    sources: *const tsw_tensor,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and lists.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let ids = list::numbers(ids, "ids", count)?;
            list::with_tensors(sources, "sources", count, |sources| {
                Ok(optimizer.optimizer.initialize_parameters(ids, sources)?)
            })
        })
    }
}

/// Give parameters the values of their master from pieces, in memory or in raw files.
///
/// For weights that were swapped out before, in f16 or bf16 say. The pieces of one parameter may
/// come in any order and must cover it exactly; other states become zero. Pending until the next
/// commit, as with `tsw_optimizer_initialize_parameters`. With `count` 0 nothing happens.
///
/// Ownership: the list and its paths are copied; the memory is the caller's again when this returns.
/// Threads: one at a time for each optimizer.
/// Errors: INVALID_ARGUMENT where pieces overlap, leave a hole or exceed the parameter, naming it;
/// UNKNOWN_PARAMETER; DTYPE_MISMATCH for a piece that is not f32, f16 or bf16; NOT_FOUND and SIZE_MISMATCH
/// for a file that is missing or too short; BUSY; NO_BUFFERS; NULL_ARGUMENT; what storage has to say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_initialize_from_swapped(
    optimizer: *mut tsw_optimizer,
    partitions: *const tsw_partition,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and list.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let partitions = partition::checked(partitions, count)?;
            Ok(optimizer.optimizer.initialize_from_swapped(&partitions)?)
        })
    }
}

/// Set the moments of all parameters that this run added back to zero; the masters stay.
///
/// Pending until the next commit.
///
/// Threads: one at a time for each optimizer.
/// Errors: BUSY while a step is open or a parameter is in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_purge_state(optimizer: *mut tsw_optimizer) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe { run(optimizer, Optimizer::purge_state) }
}

/// Copy one state of a parameter into memory.
///
/// What was given back last is what is read, committed or not. `destination` has as many elements as
/// the parameter, and the state's type in memory; its `file_offset` has no meaning.
///
/// Ownership: the memory is the caller's again when this returns; where it fails its content is
/// undefined.
/// Threads: one at a time for each optimizer.
/// Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a name that no state has, or another number of
/// elements; DTYPE_MISMATCH; BUSY while the parameter is out; CHECKSUM naming the parameter where
/// storage does not hold what was written; NULL_ARGUMENT; what storage has to say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_read_state(
    optimizer: *mut tsw_optimizer,
    id: u64,
    state: *const c_char,
    destination: *const tsw_tensor,
) -> tsw_status {
    // SAFETY: the caller's handle, text and tensor.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let state = text::name_input(state, "state")?;
            let destination = list::tensor(destination, "destination")?;
            Ok(optimizer.optimizer.read_state(id, state, &destination)?)
        })
    }
}

/// Replace one state of a parameter by values in memory.
///
/// `source` is as `destination` of `tsw_optimizer_read_state`. Pending until the next commit.
///
/// Ownership: the memory is the caller's again when this returns.
/// Threads: one at a time for each optimizer.
/// Errors: as `tsw_optimizer_read_state`; BUSY also while a step is open. The state is then as it
/// was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_optimizer_write_state(
    optimizer: *mut tsw_optimizer,
    id: u64,
    state: *const c_char,
    source: *const tsw_tensor,
) -> tsw_status {
    // SAFETY: the caller's handle, text and tensor.
    unsafe {
        guard::with(optimizer.cast_const(), |optimizer| {
            let state = text::name_input(state, "state")?;
            let source = list::tensor(source, "source")?;
            Ok(optimizer.optimizer.write_state(id, state, &source)?)
        })
    }
}
