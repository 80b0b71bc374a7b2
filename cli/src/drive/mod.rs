//! Drives: moving data for measuring, by a loop that does nothing else, and by the engine; and what
//! they tell of their lives.
//!
//! Owns the memory and the files that are moved. Everything runs on the caller's thread, one
//! measurement after the other. [`ring`], [`area`] and [`figures`] are the benchmarks' of the
//! library as well.
#![allow(unsafe_code, reason = "memory is shared with the kernel")]

pub(crate) mod area;
mod engine;
mod field;
pub(crate) mod figures;
mod files;
mod measure;
mod raw;
mod ring;
mod smart;
mod speeds;
mod threads;

pub(crate) use engine::EngineMover;
pub(crate) use field::Field;
pub(crate) use files::{FileSet, raise_file_limit};
pub(crate) use measure::{Kind, Mover, Sample, Verify, turn};
pub(crate) use raw::RawMover;
pub(crate) use smart::{Smart, smart_of};
pub(crate) use speeds::{Speeds, check_space, measure_speeds};
