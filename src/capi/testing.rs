//! For the tests of the border: a defect on demand. Not part of the C interface.

use std::cell::Cell;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the next guarded call of this thread panic inside the border, as a defect would.
pub fn panic_at_next_call() {
    ARMED.set(true);
}

/// Panics where it was asked for.
pub(super) fn trip() {
    // A thread that is being torn down is no test.
    if ARMED
        .try_with(|armed| armed.replace(false))
        .unwrap_or(false)
    {
        panic!("a defect on demand");
    }
}
