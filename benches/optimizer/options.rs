//! The command line.

use std::num::NonZero;
use std::path::PathBuf;

use crate::common::options::Common;

/// Measures an optimizer step against what the drive and the processor give.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cargo bench --bench optimizer --", disable_version_flag = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Steps of a case that count in each round
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) steps: NonZero<usize>,
    /// Elements of each parameter of the uniform model
    #[arg(long, value_name = "N", default_value = "8388608")]
    pub(crate) elements: NonZero<usize>,
    /// Parameters of the uniform model
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) parameters: NonZero<usize>,
    /// An Nth of the elements of every parameter
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) scale: NonZero<usize>,
    /// Instead: registering, committing and opening N tiny parameters
    #[arg(long, value_name = "N")]
    pub(crate) records: Option<u64>,
}

impl Options {
    /// Where the stores lie.
    pub(crate) fn directory(&self) -> PathBuf {
        self.common.directory("bench-optimizer")
    }
}
