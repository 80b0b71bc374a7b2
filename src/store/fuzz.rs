//! What a fuzzer calls: the log's reader, on any bytes.

use super::entry::{EntryWriter, Kind, checksum};
use super::header::{DATA_START_BYTES, LOG_HEADER_BYTES, LogHeader};
use super::replay::replay;
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
        assert_eq!(record.offset, end);
        assert_eq!(
            read.table
                .find(record.id)
                .and_then(|index| read.table.record(index)),
            Some(record)
        );
        end += 2 * read.table.layout().extent_bytes(record.numel);
    }
    assert_eq!(read.table.data_bytes(), end);
    // What was read is settled: reading it again, without its tail, gives the same.
    let settled = usize::try_from(read.end).unwrap_or(0);
    assert_eq!(replay(&log[..settled]).as_ref(), Ok(&read));
}

/// Makes a log of entries whose kinds, numbers and payloads the bytes choose.
fn log_of(mut recipe: &[u8]) -> Vec<u8> {
    let mut take = |len: usize| {
        let (taken, rest) = recipe.split_at(len.min(recipe.len()));
        recipe = rest;
        taken.to_vec()
    };
    let sequence_bias = u64::from(take(1).first().copied().unwrap_or(0) % 2);
    let header = LogHeader {
        identity: [3; 16],
        sequence: sequence_bias,
    };
    let mut log = header.encode().to_vec();
    let crc = checksum(&[&log[..LOG_HEADER_BYTES - 4]]);
    let mut entries = EntryWriter::new(header.identity, to_u64(log.len()), crc);
    let mut sequence = sequence_bias + 1;
    while let [kind, payload_bytes] = take(2)[..] {
        let payload = take(usize::from(payload_bytes));
        let (kind, number) = match kind % 16 {
            0..4 => (Kind::State, sequence),
            4..8 => (Kind::Parameter, sequence),
            8..12 => (Kind::Commit, sequence),
            12..15 => (Kind::Seal, sequence - 1),
            _ => (Kind::Commit, u64::from(kind)),
        };
        sequence += u64::from(kind == Kind::Commit);
        entries.add(kind, number, |into| into.extend_from_slice(&payload));
    }
    log.append(&mut entries.bytes);
    log
}
