//! How the files of a store begin. Pure.
//!
//! Both begin with eight bytes that name the file, a version, and the identity of the store, and
//! the header ends with a CRC-32C of itself.

use super::BLOCK_BYTES;
use super::entry::{Identity, Reader, checksum};
use crate::base::units::KIB;

/// The version of both files.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Where the first extent lies in the data file.
pub(crate) const DATA_START_BYTES: u64 = 64 * KIB;
/// Bytes of the data file's header.
pub(crate) const DATA_HEADER_BYTES: usize = 4096;
/// Bytes of the log's header.
pub(crate) const LOG_HEADER_BYTES: usize = 64;
const DATA_MAGIC: [u8; 8] = *b"TSWDATA\0";
const LOG_MAGIC: [u8; 8] = *b"TSWLOG\0\0";

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// The file is none of ours, or damaged; why.
    Damaged(&'static str),
    /// It was written in a version that this build does not know.
    Version(u32),
}

/// The log's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogHeader {
    pub(crate) identity: Identity,
    /// The number of the last commit before the first one in this file.
    pub(crate) sequence: u64,
}

impl LogHeader {
    pub(crate) fn encode(&self) -> [u8; LOG_HEADER_BYTES] {
        let mut bytes = [0; LOG_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&LOG_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.identity);
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        close(&mut bytes);
        bytes
    }

    /// The header, and its checksum.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(LogHeader, u32), BadHeader> {
        let (mut fields, crc) = open(bytes, LOG_HEADER_BYTES, LOG_MAGIC)?;
        let header = (|| {
            let flags = fields.u32()?;
            let identity = fields.take(16)?.try_into().ok()?;
            let sequence = fields.u64()?;
            (flags == 0).then_some(LogHeader { identity, sequence })
        })();
        let header = header.ok_or(BadHeader::Damaged("it sets flags that have no meaning"))?;
        Ok((header, crc))
    }
}

/// The data file's header, for the one directory that a store has now.
pub(crate) fn encode_data_header(identity: &Identity) -> [u8; DATA_HEADER_BYTES] {
    let mut bytes = [0; DATA_HEADER_BYTES];
    bytes[0..8].copy_from_slice(&DATA_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(identity);
    // Place 0 of 1.
    bytes[32..36].copy_from_slice(&0_u32.to_le_bytes());
    bytes[36..40].copy_from_slice(&1_u32.to_le_bytes());
    bytes[40..48].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
    bytes[48..56].copy_from_slice(&DATA_START_BYTES.to_le_bytes());
    close(&mut bytes);
    bytes
}

/// The identity in the data file's header.
pub(crate) fn decode_data_header(bytes: &[u8]) -> Result<Identity, BadHeader> {
    let (mut fields, _) = open(bytes, DATA_HEADER_BYTES, DATA_MAGIC)?;
    let identity = (|| {
        let flags = fields.u32()?;
        let identity = fields.take(16)?.try_into().ok()?;
        let place = (fields.u32()?, fields.u32()?);
        let sizes = (fields.u64()?, fields.u64()?);
        let known = flags == 0 && place == (0, 1) && sizes == (BLOCK_BYTES, DATA_START_BYTES);
        known.then_some(identity)
    })();
    identity.ok_or(BadHeader::Damaged(
        "it is laid out in a way that has no meaning",
    ))
}

/// Writes the checksum that ends a header.
fn close(header: &mut [u8]) {
    let (covered, end) = header.split_at_mut(header.len() - 4);
    end.copy_from_slice(&checksum(&[covered]).to_le_bytes());
}

/// Checks name, checksum and version; returns the fields behind them, and the checksum.
fn open(bytes: &[u8], len: usize, magic: [u8; 8]) -> Result<(Reader<'_>, u32), BadHeader> {
    let Some((covered, end)) = bytes
        .get(..len)
        .and_then(|header| header.split_at_checked(len - 4))
    else {
        return Err(BadHeader::Damaged("it is shorter than its header"));
    };
    if covered[..8] != magic {
        return Err(BadHeader::Damaged(
            "it does not begin as a file of a store does",
        ));
    }
    let crc = checksum(&[covered]);
    if Reader::new(end).u32() != Some(crc) {
        return Err(BadHeader::Damaged("the checksum of its header is wrong"));
    }
    let mut fields = Reader::new(&covered[8..]);
    match fields.u32() {
        Some(FORMAT_VERSION) => Ok((fields, crc)),
        version => Err(BadHeader::Version(version.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written_and_no_flipped_bit_passes() {
        let header = LogHeader {
            identity: [7; 16],
            sequence: 99,
        };
        let log = header.encode();
        assert_eq!(LogHeader::decode(&log).unwrap().0, header);
        let data = encode_data_header(&[9; 16]);
        assert_eq!(decode_data_header(&data), Ok([9; 16]));
        for bit in 0..log.len() * 8 {
            let mut damaged = log;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(LogHeader::decode(&damaged).is_err(), "bit {bit}");
        }
        for bit in 0..data.len() * 8 {
            let mut damaged = data;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_data_header(&damaged).is_err(), "bit {bit}");
        }
        assert!(LogHeader::decode(&log[..63]).is_err());
        assert!(decode_data_header(&log).is_err());
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut log = LogHeader {
            identity: [7; 16],
            sequence: 0,
        }
        .encode();
        log[8] = 2;
        close(&mut log);
        assert_eq!(LogHeader::decode(&log), Err(BadHeader::Version(2)));
    }
}
