//! Which elements of a gradient were written. Pure.

use std::ops::Range;

/// A set of elements as ranges: sorted, none empty, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Intervals(Vec<Range<u64>>);

impl Intervals {
    /// Whether no element is in the set.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all elements out; the memory is kept.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The ranges, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }

    /// Puts the elements of `range` into the set.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // All that overlap or touch the range become one with it.
        let from = self.0.partition_point(|held| held.end < range.start);
        let to = self.0.partition_point(|held| held.start <= range.end);
        let joined = match self.0.get(from..to) {
            Some([first, .., last]) => first.start.min(range.start)..last.end.max(range.end),
            Some([only]) => only.start.min(range.start)..only.end.max(range.end),
            _ => range,
        };
        self.0.splice(from..to, [joined]);
    }

    /// Cuts `range` into parts of which each is in the set (`true`) or out of it, in order.
    pub(super) fn parts(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts = Vec::new();
        let mut push = |part: Range<u64>, is_held| {
            if !part.is_empty() {
                parts.push((part, is_held));
            }
        };
        let mut at = range.start;
        let from = self.0.partition_point(|held| held.end <= range.start);
        for held in &self.0[from..] {
            if held.start >= range.end {
                break;
            }
            let start = held.start.max(at);
            let end = held.end.min(range.end);
            push(at..start, false);
            push(start..end, true);
            at = end;
        }
        push(at..range.end, false);
        parts
    }

    /// The ranges of `0..numel` that are not in the set.
    pub(super) fn gaps(&self, numel: u64) -> impl Iterator<Item = Range<u64>> {
        let parts = self.parts(0..numel).into_iter();
        parts.filter_map(|(part, is_held)| (!is_held).then_some(part))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ELEMENTS: u64 = 64;

    fn any_range() -> impl Strategy<Value = Range<u64>> {
        (0..=ELEMENTS, 0..=ELEMENTS / 4).prop_map(|(start, len)| start..(start + len).min(ELEMENTS))
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_inserted(
            ranges in prop::collection::vec(any_range(), 0..20),
            asked in any_range(),
        ) {
            let mut intervals = Intervals::default();
            let mut model = [false; ELEMENTS as usize];
            for range in ranges {
                model[range.start as usize..range.end as usize].fill(true);
                intervals.insert(range);
            }
            for (left, right) in intervals.0.iter().zip(intervals.0.iter().skip(1)) {
                prop_assert!(left.end < right.start, "{left:?} touches {right:?}");
            }
            prop_assert!(intervals.iter().all(|range| !range.is_empty()));
            let mut seen = [false; ELEMENTS as usize];
            for range in intervals.iter() {
                seen[range.start as usize..range.end as usize].fill(true);
            }
            prop_assert_eq!(seen, model);
            prop_assert_eq!(intervals.is_empty(), !model.contains(&true));

            let mut at = asked.start;
            for (part, is_held) in intervals.parts(asked.clone()) {
                prop_assert_eq!(part.start, at, "parts are in order and leave nothing out");
                prop_assert!(!part.is_empty());
                let held = &model[part.start as usize..part.end as usize];
                prop_assert!(held.iter().all(|held| *held == is_held));
                at = part.end;
            }
            prop_assert_eq!(at, asked.end);

            for gap in intervals.gaps(ELEMENTS) {
                model[gap.start as usize..gap.end as usize].fill(true);
            }
            prop_assert!(model.iter().all(|held| *held));
        }
    }
}
