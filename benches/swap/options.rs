//! The command line.

use tensorswap::base::config::Config;
use tensorswap::base::error::Result;

use crate::common::options::{Common, contains_any};

/// Measures swap-out and swap-in against what the drive gives.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "cargo bench --bench swap --", disable_version_flag = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// 3 rounds of an eighth of the work: shows that everything runs, nothing more
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only contestants with TEXT in their name; may be repeated: any of them
    #[arg(long, value_name = "TEXT")]
    who: Vec<String>,
}

impl Options {
    /// Rounds to be done.
    pub(crate) fn rounds(&self) -> usize {
        self.common.rounds(if self.quick { 3 } else { 7 })
    }

    /// The engine's configuration.
    pub(crate) fn config(&self) -> Result<Config> {
        let mut config = Config::new();
        for (key, value) in &self.common.set {
            config.set(key, value)?;
        }
        Ok(config)
    }

    /// Whether a contestant was asked for.
    pub(crate) fn wants_contestant(&self, name: &str) -> bool {
        contains_any(name, &self.who)
    }
}
