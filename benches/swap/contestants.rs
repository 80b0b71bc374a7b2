//! What takes part in a round.

use std::io::Result;

use crate::common::area::Area;
pub(crate) use crate::common::ring::Direction;
use crate::data::Files;

/// One contestant's work in one round.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) direction: Direction,
    /// The files do not exist.
    pub(crate) new: bool,
    pub(crate) files: &'a Files,
}

/// Does the work of a round.
pub(crate) trait Contestant {
    fn name(&self) -> &'static str;

    /// What is done before the clock starts.
    fn prepare(&mut self, _job: &Job<'_>) -> Result<()> {
        Ok(())
    }

    /// The work. Seconds and processor seconds where it was done by another process.
    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>>;

    /// What is done after the clock was stopped.
    fn finish(&mut self, _job: &Job<'_>) {}

    /// The most operations that were in flight at once, where somebody counted.
    fn depth_peak(&self) -> Option<u64> {
        None
    }

    /// Whether the files must be dropped from the page cache after a round.
    fn uses_page_cache(&self) -> bool {
        false
    }

    /// The memory that is written to the files; `None` where it cannot be seen.
    fn source(&mut self) -> Option<Area>;

    /// The memory that the files are read to.
    fn target(&mut self) -> Option<Area>;
}
