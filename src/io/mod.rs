//! The engine: requests in, tickets out, bytes moved between memory and files.
//!
//! Owns the tickets, the driver thread, the metadata threads and the backend. From a caller's list
//! of tensors and paths ([`tensor`], `request`) the driver makes tasks, keeps them in order, has
//! the pure `planner` cut them into operations, and moves those through one of the `backend`s.
//! Never keeps a copy of a caller's data beyond the end of its request, never starts a transfer
//! that was not asked for, never reports success for a byte that it did not see moved.
//!
//! Threads: any thread may call [`Engine`]; everything under way belongs to the driver thread.

mod backend;
mod counters;
mod driver;
mod engine;
mod metrics;
mod planner;
mod request;
mod start;
mod stats;
mod storage;
mod store_faults;
pub mod tensor;
mod ticket;
mod waiting;

pub use backend::fault::FaultPlan;
pub use engine::Engine;
pub(crate) use metrics::{Metric, Metrics};
pub use stats::{DeviceStats, DirectionStats, EngineStats};
pub(crate) use storage::FileIdentity;
pub use store_faults::{StoreCall, StoreFaults};
pub(crate) use tensor::KEEP_LENGTH;
pub use tensor::Tensor;
pub use ticket::{Completion, Ticket};
pub(crate) use waiting::Waiting;

pub(crate) use request::{
    Direction, Failure, Length, Outcome, Priority, Request, Segment, Sink, length_of, sort_list,
};
