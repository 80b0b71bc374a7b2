//! One record: where it is, and which of its versions count.

use crate::base::error::Error;
use crate::store::Version;

/// Where the newest version of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Residency {
    /// On storage only.
    #[default]
    Cold,
    /// Being read into its place.
    Reading,
    /// Its images are in its place.
    Warm,
    /// Its images are in its place, and being written.
    Writing,
    /// Its values are in its place, and a caller's.
    Out,
}

/// What the open step still has to do with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum StepPart {
    /// The step does not concern it, or no step is open.
    #[default]
    None,
    /// To be given out.
    Todo,
    /// Given out and back.
    Done,
}

/// One parameter's record.
///
/// Of its versions on storage, `base` is the last one that a commit made durable, or is about to;
/// `working` is newer, and of the open step or of those that nobody committed. INVARIANT: the slot
/// of `working`, once written, is not that of `base`.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) numel: u64,
    /// Address of slot 0 in the store.
    pub(super) offset: u64,
    /// Offset in the arena, while it is in memory.
    pub(super) place: u64,
    pub(super) base: Option<Version>,
    pub(super) working: Option<Version>,
    /// A write of it was lost: what it was, until it is rewritten.
    pub(super) lost: Option<Box<Error>>,
    /// The slot that a snapshot is being made of.
    pub(super) pinned: Option<u8>,
    pub(super) residency: Residency,
    pub(super) part: StepPart,
    /// The parameter was added by this process, not only by one before.
    pub(super) attached: bool,
    /// The version in memory is not, or not all, on storage.
    pub(super) dirty: bool,
    /// The version in memory was produced here, or its checksums were found right.
    pub(super) verified: bool,
    /// `lost` was told to the caller.
    pub(super) told: bool,
    /// The commit under way waits for this record to be written.
    pub(super) in_commit: bool,
    /// It is to be written at the next opportunity, whatever the policy.
    pub(super) write_now: bool,
}

impl Record {
    /// The newest version, on storage or in memory; `None` for one that is all zeros.
    pub(super) fn newest(&self) -> Option<Version> {
        self.working.or(self.base)
    }

    /// Whether a caller may have it now.
    pub(super) fn can_be_given(&self) -> bool {
        self.residency == Residency::Warm && !self.in_commit
    }

    /// What it is doing, for messages.
    pub(super) fn doing(&self) -> &'static str {
        match self.residency {
            Residency::Cold => "is not swapped in",
            Residency::Reading => "is being read",
            Residency::Warm => "is in memory, and not swapped in",
            Residency::Writing => "is being written back",
            Residency::Out => "is swapped in, and to be given back first",
        }
    }
}
