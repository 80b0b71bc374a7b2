//! Observation: what the library tells about itself.
//!
//! Owns the instruments ([`Counter`], [`Gauge`], [`Timer`]), the names of all log events
//! ([`events`]), the sink through which C receives them ([`log`]) and the text form of metrics
//! ([`prometheus`]). Never prints, never starts a thread, and installs no global subscriber
//! unless C asks for a log. The instruments are atomics: any thread, no lock, no allocation.

mod counter;
pub mod events;
pub mod log;
pub mod prometheus;
mod timer;
pub(crate) mod trace;

pub use counter::{Counter, Gauge};
pub use timer::{Timer, TimerSnapshot};
