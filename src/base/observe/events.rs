//! The names of all log events: targets, event names, fields and levels, in one place.
//!
//! Other modules call these functions and never `tracing` itself, so that a name exists once and
//! a reader of a log finds its meaning here. Levels: error, something is lost; warn, it works but
//! not as asked; info, worth knowing once; debug and trace, for finding defects.

use std::borrow::Cow;

use crate::base::error::errno_name;

/// The target that every target of the library starts with.
pub const ROOT: &str = "tensorswap";
/// Configuration.
pub const CONFIG: &str = "tensorswap::config";
/// The swapper.
pub const SWAPPER: &str = "tensorswap::swapper";
/// The store.
pub const STORE: &str = "tensorswap::store";
/// The engine: requests, files, backends.
pub const IO: &str = "tensorswap::io";
/// Target of events of the optimizer.
pub const OPTIMIZER: &str = "tensorswap::optimizer";

/// A commit in the background failed.
pub fn commit_failed(error: &str) {
    tracing::error!(name: "commit_failed", target: OPTIMIZER, error,
        "a commit failed; the next call goes back to the last durable step");
}

/// A known key was given and has no effect.
pub fn config_key_ignored(key: &str, reason: &str) {
    tracing::info!(name: "config_key_ignored", target: CONFIG, key, reason,
        "configuration key has no meaning here");
}

/// A section of a foreign configuration that we read holds a key that nobody knows.
pub fn config_key_unknown(key: &str) {
    tracing::warn!(name: "config_key_unknown", target: CONFIG, key, "unknown configuration key");
}

/// A foreign configuration holds a key outside of the sections that we read.
pub fn config_key_foreign(key: &str) {
    tracing::debug!(name: "config_key_foreign", target: CONFIG, key,
        "configuration key is for others");
}

/// Direct I/O was preferred, and this file goes through the page cache.
pub fn direct_io_fallback(path: &[u8], errno: i32) {
    let (path, errno) = (text_of(path), errno_name(errno));
    tracing::warn!(name: "direct_io_fallback", target: IO, path = &*path, errno = &*errno,
        "direct I/O refused, going through the page cache");
}

/// An engine runs.
pub fn engine_started(backend: &str, reason: &str) {
    tracing::info!(name: "engine_started", target: IO, backend, reason, "engine started");
}

/// A store was made.
pub fn store_made(path: &[u8], directories: usize) {
    let path = text_of(path);
    tracing::info!(name: "store_made", target: STORE, path = &*path, directories,
        "made a new store");
}

/// A store was opened where it was.
pub fn store_opened(path: &[u8], directories: usize, step: u64, parameters: usize) {
    let path = text_of(path);
    tracing::info!(name: "store_opened", target: STORE, path = &*path, directories, step,
        parameters, "opened the store");
}

/// The driver thread met a defect, or its backend broke with `errno`.
pub fn driver_died(errno: i32) {
    let errno = errno_name(errno);
    tracing::error!(name: "driver_died", target: IO, errno = &*errno,
        "the driver ended; every pending request fails");
}

/// The ring did not take a buffer; transfers map it each time.
pub fn buffer_unregistered(len_bytes: u64, errno: i32) {
    let errno = errno_name(errno);
    tracing::warn!(name: "buffer_unregistered", target: IO, len_bytes, errno = &*errno,
        "the ring did not register a buffer; going on unregistered");
}

/// The process, or the system, has too many files open; idle ones of ours are closed.
pub fn descriptors_exhausted(errno: i32) {
    let errno = errno_name(errno);
    tracing::warn!(name: "descriptors_exhausted", target: IO, errno = &*errno,
        "too many files are open; closing idle ones");
}

/// Tensors that were staged could not be submitted and are gone.
pub fn staged_tensors_dropped(count: usize, reason: &str) {
    tracing::error!(name: "staged_tensors_dropped", target: SWAPPER, count, reason,
        "staged tensors were dropped unwritten");
}

/// A swapper was freed after a write failed that nobody had flushed for.
pub fn write_error_unseen(error: &str) {
    tracing::error!(name: "write_error_unseen", target: SWAPPER, error,
        "a write failed and was not flushed for before the swapper was freed");
}

/// The timeline could not be written.
pub fn trace_failed(error: &str) {
    tracing::error!(name: "trace_failed", target: IO, error, "the trace could not be written");
}

/// The timeline lacks spans: they came faster than they could be written.
pub fn trace_incomplete(dropped_count: u64) {
    tracing::warn!(name: "trace_incomplete", target: IO, dropped_count, "the trace lacks spans");
}

/// A panic inside the library, stopped at the C border or at the end of one of its threads.
pub fn panicked(message: &str) {
    tracing::error!(name: "panicked", target: ROOT, defect = message, "a defect was met");
}

/// The ring did not let go of a registered buffer.
pub fn slot_not_cleared(slot: u16, errno: i32) {
    let errno = errno_name(errno);
    tracing::error!(name: "slot_not_cleared", target: IO, slot, errno = &*errno,
        "the ring did not let go of a buffer; its pages stay pinned until the engine is freed");
}

/// An engine was freed with the completion of a failed request undelivered.
pub fn request_error_unseen(error: &str) {
    tracing::error!(name: "request_error_unseen", target: IO, error,
        "a request failed and nobody waited for it before the engine was freed");
}

/// A store was opened whose last commit had not been finished; its remains were cut off.
pub fn log_cut(path: &[u8], end: u64, len_bytes: u64) {
    let path = text_of(path);
    tracing::info!(name: "log_cut", target: STORE, path = &*path, end, len_bytes,
        "the remains of an unfinished commit were cut off the log");
}

/// A store's data file is open for writing, though nobody uses the store.
pub fn data_still_open(path: &[u8]) {
    let path = text_of(path);
    tracing::warn!(name: "data_still_open", target: STORE, path = &*path,
        "somebody has the store's data open for writing after its user was killed; going on");
}

/// A snapshot keeps steps waiting, because there is no space for third slots.
pub fn snapshot_holds_writes(error: &str) {
    tracing::warn!(name: "snapshot_holds_writes", target: STORE, error,
        "no space for third slots: steps wait for the snapshot where they write over its records");
}

/// A log could not be replaced by a shorter one; it goes on being used.
pub fn log_not_compacted(error: &str) {
    tracing::warn!(name: "log_not_compacted", target: STORE, error,
        "the store's log could not be made shorter");
}

/// A file with gradients could not be removed.
pub fn gradient_file_left(path: &[u8], errno: i32) {
    let (path, errno) = (text_of(path), errno_name(errno));
    tracing::warn!(name: "gradient_file_left", target: OPTIMIZER, path = &*path, errno = &*errno,
        "a file with gradients could not be removed");
}

/// A path as a field; bytes that are not UTF-8 are replaced.
fn text_of(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}
