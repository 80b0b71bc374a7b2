//! What the benchmarks share: memory, figures, and the bare ring loop.
#![allow(dead_code, reason = "each benchmark uses a part")]

pub(crate) mod area;
pub(crate) mod figures;
pub(crate) mod options;
pub(crate) mod ring;
