//! Which part of the store lies in which of its directories. Pure.
//!
//! Slots have offsets in one range of numbers, the store's *addresses*, as if there were one data
//! file. With several directories, the store's *places*, the addresses are cut into chunks of
//! [`CHUNK_BYTES`], and the chunks are dealt to the places by smooth weighted round robin (as in
//! nginx, 2012: each turn every place gains its weight, and the richest one is dealt the chunk and
//! pays the sum). Every chunk takes the next free room of its place's data file. So where a chunk
//! lies is a function of its number and the weights, and nothing has to be kept for each.
//!
//! Weights can be changed for the addresses from some chunk on.

use super::header::DATA_START_BYTES;
use super::version::DATA_SLOTS;
use crate::base::error::{Error, Result};
use crate::base::units::{FILE_OFFSET_MAX, MIB, round_up, to_u64};

/// Addresses are dealt to places in chunks of so many bytes.
pub(crate) const CHUNK_BYTES: u64 = 2 * MIB;
/// The most places.
pub(crate) const PLACES_MAX: usize = 64;
/// The largest sum of weights: how many chunks make a round.
pub(crate) const ROUND_MAX: u32 = 256;
/// A sum of weights is good enough when no share is farther than this from what was asked for.
const SHARE_ERROR_MAX: f64 = 0.002;

/// Which files a range of addresses is looked for in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    /// The data files: slots 0 and 1.
    Data,
    /// The spare files: third slots, while there is a snapshot.
    Spare,
}

impl Area {
    /// Where a slot of a record lies.
    pub(crate) fn of_slot(slot: u8) -> Area {
        match slot {
            0..DATA_SLOTS => Area::Data,
            _ => Area::Spare,
        }
    }
}

/// A range of addresses that lies in one piece in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the place.
    pub(crate) place: usize,
    /// Offset in the place's file.
    pub(crate) file_offset: u64,
    /// Bytes of the range before this piece.
    pub(crate) before_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// How chunks are dealt from one of them on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stripe {
    /// The first chunk dealt so.
    from_chunk: u64,
    /// For each place, how many chunks of a round it gets.
    weights: Vec<u32>,
    /// The place of each chunk of a round, and how many chunks of the round the place had before.
    round: Vec<(usize, u64)>,
    /// For each place, how many chunks it had before the first.
    before: Vec<u64>,
}

impl Stripe {
    fn new(from_chunk: u64, weights: &[u32], before: Vec<u64>) -> Stripe {
        let sum: u32 = weights.iter().sum();
        let mut gains = vec![0_i64; weights.len()];
        let mut dealt = vec![0_u64; weights.len()];
        let mut round = Vec::new();
        for _ in 0..sum {
            for (gain, weight) in gains.iter_mut().zip(weights) {
                *gain += i64::from(*weight);
            }
            // The first of the richest.
            let richest = (0..gains.len()).rev().max_by_key(|place| gains[*place]);
            let place = richest.unwrap_or(0);
            gains[place] -= i64::from(sum);
            round.push((place, dealt[place]));
            dealt[place] += 1;
        }
        Stripe {
            from_chunk,
            weights: weights.to_vec(),
            round,
            before,
        }
    }

    /// Where a chunk lies: its place, and its number among the chunks of that place.
    fn find(&self, chunk: u64) -> (usize, u64) {
        let since = chunk - self.from_chunk;
        let round_len = to_u64(self.round.len()).max(1);
        let at = usize::try_from(since % round_len).unwrap_or(0);
        let (place, before) = self.round.get(at).copied().unwrap_or((0, 0));
        let rounds = since / round_len * u64::from(self.weights[place]);
        (place, self.before[place] + rounds + before)
    }

    /// How many chunks each place has before a chunk.
    fn counts(&self, chunk: u64) -> Vec<u64> {
        let since = chunk - self.from_chunk;
        let round_len = to_u64(self.round.len()).max(1);
        let rest = usize::try_from(since % round_len).unwrap_or(0);
        let mut counts = self.before.clone();
        for (count, weight) in counts.iter_mut().zip(&self.weights) {
            *count += since / round_len * u64::from(*weight);
        }
        for (place, _) in self.round.iter().take(rest) {
            counts[*place] += 1;
        }
        counts
    }
}

/// How the addresses of a store are dealt to its places. Without weights there is one place, in
/// which addresses are offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Striping {
    stripes: Vec<Stripe>,
}

impl Striping {
    /// How many places there are.
    pub(crate) fn places_len(&self) -> usize {
        let first = self.stripes.first();
        first.map_or(1, |stripe| stripe.weights.len())
    }

    /// Weights, each with the first address that they hold for.
    pub(crate) fn stripes(&self) -> impl ExactSizeIterator<Item = (u64, &[u32])> {
        let address = |chunk| DATA_START_BYTES + chunk * CHUNK_BYTES;
        let stripes = self.stripes.iter();
        stripes.map(move |stripe| (address(stripe.from_chunk), stripe.weights.as_slice()))
    }

    /// The weights for addresses that nothing has yet.
    pub(crate) fn weights(&self) -> Option<&[u32]> {
        self.stripes.last().map(|stripe| stripe.weights.as_slice())
    }

    /// The first address from `end` on that weights can begin to hold for.
    pub(crate) fn next_start(end: u64) -> u64 {
        DATA_START_BYTES + round_up(end.saturating_sub(DATA_START_BYTES), CHUNK_BYTES)
    }

    /// Deals by `weights` from an address on, which [`Striping::next_start`] gave.
    ///
    /// # Errors
    /// `InvalidArgument` for weights that cannot be, and for another number of places.
    pub(crate) fn change(&mut self, from: u64, weights: &[u32]) -> Result<()> {
        let sum = weights
            .iter()
            .try_fold(0_u32, |sum, weight| sum.checked_add(*weight))
            .filter(|sum| *sum <= ROUND_MAX && !weights.contains(&0));
        let chunk = from.checked_sub(DATA_START_BYTES);
        let chunk = chunk.filter(|offset| offset % CHUNK_BYTES == 0);
        let (Some(_), Some(offset), 2..=PLACES_MAX) = (sum, chunk, weights.len()) else {
            return Err(Error::invalid("weights that cannot be"));
        };
        let from_chunk = offset / CHUNK_BYTES;
        let before = match self.stripes.last() {
            None if from_chunk == 0 => vec![0; weights.len()],
            Some(last) if last.weights.len() == weights.len() && last.from_chunk <= from_chunk => {
                last.counts(from_chunk)
            }
            _ => return Err(Error::invalid("weights that do not fit those before")),
        };
        // What nothing was dealt by is replaced.
        self.stripes
            .retain(|stripe| stripe.from_chunk != from_chunk);
        self.stripes.push(Stripe::new(from_chunk, weights, before));
        Ok(())
    }

    /// The weights that hold for a chunk. Spare files are dealt by the first ones throughout.
    fn stripe_of(&self, area: Area, chunk: u64) -> Option<&Stripe> {
        match area {
            Area::Spare => self.stripes.first(),
            Area::Data => {
                let after = |stripe: &Stripe| stripe.from_chunk <= chunk;
                let at = self.stripes.partition_point(after).checked_sub(1)?;
                self.stripes.get(at)
            }
        }
    }

    /// Where a range of addresses lies, in the order of addresses. It begins at or behind
    /// [`DATA_START_BYTES`].
    pub(crate) fn pieces(
        &self,
        area: Area,
        address: u64,
        len_bytes: u64,
    ) -> impl Iterator<Item = Piece> + '_ {
        let mut done = 0;
        std::iter::from_fn(move || {
            let mut piece: Option<Piece> = None;
            while done < len_bytes {
                let next = self.first_piece(area, address + done, len_bytes - done);
                match &mut piece {
                    None => {
                        piece = Some(Piece {
                            before_bytes: done,
                            ..next
                        });
                    }
                    Some(piece)
                        if piece.place == next.place
                            && piece.file_offset + piece.len_bytes == next.file_offset =>
                    {
                        piece.len_bytes += next.len_bytes;
                    }
                    Some(_) => break,
                }
                done += next.len_bytes;
            }
            piece
        })
    }

    /// The place of an address, and the offset in its file.
    pub(crate) fn find(&self, area: Area, address: u64) -> (usize, u64) {
        let piece = self.first_piece(area, address, 1);
        (piece.place, piece.file_offset)
    }

    /// As much of a range as lies in its first chunk.
    fn first_piece(&self, area: Area, address: u64, len_bytes: u64) -> Piece {
        let offset = address.saturating_sub(DATA_START_BYTES);
        let (chunk, within) = (offset / CHUNK_BYTES, offset % CHUNK_BYTES);
        match self.stripe_of(area, chunk) {
            None => Piece {
                place: 0,
                file_offset: address,
                before_bytes: 0,
                len_bytes,
            },
            Some(stripe) => {
                let (place, number) = stripe.find(chunk);
                Piece {
                    place,
                    file_offset: DATA_START_BYTES + number * CHUNK_BYTES + within,
                    before_bytes: 0,
                    len_bytes: len_bytes.min(CHUNK_BYTES - within),
                }
            }
        }
    }

    /// How long the file of a place must be for all addresses below `end`.
    pub(crate) fn file_bytes(&self, area: Area, place: usize, end: u64) -> u64 {
        let chunks = end.saturating_sub(DATA_START_BYTES).div_ceil(CHUNK_BYTES);
        let last = chunks.saturating_sub(1);
        match self.stripe_of(area, last) {
            None => end,
            Some(stripe) => {
                let count = stripe.counts(chunks.max(stripe.from_chunk))[place];
                DATA_START_BYTES + count * CHUNK_BYTES
            }
        }
    }
}

/// Weights as whole numbers with a small sum, in about the ratios of `shares`, which are positive.
pub(crate) fn weights_of(shares: &[f64]) -> Vec<u32> {
    let total: f64 = shares.iter().sum();
    let places = u32::try_from(shares.len()).unwrap_or(ROUND_MAX);
    let mut best = (f64::INFINITY, vec![1; shares.len()]);
    for sum in places..=ROUND_MAX {
        let scale = f64::from(sum) / total;
        let weights: Vec<u32> = shares.iter().map(|share| rounded(share * scale)).collect();
        let dealt: u32 = weights.iter().sum();
        let errors = weights
            .iter()
            .zip(shares)
            .map(|(weight, share)| (f64::from(*weight) / f64::from(dealt) - share / total).abs());
        let error = errors.fold(0.0, f64::max);
        if dealt <= ROUND_MAX && error < best.0 {
            best = (error, weights);
        }
        if best.0 <= SHARE_ERROR_MAX {
            break;
        }
    }
    best.1
}

/// The nearest whole number from 1 on.
fn rounded(share: f64) -> u32 {
    // A conversion from floating point saturates.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and the longest round"
    )]
    let number = share.round().clamp(1.0, f64::from(ROUND_MAX)) as u32;
    number
}

/// Whether a range of addresses can exist in files.
pub(crate) fn is_address(end: u64) -> bool {
    // Chunks are rounded up in each place.
    end <= FILE_OFFSET_MAX - CHUNK_BYTES * to_u64(PLACES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn striping(changes: &[(u64, Vec<u32>)]) -> Striping {
        let mut striping = Striping::default();
        for (chunk, weights) in changes {
            let from = DATA_START_BYTES + chunk * CHUNK_BYTES;
            striping.change(from, weights).unwrap();
        }
        striping
    }

    #[test]
    fn in_one_place_addresses_are_offsets() {
        let one = Striping::default();
        let range = (DATA_START_BYTES + 4096, 100 * CHUNK_BYTES);
        for area in [Area::Data, Area::Spare] {
            let pieces: Vec<Piece> = one.pieces(area, range.0, range.1).collect();
            let piece = Piece {
                place: 0,
                file_offset: range.0,
                before_bytes: 0,
                len_bytes: range.1,
            };
            assert_eq!(pieces, [piece]);
            assert_eq!(one.file_bytes(area, 0, range.0), range.0);
        }
        assert_eq!(one.pieces(Area::Data, DATA_START_BYTES, 0).count(), 0);
    }

    #[test]
    fn chunks_are_dealt_by_weight_and_evenly() {
        let two = striping(&[(0, vec![1, 2])]);
        let places: Vec<usize> = (0..6).map(|chunk| two.stripes[0].find(chunk).0).collect();
        assert_eq!(places, [1, 0, 1, 1, 0, 1]);
        assert_eq!(
            two.file_bytes(Area::Data, 0, DATA_START_BYTES),
            DATA_START_BYTES
        );
        let end = DATA_START_BYTES + 6 * CHUNK_BYTES;
        let ends = [0, 1].map(|place| two.file_bytes(Area::Data, place, end));
        assert_eq!(
            ends,
            [2, 4].map(|count| DATA_START_BYTES + count * CHUNK_BYTES)
        );
    }

    #[test]
    fn weights_that_cannot_be_are_refused() {
        let mut one = Striping::default();
        let start = DATA_START_BYTES;
        for weights in [&[][..], &[1], &[1, 0], &[u32::MAX, 1], &[200, 100]] {
            assert!(one.change(start, weights).is_err(), "{weights:?}");
        }
        assert!(one.change(start + 4096, &[1, 1]).is_err());
        assert!(one.change(start + CHUNK_BYTES, &[1, 1]).is_err());
        one.change(start, &[1, 1]).unwrap();
        assert!(one.change(start + CHUNK_BYTES, &[1, 1, 1]).is_err());
        one.change(start + 3 * CHUNK_BYTES, &[1, 3]).unwrap();
        assert!(one.change(start + CHUNK_BYTES, &[1, 1]).is_err());
        assert_eq!(one.weights(), Some(&[1, 3][..]));
        assert_eq!(one.stripes().len(), 2);
    }

    #[test]
    fn shares_become_small_weights() {
        assert_eq!(weights_of(&[1.0, 1.0]), [1, 1]);
        assert_eq!(weights_of(&[1.0, 2.0]), [1, 2]);
        assert_eq!(weights_of(&[3.0, 1.5, 1.5]), [2, 1, 1]);
        assert_eq!(weights_of(&[1e-9, 1.0]), [1, 255]);
        assert_eq!(weights_of(&[2.5e9, 7.5e9]), [1, 3]);
        assert_eq!(weights_of(&[1.0; PLACES_MAX]), [1; PLACES_MAX]);
    }

    proptest! {
        #[test]
        fn every_byte_has_one_place_and_no_other_byte_has_it(
            weights in prop::collection::vec(prop::collection::vec(1_u32..9, 3), 1..4),
            gaps in prop::collection::vec(1_u64..20, 3),
            starts in prop::collection::vec((0_u64..80, 0_u64..3, 1_u64..12_000), 1..5),
        ) {
            let mut chunk = 0;
            let mut changes = Vec::new();
            for (weights, gap) in weights.into_iter().zip(&gaps) {
                changes.push((chunk, weights));
                chunk += gap;
            }
            let striping = striping(&changes);
            for area in [Area::Data, Area::Spare] {
                // Each whole chunk, wherever it is dealt to, at a room of its own.
                let mut rooms = std::collections::HashSet::new();
                for chunk in 0..100 {
                    let at = DATA_START_BYTES + chunk * CHUNK_BYTES;
                    for piece in striping.pieces(area, at, CHUNK_BYTES) {
                        prop_assert_eq!(piece.len_bytes, CHUNK_BYTES);
                        prop_assert!(rooms.insert((piece.place, piece.file_offset)));
                        let end = piece.file_offset + CHUNK_BYTES;
                        prop_assert!(end <= striping.file_bytes(area, piece.place, at + CHUNK_BYTES));
                    }
                }
                // Rooms are used without gaps.
                let total: u64 = (0..3)
                    .map(|place| striping.file_bytes(area, place, DATA_START_BYTES + 100 * CHUNK_BYTES))
                    .map(|end| (end - DATA_START_BYTES) / CHUNK_BYTES)
                    .sum();
                prop_assert_eq!(total, 100);
                for (chunk, within, blocks) in &starts {
                    let address = DATA_START_BYTES + chunk * CHUNK_BYTES + within * 4096;
                    let len = blocks * 4096;
                    let mut done = 0;
                    for piece in striping.pieces(area, address, len) {
                        prop_assert_eq!(piece.before_bytes, done);
                        // As its parts are found one by one.
                        for part in (0..piece.len_bytes).step_by(4096) {
                            let alone = striping.first_piece(area, address + done + part, 4096);
                            prop_assert_eq!(alone.place, piece.place);
                            prop_assert_eq!(alone.file_offset, piece.file_offset + part);
                        }
                        done += piece.len_bytes;
                    }
                    prop_assert_eq!(done, len);
                }
            }
        }
    }
}
