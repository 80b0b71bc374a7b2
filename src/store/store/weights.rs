//! How further records are dealt to several drives: as given, as measured, or as they proved to be.

use super::Store;
use crate::base::config::OptimizerOptions;
use crate::base::error::Result;
use crate::base::sync::lock;
use crate::io::Engine;
use crate::store::measure::{achieved_shares, is_far, shares_of};
use crate::store::places::Directories;
use crate::store::striping::weights_of;
use crate::store::table::Table;

impl Store {
    /// Before the first of some further records: deals what is registered from now on as the drives
    /// have proved to be, where nobody gave weights, and they are far from what was measured.
    ///
    /// # Errors
    /// `InvalidArgument` where there can be no further weights.
    pub(crate) fn follow_drives(&self, engine: &Engine) -> Result<()> {
        let Some(disk) = self.disk.as_ref().filter(|disk| disk.follows_drives) else {
            return Ok(());
        };
        let _writer = lock(&disk.writer);
        let mut table = lock(&self.table);
        if disk.directories.len() == 1 || !table.is_settled() || table.records().is_empty() {
            return Ok(());
        }
        let current = table.striping().weights().unwrap_or_default().to_vec();
        match achieved_shares(engine, &disk.directories) {
            Some(shares) if is_far(&current, &shares) => table.set_weights(&weights_of(&shares)),
            _ => Ok(()),
        }
    }
}

/// Whether the options say how to deal.
pub(super) fn has_weights(options: &OptimizerOptions) -> bool {
    let mut places = options.directories.iter();
    places.any(|place| place.weight.is_some())
}

/// Decides how further addresses are dealt to several places: as given, as before, or as measured.
pub(super) fn choose_weights(
    engine: &Engine,
    options: &OptimizerOptions,
    directories: &Directories,
    table: &mut Table,
) -> Result<()> {
    let shares: Vec<f64> = if has_weights(options) {
        let given = options.directories.iter().map(|place| place.weight);
        given.map(|weight| weight.unwrap_or(1.0)).collect()
    } else if table.striping().weights().is_some() {
        return Ok(());
    } else {
        shares_of(engine, directories)?
    };
    let weights = weights_of(&shares);
    if table.striping().weights() != Some(&weights) {
        table.set_weights(&weights)?;
    }
    Ok(())
}
