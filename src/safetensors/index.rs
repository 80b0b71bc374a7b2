//! The index of a sharded model: which tensor is in which file. Pure.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;

/// The longest index that is read.
pub(super) const INDEX_BYTES_MAX: u64 = 100_000_000;
/// How the name of an index ends.
pub(super) const INDEX_SUFFIX: &str = ".index.json";

const METADATA: &str = "metadata";
const WEIGHT_MAP: &str = "weight_map";

/// The names of files by the names of tensors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index(HashMap<String, String>);

impl Index {
    /// Reads an index, all of it.
    ///
    /// # Errors
    /// What is wrong with it, in words: no JSON, no `weight_map`, or one that names a file with a path.
    pub(super) fn parse(json: &[u8]) -> Result<Index, String> {
        let unreadable = |error| format!("it is no index of safetensors files: {error}");
        let mut parts: HashMap<String, &RawValue> =
            serde_json::from_slice(json).map_err(unreadable)?;
        let map = parts.remove(WEIGHT_MAP).ok_or_else(|| {
            format!("it has no {WEIGHT_MAP}: it is no index of safetensors files")
        })?;
        let map: HashMap<String, String> = serde_json::from_str(map.get()).map_err(unreadable)?;
        for (tensor, file) in &map {
            let is_plain = !matches!(file.as_str(), "" | "." | "..") && !file.contains(['/', '\0']);
            if !is_plain {
                return Err(format!(
                    "it says that tensor {tensor} is in {file:?}: a file in its own directory was expected"
                ));
            }
        }
        Ok(Index(map))
    }

    /// The file that has this tensor.
    pub(super) fn find(&self, tensor: &str) -> Option<&str> {
        self.0.get(tensor).map(String::as_str)
    }

    /// The files of all tensors.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
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
    let map: BTreeMap<&str, &str> = files.collect();
    let index = BTreeMap::from([
        (METADATA, serde_json::json!({ "total_size": total_bytes })),
        (WEIGHT_MAP, serde_json::json!(map)),
    ]);
    let mut bytes = serde_json::to_vec_pretty(&index).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}
