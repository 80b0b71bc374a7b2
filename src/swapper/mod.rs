//! The `AsyncTensorSwapper`: tensors are copied into pinned staging buffers, and their memory is
//! the caller's again at once, while the buffers are written in the background.
//!
//! Owns which staging buffer is free, being filled or in flight (`pool`), which tensors lie where
//! in it (`staged`), and hears of the end of each write (`sink`). A buffer becomes free by
//! itself as soon as its own writes are done; nothing ever waits for all buffers where one would
//! do. What DeepSpeed's class of this name does, without its stall.
//!
//! Writing starts early: what is staged is submitted when nothing is in flight, when enough has
//! gathered for the drive to be busy, and when the buffer is full; a buffer may be filled further
//! while its first part is being written. So single tensors start at once and many small ones
//! share a request.
//!
//! Never keeps a tensor's address beyond a call, never starts a thread. One thread at a time per
//! swapper ([`Error::Busy`](crate::base::error::Error::Busy) for a second); figures may be read by
//! any thread.

mod async_tensor_swapper;
mod pool;
mod sink;
mod staged;
mod staging;
mod stats;

pub use async_tensor_swapper::Swapper;
pub use stats::SwapperStats;
