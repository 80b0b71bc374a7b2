//! One measurement: prepared, timed, compared.

use std::io::Error;
use std::ops::Range;
use std::time::Instant;

use serde::Serialize;

use super::field::Field;
use super::figures::cpu_seconds;
use super::files::FileSet;
use super::ring::Direction;
use crate::failure::Failure;
use crate::sizes::{as_f64, to_u64};

/// What is done with the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// All are written over.
    Out,
    /// All are read.
    In,
    /// The first half is read while the second half is written over.
    Mixed,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Out, Kind::In, Kind::Mixed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Out => "out",
            Kind::In => "in",
            Kind::Mixed => "mixed",
        }
    }

    /// What moves of so many files: the files that are read, and those that are written.
    pub(crate) fn parts(self, len: usize) -> [(Direction, Range<usize>); 2] {
        let (read, written) = match self {
            Kind::Out => (0..0, 0..len),
            Kind::In => (0..len, len..len),
            Kind::Mixed => (0..len / 2, len / 2..len),
        };
        [(Direction::In, read), (Direction::Out, written)]
    }
}

/// Who moves the data.
pub(crate) trait Mover {
    /// Moves everything once, from the source to the files and from the files to the target.
    fn run(&mut self, kind: Kind, files: &FileSet, field: &Field) -> Result<(), Error>;

    /// The most transfers that were under way at once, since it was made.
    fn depth_peak(&self) -> u64;
}

/// Whether what was written is read back and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    Yes,
    No,
}

/// What a measurement took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) bytes_per_second: f64,
    pub(crate) cpu_seconds: f64,
}

/// Lets `mover` do its work once, and compares what came of it. `stamp` was not used before. With a
/// `checker`, what was written is read back by it, and compared as well.
///
/// Before and after, the files hold what the source does.
///
/// # Errors
/// `Refused` where something cannot be moved; `Damaged` where it came back wrong.
pub(crate) fn turn(
    mover: &mut dyn Mover,
    checker: Option<&mut dyn Mover>,
    kind: Kind,
    files: &FileSet,
    field: &mut Field,
    stamp: u64,
) -> Result<Sample, Failure> {
    let bytes = files.file_bytes;
    let [(_, read), (_, written)] = kind.parts(files.len());
    for index in written.clone() {
        field
            .source
            .part(index, bytes)
            .stamp(stamp * to_u64(files.len()) + to_u64(index));
    }
    clear(field, files, read.clone());
    if !files.is_direct {
        // Past the page cache nothing is left to the next measurement.
        files.settle()?;
    }
    let (start, cpu_before) = (Instant::now(), cpu_seconds());
    mover
        .run(kind, files, field)
        .map_err(|error| moving(kind, &error))?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds() - cpu_before;
    compare(field, files, read, "memory is not what the files hold")?;
    if let Some(checker) = checker
        && !written.is_empty()
    {
        clear(field, files, written.clone());
        checker
            .run(Kind::In, files, field)
            .map_err(|error| moving(Kind::In, &error))?;
        compare(field, files, written, "a file is not as it was written")?;
    }
    Ok(Sample {
        bytes_per_second: as_f64(to_u64(files.total_bytes())) / seconds,
        cpu_seconds,
    })
}

fn clear(field: &mut Field, files: &FileSet, range: Range<usize>) {
    let bytes = files.file_bytes;
    field.target.as_mut_slice()[range.start * bytes..range.end * bytes].fill(0);
}

fn compare(field: &Field, files: &FileSet, range: Range<usize>, what: &str) -> Result<(), Failure> {
    let bytes = files.file_bytes;
    let range = range.start * bytes..range.end * bytes;
    if field.target.as_slice()[range.clone()] == field.source.as_slice()[range] {
        return Ok(());
    }
    Err(Failure::Damaged(format!(
        "the drive or this program is broken: {what}"
    )))
}

fn moving(kind: Kind, error: &Error) -> Failure {
    Failure::Refused(format!(
        "{}: {}",
        kind.name(),
        crate::failure::words_of(error)
    ))
}
