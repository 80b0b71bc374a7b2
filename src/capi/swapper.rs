//! `tsw_swapper`: the `AsyncTensorSwapper`.

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::buffer::{take_back, tsw_buffer};
use super::config::{self, tsw_config};
use super::engine::{clear, timeout, tsw_engine};
use super::guard::{self, Failure, Handle, Health, Outcome};
use super::list;
use super::record::Record;
use super::status::tsw_status;
use super::swapper_stats::tsw_swapper_stats;
use super::tensor::tsw_tensor;
use super::text::{Name, name};
use super::timer::{self, tsw_timer};
use crate::base::dtype::Dtype;
use crate::base::error::Error;
use crate::io::Tensor;
use crate::memory::Buffer;
use crate::swapper::Swapper;

/// Swaps tensors out and in through pinned buffers of its own.
///
/// Made by `tsw_swapper_new`, freed by `tsw_swapper_free`. Used by one thread at a time.
pub struct tsw_swapper {
    health: Health,
    swapper: Swapper,
    /// The buffers lent to it, in the order added.
    lent: Mutex<Vec<Lent>>,
}

/// A handle that the swapper has until it gives it back.
#[derive(Clone, Copy)]
struct Lent(*mut tsw_buffer);

// SAFETY: a handle may be used by any thread; the swapper alone takes it back, once.
unsafe impl Send for Lent {}

impl Handle for tsw_swapper {
    const ARGUMENT: &'static str = "swapper";
    fn health(&self) -> &Health {
        &self.health
    }
}

impl tsw_swapper {
    /// The list of lent buffers, for one thread at a time.
    fn lent(&self) -> Outcome<MutexGuard<'_, Vec<Lent>>> {
        match self.lent.try_lock() {
            Ok(lent) => Ok(lent),
            Err(TryLockError::Poisoned(lent)) => Ok(lent.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Busy("another thread uses the swapper".to_owned()).into())
            }
        }
    }
}

/// Make a swapper on an engine.
///
/// It has no buffers yet: give it some with `tsw_swapper_add_buffers`. `config_or_null` is copied;
/// NULL takes the engine's.
///
/// Ownership: the swapper is the caller's, to be freed by `tsw_swapper_free`; it keeps what it needs
/// of the engine alive.
/// Threads: any.
/// Errors: NULL_ARGUMENT; POISONED. `*swapper_out` is then NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_new(
    engine: *mut tsw_engine,
    config_or_null: *const tsw_config,
    swapper_out: *mut *mut tsw_swapper,
) -> tsw_status {
    // SAFETY: the caller's handles and place.
    unsafe {
        clear(swapper_out);
        guard::with(engine.cast_const(), |engine| {
            if swapper_out.is_null() {
                return Err(Failure::null("swapper_out"));
            }
            let config = config::copy_of(config_or_null)?;
            let swapper = Box::new(tsw_swapper {
                health: Health::new(),
                swapper: Swapper::new(&engine.engine, config.as_ref())?,
                lent: Mutex::new(Vec::new()),
            });
            swapper_out.write(Box::into_raw(swapper));
            Ok(())
        })
    }
}

/// Free a swapper, after all that was staged is written. NULL is fine.
///
/// An error found while doing so is logged, and stays with its path; call `tsw_swapper_flush` first
/// to hear of it. Buffers it held are the caller's alone again; those freed meanwhile are freed now.
///
/// Threads: any; nobody else may use the swapper any more. Errors: none. In a forked child nothing
/// happens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_free(swapper: *mut tsw_swapper) {
    // SAFETY: the caller gives its handle back; the buffers were lent and are taken back once.
    unsafe {
        guard::free(swapper, |handle| {
            let tsw_swapper { swapper, lent, .. } = *handle;
            drop(swapper);
            for Lent(buffer) in lent.into_inner().unwrap_or_else(PoisonError::into_inner) {
                take_back(buffer);
            }
        });
    }
}

/// Give a swapper the buffers it stages tensors in.
///
/// All tensors must then have this `dtype`; with `TSW_BYTES` any will do. Two buffers or more let
/// one be filled while another is written.
///
/// Ownership: the swapper holds the buffers until it releases them or is freed; leave their memory
/// alone meanwhile. `tsw_buffer_free` of one of them takes effect at the release.
/// Threads: one at a time for each swapper.
/// Errors: BUSY where the swapper has buffers already, or another swapper holds one of them;
/// INVALID_ARGUMENT for none, a buffer given twice or of another engine, or an unknown `dtype`;
/// NULL_ARGUMENT. Nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_add_buffers(
    swapper: *mut tsw_swapper,
    buffers: *const *mut tsw_buffer,
    count: usize,
    dtype: u32,
) -> tsw_status {
    // SAFETY: the caller's handles and list.
    unsafe {
        guard::with(swapper.cast_const(), |swapper| {
            let dtype = Dtype::from_number(dtype)?;
            let mut lent = swapper.lent()?;
            if swapper.swapper.has_buffers() || !lent.is_empty() {
                return Err(
                    Error::Busy("the swapper has buffers; release them first".to_owned()).into(),
                );
            }
            let handles = borrow_all(buffers, count)?;
            let list: Vec<Buffer> = handles
                .iter()
                .map(|Lent(handle)| (**handle).buffer().clone())
                .collect();
            if let Err(error) = swapper.swapper.add_buffers(&list, dtype) {
                drop(list);
                give_back(&handles);
                return Err(error.into());
            }
            *lent = handles;
            Ok(())
        })
    }
}

/// Lends every handle of a list, or none.
///
/// # Safety
/// `buffers` is NULL or has `count` elements, each NULL or a live handle.
unsafe fn borrow_all(buffers: *const *mut tsw_buffer, count: usize) -> Outcome<Vec<Lent>> {
    if count == 0 {
        return Err(Failure::invalid("a swapper needs at least one buffer"));
    }
    if buffers.is_null() {
        return Err(Failure::null("buffers"));
    }
    let mut handles: Vec<Lent> = Vec::new();
    handles
        .try_reserve_exact(count)
        .map_err(|_| Error::NoMemory(format!("a list of {count} buffers")))?;
    for index in 0..count {
        // SAFETY: this function's contract.
        let lent = unsafe {
            let handle = *buffers.add(index);
            borrow(handle, handles.iter().any(|Lent(other)| *other == handle))
        };
        match lent {
            Ok(lent) => handles.push(lent),
            Err(failure) => {
                // SAFETY: lent just above.
                unsafe { give_back(&handles) };
                return Err(failure.at("buffers", index));
            }
        }
    }
    Ok(handles)
}

/// # Safety
/// `handle` is NULL or live.
unsafe fn borrow(handle: *mut tsw_buffer, is_twice: bool) -> Outcome<Lent> {
    // SAFETY: this function's contract.
    let shared = unsafe { handle.as_ref() }.ok_or_else(|| Failure::null("buffer"))?;
    if is_twice {
        return Err(Failure::invalid("the buffer is in the list already"));
    }
    if !shared.lend() {
        return Err(Error::Busy("another swapper holds the buffer".to_owned()).into());
    }
    Ok(Lent(handle))
}

/// Returns handles to the caller.
///
/// # Safety
/// All are lent, and the swapper has let go of their memory.
unsafe fn give_back(handles: &[Lent]) {
    for Lent(handle) in handles {
        // SAFETY: this function's contract.
        unsafe { take_back(*handle) };
    }
}

/// Tell whether a swapper has buffers: 1 or 0; 0 for NULL.
///
/// Threads: any, concurrently. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_has_buffers(swapper: *const tsw_swapper) -> u32 {
    // SAFETY: the caller's handle.
    unsafe {
        guard::value(swapper, 0, |swapper| {
            Ok(swapper.swapper.has_buffers().into())
        })
    }
}

/// Stage tensors for writing.
///
/// When this returns the tensors are copied and their memory is the caller's again; the writes go on
/// in the background. A tensor larger than a buffer goes through several, small ones share one. It
/// waits only for a free buffer. `tsw_swapper_flush` tells whether the writes went well; paths,
/// offsets and file lengths are as with `tsw_engine_swap_out`. With `count` 0 nothing happens.
///
/// Ownership: both lists are copied; the memory is the caller's again.
/// Threads: one at a time for each swapper.
/// Errors: NO_BUFFERS; DTYPE_MISMATCH; INVALID_ARGUMENT and NULL_ARGUMENT as with
/// `tsw_engine_swap_out`, all before anything is staged; BUSY; SHUT_DOWN. What an
/// earlier write to one of the paths said does not stop a new one, which mends it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_swap_out(
    swapper: *mut tsw_swapper,
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and lists.
    unsafe { swap(swapper, tensors, paths, count, Swapper::swap_out) }
}

/// Read tensors; the data is there when this returns.
///
/// What is still being written comes from the staged copy, or after just that write. A tensor in
/// pinned memory is read without a copy. With `count` 0 nothing happens.
///
/// Ownership: both lists are copied; the memory is the caller's again. Where this fails its content
/// is undefined.
/// Threads: one at a time for each swapper.
/// Errors: as `tsw_swapper_swap_out`; NOT_FOUND, SIZE_MISMATCH and what else files have to say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_swap_in(
    swapper: *mut tsw_swapper,
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and lists.
    unsafe { swap(swapper, tensors, paths, count, Swapper::swap_in) }
}

/// Moves a list of tensors one way or the other; an empty one without a look at the swapper.
///
/// # Safety
/// `swapper` is NULL or a live handle, the lists as [`list::with_list`] demands.
unsafe fn swap(
    swapper: *mut tsw_swapper,
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
    direction: impl FnOnce(&Swapper, &[Tensor], &[&CStr]) -> Result<(), Error>,
) -> tsw_status {
    // SAFETY: this function's contract.
    unsafe {
        guard::with(swapper.cast_const(), |swapper| {
            if count == 0 {
                return Ok(());
            }
            list::with_list(tensors, paths, count, |tensors, paths| {
                Ok(direction(&swapper.swapper, tensors, paths)?)
            })
        })
    }
}

/// Start writing what is staged, without waiting for it.
///
/// Full buffers are written by themselves; this sends off the one being filled. A direct request
/// made afterwards on the same path (`tsw_engine_swap_in`, say, of a record that is needed again)
/// then takes effect after the write, in the order submitted, and no flush is needed between.
///
/// Threads: one at a time for each swapper.
/// Errors: BUSY; SHUT_DOWN. What the writes say comes with the flush.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_submit(swapper: *mut tsw_swapper) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(swapper.cast_const(), |swapper| {
            Ok(swapper.swapper.submit()?)
        })
    }
}

/// Wait until everything staged is written.
///
/// Threads: one at a time for each swapper.
/// Errors: the first error of the writes since the last flush, with its path: what was staged is
/// then not all in its files; TIMED_OUT after `timeout_ns` nanoseconds: the writes go on; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_flush(
    swapper: *mut tsw_swapper,
    timeout_ns: u64,
) -> tsw_status {
    // SAFETY: the caller's handle.
    unsafe {
        guard::with(swapper.cast_const(), |swapper| {
            Ok(swapper.swapper.flush(timeout(timeout_ns))?)
        })
    }
}

/// Flush, and give the buffers back.
///
/// `buffers_out` receives the handles that were added, in that order, without those freed meanwhile;
/// `*count_out` tells how many. The swapper can then be given buffers again.
///
/// Ownership: the buffers are the caller's alone again, also where the flush failed.
/// Threads: one at a time for each swapper.
/// Errors: as `tsw_swapper_flush`, with the buffers given back all the same; INVALID_ARGUMENT where
/// `cap` is too small: nothing has happened then, and `*count_out` tells what is needed; BUSY;
/// NULL_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_release_buffers(
    swapper: *mut tsw_swapper,
    buffers_out: *mut *mut tsw_buffer,
    cap: usize,
    count_out: *mut usize,
) -> tsw_status {
    // SAFETY: the caller's handle and places.
    unsafe {
        if !count_out.is_null() {
            count_out.write(0);
        }
        guard::with(swapper.cast_const(), |swapper| {
            if count_out.is_null() {
                return Err(Failure::null("count_out"));
            }
            if buffers_out.is_null() && cap > 0 {
                return Err(Failure::null("buffers_out"));
            }
            let mut lent = swapper.lent()?;
            let needed = lent.iter().filter(|Lent(each)| (**each).is_known()).count();
            if cap < needed {
                count_out.write(needed);
                return Err(Failure::invalid(format!(
                    "{needed} buffers do not fit where {cap} do"
                )));
            }
            let (released, flushed) = swapper.swapper.release_buffers();
            // None comes back where the swapper was not even asked, because it is in use.
            if !released.is_empty() {
                drop(released);
                let known = lent.drain(..).filter_map(|Lent(each)| take_back(each));
                let mut count = 0;
                for handle in known {
                    buffers_out.add(count).write(handle);
                    count += 1;
                }
                count_out.write(count);
            }
            Ok(flushed?)
        })
    }
}

/// Fill in what a swapper has done, and what it is doing.
///
/// `inout->struct_size` is `sizeof(tsw_swapper_stats)`, set by the caller.
///
/// Threads: any, concurrently.
/// Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_get_stats(
    swapper: *const tsw_swapper,
    inout: *mut tsw_swapper_stats,
) -> tsw_status {
    // SAFETY: the caller's handle and structure.
    unsafe {
        let record = Record::open(inout, "inout");
        guard::with(swapper, |swapper| {
            record?.write(swapper.swapper.stats().into());
            Ok(())
        })
    }
}

/// The timers of a swapper, as C reads their names.
static TIMERS: [Name; 4] = [
    name("swap_out"),
    name("swap_in"),
    name("flush"),
    name("async_swap_gradient_wait"),
];

/// List the timers of a swapper that have run, and return how many there are.
///
/// Writes at most `cap` names to `names_out`, which may be NULL where `cap` is 0. There are
/// "swap_out", "swap_in", "flush" and "async_swap_gradient_wait".
///
/// Ownership: the names are the library's and live as long as it is loaded.
/// Threads: any, concurrently. Returns 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_timer_names(
    swapper: *const tsw_swapper,
    names_out: *mut *const c_char,
    cap: usize,
) -> usize {
    // SAFETY: the caller's handle and places.
    unsafe {
        guard::value(swapper, 0, |swapper| {
            let have_run = swapper.swapper.timer_names();
            Ok(timer::list(&TIMERS, &have_run, names_out, cap))
        })
    }
}

/// Fill in a timer of a swapper, by its name.
///
/// `inout->struct_size` is `sizeof(tsw_timer)`, set by the caller. A timer that has not run is all 0.
///
/// Threads: any, concurrently.
/// Errors: INVALID_ARGUMENT for a name that no timer has, or a `struct_size` that cannot be;
/// NULL_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_swapper_get_timer(
    swapper: *const tsw_swapper,
    name: *const c_char,
    inout: *mut tsw_timer,
) -> tsw_status {
    // SAFETY: the caller's handle, text and structure.
    unsafe {
        let record = Record::open(inout, "inout");
        guard::with(swapper, |swapper| {
            timer::fill(record, name, |name| swapper.swapper.timer(name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Config;
    use crate::io::Engine;

    #[test]
    fn c_knows_every_timer_by_its_name() {
        let engine = Engine::new(&Config::new()).unwrap();
        let swapper = Swapper::new(&engine, None).unwrap();
        let known: Vec<Name> = swapper.timers().map(|(text, _)| name(text)).collect();
        assert_eq!(known.len(), TIMERS.len());
        assert!(known.iter().all(|name| TIMERS.contains(name)));
    }
}
