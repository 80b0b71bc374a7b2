//! What fuzzers call: the readers of headers and indexes, on any bytes.

use std::path::{Component, Path};

use super::header::{Header, PREFIX_BYTES};
use super::index::Index;
use crate::base::units::to_u64;

/// Reads `bytes` as a safetensors file; and once more as the right length of the data and the JSON of a
/// header, which a fuzzer would hardly ever find to fit together.
///
/// # Panics
/// Where tensors overlap, or one is found outside of the file: that is what fuzzing looks for.
pub(crate) fn read_any_header(bytes: &[u8]) {
    if let Some((prefix, rest)) = bytes.split_first_chunk() {
        let file_bytes = to_u64(bytes.len());
        if let Ok(len_bytes) = Header::len_bytes(*prefix, file_bytes) {
            assert!(len_bytes <= to_u64(rest.len()));
            let len = usize::try_from(len_bytes).unwrap_or(rest.len());
            check(&rest[..len], file_bytes);
        }
    }
    if let Some((data_bytes, json)) = bytes.split_first_chunk() {
        let data_bytes = u64::from(u16::from_le_bytes(*data_bytes));
        check(json, PREFIX_BYTES + to_u64(json.len()) + data_bytes);
    }
}

fn check(json: &[u8], file_bytes: u64) {
    let Ok(header) = Header::parse(json, file_bytes) else {
        return;
    };
    let mut end = PREFIX_BYTES + to_u64(json.len());
    for name in header.names() {
        let Some(found) = header.find(&name) else {
            panic!("a tensor that is listed is not found");
        };
        assert!(found.file_offset >= end, "two tensors overlap");
        end = found.file_offset;
        if let Ok(dtype) = found.dtype {
            end += found.numel * dtype.size_bytes();
        }
    }
    assert!(end <= file_bytes, "a tensor ends beyond the file");
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
