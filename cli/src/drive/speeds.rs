//! A quick look at a drive: how fast it reads, writes, and does both at once.

use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;
use tensorswap::base::config::Policy;
use tensorswap::sys::{self, DioAlignment};

use super::field::Field;
use super::figures::median;
use super::files::FileSet;
use super::measure::{Kind, Mover, turn};
use super::raw::RawMover;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::sizes::{shown, to_u64};

/// The files that are moved.
const FILES: usize = 8;
/// The middle of so many measurements counts.
const ROUNDS: u64 = 3;

/// Bytes each second.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Speeds {
    pub(crate) read_bytes_per_second: f64,
    pub(crate) write_bytes_per_second: f64,
    /// Both directions together.
    pub(crate) mixed_bytes_per_second: f64,
    /// Past the page cache; otherwise it is memory that was measured.
    pub(crate) is_direct: bool,
    /// `io_uring` or `threads`.
    pub(crate) way: &'static str,
    #[serde(skip)]
    pub(crate) alignment: Option<DioAlignment>,
}

/// Measures the drive below a directory with `total_bytes` of scratch files, and compares what was
/// written.
///
/// # Errors
/// `Refused` where files cannot be made there.
pub(crate) fn measure_speeds(place: &Path, total_bytes: u64) -> Result<Speeds, Failure> {
    let scratch = Scratch::new(place)?;
    let file_bytes = (total_bytes / to_u64(FILES)).next_multiple_of(4096);
    let file_len = usize::try_from(file_bytes)
        .map_err(|_| Failure::wrong("more than this machine can address"))?;
    check_space(place, file_bytes * to_u64(FILES))?;
    let files = FileSet::make(scratch.path(), "files", FILES, file_len)?;
    let alignment = files
        .first()
        .and_then(|file| sys::statx_dio(file.as_fd()).ok().flatten());
    let mut field = Field::new(file_bytes * to_u64(FILES), Policy::Prefer)?;
    let (mut mover, mut checker) = (RawMover::new(&field), RawMover::new(&field));
    let progress = Progress::of_parts(1 + ROUNDS * 3);
    progress.say("measuring the drive");
    mover.run(Kind::Out, &files, &field)?;
    files.settle()?;
    progress.advance(1);
    let mut samples: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for (index, kind) in (0..).zip(Kind::ALL) {
            let stamp = 1 + round * 3 + to_u64(index);
            let sample = turn(
                &mut mover,
                Some(&mut checker),
                kind,
                &files,
                &mut field,
                stamp,
            )?;
            samples[index].push(sample.bytes_per_second);
            progress.advance(1);
        }
    }
    let [out, read, mixed] = samples.map(median);
    Ok(Speeds {
        read_bytes_per_second: read,
        write_bytes_per_second: out,
        mixed_bytes_per_second: mixed,
        is_direct: files.is_direct,
        way: mover.name(),
        alignment,
    })
}

/// Refuses what would fill the file system.
pub(crate) fn check_space(place: &Path, needed_bytes: u64) -> Result<(), Failure> {
    let directory = std::fs::File::open(place).map_err(Failure::at("open", place))?;
    let free_bytes = sys::free_bytes(directory.as_fd()).unwrap_or(u64::MAX);
    match needed_bytes <= free_bytes {
        true => Ok(()),
        false => Err(Failure::Refused(format!(
            "{} are needed in {} for a while, and {} are free",
            shown(needed_bytes),
            place.display(),
            shown(free_bytes)
        ))),
    }
}
