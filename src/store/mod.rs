//! The store: records on storage, crash-consistent.
//!
//! Owns a directory with a lock, one data file in which every record has two slots, and a log that
//! says which slot of which record counts. The bytes of records are moved by the engine; the store
//! reserves their space, syncs them, and makes versions of them durable by one entry in the log.
//! Never writes to the data file beyond its header, never changes what a log holds but by cutting
//! off what no reader could read, never opens with anything but what was committed last.
//! `docs/FORMAT.md` describes every byte.
//!
//! [`rebalance`] moves a store to other directories: it copies records into a new one by itself.
//!
//! `layout`, `version`, `entry`, `header`, `table` and `replay` are pure. Any thread may call
//! `Store`, which the optimizer uses, and [`StoreReader`], which looks at a store without its lock
//! and changes nothing; calls run on the thread of the caller.

mod copying;
mod directory;
mod entry;
mod file;
mod fuzz;
mod header;
pub(crate) mod layout;
mod log_file;
mod measure;
mod moving;
mod places;
mod reader;
mod rebalance;
mod replay;
mod reservation;
#[expect(
    clippy::module_inception,
    reason = "named after the one type that others use"
)]
pub(crate) mod store;
mod striping;
mod table;
pub(crate) mod version;

#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod rebalance_power_cut_tests;
#[cfg(test)]
mod rebalance_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod store_tests;

pub(crate) use copying::{CopiedVersion, Copying, Destination, FileRange, Observer, Part};
pub(crate) use directory::{absolute, c_path, join, make_path, rank_name, regular_file};
pub(crate) use file::{Role, StoreFile};
pub(crate) use fuzz::read_any_log;
pub use layout::STATES_MAX;
pub(crate) use layout::{BLOCK_BYTES, Layout, StateSpec};
pub use reader::{StoreReader, StoredParameter, StoredState};
pub use rebalance::{RebalanceOptions, Rebalanced, rebalance};
pub(crate) use store::Store;
pub(crate) use striping::Piece;
pub(crate) use table::{NAME_BYTES_MAX, StoredRecord, Table, USER_DATA_BYTES_MAX, push_tightly};
pub(crate) use version::{DATA_SLOTS, SLOTS, Version, is_in};
