//! Comparing the checksums of everything that a store holds.

use std::path::PathBuf;

use serde::Serialize;
use tensorswap::store::StoreReader;

use super::is_damage;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::sizes::to_u64;

/// BOUND: how often a store that is written to meanwhile is looked at again.
const PASSES_MAX: u32 = 8;

/// What a verification found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verified {
    pub(crate) compared_bytes: u64,
    /// Parameters of which no checksums are kept.
    pub(crate) unchecked_count: u64,
    pub(crate) damages: Vec<Damage>,
    /// Parameters that a process wrote again and again while they were read.
    pub(crate) unsettled_count: u64,
}

/// One parameter that is not as it was written.
#[derive(Debug, Serialize)]
pub(crate) struct Damage {
    pub(crate) id: u64,
    pub(crate) message: String,
}

/// Verifies every parameter. Gives back the reader that saw the store last.
///
/// Whoever uses the store may write over what this reader takes for the durable version. So what
/// looks damaged is looked at again as long as the store says that it has a newer version.
pub(crate) fn verify(
    places: &[PathBuf],
    mut reader: StoreReader,
) -> Result<(StoreReader, Verified), Failure> {
    let generations = |reader: &StoreReader| -> Vec<u32> {
        let parameters = reader.parameters();
        parameters.map(|parameter| parameter.generation).collect()
    };
    let total = reader.parameters().map(|parameter| parameter.extent_bytes);
    let progress = Progress::of_bytes(total.sum());
    let mut verified = Verified::default();
    let mut left: Vec<usize> = (0..reader.parameters().len()).collect();
    for pass in 1.. {
        let sizes: Vec<u64> = reader
            .parameters()
            .map(|parameter| parameter.extent_bytes)
            .collect();
        let mut wrong = Vec::new();
        for index in left {
            match reader.verify(index) {
                Ok(bytes) => verified.compared_bytes += bytes,
                Err(error) if is_damage(&error) => wrong.push((index, error)),
                Err(error) => return Err(error.into()),
            }
            progress.advance(sizes[index]);
        }
        if wrong.is_empty() {
            break;
        }
        let (before, identity) = (generations(&reader), reader.identity());
        reader = StoreReader::open(places)?;
        if reader.identity() != identity {
            return Err(Failure::Refused(
                "the store was replaced meanwhile".to_owned(),
            ));
        }
        let after = generations(&reader);
        let ids: Vec<u64> = reader.parameters().map(|parameter| parameter.id).collect();
        left = Vec::new();
        for (index, error) in wrong {
            if before.get(index) != after.get(index) {
                left.push(index);
            } else {
                verified.damages.push(Damage {
                    id: ids[index],
                    message: error.to_string(),
                });
            }
        }
        if left.is_empty() || pass == PASSES_MAX {
            verified.unsettled_count = to_u64(left.len());
            break;
        }
    }
    let unchecked = reader
        .parameters()
        .filter(|parameter| parameter.generation > 0 && !parameter.is_checked);
    verified.unchecked_count = to_u64(unchecked.count());
    Ok((reader, verified))
}
