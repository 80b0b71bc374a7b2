//! The log's entries as bytes. Pure.
//!
//! An entry is a header of [`ENTRY_HEADER_BYTES`], a payload, zeros up to where its checksum ends
//! at a multiple of [`ENTRY_ALIGN_BYTES`], and the checksum. Both checksums of an entry begin with
//! the identity of the store, the header knows the offset at which it lies, and holds the checksum
//! of the entry before it. So an entry of another store, one that moved, and one that followed
//! something else are all refused.

use super::striping::PLACES_MAX;
use super::{StateSpec, Version};
use crate::base::checksum::Checksum;
use crate::base::dtype::Dtype;
use crate::base::units::to_u64;

/// What tells one store from every other: random bytes.
pub(crate) type Identity = [u8; 16];

/// Bytes before the payload.
pub(crate) const ENTRY_HEADER_BYTES: usize = 40;
/// Entries begin and end at multiples of this.
pub(crate) const ENTRY_ALIGN_BYTES: usize = 8;
/// "TSWE" as the bytes lie in the file.
const ENTRY_MAGIC: [u8; 4] = *b"TSWE";

/// CRC-32C (Castagnoli) over the parts, one after the other.
pub(crate) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut checksum = Checksum::new();
    for part in parts {
        checksum.update(part);
    }
    checksum.finish()
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// A state that every record has.
    State = 1,
    /// A record.
    Parameter = 2,
    /// Versions of records, a step, and user data: what came since the last commit counts now.
    Commit = 3,
    /// The commit before it is on storage.
    Seal = 4,
    /// How further addresses are dealt to the store's places.
    Stripe = 5,
}

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        match number {
            1 => Some(Kind::State),
            2 => Some(Kind::Parameter),
            3 => Some(Kind::Commit),
            4 => Some(Kind::Seal),
            5 => Some(Kind::Stripe),
            _ => None,
        }
    }
}

/// An entry's header, of which the checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    /// `None` for a kind that this version does not know.
    pub(crate) kind: Option<Kind>,
    pub(crate) payload_bytes: u64,
    /// The commit that the entry is part of, or that it seals.
    pub(crate) sequence: u64,
    /// The checksum of the entry before it, or of the file's header.
    pub(crate) previous: u32,
}

/// Makes entries, one after the other.
#[derive(Debug)]
pub(crate) struct EntryWriter {
    identity: Identity,
    /// Where the next entry lies in the file.
    pub(crate) position: u64,
    /// The checksum that ended what lies before it.
    pub(crate) previous: u32,
    /// The entries made so far.
    pub(crate) bytes: Vec<u8>,
}

impl EntryWriter {
    pub(crate) fn new(identity: Identity, position: u64, previous: u32) -> EntryWriter {
        EntryWriter {
            identity,
            position,
            previous,
            bytes: Vec::new(),
        }
    }

    /// Adds an entry with the payload that `fill` appends.
    pub(crate) fn add(&mut self, kind: Kind, sequence: u64, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ENTRY_HEADER_BYTES]);
        fill(&mut self.bytes);
        let payload_bytes = self.bytes.len() - start - ENTRY_HEADER_BYTES;
        let header = encode_header(
            &self.identity,
            kind,
            to_u64(payload_bytes),
            self.position,
            sequence,
            self.previous,
        );
        self.bytes[start..start + ENTRY_HEADER_BYTES].copy_from_slice(&header);
        let entry_bytes =
            (ENTRY_HEADER_BYTES + payload_bytes + 4).next_multiple_of(ENTRY_ALIGN_BYTES);
        self.bytes.resize(start + entry_bytes - 4, 0);
        self.previous = checksum(&[&self.identity, &self.bytes[start..]]);
        self.bytes.extend_from_slice(&self.previous.to_le_bytes());
        self.position += to_u64(entry_bytes);
    }
}

fn encode_header(
    identity: &Identity,
    kind: Kind,
    payload_bytes: u64,
    position: u64,
    sequence: u64,
    previous: u32,
) -> [u8; ENTRY_HEADER_BYTES] {
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[0..4].copy_from_slice(&ENTRY_MAGIC);
    header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    header[8..16].copy_from_slice(&payload_bytes.to_le_bytes());
    header[16..24].copy_from_slice(&position.to_le_bytes());
    header[24..32].copy_from_slice(&sequence.to_le_bytes());
    header[32..36].copy_from_slice(&previous.to_le_bytes());
    let crc = checksum(&[identity, &header[..36]]);
    header[36..40].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The header of the entry that begins `bytes` and lies at `position`; `None` where none does.
pub(crate) fn decode_header(
    identity: &Identity,
    bytes: &[u8],
    position: u64,
) -> Option<EntryHeader> {
    let header = bytes.get(..ENTRY_HEADER_BYTES)?;
    // Cheap tests first: a scan over a torn tail calls this at every eighth byte.
    if header[..4] != ENTRY_MAGIC {
        return None;
    }
    let mut reader = Reader::new(&header[4..]);
    let kind = reader.u32()?;
    let payload_bytes = reader.u64()?;
    let own_position = reader.u64()?;
    let sequence = reader.u64()?;
    let previous = reader.u32()?;
    let crc = reader.u32()?;
    (own_position == position && crc == checksum(&[identity, &header[..36]])).then_some(
        EntryHeader {
            kind: Kind::from_number(kind),
            payload_bytes,
            sequence,
            previous,
        },
    )
}

/// An entry that is as it was written.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) header: EntryHeader,
    pub(crate) payload: &'a [u8],
    pub(crate) checksum: u32,
    /// Where the next entry begins, from where this one does.
    pub(crate) entry_bytes: usize,
}

/// The entry that begins `bytes`, lies at `position`, and follows what ended with the checksum
/// `previous`; `None` where none does.
pub(crate) fn decode<'a>(
    identity: &Identity,
    bytes: &'a [u8],
    position: u64,
    previous: u32,
) -> Option<Entry<'a>> {
    let header = decode_header(identity, bytes, position)?;
    let payload_bytes = usize::try_from(header.payload_bytes).ok()?;
    let payload_end = ENTRY_HEADER_BYTES.checked_add(payload_bytes)?;
    let entry_bytes = payload_end
        .checked_add(4)?
        .checked_next_multiple_of(ENTRY_ALIGN_BYTES)?;
    let whole = bytes.get(..entry_bytes)?;
    let (covered, end) = whole.split_at(entry_bytes - 4);
    let crc = Reader::new(end).u32()?;
    (header.previous == previous && crc == checksum(&[identity, covered])).then_some(Entry {
        header,
        payload: &whole[ENTRY_HEADER_BYTES..payload_end],
        checksum: crc,
        entry_bytes,
    })
}

/// A state as a payload.
pub(crate) fn encode_state(state: &StateSpec, into: &mut Vec<u8>) {
    into.extend_from_slice(&(state.dtype as u32).to_le_bytes());
    into.extend_from_slice(&(state.disk_dtype as u32).to_le_bytes());
    into.extend_from_slice(state.name.as_bytes());
}

/// A payload as a state; `None` where it is none.
pub(crate) fn decode_state(payload: &[u8]) -> Option<StateSpec> {
    let mut reader = Reader::new(payload);
    let dtype = Dtype::from_number(reader.u32()?).ok()?;
    let disk_dtype = Dtype::from_number(reader.u32()?).ok()?;
    let name = std::str::from_utf8(reader.rest()).ok()?.to_owned();
    Some(StateSpec {
        name,
        dtype,
        disk_dtype,
    })
}

/// What the log says about a record when it is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameter<'a> {
    pub(crate) id: u64,
    pub(crate) numel: u64,
    /// Offset of slot 0 in the data file.
    pub(crate) offset: u64,
    pub(crate) name: Option<&'a str>,
}

impl<'a> Parameter<'a> {
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.id.to_le_bytes());
        into.extend_from_slice(&self.numel.to_le_bytes());
        into.extend_from_slice(&self.offset.to_le_bytes());
        into.extend_from_slice(&u64::from(self.name.is_some()).to_le_bytes());
        into.extend_from_slice(self.name.unwrap_or_default().as_bytes());
    }

    pub(crate) fn decode(payload: &'a [u8]) -> Option<Parameter<'a>> {
        let mut reader = Reader::new(payload);
        let (id, numel, offset) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let named = reader.u64()?;
        let name = std::str::from_utf8(reader.rest()).ok()?;
        let name = match (named, name) {
            (0, "") => None,
            (1, name) => Some(name),
            _ => return None,
        };
        Some(Parameter {
            id,
            numel,
            offset,
            name,
        })
    }
}

/// Weights, and the first address that they hold for, as a payload.
pub(crate) fn encode_stripe(from: u64, weights: &[u32], into: &mut Vec<u8>) {
    into.extend_from_slice(&from.to_le_bytes());
    for weight in weights {
        into.extend_from_slice(&weight.to_le_bytes());
    }
}

/// A payload as weights and the first address that they hold for; `None` where it is none.
pub(crate) fn decode_stripe(payload: &[u8]) -> Option<(u64, Vec<u32>)> {
    let mut reader = Reader::new(payload);
    let from = reader.u64()?;
    if reader.0.len() > 4 * PLACES_MAX || !reader.0.len().is_multiple_of(4) {
        return None;
    }
    let weights = std::iter::from_fn(|| reader.u32()).collect();
    Some((from, weights))
}

/// Bytes of one change in a commit's payload.
pub(crate) fn change_bytes(states_len: usize) -> usize {
    12 + 4 * states_len
}

/// A commit as a payload. Checksums beyond the first `states_len` are not kept.
pub(crate) fn encode_commit(
    step: u64,
    changes: impl ExactSizeIterator<Item = (u32, Version)>,
    user_data: Option<&[u8]>,
    written_bytes: u64,
    states_len: usize,
    into: &mut Vec<u8>,
) {
    let user_data_bytes = to_u64(user_data.unwrap_or_default().len());
    // The table refuses more than 2^32 records, and user data is short.
    let user_data_bytes = u32::try_from(user_data_bytes).unwrap_or(u32::MAX);
    let changes_len = u32::try_from(changes.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&step.to_le_bytes());
    into.extend_from_slice(&changes_len.to_le_bytes());
    into.extend_from_slice(&user_data_bytes.to_le_bytes());
    into.extend_from_slice(&u64::from(user_data.is_some()).to_le_bytes());
    into.extend_from_slice(&written_bytes.to_le_bytes());
    for (record, version) in changes {
        into.extend_from_slice(&record.to_le_bytes());
        into.extend_from_slice(&version.generation.to_le_bytes());
        into.extend_from_slice(&[
            version.slot,
            version.zero_states,
            u8::from(version.checked),
            0,
        ]);
        for checksum in &version.checksums[..states_len] {
            let kept = if version.checked { *checksum } else { 0 };
            into.extend_from_slice(&kept.to_le_bytes());
        }
    }
    into.extend_from_slice(user_data.unwrap_or_default());
}

/// A commit that is well formed: every change can be decoded.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    pub(crate) step: u64,
    pub(crate) user_data: Option<&'a [u8]>,
    /// Bytes that were written to slots since the store was made.
    pub(crate) written_bytes: u64,
    changes: &'a [u8],
    states_len: usize,
}

impl<'a> Commit<'a> {
    /// A payload as a commit to a store with `states_len` states; `None` where it is none.
    pub(crate) fn decode(payload: &'a [u8], states_len: usize) -> Option<Commit<'a>> {
        let mut reader = Reader::new(payload);
        let step = reader.u64()?;
        let changes_len = usize::try_from(reader.u32()?).ok()?;
        let user_data_bytes = usize::try_from(reader.u32()?).ok()?;
        let has_user_data = reader.u64()?;
        let written_bytes = reader.u64()?;
        let changes = reader.take(changes_len.checked_mul(change_bytes(states_len))?)?;
        let user_data = reader.rest();
        if user_data.len() != user_data_bytes || has_user_data > 1 {
            return None;
        }
        let user_data = match (has_user_data, user_data) {
            (1, data) => Some(data),
            (_, []) => None,
            _ => return None,
        };
        let commit = Commit {
            step,
            user_data,
            written_bytes,
            changes,
            states_len,
        };
        let good = commit
            .chunks()
            .all(|change| decode_change(change, states_len).is_some());
        good.then_some(commit)
    }

    fn chunks(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.changes.chunks_exact(change_bytes(self.states_len))
    }

    /// Records and their versions.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (u32, Version)> + use<'a> {
        let states_len = self.states_len;
        self.chunks()
            .filter_map(move |change| decode_change(change, states_len))
    }
}

fn decode_change(change: &[u8], states_len: usize) -> Option<(u32, Version)> {
    let mut reader = Reader::new(change);
    let record = reader.u32()?;
    let generation = reader.u32()?;
    let [slot, zero_states, checked, zero] = *reader.take(4)? else {
        return None;
    };
    let mut version = Version {
        slot,
        zero_states,
        checked: checked == 1,
        generation,
        checksums: Default::default(),
    };
    for kept in version.checksums.get_mut(..states_len)? {
        *kept = reader.u32()?;
    }
    let unknown_states = u32::from(zero_states) >> states_len;
    (checked <= 1 && zero == 0 && unknown_states == 0 && slot < super::version::SLOTS)
        .then_some((record, version))
}

/// Takes numbers off the front of bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
