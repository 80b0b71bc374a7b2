//! The header of a safetensors file, made and checked. Pure.
//!
//! A file begins with the length of its header as eight bytes, little end first. The header is JSON and
//! tells name, type, shape and place of each tensor; the data follows, without holes.

use std::collections::BTreeMap;

use ::safetensors::Dtype as FileDtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::base::dtype::Dtype;
use crate::base::units::to_u64;

/// Bytes of the length in front of the header.
pub(super) const PREFIX_BYTES: u64 = 8;
/// The longest header that the format allows.
pub(super) const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The key for what is no tensor.
pub(crate) const METADATA: &str = "__metadata__";

/// Where a tensor lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its type, or the name of one that is not known here.
    pub(crate) dtype: Result<Dtype, FileDtype>,
    /// Elements, whatever its shape.
    pub(crate) numel: u64,
    /// Its first byte.
    pub(crate) file_offset: u64,
}

/// A header that was checked against the length of its file.
#[derive(Debug)]
pub(super) struct Header {
    metadata: Metadata,
    data_start: u64,
}

impl Header {
    /// How long the header is that follows this prefix in a file of `file_bytes`.
    ///
    /// # Errors
    /// Why there can be none of that length, in words.
    pub(super) fn len_bytes(prefix: [u8; 8], file_bytes: u64) -> Result<u64, String> {
        let len_bytes = u64::from_le_bytes(prefix);
        let room_bytes = file_bytes.saturating_sub(PREFIX_BYTES);
        if len_bytes > room_bytes.min(HEADER_BYTES_MAX) {
            return Err(format!(
                "a header of {len_bytes} bytes in a file of {file_bytes}: it is no safetensors file"
            ));
        }
        Ok(len_bytes)
    }

    /// Reads a header, all of its JSON, of a file of `file_bytes`.
    ///
    /// # Errors
    /// What is wrong with it, in words: no JSON, shapes whose product cannot be or is not the size of the
    /// tensor, ranges that overlap, leave holes or do not end where the file does.
    pub(super) fn parse(json: &[u8], file_bytes: u64) -> Result<Header, String> {
        // Checks types, shapes, and that the ranges follow each other from 0 on.
        let metadata: Metadata = serde_json::from_slice(json)
            .map_err(|error| format!("its header cannot be read: {error}"))?;
        let data_start = PREFIX_BYTES + to_u64(json.len());
        let data_bytes = to_u64(metadata.data_len());
        if data_start.checked_add(data_bytes) != Some(file_bytes) {
            return Err(format!(
                "its header tells of {data_bytes} bytes of data, and {} follow it",
                file_bytes.saturating_sub(data_start)
            ));
        }
        Ok(Header {
            metadata,
            data_start,
        })
    }

    /// The tensor with this name.
    pub(super) fn find(&self, name: &str) -> Option<Found> {
        self.metadata.info(name).map(|info| Found {
            dtype: known(info.dtype),
            // The product was checked.
            numel: info.shape.iter().copied().map(to_u64).product(),
            file_offset: self.data_start + to_u64(info.data_offsets.0),
        })
    }

    /// The names of all tensors, in the order of their data.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }
}

/// What a header is made of.
pub(super) struct HeaderParts<'a> {
    pub(super) metadata: &'a BTreeMap<&'static str, String>,
    /// In the order of their data.
    pub(super) tensors: Vec<(&'a str, TensorInfo)>,
}

impl Serialize for HeaderParts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.tensors.len() + 1))?;
        map.serialize_entry(METADATA, self.metadata)?;
        for (name, info) in &self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

impl HeaderParts<'_> {
    /// The bytes of the file in front of its data, of a length that keeps the data aligned.
    ///
    /// # Errors
    /// Why there is none, in words: it would be longer than readers accept.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; 8];
        serde_json::to_writer(&mut bytes, self).map_err(|error| error.to_string())?;
        while !bytes.len().is_multiple_of(8) {
            bytes.push(b' ');
        }
        let len_bytes = to_u64(bytes.len()) - PREFIX_BYTES;
        if len_bytes > HEADER_BYTES_MAX {
            return Err(format!(
                "{} tensors in one file need a header of {len_bytes} bytes, and readers take \
                 {HEADER_BYTES_MAX}; ask for shards",
                self.tensors.len()
            ));
        }
        bytes[..8].copy_from_slice(&len_bytes.to_le_bytes());
        Ok(bytes)
    }
}

/// The file's name for a type; raw bytes are unsigned numbers there.
pub(super) fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::Bytes | Dtype::U8 => FileDtype::U8,
        Dtype::F32 => FileDtype::F32,
        Dtype::F16 => FileDtype::F16,
        Dtype::Bf16 => FileDtype::BF16,
        Dtype::F64 => FileDtype::F64,
        Dtype::F8E4m3 => FileDtype::F8_E4M3,
        Dtype::F8E5m2 => FileDtype::F8_E5M2,
        Dtype::I8 => FileDtype::I8,
        Dtype::I16 => FileDtype::I16,
        Dtype::I32 => FileDtype::I32,
        Dtype::I64 => FileDtype::I64,
        Dtype::U16 => FileDtype::U16,
        Dtype::U32 => FileDtype::U32,
        Dtype::U64 => FileDtype::U64,
        Dtype::Bool => FileDtype::BOOL,
    }
}

fn known(found: FileDtype) -> Result<Dtype, FileDtype> {
    let is_it = |dtype: &Dtype| *dtype != Dtype::Bytes && file_dtype(*dtype) == found;
    Dtype::ALL.iter().copied().find(is_it).ok_or(found)
}
