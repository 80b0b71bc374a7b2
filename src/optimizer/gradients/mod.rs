//! Gradients between backward and the step.
//!
//! Owns what was swapped out of each parameter's gradient since the last step: which elements
//! (`intervals`), their values in memory or in a file (`gradient`, `keeping`, `spill`), and the
//! pinned buffers in which the step gets those that cannot be given out where they lie (`rooms`,
//! `lent`).
//!
//! Gradients wait in their own 16- or 32-bit type in plain memory, and go to files only where
//! they are told to or do not fit: keeping them from storage made backward up to 17 times faster
//! (Maurya et al., "MLP-Offload", 2025).
//!
//! Never looks at records, steps or the store. Starts no thread.
//!
//! Invariants:
//!
//! * Values of elements that were not written are never read: whatever memory and files hold of
//!   earlier steps cannot be seen again.
//! * A gradient is in the table, or with exactly one caller, who works on it without any lock of
//!   the table.

mod gradient;
#[expect(
    clippy::module_inception,
    reason = "the file holds the type of that name"
)]
mod gradients;
mod intervals;
mod keeping;
mod lent;
mod rooms;
mod spill;
#[cfg(test)]
mod tests;

pub(crate) use gradients::Gradients;
pub(crate) use lent::Lent;
