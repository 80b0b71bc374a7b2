//! What an optimizer takes, computed before there is one. Pure.

use super::arena::plan;
use super::optimizer_swapper::check_types;
use super::room::demand_of;
use crate::base::config::{OptimizerOptions, SyncMode};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::to_u64;
use crate::store::{StateSpec, Table};

/// What an optimizer takes of a machine: the figures that it would come to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Parameters.
    pub parameters_count: u64,
    /// Elements of all parameters.
    pub elements_count: u64,
    /// Bytes of the store's data file: two versions of every record.
    pub storage_bytes: u64,
    /// Pinned memory, that of residents included.
    pub pinned_bytes: u64,
    /// Pinned memory of records that stay resident (`cache_bytes`).
    pub resident_bytes: u64,
    /// The most that a step over all parameters reads. Records that happen to be still in memory
    /// from the step before make it less.
    pub step_read_bytes: u64,
    /// The most that a step which changes all parameters writes.
    pub step_written_bytes: u64,
}

impl Footprint {
    /// Computes it for parameters of these lengths, in the order in which they will be added.
    /// `states` are the types in memory and on storage; the first one is the master parameter's.
    ///
    /// # Errors
    /// What [`Optimizer::add_state`](super::Optimizer::add_state),
    /// [`Optimizer::add_parameter`](super::Optimizer::add_parameter) and the first swap would
    /// fail with: `InvalidArgument`, `Unsupported`, `Budget`.
    pub fn compute(
        options: &OptimizerOptions,
        states: &[(Dtype, Dtype)],
        numels: impl IntoIterator<Item = u64>,
    ) -> Result<Footprint> {
        let mut table = Table::default();
        for (position, (dtype, disk_dtype)) in states.iter().copied().enumerate() {
            check_types(position, dtype, disk_dtype)?;
            table.add_state(StateSpec {
                name: position.to_string(),
                dtype,
                disk_dtype,
            })?;
        }
        let (mut sizes, mut extents, mut elements_count) = (Vec::new(), Vec::new(), 0_u64);
        for (id, numel) in (0..).zip(numels) {
            table.add_record(id, None, numel)?;
            sizes.push(table.layout().record_bytes(numel));
            extents.push(table.layout().extent_bytes(numel));
            // Cannot overflow: the table found a place for twice as many bytes.
            elements_count += numel;
        }
        let plan = plan(&sizes, demand_of(options))?;
        let mut resident_bytes = 0;
        let mut resident_extents = 0;
        for (index, bytes) in &plan.residents {
            resident_bytes += bytes;
            let index = usize::try_from(*index);
            let index =
                index.map_err(|_| Error::Internal("a record without a place".to_owned()))?;
            resident_extents += extents[index];
        }
        let all_bytes: u64 = extents.iter().sum();
        let streamed_bytes = all_bytes - resident_extents;
        Ok(Footprint {
            parameters_count: to_u64(sizes.len()),
            elements_count,
            storage_bytes: table.end(),
            pinned_bytes: plan.total_bytes(),
            resident_bytes,
            step_read_bytes: streamed_bytes,
            // Residents are written by commits; without a commit for each step they are not.
            step_written_bytes: match options.sync {
                SyncMode::Commit => all_bytes,
                SyncMode::None => streamed_bytes,
            },
        })
    }
}
