//! How the elements of one parameter move when it is cut anew for another number of ranks. Pure.
//!
//! Parameters are partitioned as ZeRO does (Rajbhandari et al., "ZeRO: Memory Optimizations Toward
//! Training Trillion Parameter Models", 2020): each of M ranks has ⌈total / M⌉ consecutive
//! elements, the last ones fewer or none.

/// What each rank has of one parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    total: u64,
    piece: u64,
    ranks_count: u64,
    is_padded: bool,
}

impl Partition {
    /// Cuts `total` elements, at least one, for so many ranks, at least one. Padded pieces all have
    /// the same length, with zeros behind the end.
    pub(super) fn new(total: u64, ranks_count: u32, is_padded: bool) -> Partition {
        let ranks_count = u64::from(ranks_count);
        Partition {
            total,
            piece: total.div_ceil(ranks_count),
            ranks_count,
            is_padded,
        }
    }

    /// Elements of each rank's piece. Ranks that have nothing are left out; they are the last ones.
    pub(super) fn pieces(&self) -> Vec<u64> {
        let piece = |rank: u64| match self.is_padded {
            true => self.piece,
            false => self.total.saturating_sub(rank * self.piece).min(self.piece),
        };
        let pieces = (0..self.ranks_count).map(piece);
        pieces.take_while(|numel| *numel > 0).collect()
    }

    /// Every element of the sources and of the targets, once, in their order: first those that
    /// move, then those of the sources that are cut off, then those of the targets that are zero.
    ///
    /// `sources` are lengths of pieces which together have at least the elements of this.
    pub(super) fn segments(&self, sources: &[u64]) -> Vec<Segment> {
        let targets = self.pieces();
        let (mut source, mut target) = (Cursor::new(sources), Cursor::new(&targets));
        let mut segments = Vec::with_capacity(sources.len() + targets.len() + 2);
        let mut left = self.total;
        while left > 0 {
            let len = source.left().min(target.left()).min(left);
            segments.push(Segment {
                source: Some(source.take(len)),
                target: Some(target.take(len)),
                len,
            });
            left -= len;
        }
        while let len @ 1.. = source.left() {
            segments.push(Segment {
                source: Some(source.take(len)),
                target: None,
                len,
            });
        }
        while let len @ 1.. = target.left() {
            segments.push(Segment {
                source: None,
                target: Some(target.take(len)),
                len,
            });
        }
        segments
    }
}

/// Consecutive elements of at most one source and one target: which of them, and from where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// None: zeros.
    pub(super) source: Option<(usize, u64)>,
    /// None: cut off.
    pub(super) target: Option<(usize, u64)>,
    /// At least 1.
    pub(super) len: u64,
}

impl Segment {
    /// The same in bytes, cut into parts of at most `part_bytes`, a multiple of the element's size.
    pub(super) fn parts(
        self,
        element_bytes: u64,
        part_bytes: u64,
    ) -> impl Iterator<Item = Segment> {
        let len_bytes = self.len * element_bytes;
        let moved = move |place: Option<(usize, u64)>, by: u64| {
            place.map(|(index, start)| (index, start * element_bytes + by))
        };
        let count = len_bytes.div_ceil(part_bytes);
        (0..count).map(move |part| {
            let done = part * part_bytes;
            Segment {
                source: moved(self.source, done),
                target: moved(self.target, done),
                len: part_bytes.min(len_bytes - done),
            }
        })
    }
}

/// A position in pieces that follow each other.
struct Cursor<'a> {
    pieces: &'a [u64],
    index: usize,
    start: u64,
}

impl Cursor<'_> {
    fn new(pieces: &[u64]) -> Cursor<'_> {
        Cursor {
            pieces,
            index: 0,
            start: 0,
        }
    }

    /// Elements left in the piece that is not used up; 0 behind the last one.
    fn left(&mut self) -> u64 {
        while self.pieces.get(self.index) == Some(&self.start) {
            (self.index, self.start) = (self.index + 1, 0);
        }
        let piece = self.pieces.get(self.index);
        piece.map_or(0, |piece| piece - self.start)
    }

    fn take(&mut self, len: u64) -> (usize, u64) {
        let place = (self.index, self.start);
        self.start += len;
        place
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Moves elements as the segments say. What is not written stays `None`.
    fn moved(sources: &[Vec<u32>], partition: &Partition) -> Vec<Vec<u32>> {
        let lens: Vec<u64> = sources.iter().map(|piece| piece.len() as u64).collect();
        let mut targets: Vec<Vec<Option<u32>>> = partition
            .pieces()
            .iter()
            .map(|len| vec![None; *len as usize])
            .collect();
        for segment in partition.segments(&lens) {
            assert!(segment.len > 0);
            let Some((target, at)) = segment.target else {
                continue;
            };
            for index in 0..segment.len {
                let element = segment.source.map_or(0, |(source, start)| {
                    sources[source][(start + index) as usize]
                });
                let place = &mut targets[target][(at + index) as usize];
                assert_eq!(place.replace(element), None, "written twice");
            }
        }
        let all = |target: Vec<Option<u32>>| target.into_iter().map(Option::unwrap).collect();
        targets.into_iter().map(all).collect()
    }

    fn cut(elements: &[u32], ranks_count: u32, is_padded: bool) -> Vec<Vec<u32>> {
        moved(
            &[elements.to_vec()],
            &Partition::new(elements.len() as u64, ranks_count, is_padded),
        )
    }

    #[test]
    fn pieces_are_those_of_zero() {
        let pieces = |total, ranks, padded| Partition::new(total, ranks, padded).pieces();
        assert_eq!(pieces(10, 3, false), [4, 4, 2]);
        assert_eq!(pieces(10, 3, true), [4, 4, 4]);
        assert_eq!(pieces(4, 3, false), [2, 2]);
        assert_eq!(pieces(1, 4, false), [1]);
        assert_eq!(pieces(1, 4, true), [1; 4]);
        assert_eq!(pieces(6, 1, true), [6]);
        assert_eq!(cut(&[1, 2, 3, 4], 3, true), [[1, 2], [3, 4], [0, 0]]);
    }

    proptest! {
        #[test]
        fn there_and_back_gives_the_same_elements(
            elements in prop::collection::vec(1..u32::MAX, 1..300),
            from in 1..20_u32,
            to in 1..20_u32,
            padded in any::<[bool; 2]>(),
        ) {
            let total = elements.len() as u64;
            let first = cut(&elements, from, padded[0]);
            let second = moved(&first, &Partition::new(total, to, padded[1]));
            prop_assert_eq!(&second, &cut(&elements, to, padded[1]));
            let back = moved(&second, &Partition::new(total, from, padded[0]));
            prop_assert_eq!(back, first);
        }

        /// However the sources were cut, empty ones among them.
        #[test]
        fn every_element_of_both_sides_is_in_one_segment_in_its_order(
            sources in prop::collection::vec(0..50_u64, 1..12),
            cut_off in 0..60_u64,
            to in 1..20_u32,
            is_padded in any::<bool>(),
        ) {
            let available: u64 = sources.iter().sum();
            prop_assume!(available > cut_off);
            let partition = Partition::new(available - cut_off, to, is_padded);
            let segments = partition.segments(&sources);
            let side = |place: fn(&Segment) -> Option<(usize, u64)>, lens: &[u64]| {
                let seen: Vec<(usize, u64)> = segments
                    .iter()
                    .filter_map(|segment| place(segment).map(|at| (at, segment.len)))
                    .flat_map(|((index, at), len)| (at..at + len).map(move |at| (index, at)))
                    .collect();
                let all: Vec<(usize, u64)> = lens
                    .iter()
                    .enumerate()
                    .flat_map(|(index, len)| (0..*len).map(move |at| (index, at)))
                    .collect();
                (seen, all)
            };
            let (seen, all) = side(|segment| segment.source, &sources);
            prop_assert_eq!(seen, all);
            let (seen, all) = side(|segment| segment.target, &partition.pieces());
            prop_assert_eq!(seen, all);
            let cut: u64 = segments
                .iter()
                .filter(|segment| segment.target.is_none())
                .map(|segment| segment.len)
                .sum();
            prop_assert_eq!(cut, cut_off);
        }

        #[test]
        fn parts_are_the_segment_in_bytes(
            len in 1..500_u64,
            start in 0..100_u64,
            element_bytes in prop::sample::select(vec![1_u64, 2, 4, 8]),
            part in 1..10_u64,
        ) {
            let segment = Segment { source: Some((3, start)), target: Some((1, 2 * start)), len };
            let mut done = 0;
            for part in segment.parts(element_bytes, 8 * part) {
                prop_assert_eq!(part.source, Some((3, start * element_bytes + done)));
                prop_assert_eq!(part.target, Some((1, 2 * start * element_bytes + done)));
                prop_assert!(part.len > 0 && part.len % element_bytes == 0);
                done += part.len;
            }
            prop_assert_eq!(done, len * element_bytes);
        }
    }

    #[test]
    fn the_largest_parameter_overflows_nothing() {
        let total = 1_u64 << 54;
        let partition = Partition::new(total, u32::MAX, true);
        assert_eq!(partition.piece, total.div_ceil(u64::from(u32::MAX)));
        let partition = Partition::new(total, 7, true);
        assert_eq!(partition.segments(&[total - 1, 1]).len(), 9);
    }
}
