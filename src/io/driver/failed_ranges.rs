//! Failed writes: the ranges of a file that read as an error until they have been rewritten. Pure.

use std::ops::Range;

use crate::base::error::Error;

/// Ranges told apart in one file; beyond, the two nearest become one.
const RANGES_MAX: usize = 64;

/// What failed in one file, sorted by offset, without overlaps.
#[derive(Debug, Clone, Default)]
pub(super) struct FailedRanges {
    ranges: Vec<(Range<u64>, Error)>,
}

impl FailedRanges {
    /// Remembers that `range` may hold anything after `error`.
    pub(super) fn add(&mut self, range: Range<u64>, error: &Error) {
        if range.is_empty() {
            return;
        }
        self.rewritten(&range);
        let at = self
            .ranges
            .partition_point(|(earlier, _)| earlier.start < range.start);
        self.ranges.insert(at, (range, error.clone()));
        if self.ranges.len() > RANGES_MAX {
            self.join_nearest();
        }
    }

    /// Adds all that another has.
    pub(super) fn add_all(&mut self, other: FailedRanges) {
        for (range, error) in other.ranges {
            self.add(range, &error);
        }
    }

    /// The error that a read of `range` meets.
    pub(super) fn find(&self, range: &Range<u64>) -> Option<&Error> {
        self.ranges
            .iter()
            .find(|(failed, _)| failed.start < range.end && range.start < failed.end)
            .map(|(_, error)| error)
    }

    /// Forgets what failed in `range`: it was written, or cut away.
    pub(super) fn rewritten(&mut self, range: &Range<u64>) {
        let mut index = 0;
        while index < self.ranges.len() {
            let failed = self.ranges[index].0.clone();
            if range.is_empty() || failed.end <= range.start || range.end <= failed.start {
                index += 1;
                continue;
            }
            let before = failed.start..range.start.max(failed.start);
            let behind = range.end.min(failed.end)..failed.end;
            match (before.is_empty(), behind.is_empty()) {
                (true, true) => {
                    self.ranges.remove(index);
                }
                (false, true) => self.ranges[index].0 = before,
                (true, false) => self.ranges[index].0 = behind,
                (false, false) => {
                    let error = self.ranges[index].1.clone();
                    self.ranges[index].0 = before;
                    self.ranges.insert(index + 1, (behind, error));
                    index += 1;
                }
            }
        }
        // BOUND: cutting a range in two may have made one too many.
        if self.ranges.len() > RANGES_MAX {
            self.join_nearest();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn join_nearest(&mut self) {
        let gap = |at: usize| self.ranges[at + 1].0.start - self.ranges[at].0.end;
        let nearest = (0..self.ranges.len().saturating_sub(1)).min_by_key(|at| gap(*at));
        if let Some(at) = nearest {
            let (joined, _) = self.ranges.remove(at + 1);
            self.ranges[at].0.end = joined.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(number: u64) -> Error {
        Error::Internal(number.to_string())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn each_byte_is_failed_from_its_failure_to_its_rewriting(
            steps in prop::collection::vec((any::<bool>(), 0..60_u64, 0..30_u64), 0..60)
        ) {
            let mut failed = FailedRanges::default();
            let mut model = vec![None; 100];
            for (number, (fails, start, len)) in steps.iter().enumerate() {
                let range = *start..start + len;
                let number = number as u64;
                for byte in &mut model[*start as usize..(start + len) as usize] {
                    *byte = fails.then_some(number);
                }
                if *fails {
                    failed.add(range, &error(number));
                } else {
                    failed.rewritten(&range);
                }
                for (at, byte) in (0_u64..).zip(&model) {
                    let found = failed.find(&(at..at + 1)).cloned();
                    prop_assert_eq!(found, byte.map(error));
                }
                prop_assert_eq!(failed.is_empty(), model.iter().all(Option::is_none));
            }
        }
    }

    #[test]
    fn too_many_ranges_become_fewer_and_forget_nothing() {
        let mut failed = FailedRanges::default();
        for at in 0..1000_u64 {
            failed.add(at * 10..at * 10 + 3, &error(at));
        }
        assert_eq!(failed.ranges.len(), RANGES_MAX);
        for at in 0..1000_u64 {
            assert!(failed.find(&(at * 10..at * 10 + 1)).is_some());
        }
        failed.rewritten(&(0..u64::MAX));
        assert!(failed.is_empty());
    }
}
