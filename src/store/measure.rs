//! How fast the places of a store are, measured with a file of its own in each.
//!
//! For weights, only the ratios count. A place is written, read, and written and read at once, each
//! for a tenth of a second, because that is what a step does to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::directory::{Directory, PROBE};
use super::places::Directories;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{GIB, KIB, MIB, to_u64, to_usize};
use crate::io::{Direction, Engine, KEEP_LENGTH, Priority, Tensor, Waiting};
use crate::memory::Buffer;
use std::ffi::CStr;

/// Length of the file that is measured with. One half is read while the other one is written.
const PROBE_BYTES: u64 = 64 * MIB;
const PART_BYTES: u64 = 4 * MIB;
/// How long each kind of transfer is measured.
const MEASURED: Duration = Duration::from_millis(100);
/// What a drive must have moved for its bandwidth to be known.
const ACHIEVED_BYTES_MIN: u64 = GIB;
/// Weights stay as they are where no share is off by more than this part of it.
const FAR: f64 = 0.25;

/// How fast each directory is, relative to the others. Takes some hundred milliseconds for each.
///
/// # Errors
/// What kept one from being written or read; `NoMemory`.
pub(crate) fn shares_of(engine: &Engine, directories: &Directories) -> Result<Vec<f64>> {
    let memory = engine.allocate_buffer(PROBE_BYTES)?;
    let mut shares = Vec::new();
    for directory in directories.iter() {
        // Nothing follows a link that somebody may have put there.
        directory.remove(PROBE)?;
        let share = measure(engine, &memory, &directory.path_of(PROBE));
        directory.remove(PROBE)?;
        shares.push(share?);
    }
    Ok(shares)
}

/// What the drives have achieved so far, relative to each other; `None` until each of them has moved
/// enough to tell.
pub(crate) fn achieved_shares(engine: &Engine, directories: &Directories) -> Option<Vec<f64>> {
    let devices = engine.devices();
    let share_of = |directory: &Directory| {
        let device = directory.device()?;
        let figures = devices.iter().find(|figures| figures.device == device)?;
        let moved_bytes = figures.read_bytes + figures.written_bytes;
        let seconds = figures.busy.as_secs_f64();
        // Exact up to 2^53.
        (moved_bytes >= ACHIEVED_BYTES_MIN && seconds > 0.0)
            .then(|| (moved_bytes / KIB) as f64 / seconds)
    };
    directories.iter().map(share_of).collect()
}

/// Whether a place's share by weights is farther from what it achieves than measuring is exact.
pub(crate) fn is_far(weights: &[u32], shares: &[f64]) -> bool {
    let (dealt, achieved) = (weights.iter().sum::<u32>(), shares.iter().sum::<f64>());
    weights.iter().zip(shares).any(|(weight, share)| {
        let (weight, share) = (f64::from(*weight) / f64::from(dealt), share / achieved);
        (weight - share).abs() > FAR * share
    })
}

/// How often a file is written, read, and both, in a second.
fn measure(engine: &Engine, memory: &Buffer, path: &CStr) -> Result<f64> {
    use Direction::{In, Out};
    let (first, second) = (0..PROBE_BYTES / 2, PROBE_BYTES / 2..PROBE_BYTES);
    let parts = |range: &std::ops::Range<u64>| -> Result<Vec<Tensor>> {
        let starts = range
            .clone()
            .step_by(usize::try_from(PART_BYTES).unwrap_or(1));
        starts
            .map(|start| part(memory, start, PART_BYTES, start))
            .collect()
    };
    let (first, second) = (parts(&first)?, parts(&second)?);
    let all = [first.clone(), second.clone()].concat();
    // Blocks that exist are what a store writes; the first pass makes them.
    run(engine, path, &[(Out, &all)])?;
    let passes: [&[(Direction, &[Tensor])]; 3] = [
        &[(Out, &all)],
        &[(In, &all)],
        &[(Out, &first), (In, &second)],
    ];
    let mut seconds = 0.0;
    for pass in passes {
        let (started, mut count) = (Instant::now(), 0.0);
        while started.elapsed() < MEASURED {
            run(engine, path, pass)?;
            count += 1.0;
        }
        // Each kind counts the same, however many passes it took.
        seconds += started.elapsed().as_secs_f64() / count;
    }
    Ok(1.0 / seconds)
}

/// Moves lists of parts at once.
fn run(engine: &Engine, path: &CStr, lists: &[(Direction, &[Tensor])]) -> Result<()> {
    let mut begun: Vec<Arc<Waiting>> = Vec::new();
    let mut outcome = Ok(());
    for (direction, tensors) in lists {
        let waiting: Arc<Waiting> = Arc::default();
        let paths = vec![path; tensors.len()];
        match waiting.begin(engine, *direction, Priority::Foreground, tensors, &paths) {
            Ok(()) => begun.push(waiting),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    for waiting in begun {
        outcome = outcome.and(waiting.end());
    }
    outcome
}

/// Bytes of a buffer from `start` on, to be moved to or from an offset of a file.
///
/// # Errors
/// `Internal` where they are not in the buffer.
pub(super) fn part(
    memory: &Buffer,
    start: u64,
    len_bytes: u64,
    file_offset: u64,
) -> Result<Tensor> {
    let range = memory
        .range()
        .slice(to_usize(start)?, to_usize(len_bytes)?)
        .ok_or_else(|| Error::Internal("a part lies outside of its buffer".to_owned()))?;
    Ok(Tensor {
        memory: range,
        numel: to_u64(range.len()),
        dtype: Dtype::Bytes,
        flags: KEEP_LENGTH,
        file_offset,
        user_tag: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_far_from_shares_that_differ_by_more_than_a_quarter() {
        assert!(!is_far(&[1, 1], &[5.0, 5.0]));
        assert!(!is_far(&[1, 1], &[5.0, 6.0]));
        assert!(is_far(&[1, 1], &[5.0, 10.0]));
        assert!(is_far(&[1, 2], &[5.0, 5.0]));
        assert!(!is_far(&[1, 2], &[5.0, 10.5]));
    }
}
