//! The guard around every exported body: panics stop here, errors become statuses.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::status::{TSW_OK, tsw_status};
use super::{last_error, testing};
use crate::base::error::{Error, Status};
use crate::base::observe::events;
use crate::sys;

/// Why a call failed, as C hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) os_error: i32,
    pub(super) message: String,
}

/// What a guarded body returns.
pub(super) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            status: error.status(),
            os_error: error.os_error(),
            message: error.to_string(),
        }
    }
}

impl Failure {
    /// This argument is NULL.
    pub(super) fn null(argument: &'static str) -> Failure {
        Error::NullArgument(argument).into()
    }

    /// An argument is not acceptable, in these words.
    pub(super) fn invalid(message: impl Into<String>) -> Failure {
        Error::invalid(message).into()
    }

    /// The same, with the argument in front.
    pub(super) fn of(mut self, argument: &str) -> Failure {
        self.message = format!("{argument}: {}", self.message);
        self
    }

    /// The same, with the place in the caller's list in front.
    pub(super) fn at(self, list: &str, index: usize) -> Failure {
        self.of(&format!("{list}[{index}]"))
    }

    /// The number that C gets; the record of the thread is set.
    pub(super) fn report(&self) -> tsw_status {
        last_error::set(self);
        self.status as tsw_status
    }
}

/// What every handle knows about itself.
#[derive(Debug)]
pub(super) struct Health {
    poisoned: AtomicBool,
    fork_generation: u32,
}

impl Health {
    pub(super) fn new() -> Health {
        Health {
            poisoned: AtomicBool::new(false),
            fork_generation: sys::fork_generation(),
        }
    }

    fn is_forked(&self) -> bool {
        sys::forked_since(self.fork_generation)
    }

    fn check(&self) -> Outcome<()> {
        if self.is_forked() {
            return Err(Error::Forked.into());
        }
        // ORDERING: acquire pairs with the release in `poison`; nothing else hangs on it.
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned.into());
        }
        Ok(())
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }
}

/// What C holds a pointer to.
pub(super) trait Handle {
    /// The name of the argument in messages.
    const ARGUMENT: &'static str;
    fn health(&self) -> &Health;
}

/// Runs a body that has no object.
pub(super) fn call(body: impl FnOnce() -> Outcome<()>) -> tsw_status {
    match caught(body).and_then(|done| done) {
        Ok(()) => TSW_OK,
        Err(failure) => failure.report(),
    }
}

/// Runs a body on an object. A panic poisons it.
///
/// # Safety
/// `handle` is NULL or a live handle.
pub(super) unsafe fn with<T: Handle>(
    handle: *const T,
    body: impl FnOnce(&T) -> Outcome<()>,
) -> tsw_status {
    // SAFETY: this function's contract.
    match unsafe { attempt(handle, body) } {
        Ok(()) => TSW_OK,
        Err(failure) => failure.report(),
    }
}

/// Runs a body on an object for a function that returns a value; `otherwise` where it cannot.
/// NULL is no error there.
///
/// # Safety
/// `handle` is NULL or a live handle.
pub(super) unsafe fn value<T: Handle, R>(
    handle: *const T,
    otherwise: R,
    body: impl FnOnce(&T) -> Outcome<R>,
) -> R {
    if handle.is_null() {
        return otherwise;
    }
    // SAFETY: this function's contract.
    match unsafe { attempt(handle, body) } {
        Ok(value) => value,
        Err(failure) => {
            failure.report();
            otherwise
        }
    }
}

/// # Safety
/// `handle` is NULL or a live handle.
pub(super) unsafe fn attempt<T: Handle, R>(
    handle: *const T,
    body: impl FnOnce(&T) -> Outcome<R>,
) -> Outcome<R> {
    // SAFETY: this function's contract; handles are only ever shared.
    let object = unsafe { handle.as_ref() }.ok_or_else(|| Failure::null(T::ARGUMENT))?;
    object.health().check()?;
    match caught(|| body(object)) {
        Ok(done) => done,
        Err(panic) => {
            object.health().poison();
            Err(panic)
        }
    }
}

/// Takes a handle back to free it. In a forked child it is left alone: the threads that would have
/// to answer are the parent's. `body` gets every other one, a poisoned one as well.
///
/// # Safety
/// `handle` is NULL or a live handle made by `Box::into_raw` that is not used again.
pub(super) unsafe fn free<T: Handle>(handle: *mut T, body: impl FnOnce(Box<T>)) {
    // SAFETY: this function's contract.
    if unsafe { handle.as_ref() }.is_none_or(|object| object.health().is_forked()) {
        return;
    }
    // SAFETY: as above; nobody else frees it.
    let object = unsafe { Box::from_raw(handle) };
    // There is nobody left to tell; the hook has logged it.
    let _logged = caught(|| body(object));
}

/// Whether a handle can be used here at all.
///
/// # Safety
/// `handle` is NULL or a live handle.
pub(super) unsafe fn is_usable<T: Handle>(handle: *const T) -> bool {
    // SAFETY: this function's contract.
    unsafe { handle.as_ref() }.is_some_and(|object| !object.health().is_forked())
}

thread_local! {
    /// Whether this thread is inside [`caught`]; its panics are then ours to tell.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// What the hook heard of the panic under way.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a body; a panic becomes an internal error, told apart from what the body returns.
fn caught<R>(body: impl FnOnce() -> R) -> Outcome<R> {
    silence_panics();
    let before = INSIDE.try_with(|inside| inside.replace(true));
    let done = catch_unwind(AssertUnwindSafe(|| {
        testing::trip();
        body()
    }));
    if let Ok(before) = before {
        let _ = INSIDE.try_with(|inside| inside.set(before));
    }
    done.map_err(internal)
}

/// The error for a panic. Dropping what a panic carries may panic once more.
fn internal(payload: Box<dyn Any + Send>) -> Failure {
    let told = PANIC
        .try_with(|told| std::mem::take(&mut *told.borrow_mut()))
        .unwrap_or_default();
    std::mem::forget(payload);
    Error::Internal(told).into()
}

/// What a panic says.
fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic")
}

/// Sees to it that a panic of ours reaches the log and not standard error. Installed by the first
/// call from C, so that Rust programs keep their hook; other threads' panics still go to the hook
/// that was there.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let inside = INSIDE.try_with(Cell::get).unwrap_or(false);
            let current = std::thread::current();
            let ours = current.name().is_some_and(|name| name.starts_with("tsw-"));
            if !inside && !ours {
                return earlier(info);
            }
            let mut message = text_of(info.payload()).to_owned();
            if let Some(place) = info.location() {
                message.push_str(&format!(" ({}:{})", place.file(), place.line()));
            }
            events::panicked(&message);
            let _ = PANIC.try_with(|told| *told.borrow_mut() = message);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::status::{TSW_ERR_INTERNAL, TSW_ERR_NULL_ARGUMENT, TSW_ERR_POISONED};

    struct Object(Health);

    impl Handle for Object {
        const ARGUMENT: &'static str = "object";
        fn health(&self) -> &Health {
            &self.0
        }
    }

    #[test]
    fn a_panic_becomes_a_status_and_poisons_its_object_alone() {
        let (object, other) = (Object(Health::new()), Object(Health::new()));
        let run = |object: &Object, fails: bool| {
            // SAFETY: a live handle.
            unsafe {
                with(object, |_| {
                    assert!(!fails, "this was to be expected");
                    Ok(())
                })
            }
        };
        assert_eq!(run(&object, false), TSW_OK);
        assert_eq!(run(&object, true), TSW_ERR_INTERNAL);
        assert_eq!(run(&object, false), TSW_ERR_POISONED);
        assert_eq!(run(&other, false), TSW_OK);
        // SAFETY: NULL is allowed.
        let status = unsafe { with(std::ptr::null::<Object>(), |_| Ok(())) };
        assert_eq!(status, TSW_ERR_NULL_ARGUMENT);
    }

    #[test]
    fn a_value_has_its_otherwise() {
        let object = Object(Health::new());
        // SAFETY: live handles or NULL.
        unsafe {
            assert_eq!(value(&raw const object, 7, |_| Ok(9)), 9);
            assert_eq!(value(std::ptr::null::<Object>(), 7, |_| Ok(9)), 7);
            assert_eq!(value(&raw const object, 7, |_| panic!("no value")), 7);
            assert_eq!(value(&raw const object, 7, |_| Ok(9)), 7);
        }
    }

    #[test]
    fn the_message_of_a_panic_tells_what_and_where() {
        let failure = caught(|| -> () { panic!("what happened") }).unwrap_err();
        assert_eq!(failure.status, Status::Internal);
        assert!(
            failure.message.contains("what happened"),
            "{}",
            failure.message
        );
        assert!(failure.message.contains("guard.rs:"), "{}", failure.message);
    }
}
