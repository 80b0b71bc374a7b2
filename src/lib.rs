//! tensorswap keeps training state on NVMe.
//!
//! Layers, from the ground up; each uses only those before it:
//!
//! * [`base`]: errors, data types, configuration, observation.
//! * [`sys`]: the system calls outside the ring.
//! * [`memory`]: pinned buffers.
//! * [`io`]: the engine: requests and tickets, planner, driver, backends.
//! * [`swapper`]: the `AsyncTensorSwapper`: staging buffers over the engine.
//! * [`store`]: records on storage, crash-consistent.
//! * [`snapshot`]: states of one step in a directory of their own, for another store or rank count.
//! * `safetensors`: files of tensors that others read and write.
//! * [`optimizer`]: the optimizer swapper: records, gradients, the pipelined step.
//! * [`capi`]: the C border, the only place that knows C.
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod base;
pub mod capi;
pub mod io;
pub mod memory;
pub mod optimizer;
mod safetensors;
pub mod snapshot;
pub mod store;
pub mod swapper;
pub mod sys;

/// Reads any bytes as the log of a store: what the fuzzer in `fuzz/` calls.
#[doc(hidden)]
pub fn fuzz_store_log(bytes: &[u8]) {
    store::read_any_log(bytes);
}

/// Reads any bytes as the manifest of a snapshot: what the fuzzer in `fuzz/` calls.
#[doc(hidden)]
pub fn fuzz_snapshot_manifest(bytes: &[u8]) {
    snapshot::read_any_manifest(bytes);
}

/// Reads any bytes as a safetensors file: what the fuzzer in `fuzz/` calls.
#[doc(hidden)]
pub fn fuzz_safetensors_header(bytes: &[u8]) {
    safetensors::read_any_header(bytes);
}

/// Reads any bytes as the index of safetensors files: what the fuzzer in `fuzz/` calls.
#[doc(hidden)]
pub fn fuzz_safetensors_index(bytes: &[u8]) {
    safetensors::read_any_index(bytes);
}
