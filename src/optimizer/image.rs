//! Between the form in which storage holds a record and the one in which a caller updates it.
//!
//! Runs in the caller's thread and outside of every lock, while the data is about to be used or
//! was just produced. In *image form* each state's storage bytes lie at the beginning of its
//! region; in *view form* its values do, in their memory type. The same memory holds both in turn.

use std::ops::Range;

use super::view::StateView;
use crate::base::checksum::crc32c;
use crate::base::config::Rounding;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::to_usize;
use crate::memory::MemoryRange;
use crate::memory::numbers::{Rounder, convert, convert_in_place};
use crate::store::{Layout, STATES_MAX, Version, is_in};

/// A record in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Image<'a> {
    pub(super) layout: &'a Layout,
    pub(super) numel: u64,
    /// All regions.
    pub(super) memory: MemoryRange,
}

/// What the bits of stochastic rounding depend on, besides state and element.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundingKey {
    pub(super) rounding: Rounding,
    pub(super) seed: u64,
    pub(super) id: u64,
    pub(super) step: u64,
}

impl RoundingKey {
    pub(super) fn rounder(self, state: usize) -> Rounder {
        match self.rounding {
            Rounding::Nearest => Rounder::Nearest,
            Rounding::Stochastic => Rounder::stochastic(self.seed, self.id, state, self.step),
        }
    }
}

impl Image<'_> {
    fn part(&self, range: Range<u64>) -> Result<MemoryRange> {
        let (start, len) = (to_usize(range.start)?, to_usize(range.end - range.start)?);
        self.memory
            .slice(start, len)
            .ok_or_else(|| Error::Internal("a state lies outside of its record".to_owned()))
    }

    /// The place of a state.
    pub(super) fn region(&self, state: usize) -> Result<MemoryRange> {
        self.part(self.layout.region(state, self.numel))
    }

    /// The bytes of a state that storage holds, without padding.
    pub(super) fn bytes(&self, state: usize) -> Result<MemoryRange> {
        let start = self.layout.region(state, self.numel).start;
        self.part(start..start + self.layout.image_bytes(state, self.numel))
    }

    /// The bytes of a state as storage takes them, padded to whole blocks.
    pub(super) fn padded(&self, state: usize) -> Result<MemoryRange> {
        let start = self.layout.region(state, self.numel).start;
        let image = self.layout.image(state, self.numel);
        self.part(start..start + (image.end - image.start))
    }

    /// Two ranges of this record, the second one right behind the first, as one.
    pub(super) fn joined(&self, first: MemoryRange, second: MemoryRange) -> Option<MemoryRange> {
        let start = first.address().checked_sub(self.memory.address())?;
        self.memory.slice(start, first.len() + second.len())
    }

    fn values(&self, state: usize) -> Result<MemoryRange> {
        let start = self.layout.region(state, self.numel).start;
        self.part(start..start + self.layout.values_bytes(state, self.numel))
    }

    /// Whether the images are those of this version; the first state that is not.
    pub(super) fn first_wrong(&self, version: &Version) -> Result<Option<usize>> {
        if !version.checked {
            return Ok(None);
        }
        for state in self.states_but(version.zero_states) {
            if self.bytes(state)?.inspect(crc32c) != version.checksums[state] {
                return Ok(Some(state));
            }
        }
        Ok(None)
    }

    /// From image form to view form; a state that is known to be zero is made so.
    pub(super) fn expand(&self, zero_states: u8) -> Result<[Option<StateView>; STATES_MAX]> {
        let mut views = [None; STATES_MAX];
        let numel = to_usize(self.numel)?;
        for (state, spec) in self.layout.states.iter().enumerate() {
            let values = self.values(state)?;
            if is_in(zero_states, state) {
                values.zero(0, values.len())?;
            } else if spec.dtype != spec.disk_dtype {
                // Exact in the wider type; a narrower memory type rounds to nearest.
                let (from, to) = (spec.disk_dtype, spec.dtype);
                let region = self.region(state)?;
                region
                    .update(|bytes| convert_in_place(bytes, numel, from, to, Rounder::Nearest))?;
            }
            views[state] = Some(StateView {
                memory: values,
                numel: self.numel,
                dtype: spec.dtype,
            });
        }
        Ok(views)
    }

    /// From view form to image form, ready to be written.
    pub(super) fn shrink(&self, key: RoundingKey) -> Result<()> {
        let numel = to_usize(self.numel)?;
        for (state, spec) in self.layout.states.iter().enumerate() {
            if spec.dtype != spec.disk_dtype {
                let rounder = key.rounder(state);
                let (from, to) = (spec.dtype, spec.disk_dtype);
                let region = self.region(state)?;
                region.update(|bytes| convert_in_place(bytes, numel, from, to, rounder))?;
            }
        }
        Ok(())
    }

    /// Describes the images as a version of the generation after `before`: computes checksums if
    /// asked, and clears the padding. Its slot is chosen when it is written.
    pub(super) fn describe(
        &self,
        before: Option<Version>,
        zero_states: u8,
        checked: bool,
    ) -> Result<Version> {
        let mut checksums = [0; STATES_MAX];
        for state in self.states_but(zero_states).filter(|_| checked) {
            checksums[state] = self.bytes(state)?.inspect(crc32c);
        }
        self.describe_with(before, zero_states, checked.then_some(checksums))
    }

    /// As [`describe`](Image::describe), with the checksums of all states, if there are any.
    pub(super) fn describe_with(
        &self,
        before: Option<Version>,
        zero_states: u8,
        checksums: Option<[u32; STATES_MAX]>,
    ) -> Result<Version> {
        for state in self.states_but(zero_states) {
            let (len, padded) = (self.bytes(state)?.len(), self.padded(state)?);
            padded.zero(len, padded.len() - len)?;
        }
        Ok(Version {
            slot: 0,
            zero_states,
            checked: checksums.is_some(),
            generation: before.map_or(0, |before| before.generation).wrapping_add(1),
            checksums: checksums.unwrap_or_default(),
        })
    }

    fn states_but(&self, zero_states: u8) -> impl Iterator<Item = usize> + use<> {
        (0..self.layout.states.len()).filter(move |state| !is_in(zero_states, *state))
    }
}

/// Converts all of `from` into `into`.
pub(super) fn convert_range(
    from: MemoryRange,
    from_dtype: Dtype,
    into: MemoryRange,
    to: Dtype,
) -> Result<()> {
    from.inspect(|source| {
        into.update(|target| convert(source, from_dtype, target, to, Rounder::Nearest))
    })
}
