//! The optimizer swapper: records of parameters between storage and their update.
//!
//! Owns which record is where, the pinned memory for records, the step and its order, gradients
//! until the step. Never knows how bytes reach storage (the engine's) nor what makes a step durable
//! (the store's). `core`, `pump`, `step`, `arena` and `commit` decide and are pure; `shared` carries
//! out what they decide; the methods of [`Optimizer`] lie in one file for each kind of call.
//!
//! Threads: callers' threads verify, convert and compute checksums, outside of every lock. The
//! engine's driver thread reports completions, which start the next reads and writes. One thread
//! commits in the background.

mod arena;
mod commit;
mod copying;
mod core;
mod exchange;
mod figures;
mod filling;
mod footprint;
mod gradient_calls;
mod gradients;
mod image;
mod initialize;
mod one_by_one;
mod optimizer_swapper;
mod pump;
mod record;
mod restore;
mod room;
mod shared;
mod snapshot;
mod state_access;
mod stats;
mod step;
mod stepping;
mod timeline;
mod view;
mod views;

pub use crate::store::STATES_MAX;
pub use footprint::Footprint;
pub use gradient_calls::GradientNorm;
pub use initialize::Partition;
pub use optimizer_swapper::{NO_PARAMETER, Optimizer};
pub use stats::OptimizerStats;
pub use stepping::StepError;
pub use view::{ParameterView, StateView};
