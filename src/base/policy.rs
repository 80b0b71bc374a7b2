//! How much a caller insists on something that the machine may refuse.

/// What to do about a property of memory or files that the machine may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It must be had: a refusal is an error.
    Require,
    /// It is tried: a refusal is logged and the work goes on without.
    Prefer,
    /// It is not tried.
    Off,
}
