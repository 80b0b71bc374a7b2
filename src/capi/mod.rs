//! The C border: the only place that knows C.
//!
//! One file per C type. Owns the handles, the translation of arguments and results, and the last
//! error of each thread. Never holds logic of its own: what a function does lives in the layers
//! below, so that Rust callers get the same. `include/tensorswap.h` is generated from this folder
//! (`cbindgen.toml`), and its comments are the manual: they are written here, for C readers.
//!
//! Every exported body runs behind `guard`, which stops panics, records errors, and answers for
//! objects that are poisoned or belong to the parent of a fork. Input is never a Rust enum, `bool`
//! or reference. Output is cleared first and written only on success.
//!
//! Invariants:
//!
//! * No panic crosses. After one, its object answers `TSW_ERR_POISONED`.
//! * A handle is freed by exactly one call; a buffer lent to a swapper is freed when it comes back.
//! * Nothing waits on the driver's own thread, where release hooks may run.

#![allow(unsafe_code)]
#![allow(non_camel_case_types, reason = "the names are those of the C header")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the comments are the manual of the C header, and state what callers must keep"
)]

mod abi;
mod buffer;
mod config;
mod dlpack;
mod dtype;
mod engine;
mod engine_stats;
mod guard;
mod last_error;
mod list;
mod log;
mod optimizer;
mod optimizer_contents;
mod optimizer_exchange;
mod optimizer_gradients;
mod optimizer_record;
mod optimizer_snapshot;
mod optimizer_stats;
mod optimizer_step;
mod optimizer_view;
mod partition;
mod record;
mod status;
mod swapper;
mod swapper_stats;
mod tensor;
#[doc(hidden)]
pub mod testing;
mod text;
mod ticket;
mod timer;

pub use abi::*;
pub use buffer::*;
pub use config::*;
pub use dlpack::*;
pub use dtype::*;
pub use engine::*;
pub use engine_stats::*;
pub use last_error::*;
pub use log::*;
pub use optimizer::*;
pub use optimizer_contents::*;
pub use optimizer_exchange::*;
pub use optimizer_gradients::*;
pub use optimizer_record::*;
pub use optimizer_snapshot::*;
pub use optimizer_stats::*;
pub use optimizer_step::*;
pub use optimizer_view::*;
pub use partition::*;
pub use status::*;
pub use swapper::*;
pub use swapper_stats::*;
pub use tensor::*;
pub use ticket::*;
pub use timer::*;
