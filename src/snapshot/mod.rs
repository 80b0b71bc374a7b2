//! Snapshots: all states of all parameters as of one step, in a directory of their own.
//!
//! Owns the form of such a directory: `manifest.json`, its checksum, `data`. The bytes of states
//! are put there by whoever makes the snapshot, and read by whoever restores it; here are made,
//! published in one step, opened and verified the files around them, and parameters are cut anew
//! for another number of ranks. Never changes a snapshot that was published, never takes a
//! half-made one for whole, and believes nothing that a manifest says before it was checked.
//! `docs/FORMAT.md` describes every field.
//!
//! `manifest`, `pieces` and `reshard_plan` are pure. Everything runs on the thread of the caller, and blocks.

mod fuzz;
mod manifest;
mod partial;
mod pieces;
mod reader;
mod reshard;
mod reshard_plan;
mod writer;

#[cfg(test)]
mod manifest_tests;
#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod reshard_tests;
#[cfg(test)]
mod snapshot_tests;

pub(crate) use fuzz::read_any_manifest;
pub(crate) use manifest::{Manifest, SnapshotParameter, StateImage};
pub use reader::{SavedParameter, Snapshot};
pub use reshard::{Resharded, Resharding};
pub use reshard_plan::ReshardOptions;
pub(crate) use writer::SnapshotWriter;

use std::ffi::CStr;

const MANIFEST: &CStr = c"manifest.json";
const MANIFEST_CHECKSUM: &CStr = c"manifest.json.crc32c";
const DATA: &CStr = c"data";
