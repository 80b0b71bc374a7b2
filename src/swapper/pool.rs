//! Which staging buffer is in what state. Pure.
//!
//! ```text
//!          take             retire, writes pending
//!   free ────────▶ current ────────────────────────▶ swapping
//!    ▲                │ retire, none pending            │ last write done
//!    └────────────────┴─────────────────────────────────┘
//! ```
//!
//! A current buffer may have writes pending already: of the part that was filled first.

use std::collections::VecDeque;

use crate::base::units::round_up;

/// Tensors begin at the same place within a page as in their file, so that whole blocks move
/// without a copy.
pub(super) const PAGE_BYTES: u64 = 4096;

/// The state of one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Being filled.
    Current,
    /// Full, with writes in flight.
    Swapping,
}

#[derive(Debug)]
struct Slot {
    state: State,
    /// Where the first whole page begins.
    start: u64,
    len_bytes: u64,
    filled_bytes: u64,
    pending_count: u32,
}

/// A place in the current buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) offset: u64,
    /// Bytes of the tensor that fit.
    pub(super) len_bytes: u64,
    /// Bytes behind them up to the next page, to be set to zero.
    pub(super) padding_bytes: u64,
}

/// The buffers' states.
#[derive(Debug, Default)]
pub(super) struct Pool {
    slots: Vec<Slot>,
    free: VecDeque<usize>,
    current: Option<usize>,
}

impl Pool {
    /// A pool over buffers given as address and length; all free.
    pub(super) fn new(buffers: impl Iterator<Item = (u64, u64)>) -> Pool {
        let slots: Vec<Slot> = buffers
            .map(|(address, len_bytes)| {
                let start = round_up(address, PAGE_BYTES) - address;
                Slot {
                    state: State::Free,
                    // A buffer without a whole page is used from its first byte.
                    start: if start + PAGE_BYTES <= len_bytes {
                        start
                    } else {
                        0
                    },
                    len_bytes,
                    filled_bytes: 0,
                    pending_count: 0,
                }
            })
            .collect();
        Pool {
            free: (0..slots.len()).collect(),
            slots,
            current: None,
        }
    }

    pub(super) fn current(&self) -> Option<usize> {
        self.current
    }

    /// Makes a free buffer the current one; `None` where none is free.
    pub(super) fn take(&mut self) -> Option<usize> {
        debug_assert!(
            self.current.is_none(),
            "a buffer was taken while one is current"
        );
        let buffer = self.free.pop_front()?;
        let slot = &mut self.slots[buffer];
        slot.state = State::Current;
        slot.filled_bytes = slot.start;
        self.current = Some(buffer);
        Some(buffer)
    }

    /// Finds room for up to `len_bytes` that lie at `file_offset` in their file, and takes it.
    /// A tensor that does not fit is split at a page of the file, but not to fill up the rest of a
    /// buffer that is in use already if it would fit into a fresh one. `None`: retire the buffer.
    pub(super) fn stage(&mut self, file_offset: u64, len_bytes: u64) -> Option<Place> {
        let buffer = self.current?;
        if len_bytes == 0 {
            return Some(Place {
                buffer,
                offset: 0,
                len_bytes: 0,
                padding_bytes: 0,
            });
        }
        let slot = &mut self.slots[buffer];
        let fresh = slot.filled_bytes == slot.start;
        let skew = file_offset % PAGE_BYTES;
        let mut offset = round_up(slot.filled_bytes - slot.start, PAGE_BYTES) + slot.start + skew;
        if fresh && offset >= slot.len_bytes {
            // Smaller than the skew: used unaligned, through the engine's bounce blocks.
            offset = 0;
        }
        let room = slot.len_bytes.saturating_sub(offset);
        let fits = len_bytes <= room;
        let fresh_room = slot.len_bytes.saturating_sub(slot.start + skew);
        if !fits && !fresh && (len_bytes <= fresh_room || room < PAGE_BYTES) {
            return None;
        }
        let len_bytes = if fits {
            len_bytes
        } else {
            // The next piece begins at a page of the file, if there is one within reach.
            match (file_offset + room) / PAGE_BYTES * PAGE_BYTES {
                end if end > file_offset => end - file_offset,
                _ => room,
            }
        };
        let end = offset + len_bytes;
        let page_end = round_up(end - slot.start.min(end), PAGE_BYTES) + slot.start.min(end);
        let padding_bytes = page_end.min(slot.len_bytes).saturating_sub(end);
        slot.filled_bytes = end + padding_bytes;
        Some(Place {
            buffer,
            offset,
            len_bytes,
            padding_bytes,
        })
    }

    /// Notes a write over the buffer.
    pub(super) fn submitted(&mut self, buffer: usize) {
        self.slots[buffer].pending_count += 1;
    }

    /// Notes the end of a write; true where the buffer has become free.
    pub(super) fn done(&mut self, buffer: usize) -> bool {
        let slot = &mut self.slots[buffer];
        slot.pending_count -= 1;
        let free = slot.pending_count == 0 && slot.state == State::Swapping;
        if free {
            slot.state = State::Free;
            self.free.push_back(buffer);
        }
        free
    }

    /// Ends the filling of the current buffer.
    pub(super) fn retire(&mut self) {
        let Some(buffer) = self.current.take() else {
            return;
        };
        let slot = &mut self.slots[buffer];
        if slot.pending_count == 0 {
            slot.state = State::Free;
            self.free.push_back(buffer);
        } else {
            slot.state = State::Swapping;
        }
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(super) fn swapping_count(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.pending_count > 0)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Stage { file_offset: u64, len_bytes: u64 },
        Submit,
        Done,
        Retire,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..10_000_u64, 0..40_000_u64)
                .prop_map(|(file_offset, len_bytes)| Step::Stage { file_offset, len_bytes }),
            2 => Just(Step::Submit),
            2 => Just(Step::Done),
            1 => Just(Step::Retire),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_byte_is_given_out_twice_while_a_write_over_it_is_pending(
            buffers in prop::collection::vec((0..9000_u64, 1..30_000_u64), 1..4),
            steps in steps(),
        ) {
            let mut pool = Pool::new(buffers.iter().copied());
            // Ranges staged or in flight, by buffer: (offset, end, submitted).
            let mut busy: Vec<Vec<(u64, u64)>> = vec![Vec::new(); buffers.len()];
            let mut pending: VecDeque<usize> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Stage { file_offset, len_bytes } => {
                        if pool.current().is_none() {
                            let Some(taken) = pool.take() else { continue };
                            prop_assert!(!pending.contains(&taken));
                            busy[taken].clear();
                        }
                        let Some(place) = pool.stage(file_offset, len_bytes) else { continue };
                        let end = place.offset + place.len_bytes + place.padding_bytes;
                        prop_assert!(end <= buffers[place.buffer].1);
                        prop_assert!(place.len_bytes > 0 || len_bytes == 0);
                        if len_bytes == 0 {
                            continue;
                        }
                        for (from, to) in &busy[place.buffer] {
                            prop_assert!(end <= *from || *to <= place.offset);
                        }
                        busy[place.buffer].push((place.offset, end));
                    }
                    Step::Submit => if let Some(buffer) = pool.current() {
                        pool.submitted(buffer);
                        pending.push_back(buffer);
                    },
                    Step::Done => if let Some(buffer) = pending.pop_front() {
                        let free = pool.done(buffer);
                        prop_assert_eq!(
                            free,
                            !pending.contains(&buffer) && pool.current() != Some(buffer)
                        );
                    },
                    Step::Retire => pool.retire(),
                }
            }
            pool.retire();
            for buffer in pending {
                pool.done(buffer);
            }
            prop_assert_eq!(pool.free_count(), buffers.len());
            prop_assert_eq!(pool.swapping_count(), 0);
        }
    }

    #[test]
    fn a_tensor_keeps_its_place_within_the_page() {
        let mut pool = Pool::new([(0, 64 << 10)].into_iter());
        pool.take().unwrap();
        let place = pool.stage(513, 5600).unwrap();
        assert_eq!((place.offset, place.len_bytes), (513, 5600));
        assert_eq!(place.padding_bytes, 8192 - 513 - 5600);
        assert_eq!(pool.stage(0, 100).unwrap().offset, 8192);
    }

    #[test]
    fn a_tensor_larger_than_a_buffer_is_split_at_pages_of_the_file() {
        let mut pool = Pool::new([(0, 10_000)].into_iter());
        pool.take().unwrap();
        assert_eq!(pool.stage(0, 20_000).unwrap().len_bytes, 8192);
        assert_eq!(pool.stage(8192, 11_808), None);
    }
}
