//! Runs the tool as its users do, and looks at what it prints, writes, and leaves behind.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests"
)]

mod bench;
mod doctor;
mod guide;
mod inspect;
#[path = "../../../tests/common/listings.rs"]
#[allow(dead_code, reason = "the library's tests use the rest")]
mod listings;
mod man;
mod plan;
mod readme;
mod rebalance;
mod reshard;
mod support;
mod terminal;
mod tune;
