//! A door that opens once.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::base::sync::{Condvar, Mutex, lock};

/// Lets threads wait for one thing that happens once; from then on nobody waits.
#[derive(Debug)]
pub struct Latch {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Latch {
    /// A latch that is closed.
    #[must_use]
    pub fn new() -> Latch {
        Latch {
            open: Mutex::new(false),
            opened: Condvar::new(),
        }
    }

    /// Opens it for ever and wakes all who wait.
    pub fn open(&self) {
        *lock(&self.open) = true;
        self.opened.notify_all();
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *lock(&self.open)
    }

    /// Waits until it is open, however long that takes.
    pub fn wait(&self) {
        let mut open = lock(&self.open);
        while !*open {
            open = self
                .opened
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it is open, at most for `timeout`; returns whether it is.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            // Beyond what the clock can express: for ever.
            self.wait();
            return true;
        };
        let mut open = lock(&self.open);
        while !*open {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            open = self
                .opened
                .wait_timeout(open, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Default for Latch {
    fn default() -> Latch {
        Latch::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_once_for_all() {
        let latch = Latch::new();
        assert!(!latch.is_open());
        assert!(!latch.wait_timeout(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| latch.wait());
            }
            scope.spawn(|| assert!(latch.wait_timeout(Duration::MAX)));
            latch.open();
        });
        latch.wait();
        assert!(latch.is_open() && latch.wait_timeout(Duration::ZERO));
    }
}
