use proptest::prelude::*;

use super::entry::{self, ENTRY_HEADER_BYTES, EntryWriter, Identity, Kind};
use super::header::{LOG_HEADER_BYTES, LogHeader};
use super::replay::{Replay, Unreadable, replay};
use super::table::Table;
use super::{STATES_MAX, StateSpec, Version, fuzz};
use crate::base::dtype::Dtype;
use crate::base::units::to_u64;

const IDENTITY: Identity = *b"0123456789abcdef";

/// A log as a store writes it, and what each of its commits left.
struct Written {
    entries: EntryWriter,
    table: Table,
    sequence: u64,
    /// After each commit: the end of its last entry, and the table.
    commits: Vec<(usize, Table)>,
}

impl Written {
    fn new(identity: Identity, sequence: u64) -> Written {
        let header = LogHeader { identity, sequence }.encode();
        let crc = u32::from_le_bytes(*header.last_chunk().unwrap());
        let mut entries = EntryWriter::new(identity, to_u64(header.len()), crc);
        entries.bytes.extend_from_slice(&header);
        Written {
            entries,
            table: Table::default(),
            sequence,
            commits: Vec::new(),
        }
    }

    fn commit(
        &mut self,
        step: u64,
        changes: &[(u32, Version)],
        user_data: Option<&[u8]>,
        seal: bool,
    ) {
        self.sequence += 1;
        self.table
            .check_commit(changes.iter().copied(), user_data)
            .unwrap();
        let (entries, table) = (&mut self.entries, &mut self.table);
        table.write_commit(entries, self.sequence, step, changes, user_data);
        table.commit(step, changes.iter().copied(), user_data);
        self.commits.push((entries.bytes.len(), table.clone()));
        if seal {
            self.seal();
        }
    }

    fn seal(&mut self) {
        self.entries.add(Kind::Seal, self.sequence, |_| {});
    }

    fn bytes(&self) -> &[u8] {
        &self.entries.bytes
    }

    /// What the commits that end within the first `len` bytes left.
    fn after(&self, len: usize) -> Table {
        let done = self.commits.iter().rev().find(|(end, _)| *end <= len);
        done.map_or_else(Table::default, |(_, table)| table.clone())
    }
}

fn state(name: &str, dtype: Dtype) -> StateSpec {
    StateSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        disk_dtype: dtype,
    }
}

fn version(slot: u8, generation: u32, salt: u32) -> Version {
    let mut checksums = [0; STATES_MAX];
    checksums[0] = salt.wrapping_mul(0x9E37_79B9);
    checksums[1] = !salt;
    Version {
        slot,
        zero_states: 0,
        checked: true,
        generation,
        checksums,
    }
}

/// Three commits, the later ones with records of their own.
fn small_log(seal_last: bool) -> Written {
    let mut log = Written::new(IDENTITY, 0);
    log.table.add_state(state("master", Dtype::F32)).unwrap();
    log.table.add_state(state("exp_avg", Dtype::Bf16)).unwrap();
    log.table.add_record(70, Some("a"), 1000).unwrap();
    log.table.add_record(7, None, 1).unwrap();
    log.commit(
        0,
        &[(0, version(0, 1, 1)), (1, version(0, 1, 2))],
        Some(b"first"),
        true,
    );
    log.table.add_record(8, Some("naïve"), 5000).unwrap();
    log.commit(
        1,
        &[(0, version(1, 2, 3)), (2, version(0, 1, 4))],
        None,
        true,
    );
    log.commit(2, &[(1, version(1, 2, 5))], Some(b"third"), seal_last);
    log
}

fn is_damaged<T: std::fmt::Debug>(read: &Result<T, Unreadable>) -> bool {
    matches!(read, Err(Unreadable::Damaged { .. }))
}

fn table_of(read: Replay) -> Table {
    read.table
}

#[test]
fn an_empty_log_says_nothing_and_a_whole_one_says_all() {
    let empty = Written::new(IDENTITY, 0);
    let read = replay(empty.bytes()).unwrap();
    assert_eq!(read.table, Table::default());
    assert_eq!((read.sequence, read.end), (0, to_u64(LOG_HEADER_BYTES)));

    let log = small_log(true);
    let read = replay(log.bytes()).unwrap();
    assert_eq!(read.table, log.table);
    assert_eq!(read.identity, IDENTITY);
    assert_eq!((read.sequence, read.sealed), (3, true));
    assert_eq!(read.end, log.entries.position);
    assert_eq!(read.previous, log.entries.previous);
    assert!(!replay(small_log(false).bytes()).unwrap().sealed);
}

#[test]
fn every_flipped_bit_before_the_last_seal_is_told_as_damage() {
    let log = small_log(true);
    let sealed_bytes = log.commits[2].0;
    for bit in 0..log.bytes().len() * 8 {
        let mut damaged = log.bytes().to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let read = replay(&damaged);
        if bit / 8 < sealed_bytes {
            assert!(is_damaged(&read), "bit {bit}: {read:?}");
        } else {
            // The last seal itself: nothing that it vouches for is lost.
            assert_eq!(read.map(table_of), Ok(log.table.clone()), "bit {bit}");
        }
    }
}

#[test]
fn a_flipped_bit_in_a_commit_that_was_not_sealed_gives_the_commit_before() {
    let log = small_log(false);
    let before_last = log.commits[1].0;
    for bit in before_last * 8..log.bytes().len() * 8 {
        let mut damaged = log.bytes().to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(replay(&damaged).map(table_of), Ok(log.commits[1].1.clone()));
    }
}

#[test]
fn every_truncation_gives_the_last_commit_that_is_whole() {
    let log = small_log(true);
    for len in 0..log.bytes().len() {
        let read = replay(&log.bytes()[..len]);
        if len < LOG_HEADER_BYTES {
            assert!(is_damaged(&read), "{len} bytes");
        } else {
            assert_eq!(read.map(table_of), Ok(log.after(len)), "{len} bytes");
        }
    }
}

#[test]
fn a_torn_commit_of_which_only_the_end_was_written_is_none() {
    let mut log = small_log(true);
    let whole = log.bytes().len();
    for id in 100..120 {
        log.table.add_record(id, Some("lost"), 77).unwrap();
    }
    log.commit(3, &[(0, version(0, 3, 9))], None, false);
    for hole in [1, 8, 40, 512, 1024] {
        let mut torn = log.bytes().to_vec();
        torn[whole..whole + hole].fill(0);
        let read = replay(&torn).unwrap();
        assert_eq!(read.table, log.commits[2].1, "{hole} bytes missing");
        assert_eq!(read.end, to_u64(whole));
    }
    // The same with the seal, which nobody writes before all of it is on storage.
    log.seal();
    let mut damaged = log.bytes().to_vec();
    damaged[whole] = 0;
    assert!(is_damaged(&replay(&damaged)));
}

#[test]
fn a_lost_seal_is_no_damage_and_a_commit_may_follow_it_missing() {
    let mut log = small_log(false);
    log.commit(3, &[(0, version(0, 3, 9))], None, true);
    assert_eq!(replay(log.bytes()).map(table_of), Ok(log.table.clone()));
    // Only the seal of the third commit is missing, and nothing of the fourth is whole.
    let mut log = small_log(true);
    let seal_at = log.commits[2].0;
    let sealed = log.bytes().len();
    log.commit(3, &[(0, version(0, 3, 9))], None, false);
    let mut torn = log.bytes().to_vec();
    torn[seal_at..sealed].fill(0);
    assert_eq!(replay(&torn).map(table_of), Ok(log.commits[2].1.clone()));
}

#[test]
fn entries_of_another_store_another_place_or_another_past_are_not_taken() {
    let log = small_log(true);
    let first_end = log.commits[0].0;

    // The entries of another store under this one's header.
    let mut foreign = Written::new([1; 16], 0);
    foreign.table = Table::default();
    foreign.table.add_state(state("x", Dtype::F32)).unwrap();
    foreign.commit(9, &[], None, true);
    let mut mixed = log.bytes()[..LOG_HEADER_BYTES].to_vec();
    mixed.extend_from_slice(&foreign.bytes()[LOG_HEADER_BYTES..]);
    assert_eq!(replay(&mixed).map(table_of), Ok(Table::default()));

    // The last commit right behind the first one.
    let mut moved = log.bytes()[..first_end].to_vec();
    moved.extend_from_slice(&log.bytes()[log.commits[1].0..]);
    assert_eq!(replay(&moved).map(table_of), Ok(log.commits[0].1.clone()));

    // Two attempts at one commit: what the first one left fits in place and number.
    let attempt = |step| {
        let mut log = small_log(true);
        log.table.add_record(500 + step, None, 10).unwrap();
        log.commit(step, &[(0, version(0, 3, 1))], None, false);
        log
    };
    let (one, other) = (attempt(3), attempt(4));
    let whole = log.bytes().len();
    assert_eq!(one.bytes().len(), other.bytes().len());
    let parameter_bytes = (ENTRY_HEADER_BYTES + 32 + 4).next_multiple_of(8);
    let mut mixed = one.bytes()[..whole + parameter_bytes].to_vec();
    mixed.extend_from_slice(&other.bytes()[whole + parameter_bytes..]);
    assert_eq!(replay(&mixed).map(table_of), Ok(log.table.clone()));
}

#[test]
fn a_log_that_begins_with_a_snapshot_must_hold_it() {
    let log = small_log(true);
    let mut shorter = Written::new(IDENTITY, 2);
    log.table.write_snapshot(&mut shorter.entries, 3);
    let unsealed = shorter.bytes().len();
    assert_eq!(replay(shorter.bytes()).map(table_of), Ok(log.table.clone()));
    for len in LOG_HEADER_BYTES..unsealed {
        assert!(is_damaged(&replay(&shorter.bytes()[..len])), "{len} bytes");
    }
}

#[test]
fn what_makes_no_sense_is_damage_even_with_right_checksums() {
    let with = |kind: Kind, sequence: u64, payload: &[u8]| {
        let mut log = small_log(true);
        log.entries
            .add(kind, sequence, |into| into.extend_from_slice(payload));
        replay(log.bytes())
    };
    let mut parameter = Vec::new();
    for number in [70, 10, 64 << 10, 0_u64] {
        parameter.extend_from_slice(&number.to_le_bytes());
    }
    let mut late_state = Vec::new();
    entry::encode_state(&state("late", Dtype::F32), &mut late_state);
    let mut unknown_record = Vec::new();
    let change = [(99, version(0, 1, 1))];
    entry::encode_commit(5, change.into_iter(), None, 0, 2, &mut unknown_record);
    let mut bad_slot = Vec::new();
    let change = [(0, version(3, 1, 1))];
    entry::encode_commit(5, change.into_iter(), None, 0, 2, &mut bad_slot);
    for (kind, sequence, payload) in [
        (Kind::Parameter, 4, &parameter[..]),
        (Kind::Parameter, 4, &parameter[..31]),
        (Kind::State, 4, &late_state),
        (Kind::Commit, 4, &unknown_record),
        (Kind::Commit, 4, &bad_slot),
        (Kind::Commit, 4, &[]),
        (Kind::Commit, 4, &[0xff; 24]),
        (Kind::Commit, 6, &[]),
        (Kind::Seal, 3, &[]),
        (Kind::Seal, 4, &[]),
    ] {
        let read = with(kind, sequence, payload);
        assert!(
            is_damaged(&read),
            "{kind:?} {sequence} {payload:?}: {read:?}"
        );
    }
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    // The same mutations on every run.
    let mut seed = 0x5EED_u64;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let log = small_log(true);
    for _ in 0..1000 {
        let mut bytes = log.bytes().to_vec();
        for _ in 0..=next(4) {
            let (at, to) = (next(bytes.len()), next(bytes.len()));
            match next(5) {
                0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                1 => bytes.truncate(at.max(1)),
                2 => bytes.copy_within(at.min(to)..at.max(to), 0),
                3 => bytes[at.min(to)..at.max(to)].fill(0xff),
                _ => bytes.extend_from_within(at.min(to)..at.max(to)),
            }
        }
        fuzz::read_any_log(&bytes);
        let recipe: Vec<u8> = (0..next(400))
            .map(|_| u8::try_from(next(256)).unwrap())
            .collect();
        fuzz::read_any_log(&recipe);
    }
}

fn any_states() -> impl Strategy<Value = Vec<StateSpec>> {
    let types = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::U8]);
    let spec = ("[a-zä_]{1,12}", types.clone(), types);
    prop::collection::vec(spec, 1..=STATES_MAX).prop_map(|specs| {
        let named = specs.into_iter().enumerate();
        named
            .map(|(index, (name, dtype, disk_dtype))| StateSpec {
                name: format!("{name}{index}"),
                dtype,
                disk_dtype,
            })
            .collect()
    })
}

#[derive(Debug, Clone)]
struct Round {
    records: Vec<(u64, Option<String>, u64)>,
    changes: Vec<(prop::sample::Index, Version)>,
    step: u64,
    user_data: Option<Vec<u8>>,
    sealed: bool,
}

fn any_version() -> impl Strategy<Value = Version> {
    let checksums = any::<[u32; STATES_MAX]>();
    (0..2_u8, any::<bool>(), any::<u32>(), checksums).prop_map(
        |(slot, checked, generation, checksums)| Version {
            slot,
            zero_states: 1,
            checked,
            generation,
            checksums,
        },
    )
}

fn any_round() -> impl Strategy<Value = Round> {
    let record = (
        0..u64::MAX,
        prop::option::of("[a-zß.]{0,20}"),
        1..1_u64 << 40,
    );
    (
        prop::collection::vec(record, 0..6),
        prop::collection::vec((any::<prop::sample::Index>(), any_version()), 0..8),
        any::<u64>(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..50)),
        any::<bool>(),
    )
        .prop_map(|(records, changes, step, user_data, sealed)| Round {
            records,
            changes,
            step,
            user_data,
            sealed,
        })
}

proptest! {
    #[test]
    fn what_was_committed_is_read_back_from_every_prefix(
        states in any_states(),
        rounds in prop::collection::vec(any_round(), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 4),
    ) {
        let mut log = Written::new(IDENTITY, 0);
        for state in states {
            log.table.add_state(state).unwrap();
        }
        for round in &rounds {
            for (id, name, numel) in &round.records {
                // Ids that were drawn before are refused, and change nothing.
                let _ = log.table.add_record(*id, name.as_deref(), *numel);
            }
            let records_len = log.table.records().len();
            let changes: Vec<(u32, Version)> = round
                .changes
                .iter()
                .filter(|_| records_len > 0)
                .map(|(index, version)| (u32::try_from(index.index(records_len)).unwrap(), *version))
                .collect();
            log.commit(round.step, &changes, round.user_data.as_deref(), round.sealed);
        }
        let read = replay(log.bytes()).unwrap();
        prop_assert_eq!(&read.table, &log.table);
        prop_assert_eq!(read.end, log.entries.position);
        let body_bytes = log.bytes().len() - LOG_HEADER_BYTES;
        for cut in cuts {
            let len = LOG_HEADER_BYTES + cut.index(body_bytes);
            prop_assert_eq!(replay(&log.bytes()[..len]).map(table_of), Ok(log.after(len)));
        }
        // And a shorter log says the same.
        let mut shorter = Written::new(IDENTITY, log.sequence - 1);
        log.table.write_snapshot(&mut shorter.entries, log.sequence);
        prop_assert_eq!(replay(shorter.bytes()).unwrap().table, log.table);
    }
}

#[test]
fn the_bytes_are_those_that_the_format_describes() {
    assert_eq!(entry::checksum(&[b"1234", b"56789"]), 0xE306_9283);
    let log = small_log(true);
    let hex = |range: std::ops::Range<usize>| {
        let bytes = &log.bytes()[range];
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    // The log's header: name, version, flags, identity, base.
    assert_eq!(hex(0..16), "5453574c4f4700000200000000000000");
    assert_eq!(&log.bytes()[16..32], b"0123456789abcdef");
    assert_eq!(hex(32..60), "0".repeat(56));
    // The first state: "TSWE", kind, payload of 14 bytes, position 64, commit 1; f32 on both sides.
    assert_eq!(
        hex(64..88),
        "54535745010000000e000000000000004000000000000000"
    );
    assert_eq!(hex(88..96), "0100000000000000");
    assert_eq!(
        hex(104..118),
        "0100000001000000".to_owned() + "6d6173746572"
    );
    assert_eq!(log.bytes()[118..124], [0; 6]);
    // It ends with its checksum, which the next entry repeats.
    assert_eq!(hex(124..128), hex(128 + 32..128 + 36));
    // Nothing of it may change without a new version of the format.
    assert_eq!(entry::checksum(&[log.bytes()]), 607_792_289);
}
