//! What a fuzzer calls: the log's reader, on any bytes.

use super::entry::{self, EntryWriter, Kind, Parameter, checksum};
use super::header::{DATA_START_BYTES, LOG_HEADER_BYTES, LogHeader};
use super::replay::replay;
use super::striping::Striping;
use super::table::Table;
use super::{BLOCK_BYTES, STATES_MAX, StateSpec, Version};
use crate::base::dtype::Dtype;
use crate::base::units::to_u64;

/// Reads `bytes` as a log, and once more as the recipe of a log with right checksums, which a
/// fuzzer would hardly ever find.
///
/// # Panics
/// Where the reader gives back what no log can say: that is what fuzzing looks for.
pub(crate) fn read_any_log(bytes: &[u8]) {
    check(bytes);
    check(&log_of(bytes));
}

fn check(log: &[u8]) {
    let Ok(read) = replay(log) else {
        return;
    };
    assert!(read.end >= to_u64(LOG_HEADER_BYTES) && read.end <= to_u64(log.len()));
    let mut end = DATA_START_BYTES;
    for record in read.table.records() {
        assert!(record.offset >= end && record.offset % BLOCK_BYTES == 0);
        assert_eq!(
            read.table
                .find(record.id)
                .and_then(|index| read.table.record(index)),
            Some(record)
        );
        end = record.offset + 2 * read.table.layout().extent_bytes(record.numel);
    }
    assert!(read.table.end() >= end);
    // What was read is settled: reading it again, without its tail, gives the same.
    let settled = usize::try_from(read.end).unwrap_or(0);
    assert_eq!(replay(&log[..settled]).as_ref(), Ok(&read));
}

/// Takes choices off the front of what the fuzzer made; zeros when that is used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let len = N.min(self.0.len());
        let (front, rest) = self.0.split_at(len);
        taken[..len].copy_from_slice(front);
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }
}

/// Makes a log of entries that mostly make sense, and are written as if all of them did.
fn log_of(recipe: &[u8]) -> Vec<u8> {
    let mut choices = Choices(recipe);
    let header = LogHeader {
        identity: [3; 16],
        sequence: u64::from(choices.byte() % 2),
    };
    let mut log = header.encode().to_vec();
    let crc = checksum(&[&log[..LOG_HEADER_BYTES - 4]]);
    let mut entries = EntryWriter::new(header.identity, to_u64(log.len()), crc);
    let mut table = Table::default();
    let mut sequence = header.sequence;
    while !choices.0.is_empty() {
        let [choice, damage, at, len] = choices.bytes();
        let kind = match choice % 8 {
            0 => Kind::State,
            1..4 => Kind::Parameter,
            4 | 5 => Kind::Commit,
            6 => Kind::Stripe,
            _ => Kind::Seal,
        };
        let mut payload = payload_of(kind, &mut table, &mut choices);
        match damage {
            0..16 => payload.truncate(usize::from(len)),
            16..32 => payload.extend(std::iter::repeat_n(at, usize::from(len))),
            32..64 if !payload.is_empty() => {
                let at = usize::from(at) % payload.len();
                payload[at] ^= len;
            }
            64 => sequence += 1,
            _ => {}
        }
        let number = sequence + u64::from(kind != Kind::Seal);
        entries.add(kind, number, |into| into.extend_from_slice(&payload));
        sequence += u64::from(kind == Kind::Commit);
    }
    log.append(&mut entries.bytes);
    log
}

/// A payload as a store would write it next.
fn payload_of(kind: Kind, table: &mut Table, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    match kind {
        Kind::State => {
            let [dtype, disk_dtype, name] = choices.bytes().map(usize::from);
            let state = StateSpec {
                name: format!("s{name}"),
                dtype: Dtype::ALL[dtype % Dtype::ALL.len()],
                disk_dtype: Dtype::ALL[disk_dtype % Dtype::ALL.len()],
            };
            entry::encode_state(&state, &mut payload);
            // What the store would refuse is what the reader has to refuse.
            let _ = table.add_state(state);
        }
        Kind::Parameter => {
            let id = u64::from(choices.byte());
            let numel = u64::from_le_bytes(choices.bytes()) >> (choices.byte() % 64);
            let name = (id % 3 == 0).then(|| format!("p{numel}"));
            let parameter = Parameter {
                id,
                numel,
                offset: table.end(),
                name: name.as_deref(),
            };
            parameter.encode(&mut payload);
            let _ = table.add_record(id, name.as_deref(), numel);
        }
        Kind::Commit => {
            let [changes_len, user_data] = choices.bytes();
            let changes = (0..changes_len % 8).map(|_| {
                let [record, slot, zero_states, checked] = choices.bytes();
                let version = Version {
                    slot: slot % 4,
                    zero_states: zero_states >> (zero_states % 8),
                    checked: checked % 2 == 1,
                    generation: u32::from(checked),
                    checksums: [u32::from(record); STATES_MAX],
                };
                (u32::from(record % 16), version)
            });
            let states_len = table.layout().states.len();
            let changes: Vec<_> = changes.collect();
            let data = [user_data; 3];
            let user_data = (user_data % 2 == 1).then_some(&data[..]);
            let changes = changes.into_iter();
            entry::encode_commit(7, changes, user_data, 9, states_len, &mut payload);
        }
        Kind::Stripe => {
            let [first, second] = choices.bytes().map(|weight| u32::from(weight % 16));
            let from = Striping::next_start(table.end());
            entry::encode_stripe(from, &[first, second], &mut payload);
            let _ = table.set_weights(&[first, second]);
        }
        Kind::Seal => {}
    }
    payload
}
