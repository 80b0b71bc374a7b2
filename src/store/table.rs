//! What a store records: states, records, the last committed version of each. Pure.

use std::collections::HashMap;

use super::entry::{self, Commit, EntryWriter, Kind, Parameter};
use super::header::DATA_START_BYTES;
use super::version::SLOTS;
use super::{Layout, STATES_MAX, StateSpec, Version};
use crate::base::error::{Error, Result};
use crate::base::units::{FILE_OFFSET_MAX, MIB, to_u64};

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
    /// Offset of slot 0 in the data file; slot 1 follows it.
    pub(crate) offset: u64,
    /// The last committed version; `None` before the first.
    pub(crate) durable: Option<Version>,
}

/// What an entry takes in the log at most, besides names, changes and user data.
const ENTRY_BYTES_MAX: u64 = 96;

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
    /// Where the next record's slots begin in the data file.
    end: u64,
    /// How many of the states and of the records the last commit made part of the log.
    committed: (usize, usize),
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
            end: DATA_START_BYTES,
            committed: (0, 0),
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

    /// The length that the data file must have.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.end
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

    /// Where the slots of a further record lie: their begin, and the end of the second one.
    ///
    /// # Errors
    /// `InvalidArgument` where there can be no such record.
    pub(crate) fn place(&self, id: u64, name: Option<&str>, numel: u64) -> Result<(u64, u64)> {
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
            .checked_mul(u64::from(SLOTS))
            .and_then(|both| self.end.checked_add(both))
            .filter(|end| *end <= FILE_OFFSET_MAX);
        match end {
            Some(end) if self.records.len() < u32::MAX as usize => Ok((self.end, end)),
            _ => Err(Error::invalid(format!(
                "a store has no place for {numel} elements more"
            ))),
        }
    }

    /// Adds a record, at the place that [`Table::place`] gives it.
    ///
    /// # Errors
    /// As [`Table::place`]; nothing changed then.
    pub(crate) fn add_record(
        &mut self,
        id: u64,
        name: Option<&str>,
        numel: u64,
    ) -> Result<RecordIndex> {
        let (offset, end) = self.place(id, name, numel)?;
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
        self.committed = (states_len, self.records.len());
        self.uncommitted_bytes = 0;
    }

    /// Applies a commit that was read from a log.
    ///
    /// # Errors
    /// As [`Table::check_commit`].
    pub(crate) fn apply(&mut self, commit: &Commit<'_>) -> Result<()> {
        self.check_commit(commit.changes(), commit.user_data)?;
        self.commit(commit.step, commit.changes(), commit.user_data);
        Ok(())
    }

    /// Whether all states and records are part of the log.
    pub(crate) fn is_settled(&self) -> bool {
        self.committed == (self.layout.states.len(), self.records.len())
    }

    /// Forgets states and records that no commit made part of the log.
    pub(crate) fn forget_uncommitted(&mut self) {
        let (states_len, records_len) = self.committed;
        self.layout.states.truncate(states_len);
        for record in self.records.drain(records_len..).rev() {
            self.ids.remove(&record.id);
            self.end = record.offset;
        }
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
        let (states_len, records_len) = self.committed;
        self.write_registered(entries, sequence, states_len, records_len);
        let states_len = self.layout.states.len();
        entries.add(Kind::Commit, sequence, |payload| {
            let changes = changes.iter().copied();
            entry::encode_commit(step, changes, user_data, states_len, payload);
        });
    }

    /// Writes all that was committed as one commit.
    pub(crate) fn write_snapshot(&self, entries: &mut EntryWriter, sequence: u64) {
        self.write_registered(entries, sequence, 0, 0);
        let changes: Vec<(RecordIndex, Version)> = (0..)
            .zip(&self.records)
            .filter_map(|(index, record)| Some((index, record.durable?)))
            .collect();
        let states_len = self.layout.states.len();
        entries.add(Kind::Commit, sequence, |payload| {
            let changes = changes.into_iter();
            let user_data = Some(self.user_data.as_slice());
            entry::encode_commit(self.step, changes, user_data, states_len, payload);
        });
    }

    fn write_registered(
        &self,
        entries: &mut EntryWriter,
        sequence: u64,
        states_from: usize,
        records_from: usize,
    ) {
        for state in &self.layout.states[states_from..] {
            entries.add(Kind::State, sequence, |payload| {
                entry::encode_state(state, payload);
            });
        }
        for record in &self.records[records_from..] {
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
