//! What a store records: states, records, the last committed version of each. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::{self, Commit, EntryWriter, Kind, Parameter};
use super::header::DATA_START_BYTES;
use super::striping::{Area, Striping, is_address};
use super::version::{DATA_SLOTS, SLOTS};
use super::{Layout, STATES_MAX, StateSpec, Version};
use crate::base::error::{Error, Result};
use crate::base::units::{MIB, to_u64};

/// Index of a record: the order in which parameters were first registered.
pub(crate) type RecordIndex = u32;

/// The longest name of a state or a parameter.
pub(crate) const NAME_BYTES_MAX: usize = 4096;
/// The most user data.
pub(crate) const USER_DATA_BYTES_MAX: u64 = MIB;

/// One record as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub(crate) id: u64,
    pub(crate) name: Option<Box<str>>,
    pub(crate) numel: u64,
    /// Address of slot 0; slot 1 follows it.
    pub(crate) offset: u64,
    /// The last committed version; `None` before the first.
    pub(crate) durable: Option<Version>,
}

/// What an entry takes in the log at most, besides names, weights, changes and user data.
const ENTRY_BYTES_MAX: u64 = 96;

/// How much of a table is part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Committed {
    states_len: usize,
    records_len: usize,
    striping: Arc<Striping>,
    end: u64,
}

/// States, records, and what was committed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    layout: Layout,
    records: Vec<StoredRecord>,
    ids: HashMap<u64, RecordIndex>,
    /// Steps done, as last committed.
    pub(crate) step: u64,
    /// As last committed.
    pub(crate) user_data: Vec<u8>,
    /// Bytes that were written to slots since the store was made.
    pub(crate) written_bytes: u64,
    /// Where addresses lie.
    striping: Arc<Striping>,
    /// The address at which the next record's slots begin.
    end: u64,
    /// What the last commit made part of the log.
    committed: Committed,
    /// Bytes that the others' entries will take in the log.
    uncommitted_bytes: u64,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            layout: Layout::default(),
            records: Vec::new(),
            ids: HashMap::new(),
            step: 0,
            user_data: Vec::new(),
            written_bytes: 0,
            striping: Arc::default(),
            end: DATA_START_BYTES,
            committed: Committed {
                states_len: 0,
                records_len: 0,
                striping: Arc::default(),
                end: DATA_START_BYTES,
            },
            uncommitted_bytes: 0,
        }
    }
}

impl Table {
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn records(&self) -> &[StoredRecord] {
        &self.records
    }

    pub(crate) fn record(&self, index: RecordIndex) -> Option<&StoredRecord> {
        self.records.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn find(&self, id: u64) -> Option<RecordIndex> {
        self.ids.get(&id).copied()
    }

    /// Memory that the records take, without their names.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> u64 {
        let records = self.records.capacity() * size_of::<StoredRecord>();
        // Entries are stored with one byte of their hash each, in tables filled to 7 eighths.
        let ids = self.ids.capacity() / 7 * 8 * (size_of::<(u64, RecordIndex)>() + 1);
        to_u64(records + ids)
    }

    /// Where addresses lie.
    pub(crate) fn striping(&self) -> &Arc<Striping> {
        &self.striping
    }

    /// The address behind the last record's slots.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The address behind the last record's third slot.
    pub(crate) fn spare_end(&self) -> u64 {
        let (_, end) = self.layout.slot(self.end, DATA_SLOTS, 0);
        end
    }

    /// The address behind the last third slot that holds a committed version; `None` where none
    /// does.
    pub(crate) fn spare_used_end(&self) -> Option<u64> {
        let is_third = |version: Version| version.slot >= DATA_SLOTS;
        let mut used = self.records.iter().rev();
        let last = used.find(|record| record.durable.is_some_and(is_third))?;
        let (_, address) = self.slot(last, DATA_SLOTS);
        Some(address + self.layout.extent_bytes(last.numel))
    }

    /// Where a slot of a record is: its area, and the address in it.
    pub(crate) fn slot(&self, record: &StoredRecord, slot: u8) -> (Area, u64) {
        self.layout.slot(record.offset, slot, record.numel)
    }

    /// Deals the addresses of further records by these weights.
    ///
    /// # Errors
    /// `InvalidArgument` for weights that cannot be; nothing changed then.
    pub(crate) fn set_weights(&mut self, weights: &[u32]) -> Result<()> {
        let from = Striping::next_start(self.end);
        if self.striping.places_len() != weights.len() && !self.records.is_empty() {
            return Err(Error::invalid("another number of places than before"));
        }
        Arc::make_mut(&mut self.striping).change(from, weights)?;
        self.end = from;
        self.uncommitted_bytes += ENTRY_BYTES_MAX + 4 * to_u64(weights.len());
        Ok(())
    }

    /// Adds a state.
    ///
    /// # Errors
    /// `InvalidArgument`; nothing changed then.
    pub(crate) fn add_state(&mut self, state: StateSpec) -> Result<()> {
        if !self.records.is_empty() {
            return Err(Error::invalid(format!(
                "state {} comes after the first parameter",
                state.name
            )));
        }
        if self.layout.states.len() >= STATES_MAX {
            return Err(Error::invalid(format!(
                "a parameter has at most {STATES_MAX} states"
            )));
        }
        check_name(&state.name)?;
        if state.name.is_empty() || self.layout.find(&state.name).is_some() {
            return Err(Error::invalid(format!(
                "the name \"{}\" of a state is empty or taken",
                state.name
            )));
        }
        self.uncommitted_bytes += ENTRY_BYTES_MAX + to_u64(state.name.len());
        self.layout.states.push(state);
        Ok(())
    }

    /// The addresses of a further record's slots: where they begin and end.
    ///
    /// # Errors
    /// `InvalidArgument` where there can be no such record.
    pub(crate) fn next_slots(&self, id: u64, name: Option<&str>, numel: u64) -> Result<(u64, u64)> {
        if id == u64::MAX {
            return Err(Error::invalid("the id stands for no parameter"));
        }
        if self.ids.contains_key(&id) {
            return Err(Error::invalid(format!(
                "parameter {id} is registered already"
            )));
        }
        if self.layout.states.is_empty() {
            return Err(Error::invalid("parameters need a state first"));
        }
        check_name(name.unwrap_or_default())?;
        self.layout.check_numel(numel)?;
        let end = self
            .layout
            .extent_bytes(numel)
            .checked_mul(u64::from(DATA_SLOTS))
            .and_then(|both| self.end.checked_add(both))
            .filter(|end| is_address(*end));
        match end {
            Some(end) if self.records.len() < u32::MAX as usize => Ok((self.end, end)),
            _ => Err(Error::invalid(format!(
                "a store has no place for {numel} elements more"
            ))),
        }
    }

    /// Adds a record, with the slots that [`Table::next_slots`] gives it.
    ///
    /// # Errors
    /// As [`Table::next_slots`]; nothing changed then.
    pub(crate) fn add_record(
        &mut self,
        id: u64,
        name: Option<&str>,
        numel: u64,
    ) -> Result<RecordIndex> {
        let (offset, end) = self.next_slots(id, name, numel)?;
        let len = self.records.len();
        let index = u32::try_from(len).map_err(|_| Error::invalid("too many parameters"))?;
        let record = StoredRecord {
            id,
            name: name.map(Box::from),
            numel,
            offset,
            durable: None,
        };
        push_tightly(&mut self.records, record);
        self.ids.insert(id, index);
        self.uncommitted_bytes += ENTRY_BYTES_MAX + to_u64(name.unwrap_or_default().len());
        self.end = end;
        Ok(index)
    }

    /// Whether a commit makes sense: its records exist, its user data is short enough.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn check_commit(
        &self,
        mut changes: impl Iterator<Item = (RecordIndex, Version)>,
        user_data: Option<&[u8]>,
    ) -> Result<()> {
        let len_bytes = to_u64(user_data.unwrap_or_default().len());
        if len_bytes > USER_DATA_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{len_bytes} bytes of user data are more than {USER_DATA_BYTES_MAX}"
            )));
        }
        let states_len = self.layout.states.len();
        let wrong = changes.find(|(record, version)| {
            let unknown_states = u32::from(version.zero_states) >> states_len;
            self.record(*record).is_none() || version.slot >= SLOTS || unknown_states != 0
        });
        match wrong {
            None => Ok(()),
            Some((record, _)) => Err(Error::invalid(format!(
                "there can be no such version of record {record}"
            ))),
        }
    }

    /// Makes versions the last committed ones; they passed [`Table::check_commit`].
    pub(crate) fn commit(
        &mut self,
        step: u64,
        changes: impl Iterator<Item = (RecordIndex, Version)>,
        user_data: Option<&[u8]>,
    ) {
        let states_len = self.layout.states.len();
        for (record, mut version) in changes {
            // As the log would give it back.
            let kept = if version.checked { states_len } else { 0 };
            version.checksums[kept..].fill(0);
            let record = usize::try_from(record).ok();
            if let Some(record) = record.and_then(|record| self.records.get_mut(record)) {
                record.durable = Some(version);
            }
        }
        if let Some(data) = user_data {
            self.user_data.clear();
            self.user_data.extend_from_slice(data);
        }
        self.step = step;
        self.committed = self.all();
        self.uncommitted_bytes = 0;
    }

    /// Applies a commit that was read from a log.
    ///
    /// # Errors
    /// As [`Table::check_commit`].
    pub(crate) fn apply(&mut self, commit: &Commit<'_>) -> Result<()> {
        self.check_commit(commit.changes(), commit.user_data)?;
        self.written_bytes = commit.written_bytes;
        self.commit(commit.step, commit.changes(), commit.user_data);
        Ok(())
    }

    /// All that there is, as part of the log.
    fn all(&self) -> Committed {
        Committed {
            states_len: self.layout.states.len(),
            records_len: self.records.len(),
            striping: Arc::clone(&self.striping),
            end: self.end,
        }
    }

    /// The records that are part of the log.
    pub(crate) fn committed_records(&self) -> &[StoredRecord] {
        &self.records[..self.committed.records_len]
    }

    /// Whether all states, records and weights are part of the log.
    pub(crate) fn is_settled(&self) -> bool {
        self.committed == self.all()
    }

    /// Forgets states, records and weights that no commit made part of the log.
    pub(crate) fn forget_uncommitted(&mut self) {
        self.layout.states.truncate(self.committed.states_len);
        for record in self.records.drain(self.committed.records_len..) {
            self.ids.remove(&record.id);
        }
        self.striping = Arc::clone(&self.committed.striping);
        self.end = self.committed.end;
        self.uncommitted_bytes = 0;
    }

    /// Bytes that a commit of everything takes in the log, at most.
    pub(crate) fn commit_bytes_max(&self) -> u64 {
        let change_bytes = to_u64(entry::change_bytes(self.layout.states.len()));
        let changes_bytes = to_u64(self.records.len()) * change_bytes;
        self.uncommitted_bytes + changes_bytes + USER_DATA_BYTES_MAX + 2 * ENTRY_BYTES_MAX
    }

    /// Writes what a commit makes part of the log: states and records not in it yet, and the
    /// commit itself.
    pub(crate) fn write_commit(
        &self,
        entries: &mut EntryWriter,
        sequence: u64,
        step: u64,
        changes: &[(RecordIndex, Version)],
        user_data: Option<&[u8]>,
    ) {
        self.write_registered(entries, sequence, &self.committed);
        let states_len = self.layout.states.len();
        entries.add(Kind::Commit, sequence, |payload| {
            let changes = changes.iter().copied();
            let written = self.written_bytes;
            entry::encode_commit(step, changes, user_data, written, states_len, payload);
        });
    }

    /// Writes all that was committed as one commit.
    pub(crate) fn write_snapshot(&self, entries: &mut EntryWriter, sequence: u64) {
        self.write_registered(entries, sequence, &Table::default().committed);
        let changes: Vec<(RecordIndex, Version)> = (0..)
            .zip(&self.records)
            .filter_map(|(index, record)| Some((index, record.durable?)))
            .collect();
        let states_len = self.layout.states.len();
        entries.add(Kind::Commit, sequence, |payload| {
            let changes = changes.into_iter();
            let user_data = Some(self.user_data.as_slice());
            let written = self.written_bytes;
            entry::encode_commit(self.step, changes, user_data, written, states_len, payload);
        });
    }

    /// Writes the states, weights and records that are not part of what is `known`.
    fn write_registered(&self, entries: &mut EntryWriter, sequence: u64, known: &Committed) {
        for state in &self.layout.states[known.states_len..] {
            entries.add(Kind::State, sequence, |payload| {
                entry::encode_state(state, payload);
            });
        }
        let is_new = |stripe: &(u64, &[u32])| !known.striping.stripes().any(|old| old == *stripe);
        let mut stripes = self.striping.stripes().filter(is_new).peekable();
        for record in &self.records[known.records_len..] {
            // A reader takes records one behind the other, and weights as they come to hold.
            while let Some((from, weights)) = stripes.next_if(|(from, _)| *from <= record.offset) {
                entries.add(Kind::Stripe, sequence, |payload| {
                    entry::encode_stripe(from, weights, payload);
                });
            }
            entries.add(Kind::Parameter, sequence, |payload| {
                let parameter = Parameter {
                    id: record.id,
                    numel: record.numel,
                    offset: record.offset,
                    name: record.name.as_deref(),
                };
                parameter.encode(payload);
            });
        }
        for (from, weights) in stripes {
            entries.add(Kind::Stripe, sequence, |payload| {
                entry::encode_stripe(from, weights, payload);
            });
        }
    }
}

/// Adds an item to a list that may grow very long. Doubling its room would leave half of it unused
/// in the worst case.
pub(crate) fn push_tightly<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 64);
    }
    list.push(item);
}

fn check_name(name: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(Error::invalid(format!(
            "a name is longer than {NAME_BYTES_MAX} bytes or contains a zero byte"
        )));
    }
    Ok(())
}
