//! What goes into which file of an export, and where. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use ::safetensors::tensor::TensorInfo;

use super::header::{HeaderParts, file_dtype};
use super::index::{self, INDEX_SUFFIX};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{to_u64, to_usize};

const SUFFIX: &str = ".safetensors";
/// The sizes that elements have, the largest first: the order of the data in a file.
pub(super) const ELEMENT_BYTES: [u64; 4] = [8, 4, 2, 1];

/// A tensor to be exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name in the file.
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// It has one dimension of so many elements.
    pub(crate) numel: u64,
}

impl Entry {
    /// Its place in [`ELEMENT_BYTES`].
    pub(super) fn section(&self) -> usize {
        let is_its = |size: &u64| *size == self.dtype.size_bytes();
        ELEMENT_BYTES.iter().position(is_its).unwrap_or(0)
    }

    /// Its length.
    ///
    /// # Errors
    /// `InvalidArgument` for one that cannot be.
    pub(super) fn len_bytes(&self) -> Result<u64> {
        self.dtype.bytes_of(self.numel)
    }
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePlan {
    pub(super) name: String,
    /// Its tensors.
    pub(super) entries: Range<usize>,
    /// What comes before the data.
    pub(super) header: Vec<u8>,
    /// Where the tensors with elements of each size begin. Those of one size follow each other in their
    /// order, so each of these runs is written from front to back.
    pub(super) sections: [u64; ELEMENT_BYTES.len()],
    pub(super) len_bytes: u64,
}

/// All files of an export, whose tensors come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(super) entries: Vec<Entry>,
    pub(super) files: Vec<FilePlan>,
    /// Name and content of the index, where there are several files.
    pub(super) index: Option<(String, Vec<u8>)>,
}

impl Plan {
    /// Plans an export as `name`. With `shard_bytes_max`, tensors that would make the data of a file
    /// longer begin a further one; a tensor is never cut. `metadata` goes into every file.
    ///
    /// # Errors
    /// `InvalidArgument` for tensors that are too large, or too many for one file.
    pub(crate) fn new(
        name: &str,
        entries: Vec<Entry>,
        metadata: &BTreeMap<&'static str, String>,
        shard_bytes_max: u64,
    ) -> Result<Plan> {
        let runs = cut(&entries, shard_bytes_max)?;
        let names = names_of(name, runs.len());
        let mut files = Vec::with_capacity(runs.len());
        for (name, run) in names.into_iter().zip(runs) {
            files.push(plan_file(name, &entries, run, metadata)?);
        }
        let mut index = None;
        if files.len() > 1 {
            let mut places = Vec::with_capacity(entries.len());
            let mut total_bytes = 0;
            for file in &files {
                for entry in &entries[file.entries.clone()] {
                    places.push((entry.name.as_str(), file.name.as_str()));
                    total_bytes += entry.len_bytes()?;
                }
            }
            let content = index::encode(total_bytes, places.into_iter());
            index = Some((
                format!("{name}{INDEX_SUFFIX}"),
                content.map_err(Error::Internal)?,
            ));
        }
        Ok(Plan {
            entries,
            files,
            index,
        })
    }
}

/// The tensors of each file: at least one file, with at least one tensor where there is any.
fn cut(entries: &[Entry], shard_bytes_max: u64) -> Result<Vec<Range<usize>>> {
    let mut runs = Vec::new();
    let (mut start, mut run_bytes) = (0, 0_u64);
    for (index, entry) in entries.iter().enumerate() {
        let len_bytes = entry.len_bytes()?;
        let with_it = run_bytes.checked_add(len_bytes);
        let with_it =
            with_it.ok_or_else(|| Error::invalid("the tensors are too large for a file"))?;
        if shard_bytes_max > 0 && with_it > shard_bytes_max && index > start {
            runs.push(start..index);
            (start, run_bytes) = (index, len_bytes);
        } else {
            run_bytes = with_it;
        }
    }
    runs.push(start..entries.len());
    Ok(runs)
}

/// The names of so many files, as Hugging Face's libraries have them.
fn names_of(name: &str, count: usize) -> Vec<String> {
    if count == 1 {
        return vec![name.to_owned()];
    }
    let (stem, suffix) = match name.strip_suffix(SUFFIX) {
        Some(stem) => (stem, SUFFIX),
        None => (name, ""),
    };
    let of_shard = |shard| format!("{stem}-{shard:05}-of-{count:05}{suffix}");
    (1..=count).map(of_shard).collect()
}

fn plan_file(
    name: String,
    all: &[Entry],
    run: Range<usize>,
    metadata: &BTreeMap<&'static str, String>,
) -> Result<FilePlan> {
    let mut sorted: Vec<&Entry> = all[run.clone()].iter().collect();
    // Readers look at the data in place: each tensor has to be aligned for its type, and there may be
    // no holes.
    sorted.sort_by_key(|entry| entry.section());
    let mut sections = [0; ELEMENT_BYTES.len()];
    let mut tensors = Vec::with_capacity(sorted.len());
    let mut end = 0;
    for entry in sorted {
        let start = end;
        end += entry.len_bytes()?;
        for later in &mut sections[entry.section() + 1..] {
            *later = end;
        }
        let info = TensorInfo {
            dtype: file_dtype(entry.dtype),
            shape: vec![to_usize(entry.numel)?],
            data_offsets: (to_usize(start)?, to_usize(end)?),
        };
        tensors.push((entry.name.as_str(), info));
    }
    let header = HeaderParts { metadata, tensors }.encode();
    let header = header.map_err(Error::InvalidArgument)?;
    let data_start = to_u64(header.len());
    Ok(FilePlan {
        name,
        entries: run,
        sections: sections.map(|start| data_start + start),
        len_bytes: data_start + end,
        header,
    })
}
