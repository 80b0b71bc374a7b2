//! How the states of one parameter lie in an extent, and in the memory that holds it. Pure.
//!
//! An extent holds the states one after the other, each in its storage type, each beginning at a
//! multiple of [`BLOCK_BYTES`], and long ones not at a power of two of each other. A record in
//! memory has a *region* for each state, large enough for the state in its memory type and in its
//! storage type; the state's *image*, the bytes that storage holds, lies at the beginning of the
//! region. Where the two types are the same for all states, the memory of a record and its extent
//! are the same bytes.

use std::ops::Range;

use super::header::DATA_START_BYTES;
use super::striping::Area;
use super::version::DATA_SLOTS;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{MIB, round_up};

/// The most states a parameter can have.
pub const STATES_MAX: usize = 8;
/// Images and extents begin at multiples of this.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Long states are followed by so much more, zeros on storage.
///
/// An update walks through all states side by side. Were they a power of two apart, as those of
/// parameters with 2^n elements would be, all of its streams would meet in the same sets of the
/// caches and the same banks of memory: an Adam update of 8 Mi elements took five times as long
/// (November 2026, Sapphire Rapids).
const STAGGER_BYTES: u64 = 3 * BLOCK_BYTES;
/// States from this length on.
const STAGGER_FROM_BYTES: u64 = MIB;

/// Bytes that a state of `len_bytes` takes, padding included.
fn padded(len_bytes: u64) -> u64 {
    let blocks_bytes = round_up(len_bytes, BLOCK_BYTES);
    if len_bytes >= STAGGER_FROM_BYTES {
        blocks_bytes + STAGGER_BYTES
    } else {
        blocks_bytes
    }
}

/// One state that every parameter has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateSpec {
    pub(crate) name: String,
    /// The type in memory.
    pub(crate) dtype: Dtype,
    /// The type on storage.
    pub(crate) disk_dtype: Dtype,
}

/// The states of every parameter, in order; state 0 is the master parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) states: Vec<StateSpec>,
}

impl Layout {
    /// Bytes of one state's image, without its padding.
    pub(crate) fn image_bytes(&self, state: usize, numel: u64) -> u64 {
        // Cannot overflow: `check_numel` saw the whole record.
        numel * self.states[state].disk_dtype.size_bytes()
    }

    /// Bytes of one state's values in memory.
    pub(crate) fn values_bytes(&self, state: usize, numel: u64) -> u64 {
        numel * self.states[state].dtype.size_bytes()
    }

    /// The state's image in the extent, padding included.
    pub(crate) fn image(&self, state: usize, numel: u64) -> Range<u64> {
        let room = |state: usize| padded(self.image_bytes(state, numel));
        let start = (0..state).map(room).sum();
        start..start + room(state)
    }

    /// The state's region in the memory of a record.
    pub(crate) fn region(&self, state: usize, numel: u64) -> Range<u64> {
        let room = |state: usize| {
            let larger = self
                .image_bytes(state, numel)
                .max(self.values_bytes(state, numel));
            padded(larger)
        };
        let start = (0..state).map(room).sum();
        start..start + room(state)
    }

    /// Bytes of an extent.
    pub(crate) fn extent_bytes(&self, numel: u64) -> u64 {
        let last = self.states.len().checked_sub(1);
        last.map_or(0, |last| self.image(last, numel).end)
    }

    /// Bytes of memory that hold a record.
    pub(crate) fn record_bytes(&self, numel: u64) -> u64 {
        let last = self.states.len().checked_sub(1);
        last.map_or(0, |last| self.region(last, numel).end)
    }

    /// Where a slot of the record is whose slot 0 has the address `offset`: its area, and the
    /// address in it. In the spare files every record has one slot instead of two, in the same
    /// order.
    pub(crate) fn slot(&self, offset: u64, slot: u8, numel: u64) -> (Area, u64) {
        let area = Area::of_slot(slot);
        let address = match area {
            Area::Data => offset + u64::from(slot) * self.extent_bytes(numel),
            Area::Spare => {
                let before = offset.saturating_sub(DATA_START_BYTES);
                DATA_START_BYTES + before / u64::from(DATA_SLOTS)
            }
        };
        (area, address)
    }

    /// The set of all states, as [`Version::zero_states`](super::Version) has it.
    pub(crate) fn all_states(&self) -> u8 {
        (0..self.states.len()).fold(0, |set, state| set | 1 << state)
    }

    /// The set of all states but the master.
    pub(crate) fn zero_but_master(&self) -> u8 {
        self.all_states() & !1
    }

    /// The state with this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.states.iter().position(|state| state.name == name)
    }

    /// Whether all sizes of a parameter can be computed without overflow.
    ///
    /// # Errors
    /// `InvalidArgument` for no elements, or so many that a file offset could not express them.
    pub(crate) fn check_numel(&self, numel: u64) -> Result<()> {
        if numel == 0 {
            return Err(Error::invalid("a parameter has at least one element"));
        }
        let widest = 8 * (STATES_MAX as u64) * 4;
        match numel.checked_mul(widest) {
            Some(bytes) if bytes <= crate::base::units::FILE_OFFSET_MAX => Ok(()),
            _ => Err(Error::invalid(format!("{numel} elements are too many"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(types: &[(Dtype, Dtype)]) -> Layout {
        let state = |(index, types): (usize, &(Dtype, Dtype))| StateSpec {
            name: format!("s{index}"),
            dtype: types.0,
            disk_dtype: types.1,
        };
        Layout {
            states: types.iter().enumerate().map(state).collect(),
        }
    }

    #[test]
    fn equal_types_lie_in_memory_as_on_storage() {
        let layout = layout(&[(Dtype::F32, Dtype::F32); 3]);
        for numel in [1, 1023, 1024, 1025, 1 << 20] {
            for state in 0..3 {
                assert_eq!(layout.image(state, numel), layout.region(state, numel));
            }
            assert_eq!(layout.extent_bytes(numel), layout.record_bytes(numel));
        }
        assert_eq!(layout.image(1, 1025), 8192..16384);
    }

    #[test]
    fn long_states_are_no_power_of_two_apart() {
        let layout = layout(&[(Dtype::F32, Dtype::F32); 3]);
        let starts = [1, 2].map(|state| layout.region(state, 1 << 23).start);
        assert_eq!(starts, [(32 << 20) + 12288, (64 << 20) + 24576]);
        assert_eq!(layout.region(1, (1 << 18) - 1).start, 1 << 20);
    }

    #[test]
    fn a_region_has_room_for_both_types() {
        let layout = layout(&[(Dtype::F32, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)]);
        assert_eq!(layout.region(0, 2049), 0..12288);
        assert_eq!(layout.region(1, 2049), 12288..24576);
        assert_eq!(layout.image(0, 2049), 0..8192);
        assert_eq!(layout.image(1, 2049), 8192..20480);
        assert_eq!(layout.extent_bytes(2049), 20480);
    }

    #[test]
    fn absurd_counts_are_refused() {
        let layout = layout(&[(Dtype::F32, Dtype::F32)]);
        assert!(layout.check_numel(0).is_err());
        assert!(layout.check_numel(u64::MAX).is_err());
        assert!(layout.check_numel(1 << 40).is_ok());
    }
}
