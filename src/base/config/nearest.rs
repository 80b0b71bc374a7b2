//! The known name nearest to a misspelled one.

/// Longest name that is compared whole; of a longer one only this much counts.
///
/// BOUND: the name comes from the caller, and the comparison costs length times length.
const COMPARED_CHARS_MAX: usize = 64;

/// The candidate with the smallest edit distance; the earlier one of equals. `None` where more than
/// half of the name would have to be changed.
pub(super) fn nearest(
    name: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let distances = candidates.map(|candidate| (distance(name, candidate), candidate));
    let (distance, nearest) = distances.min_by_key(|(distance, _)| *distance)?;
    let compared_len = name.chars().take(COMPARED_CHARS_MAX).count();
    (2 * distance <= compared_len).then_some(nearest)
}

/// Levenshtein's distance: how many characters to insert, delete or replace. Two rows of the
/// table are enough (Wagner and Fischer, 1974).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(COMPARED_CHARS_MAX).collect();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, from) in left.chars().take(COMPARED_CHARS_MAX).enumerate() {
        let mut current = Vec::with_capacity(above.len());
        let mut before = row + 1;
        current.push(before);
        for (column, to) in right.iter().enumerate() {
            let replaced = above[column] + usize::from(from != *to);
            before = replaced.min(above[column + 1] + 1).min(before + 1);
            current.push(before);
        }
        above = current;
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_known_pairs() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "pin", 3),
            ("pin", "", 3),
            ("kitten", "sitting", 3),
            ("queue_dept", "queue_depth", 1),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn the_nearest_of_several() {
        let known = ["pin", "path", "queue_depth"];
        assert_eq!(nearest("pat", known.into_iter()), Some("path"));
        // Far from all of them, and still not slow.
        assert_eq!(nearest(&"x".repeat(1 << 20), known.into_iter()), None);
        assert_eq!(nearest("dir", known.into_iter()), None);
        assert_eq!(nearest("pat", [].into_iter()), None);
    }
}
