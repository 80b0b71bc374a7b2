//! What the system does to an engine: file systems of several kinds, full ones, a forbidden ring,
//! and the limits of a process. File systems are mounted from image files, which takes root.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
mod mounts;
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../training/mod.rs"]
mod training;
mod training_on;
mod transfers;
