//! What the benchmarks share: memory, figures, and the bare ring loop. They are those of the
//! command line tool, so that both measure a drive in one way.
#![allow(dead_code, reason = "each benchmark uses a part")]

#[path = "../../cli/src/drive/area.rs"]
pub(crate) mod area;
#[path = "../../cli/src/drive/figures.rs"]
pub(crate) mod figures;
pub(crate) mod options;
#[path = "../../cli/src/drive/ring.rs"]
pub(crate) mod ring;
