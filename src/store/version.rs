//! One version of a record.

use super::layout::STATES_MAX;

/// A record has two slots, and one of them may be written while the other one is durable. The third
/// one is there while a snapshot keeps a slot from being written.
pub(crate) const SLOTS: u8 = 3;
/// Slots that a record always has, in the data files. The third one is in the spare files.
pub(crate) const DATA_SLOTS: u8 = 2;

/// Where one version of a record lies, and what it must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    /// 0 or 1; 2 in the spare files.
    pub(crate) slot: u8,
    /// A bit for each state that is all zeros and was not written.
    pub(crate) zero_states: u8,
    /// Whether `checksums` were computed.
    pub(crate) checked: bool,
    /// Counts the versions of this record, from 1.
    pub(crate) generation: u32,
    /// CRC-32C of each state's image, without its padding; 0 for states that are zero.
    pub(crate) checksums: [u32; STATES_MAX],
}

impl Version {
    /// Whether a state is all zeros, and was not written.
    pub(crate) fn is_zero(&self, state: usize) -> bool {
        is_in(self.zero_states, state)
    }
}

/// Whether a set, such as [`Version::zero_states`], has a state in it.
pub(crate) fn is_in(states: u8, state: usize) -> bool {
    states & (1 << state) != 0
}
