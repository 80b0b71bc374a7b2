//! Reading a log: from its bytes to what was committed last. Pure; touches no file.
//!
//! What follows the last commit is either a *torn tail*, the remains of a commit that power or the
//! process did not let finish, or *damage* to something that was on storage. The two are told
//! apart by what comes after: a seal is written only after the commit before it is on storage, and
//! a commit's entries only after the commit before that one is. So whoever finds one of those
//! behind bytes that cannot be read knows that these could be read once.

use super::entry::{
    Commit, ENTRY_ALIGN_BYTES, Entry, EntryHeader, Identity, Kind, Parameter, decode,
    decode_header, decode_state, decode_stripe,
};
use super::header::{BadHeader, LOG_HEADER_BYTES, LogHeader};
use super::striping::Striping;
use super::table::Table;
use crate::base::units::to_u64;

/// What a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) identity: Identity,
    /// What the last commit left.
    pub(crate) table: Table,
    /// The number of the last commit; 0 before the first.
    pub(crate) sequence: u64,
    /// Where the next commit is to be written; what lies there is a torn tail.
    pub(crate) end: u64,
    /// The checksum of the last entry before `end`.
    pub(crate) previous: u32,
    /// Whether the last commit is known to be on storage.
    pub(crate) sealed: bool,
    /// Where the entries of the last commit begin; all before it is known to be on storage.
    pub(crate) last_from: u64,
}

/// Why a log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It was written in a version that this build does not know.
    Version(u32),
    /// It is damaged, or no log.
    Damaged {
        /// Where.
        offset: u64,
        /// How.
        reason: String,
    },
}

impl Unreadable {
    fn damaged(offset: u64, reason: impl Into<String>) -> Unreadable {
        Unreadable::Damaged {
            offset,
            reason: reason.into(),
        }
    }
}

impl From<BadHeader> for Unreadable {
    fn from(bad: BadHeader) -> Unreadable {
        match bad {
            BadHeader::Damaged(reason) => Unreadable::damaged(0, reason),
            BadHeader::Version(version) => Unreadable::Version(version),
        }
    }
}

/// Reads a whole log.
///
/// # Errors
/// [`Unreadable`], never a state that was not committed last, as far as bytes can tell.
pub(crate) fn replay(bytes: &[u8]) -> Result<Replay, Unreadable> {
    let (header, header_checksum) = LogHeader::decode(bytes)?;
    let mut replay = Replay {
        identity: header.identity,
        table: Table::default(),
        sequence: header.sequence,
        end: to_u64(LOG_HEADER_BYTES),
        previous: header_checksum,
        sealed: true,
        last_from: to_u64(LOG_HEADER_BYTES),
    };
    let mut at = LOG_HEADER_BYTES;
    let mut previous = header_checksum;
    while let Some(entry) = decode(&header.identity, &bytes[at..], to_u64(at), previous) {
        let settled =
            apply(&mut replay, &entry).map_err(|reason| Unreadable::damaged(to_u64(at), reason))?;
        at += entry.entry_bytes;
        previous = entry.checksum;
        if settled {
            replay.end = to_u64(at);
            replay.previous = previous;
        }
    }
    if let Some(witness) = find_witness(&replay, bytes, at) {
        let reason = format!("an entry is damaged: the one at {witness} was written after it");
        return Err(Unreadable::damaged(to_u64(at), reason));
    }
    // A log that begins after some commit is put in place only when it holds that one's successor.
    if header.sequence > 0 && replay.sequence == header.sequence {
        let reason = "the commit that the log begins with is missing";
        return Err(Unreadable::damaged(replay.end, reason));
    }
    replay.table.forget_uncommitted();
    Ok(replay)
}

/// Applies an entry that is as it was written. Says whether all up to its end is settled, or what
/// is wrong with it.
fn apply(replay: &mut Replay, entry: &Entry<'_>) -> Result<bool, String> {
    let EntryHeader { kind, sequence, .. } = entry.header;
    let kind = kind.ok_or("an entry of an unknown kind")?;
    let expected = match kind {
        Kind::Seal => Some(replay.sequence),
        _ => replay.sequence.checked_add(1),
    };
    if expected != Some(sequence) {
        return Err(format!("an entry of commit {sequence} is out of place"));
    }
    let table = &mut replay.table;
    match kind {
        Kind::State => {
            let state = decode_state(entry.payload).ok_or("a malformed state")?;
            table.add_state(state).map_err(|error| error.to_string())?;
            Ok(false)
        }
        Kind::Parameter => {
            let parameter = Parameter::decode(entry.payload).ok_or("a malformed parameter")?;
            if parameter.offset != table.end() {
                return Err(format!("parameter {} is out of place", parameter.id));
            }
            table
                .add_record(parameter.id, parameter.name, parameter.numel)
                .map_err(|error| error.to_string())?;
            Ok(false)
        }
        Kind::Stripe => {
            let (from, weights) = decode_stripe(entry.payload).ok_or("malformed weights")?;
            if from != Striping::next_start(table.end()) {
                return Err("weights are out of place".to_owned());
            }
            let changed = table.set_weights(&weights);
            changed.map_err(|error| error.to_string())?;
            Ok(false)
        }
        Kind::Commit => {
            let states_len = table.layout().states.len();
            let commit = Commit::decode(entry.payload, states_len).ok_or("a malformed commit")?;
            table.apply(&commit).map_err(|error| error.to_string())?;
            replay.sequence = sequence;
            replay.sealed = false;
            replay.last_from = replay.end;
            Ok(true)
        }
        Kind::Seal => {
            // A seal belongs right behind its commit: nothing may be pending.
            if replay.sealed || !entry.payload.is_empty() || !table.is_settled() {
                return Err("a seal is out of place".to_owned());
            }
            replay.sealed = true;
            Ok(true)
        }
    }
}

/// The offset of an entry from `from` on that proves that everything before it was on storage.
fn find_witness(replay: &Replay, bytes: &[u8], from: usize) -> Option<usize> {
    let next = replay.sequence.saturating_add(1);
    (from..bytes.len()).step_by(ENTRY_ALIGN_BYTES).find(|at| {
        let header = decode_header(&replay.identity, &bytes[*at..], to_u64(*at));
        header.is_some_and(|header| match header.kind {
            Some(Kind::Seal) => header.sequence >= next,
            _ => header.sequence > next,
        })
    })
}
