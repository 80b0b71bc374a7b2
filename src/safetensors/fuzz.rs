//! What fuzzers call: the readers of headers and indexes, on any bytes.

use std::path::{Component, Path};

use super::header::{Header, PREFIX_BYTES};
use super::index::Index;
use crate::base::units::to_u64;

/// Reads `bytes` as a safetensors file.
///
/// # Panics
/// Where a tensor is found outside of the file: that is what fuzzing looks for.
pub(crate) fn read_any_header(bytes: &[u8]) {
    let file_bytes = to_u64(bytes.len());
    let Some((prefix, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Ok(len_bytes) = Header::len_bytes(*prefix, file_bytes) else {
        return;
    };
    let (json, data) = rest.split_at(usize::try_from(len_bytes).unwrap_or(0));
    let Ok(header) = Header::parse(json, file_bytes) else {
        return;
    };
    let mut data_bytes = 0;
    for name in header.names() {
        let found = header.find(&name);
        assert!(found.is_some(), "a tensor that is listed is found");
        let Some(found) = found else {
            return;
        };
        assert!(found.file_offset >= PREFIX_BYTES + len_bytes);
        if let Ok(dtype) = found.dtype {
            let end = found.file_offset + found.numel * dtype.size_bytes();
            assert!(end <= file_bytes);
            data_bytes += found.numel * dtype.size_bytes();
        }
    }
    assert!(data_bytes <= to_u64(data.len()), "no two tensors overlap");
}

/// Reads `bytes` as an index.
///
/// # Panics
/// Where it leads out of its directory.
pub(crate) fn read_any_index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes) else {
        return;
    };
    for file in index.files() {
        let mut components = Path::new(file).components();
        assert!(matches!(components.next(), Some(Component::Normal(name)) if name == file));
        assert_eq!(components.next(), None);
    }
}
