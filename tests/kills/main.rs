//! Processes killed at any moment (SIGKILL), and what they leave behind: a store in the middle of
//! anything, a store half moved, snapshots half made, a resharding half done.
//!
//! `cargo test` kills a handful, `tests/long` some hundred; each test says how many kills fell into
//! what.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod child;
mod rebalance;
mod reshard;
#[path = "../support/mod.rs"]
mod support;
mod train;
#[path = "../training/mod.rs"]
mod training;
