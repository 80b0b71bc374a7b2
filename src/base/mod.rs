//! The ground floor: what every layer above may use and nothing else depends on.
//!
//! Owns the error type, data types, checked units, configuration and observation (counters,
//! timers, log). Never does I/O, never starts a thread, never knows C.

pub(crate) mod cache;
pub(crate) mod checksum;
pub mod config;
pub mod dtype;
pub mod error;
pub mod observe;
pub(crate) mod sync;
pub mod units;
