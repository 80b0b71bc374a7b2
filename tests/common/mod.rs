//! What several test files share.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;

/// Compares a committed file with what it should be; `UPDATE_GOLDEN=1` writes it instead.
pub(crate) fn golden(path: &Path, expected: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(path, expected).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if committed == expected {
        return;
    }
    let differs = committed
        .lines()
        .zip(expected.lines())
        .position(|(committed, expected)| committed != expected);
    panic!(
        "{} is out of date from line {} on; UPDATE_GOLDEN=1 cargo test renews it",
        path.display(),
        differs.map_or(committed.lines().count(), |line| line + 1)
    );
}
