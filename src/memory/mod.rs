//! Memory that storage reads and writes: pinned buffers, and the ranges that requests name.
//!
//! Owns the pages of the buffers it allocates ([`PinnedMemory`]), the moment at which a buffer's
//! memory goes back to whom it belongs ([`Buffer`]), the answer to "is this pointer pinned?"
//! ([`Registry`]), copying into and out of memory known by address ([`MemoryRange`], [`copy`]),
//! and arithmetic on the values that lie in it (`numbers`). It is, with the system calls and the ring, where the library touches memory through
//! raw pointers; what lies above sees ranges and checked copies.
//!
//! Never does I/O, never starts a thread, knows no ring: that a buffer is registered with one is
//! a number kept here for the driver, and an object that is told when the buffer goes.
//!
//! Everything here runs on the thread of its caller and may be used from any. Releasing runs on
//! the thread that drops the last reference, or on the driver's where the ring has to let go
//! first.
//!
//! Invariants:
//!
//! * A buffer's memory is neither unmapped nor given back while a reference to the buffer exists;
//!   whoever hands the memory to the kernel holds one until the kernel is done with it.
//! * A release hook runs exactly once.
//! * What the registry finds is alive, and stays so while the caller holds it.

#![allow(unsafe_code)]

mod block;
pub mod buffer;
pub mod copy;
mod events;
pub mod latch;
pub(crate) mod numbers;
pub mod pinned;
pub mod range;
pub mod registry;

#[cfg(test)]
mod buffer_tests;

pub(crate) use block::Block;
pub use buffer::{Buffer, BufferKind, RING_PIECE_BYTES, Reclaim, Reclaimed, ReleaseHook};
pub use latch::Latch;
pub use pinned::{PageKind, PinnedMemory};
pub use range::MemoryRange;
pub use registry::Registry;
