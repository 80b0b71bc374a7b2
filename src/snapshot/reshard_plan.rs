//! Which elements go where when the snapshots of several ranks are cut anew. Pure.

use std::collections::HashMap;

use super::pieces::{Partition, Segment};
use super::{Manifest, SnapshotParameter, StateImage};
use crate::base::error::{Error, Result};
use crate::base::units::{round_up, to_usize};
use crate::store::{BLOCK_BYTES, Layout};

/// BOUND: no more ranks are made.
const RANKS_MAX: u32 = 1 << 16;

/// How parameters are cut anew.
#[derive(Debug, Clone, Default)]
pub struct ReshardOptions {
    /// How many ranks there will be: 1 to 65536.
    pub ranks_count: u32,
    /// Every rank gets a piece of every parameter, all of them of the same length, with zeros
    /// behind the end. Otherwise the last pieces are shorter, and ranks that would have nothing
    /// do not have the parameter.
    pub is_padded: bool,
    /// Ids of parameters, and how many elements they have in truth. What their pieces have more,
    /// at the end, was padding, all zeros, and is cut off. Parameters that are not named have what their
    /// pieces have together.
    pub numels: Vec<(u64, u64)>,
}

/// One parameter: where its pieces are now, and how it will be cut.
#[derive(Debug)]
pub(super) struct Planned {
    /// Ranks that have a piece, and the index of the parameter there.
    pub(super) sources: Vec<(usize, usize)>,
    /// The index of the parameter in the manifest of each rank that will have a piece.
    pub(super) targets: Vec<usize>,
    partition: Partition,
    sources_numels: Vec<u64>,
}

impl Planned {
    pub(super) fn segments(&self) -> Vec<Segment> {
        self.partition.segments(&self.sources_numels)
    }
}

/// Everything that is known before a byte is moved.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order in which the ranks, from 0 on, first mention them.
    pub(super) parameters: Vec<Planned>,
    /// What each rank will hold; checksums are still missing.
    pub(super) targets: Vec<Manifest>,
}

impl Plan {
    /// # Errors
    /// `InvalidArgument` names the ranks that do not go together, or the option that cannot be.
    pub(super) fn new(sources: &[&Manifest], options: &ReshardOptions) -> Result<Plan> {
        let Some(first) = sources.first() else {
            return Err(Error::invalid("no snapshot to cut anew"));
        };
        if !(1..=RANKS_MAX).contains(&options.ranks_count) {
            return Err(Error::invalid(format!(
                "{} ranks cannot be made; 1 to {RANKS_MAX} can",
                options.ranks_count
            )));
        }
        for (rank, source) in sources.iter().enumerate().skip(1) {
            agree(first, source, rank)?;
        }
        let target = Manifest {
            step: first.step,
            user_data: first.user_data.clone(),
            states: first.states.clone(),
            ..Manifest::default()
        };
        let mut plan = Plan {
            parameters: grouped(sources),
            targets: vec![target; to_usize(u64::from(options.ranks_count))?],
        };
        plan.cut(sources, options)?;
        Ok(plan)
    }

    fn cut(&mut self, sources: &[&Manifest], options: &ReshardOptions) -> Result<()> {
        let layout = Layout {
            states: sources[0].states.clone(),
        };
        let mut numels = HashMap::new();
        for (id, numel) in &options.numels {
            if numels.insert(*id, *numel).is_some() {
                return Err(Error::invalid(format!(
                    "parameter {id} is given two lengths"
                )));
            }
        }
        for planned in &mut self.parameters {
            let pieces = planned.sources.iter();
            let pieces: Vec<_> = pieces
                .map(|(rank, index)| &sources[*rank].parameters[*index])
                .collect();
            let (id, name) = (pieces[0].id, &pieces[0].name);
            if let Some(other) = pieces.iter().position(|piece| piece.name != *name) {
                let (rank, other_rank) = (planned.sources[0].0, planned.sources[other].0);
                return Err(Error::invalid(format!(
                    "parameter {id} is called {name:?} in rank {rank} and {:?} in rank {other_rank}",
                    pieces[other].name
                )));
            }
            planned.sources_numels = pieces.iter().map(|piece| piece.numel).collect();
            let available = planned.sources_numels.iter();
            // Saturates: so many elements are refused below.
            let available = available.fold(0, |sum: u64, numel| sum.saturating_add(*numel));
            let total = numels.remove(&id).unwrap_or(available);
            if total > available || total == 0 {
                return Err(Error::invalid(format!(
                    "parameter {id} cannot have {total} elements: its pieces have {available}"
                )));
            }
            layout.check_numel(available)?;
            planned.partition = Partition::new(total, options.ranks_count, options.is_padded);
            place(planned, &pieces, &mut self.targets);
        }
        match numels.keys().next() {
            Some(id) => Err(Error::invalid(format!("no rank has a parameter {id}"))),
            None => Ok(()),
        }
    }
}

fn agree(first: &Manifest, other: &Manifest, rank: usize) -> Result<()> {
    if other.step != first.step {
        return Err(Error::invalid(format!(
            "rank 0 is of step {} and rank {rank} of step {}",
            first.step, other.step
        )));
    }
    if other.states != first.states {
        let named = |manifest: &Manifest| {
            let states = manifest.states.iter().map(|state| {
                let (dtype, disk_dtype) = (state.dtype.name(), state.disk_dtype.name());
                format!("{} ({dtype}, {disk_dtype} on storage)", state.name)
            });
            states.collect::<Vec<_>>().join(", ")
        };
        return Err(Error::invalid(format!(
            "rank 0 has the states {} and rank {rank} {}",
            named(first),
            named(other)
        )));
    }
    Ok(())
}

/// The parameters of all ranks by their ids.
fn grouped(sources: &[&Manifest]) -> Vec<Planned> {
    let mut parameters: Vec<Planned> = Vec::new();
    let mut places = HashMap::new();
    for (rank, source) in sources.iter().enumerate() {
        for (index, parameter) in source.parameters.iter().enumerate() {
            let place = *places.entry(parameter.id).or_insert(parameters.len());
            if place == parameters.len() {
                parameters.push(Planned {
                    sources: Vec::new(),
                    targets: Vec::new(),
                    partition: Partition::new(1, 1, false),
                    sources_numels: Vec::new(),
                });
            }
            parameters[place].sources.push((rank, index));
        }
    }
    parameters
}

/// Adds a parameter to the manifests of those who will have it. States of which they have nothing
/// but zeros take no space.
fn place(planned: &mut Planned, pieces: &[&SnapshotParameter], targets: &mut [Manifest]) {
    let numels = planned.partition.pieces();
    let segments = planned.segments();
    for (target, numel) in targets.iter_mut().zip(&numels) {
        planned.targets.push(target.parameters.len());
        target.parameters.push(SnapshotParameter {
            id: pieces[0].id,
            name: pieces[0].name.clone(),
            numel: *numel,
            states: vec![StateImage::Zero; target.states.len()],
        });
    }
    for segment in segments {
        let (Some((source, _)), Some((target, _))) = (segment.source, segment.target) else {
            continue;
        };
        let (manifest, index) = (&mut targets[target], planned.targets[target]);
        for state in 0..manifest.states.len() {
            let is_zero = manifest.parameters[index].states[state] == StateImage::Zero;
            if is_zero && pieces[source].states[state] != StateImage::Zero {
                let offset_bytes = manifest.data_bytes;
                let len_bytes = manifest.image_bytes(state, numels[target]);
                manifest.data_bytes += round_up(len_bytes, BLOCK_BYTES);
                manifest.parameters[index].states[state] = StateImage::At {
                    offset_bytes,
                    checksum: None,
                };
            }
        }
    }
}
