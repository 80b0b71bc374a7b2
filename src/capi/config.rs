//! `tsw_config`: keys and values.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::{OnceLock, PoisonError, RwLock, TryLockError};

use super::guard::{self, Failure, Handle, Health, Outcome};
use super::status::tsw_status;
use super::text;
use crate::base::config::{self, Config};
use crate::base::error::Error;

/// A configuration: keys and values as text.
///
/// Made by `tsw_config_new`, freed by `tsw_config_free`. An object made with it copies what it
/// takes, so it may be changed or freed right after. One configuration may be given to every
/// object; each takes the keys marked for it (`tsw_config_key_help`).
pub struct tsw_config {
    health: Health,
    /// Written by one thread at a time; a second writer is told so instead of waiting.
    config: RwLock<Config>,
}

impl Handle for tsw_config {
    const ARGUMENT: &'static str = "config";
    fn health(&self) -> &Health {
        &self.health
    }
}

impl tsw_config {
    fn change(&self, change: impl FnOnce(&mut Config) -> Result<(), Error>) -> Outcome<()> {
        match self.config.try_write() {
            Ok(mut config) => Ok(change(&mut config)?),
            // A change is all or nothing, so a panic left a sound configuration.
            Err(TryLockError::Poisoned(config)) => Ok(change(&mut config.into_inner())?),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Busy("another thread uses the configuration".to_owned()).into())
            }
        }
    }
}

/// A copy of the configuration behind a handle; `None` for NULL.
///
/// # Safety
/// `config` is NULL or a live handle.
pub(super) unsafe fn copy_of(config: *const tsw_config) -> Outcome<Option<Config>> {
    if config.is_null() {
        return Ok(None);
    }
    // SAFETY: this function's contract.
    unsafe {
        guard::attempt(config, |config| {
            let config = config.config.read().unwrap_or_else(PoisonError::into_inner);
            Ok(Some(config.clone()))
        })
    }
}

/// Make a configuration in which every key has its default.
///
/// Returns NULL where memory is short.
///
/// Ownership: the caller's, to be freed by `tsw_config_free`.
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_config_new() -> *mut tsw_config {
    let mut made = ptr::null_mut();
    guard::call(|| {
        made = Box::into_raw(Box::new(tsw_config {
            health: Health::new(),
            config: RwLock::new(Config::new()),
        }));
        Ok(())
    });
    made
}

/// Free a configuration. Objects that were made with it are not affected. NULL is fine.
///
/// Threads: any; nobody else may use it any more. Errors: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_config_free(config: *mut tsw_config) {
    // SAFETY: the caller gives its handle back.
    unsafe { guard::free(config, drop) };
}

/// Set a key.
///
/// Sizes are bytes or have a unit: "4096", "1MiB", "2GiB". Keys and values are UTF-8 text;
/// `tsw_config_keys` and its companions list the keys.
///
/// Ownership: both texts are copied.
/// Threads: one at a time for each configuration.
/// Errors: CONFIG for an unknown key or a value that is not legal: the message names the nearest
/// key or the legal values, and nothing has changed; NULL_ARGUMENT; BUSY where another thread uses
/// the configuration.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_config_set(
    config: *mut tsw_config,
    key: *const c_char,
    value: *const c_char,
) -> tsw_status {
    // SAFETY: the caller's handle and texts.
    unsafe {
        guard::with(config.cast_const(), |config| {
            let key = utf8(text::input(key, "key")?.to_bytes(), "key")?;
            let value = utf8(text::input(value, "value")?.to_bytes(), key)?;
            config.change(|config| config.set(key, value))
        })
    }
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Outcome<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|_| Error::Config(format!("config_set: {what} is not UTF-8 text")).into())
}

/// Copy the value of a key, in its normal form, and return its length.
///
/// A key that was not set has its default. At most `cap` bytes are written, with the NUL; the
/// length returned is that of the whole value without the NUL, as with snprintf. `buf` may be NULL
/// where `cap` is 0.
///
/// Returns SIZE_MAX for a key that does not exist, 0 for a NULL argument.
///
/// Threads: any, concurrently.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_config_get(
    config: *const tsw_config,
    key: *const c_char,
    buf: *mut c_char,
    cap: usize,
) -> usize {
    if config.is_null() || key.is_null() {
        return 0;
    }
    // SAFETY: the caller's handle, text and room.
    unsafe {
        guard::value(config, usize::MAX, |config| {
            let key = text::input(key, "key")?.to_string_lossy();
            let config = config.config.read().unwrap_or_else(PoisonError::into_inner);
            let value = config.get(&key).ok_or_else(|| {
                Failure::from(Error::Config(format!("config_get: unknown key {key}")))
            })?;
            Ok(text::output(&value, buf, cap))
        })
    }
}

/// Take the values of a JSON text.
///
/// Either our own flat object, such as `{"queue_depth": 32, "direct_io": "prefer"}`, or a whole
/// DeepSpeed configuration, of which `aio` and `zero_optimization.offload_optimizer` are read; what
/// has no meaning here is accepted and logged. All or nothing.
///
/// Ownership: the text is copied. It needs no NUL; `len` counts its bytes.
/// Threads: one at a time for each configuration.
/// Errors: CONFIG where the text is no JSON object, a key of our own is not known or a value is not
/// legal, and nothing has changed; NULL_ARGUMENT; BUSY where another thread uses the configuration.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tsw_config_load_json(
    config: *mut tsw_config,
    json: *const c_char,
    len: usize,
) -> tsw_status {
    // SAFETY: the caller's handle and text.
    unsafe {
        guard::with(config.cast_const(), |config| {
            let json = match (json.is_null(), len) {
                (_, 0) => &[],
                (true, _) => return Err(Failure::null("json")),
                (false, len) if isize::try_from(len).is_err() => {
                    return Err(Failure::invalid(format!("json: {len} bytes cannot be")));
                }
                (false, len) => std::slice::from_raw_parts(json.cast::<u8>(), len),
            };
            config.change(|config| config.load_json(json))
        })
    }
}

/// Name, default and help of a key, as C reads them.
type KeyTexts = [CString; 3];

fn key_text(index: usize, which: usize) -> *const c_char {
    static TEXTS: OnceLock<Vec<KeyTexts>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        config::keys()
            .iter()
            .map(|key| [text(key.name), text(key.default), text(key.help)])
            .collect()
    });
    texts
        .get(index)
        .map_or(ptr::null(), |texts| texts[which].as_ptr())
}

/// Tell how many keys there are.
///
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_config_keys() -> usize {
    config::keys().len()
}

/// Tell the name of the key with this index; NULL beyond the last.
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_config_key_name(index: usize) -> *const c_char {
    key_text(index, 0)
}

/// Tell the default of the key with this index, in its normal form; NULL beyond the last.
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_config_key_default(index: usize) -> *const c_char {
    key_text(index, 1)
}

/// Tell in one line which object takes the key with this index and what it does; NULL beyond the
/// last.
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_config_key_help(index: usize) -> *const c_char {
    key_text(index, 2)
}
