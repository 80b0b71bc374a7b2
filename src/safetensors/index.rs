//! The index of a sharded model: which tensor is in which file. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// The longest index that is read.
pub(super) const INDEX_BYTES_MAX: u64 = 100_000_000;
/// How the name of an index ends.
pub(super) const INDEX_SUFFIX: &str = ".index.json";

/// The names of files by the names of tensors.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Index {
    weight_map: HashMap<String, String>,
}

#[derive(Serialize)]
struct NewIndex<'a> {
    metadata: Total,
    weight_map: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Total {
    total_size: u64,
}

impl Index {
    /// Reads an index, all of it.
    ///
    /// # Errors
    /// What is wrong with it, in words: no JSON, no `weight_map`, or one that names a file with a path.
    pub(super) fn parse(json: &[u8]) -> Result<Index, String> {
        let index: Index = serde_json::from_slice(json)
            .map_err(|error| format!("it is no index of safetensors files: {error}"))?;
        for (tensor, file) in &index.weight_map {
            let is_plain = !matches!(file.as_str(), "" | "." | "..") && !file.contains(['/', '\0']);
            if !is_plain {
                return Err(format!(
                    "it says that tensor {tensor} is in {file:?}: a file in its own directory was expected"
                ));
            }
        }
        Ok(index)
    }

    /// The file that has this tensor.
    pub(super) fn find(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }

    /// The files of all tensors.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.weight_map.values().map(String::as_str)
    }
}

/// Makes an index.
///
/// # Errors
/// What JSON has against it, in words.
pub(super) fn encode<'a>(
    total_bytes: u64,
    files: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>, String> {
    let index = NewIndex {
        metadata: Total {
            total_size: total_bytes,
        },
        weight_map: files.collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&index).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}
