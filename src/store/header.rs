//! How the files of a store begin. Pure.
//!
//! All begin with eight bytes that name the file, a version, and the identity of the store, and
//! the header ends with a CRC-32C of itself.

use super::BLOCK_BYTES;
use super::entry::{Identity, Reader, checksum};
use super::striping::{Area, CHUNK_BYTES};
use crate::base::units::KIB;

/// The version of all files.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// Where the first extent lies.
pub(crate) const DATA_START_BYTES: u64 = 64 * KIB;
/// Bytes of the header of a data or spare file.
pub(crate) const PLACE_HEADER_BYTES: usize = 4096;
/// Bytes of the log's header.
pub(crate) const LOG_HEADER_BYTES: usize = 64;
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

/// How the file of one place begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlaceHeader {
    pub(crate) identity: Identity,
    /// What the file is for.
    pub(crate) area: Area,
    /// Which of the store's directories the file is in.
    pub(crate) place: u32,
    /// How many directories the store has.
    pub(crate) places_len: u32,
}

impl PlaceHeader {
    pub(crate) fn encode(&self) -> [u8; PLACE_HEADER_BYTES] {
        let mut bytes = [0; PLACE_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&magic_of(self.area));
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.identity);
        bytes[32..36].copy_from_slice(&self.place.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.places_len.to_le_bytes());
        bytes[40..48].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        bytes[48..56].copy_from_slice(&DATA_START_BYTES.to_le_bytes());
        bytes[56..64].copy_from_slice(&CHUNK_BYTES.to_le_bytes());
        close(&mut bytes);
        bytes
    }

    pub(crate) fn decode(area: Area, bytes: &[u8]) -> Result<PlaceHeader, BadHeader> {
        let (mut fields, _) = open(bytes, PLACE_HEADER_BYTES, magic_of(area))?;
        let header = (|| {
            let flags = fields.u32()?;
            let identity = fields.take(16)?.try_into().ok()?;
            let (place, places_len) = (fields.u32()?, fields.u32()?);
            let sizes = (fields.u64()?, fields.u64()?, fields.u64()?);
            let known = flags == 0 && sizes == (BLOCK_BYTES, DATA_START_BYTES, CHUNK_BYTES);
            (known && place < places_len).then_some(PlaceHeader {
                identity,
                area,
                place,
                places_len,
            })
        })();
        header.ok_or(BadHeader::Damaged(
            "it is laid out in a way that has no meaning",
        ))
    }
}

fn magic_of(area: Area) -> [u8; 8] {
    match area {
        Area::Data => *b"TSWDATA\0",
        Area::Spare => *b"TSWSPARE",
    }
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
        let place = PlaceHeader {
            identity: [9; 16],
            area: Area::Data,
            place: 2,
            places_len: 3,
        };
        let data = place.encode();
        let decode = |bytes: &[u8]| PlaceHeader::decode(Area::Data, bytes);
        assert_eq!(decode(&data), Ok(place));
        assert!(PlaceHeader::decode(Area::Spare, &data).is_err());
        for bit in 0..log.len() * 8 {
            let mut damaged = log;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(LogHeader::decode(&damaged).is_err(), "bit {bit}");
        }
        for bit in 0..data.len() * 8 {
            let mut damaged = data;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
        assert!(LogHeader::decode(&log[..63]).is_err());
        assert!(decode(&log).is_err());
        let beyond = PlaceHeader { place: 3, ..place };
        assert!(decode(&beyond.encode()).is_err());
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut log = LogHeader {
            identity: [7; 16],
            sequence: 0,
        }
        .encode();
        log[8] = 3;
        close(&mut log);
        assert_eq!(LogHeader::decode(&log), Err(BadHeader::Version(3)));
    }
}
