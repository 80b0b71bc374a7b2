//! The command line.

use std::num::NonZero;
use std::path::PathBuf;

use crate::common::options::Common;

/// Measures what several directories, snapshots and restores cost. Sections, for --only: striping,
/// devices, snapshot, reflink, restore. Those of devices and reflink take root, and are skipped
/// without it.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cargo bench --bench store --", disable_version_flag = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Steps that count in each turn
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) steps: NonZero<usize>,
    /// Elements of each parameter
    #[arg(long, value_name = "N", default_value = "4194304")]
    pub(crate) elements: NonZero<usize>,
    /// Parameters; half as many on limited devices, twice for snapshots, four times for reflinks
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) parameters: NonZero<usize>,
    /// An Nth of the elements of every parameter
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) scale: NonZero<usize>,
    /// MiB/s, read and written each, of the slower one of two limited devices; the other has twice
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) slow: NonZero<u64>,
    /// A directory in memory, to restore to where nothing is written to the drive
    #[arg(long, value_name = "D", default_value = "/dev/shm")]
    pub(crate) memory: PathBuf,
}

impl Options {
    /// Where everything lies.
    pub(crate) fn directory(&self) -> PathBuf {
        self.common.directory("bench-store")
    }
}
