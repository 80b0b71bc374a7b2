//! The store: records on storage, crash-consistent.
#![allow(dead_code)]

pub(crate) mod layout;
pub(crate) mod store;
pub(crate) mod version;

pub use layout::STATES_MAX;
#[allow(unused_imports)]
pub(crate) use layout::{BLOCK_BYTES, Layout, StateSpec};
#[allow(unused_imports)]
pub(crate) use store::Store;
pub(crate) use version::Version;
