//! Stores in training, in directories that go with them.

use std::io::{Error, Result};
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use crate::cases::{Case, Types};
use crate::options::Options;
use crate::shapes::Shape;
use crate::table::Turn;
use crate::training::Training;

pub(crate) fn other(error: impl std::fmt::Display) -> Error {
    Error::other(error.to_string())
}

/// A directory for a section's files.
pub(crate) fn scratch(parent: &Path) -> Result<TempDir> {
    tempfile::Builder::new().prefix("store-").tempdir_in(parent)
}

/// Equal parameters, so many hundredths of what the options say.
pub(crate) fn shape(options: &Options, percent: usize) -> Shape {
    let count = (options.parameters.get() * percent / 100).max(1);
    let numel = (options.elements.get() / options.scale.get()).max(1);
    Shape {
        name: format!("{count} x {numel} elements"),
        numels: vec![numel; count],
    }
}

/// Bytes of the state of a model.
pub(crate) fn state_bytes(shape: &Shape) -> usize {
    shape.elements() * Types::F32.element_bytes()
}

/// Makes a store of the model at these paths, as the key `path` takes them.
pub(crate) fn train_at(options: &Options, shape: &Shape, paths: &str) -> Result<Training> {
    let mut options = options.clone();
    options
        .common
        .set
        .push(("path".to_owned(), paths.to_owned()));
    Training::new(&options, shape, Types::F32)
}

/// Steps in one store: each made durable, the time until the last one is included.
pub(crate) fn steps(training: &mut Training, case: &Case, count: usize) -> Result<Turn> {
    let sample = training.turn(case, count)?;
    Ok(Turn {
        seconds: sample.seconds + sample.commit_seconds / count as f64,
        bytes: sample.read_bytes + sample.written_bytes,
        depth: sample.depth_peak,
    })
}

/// How every section steps.
pub(crate) fn synced() -> Result<Case> {
    let wanted = |case: &Case| case.name == "pipelined, sync=commit";
    let mut cases = crate::cases::cases().into_iter();
    cases.find(wanted).ok_or_else(|| other("no such case"))
}

/// How long something takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let made = work()?;
    Ok((start.elapsed().as_secs_f64(), made))
}

/// A path as text.
pub(crate) fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| other("a strange path"))?;
    Ok(text.to_owned())
}
