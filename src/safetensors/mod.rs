//! Files of tensors that others can read, and the ones that others wrote: the safetensors format.
//!
//! Owns what such files look like, the names of an export's parts, and that an export is either there
//! as a whole or not at all. Never knows where values come from nor where they go. The crate
//! `safetensors` knows the header's JSON; the data goes through the engine, in bounded memory.
//!
//! `header`, `index` and `plan` are pure. Everything runs on the thread of the caller, who alone uses an
//! [`Export`] or a [`Source`].
//!
//! Invariants:
//!
//! * No length, offset or name from a file is used before it was checked, and nothing is allocated for one
//!   that the file could not hold.
//! * Nothing has its final name before all of an export is on storage; the index is renamed last, and the
//!   index of an export before is gone by then.

mod export;
mod fuzz;
mod header;
mod index;
mod partial;
mod plan;
mod source;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use export::Export;
pub(crate) use fuzz::{read_any_header, read_any_index};
pub(crate) use header::METADATA as RESERVED_NAME;
pub(crate) use plan::{Entry, Plan};
pub(crate) use source::Source;
