//! Where master parameters come from: memory, or pieces that were swapped out.

use std::ffi::CStr;
use std::time::Instant;

use super::core::Core;
use super::filling::{Origin, Recipe};
use super::optimizer_swapper::Optimizer;
use crate::base::error::{Error, Result};
use crate::io::{Engine, Tensor};
use crate::memory::numbers::is_convertible;

/// One piece of a parameter: in memory, or, with `path`, in a raw file at the tensor's file offset.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    /// The parameter.
    pub parameter_id: u64,
    /// Elements before the piece.
    pub offset: u64,
    /// Where it is, and its type: f32, f16 or bf16. Its memory is not looked at with a `path`.
    pub tensor: Tensor,
    /// The file.
    pub path: Option<&'a CStr>,
}

impl Optimizer {
    /// Gives master parameters their values, from f32, f16 or bf16. The other states are zero from
    /// now on, and are neither written nor read until they are updated. Pending until the next
    /// commit.
    ///
    /// # Errors
    /// Before anything changes: `UnknownParameter`, `DtypeMismatch`, `InvalidArgument` for another
    /// number of elements, an id given twice, or lists of different lengths; `Busy` in an open step
    /// or for a parameter that is swapped in; `NoBuffers` with `views_max` views out. Then: the failure of a
    /// write.
    pub fn initialize_parameters(&self, ids: &[u64], sources: &[Tensor]) -> Result<()> {
        if ids.len() != sources.len() {
            return Err(Error::invalid(
                "there must be one source for each parameter",
            ));
        }
        let piece = |(id, source): (&u64, &Tensor)| Partition {
            parameter_id: *id,
            offset: 0,
            tensor: *source,
            path: None,
        };
        let pieces: Vec<Partition<'_>> = ids.iter().zip(sources).map(piece).collect();
        self.initialize_from_swapped(&pieces)
    }

    /// Gives master parameters their values from pieces in memory or in files, as
    /// [`initialize_parameters`](Optimizer::initialize_parameters) does. The pieces of a parameter
    /// cover it exactly.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for pieces that overlap, leave a gap or reach beyond the
    /// parameter; what kept a file from being read.
    pub fn initialize_from_swapped(&self, partitions: &[Partition<'_>]) -> Result<()> {
        let _desk = self.enter()?;
        self.initialize(partitions, &self.shared.engine)
    }

    /// Does so for a caller who is at the desk; files are read by an engine of his choice.
    ///
    /// # Errors
    /// As [`initialize_from_swapped`](Optimizer::initialize_from_swapped).
    pub(super) fn initialize(&self, pieces: &[Partition<'_>], engine: &Engine) -> Result<()> {
        let started = Instant::now();
        let mut core = self.settled_between_steps()?;
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.sort_by_key(|at| (pieces[*at].parameter_id, pieces[*at].offset, *at));
        let same = |a: &usize, b: &usize| pieces[*a].parameter_id == pieces[*b].parameter_id;
        for run in order.chunk_by(same) {
            check_cover(&core, run.iter().map(|at| &pieces[*at]))?;
        }
        core.check_alive()?;
        core.check_views()?;
        core = self.ensure_room_for_one(core)?;
        let zero_states = core.layout.zero_but_master();
        drop(core);
        let recipes = order.chunk_by(same).map(|run| {
            let origin = |at: &usize| Origin {
                state: 0,
                tensor: pieces[*at].tensor,
                path: pieces[*at].path,
                only: None,
            };
            Recipe {
                id: pieces[run[0]].parameter_id,
                zero_states,
                origins: run.iter().map(origin).collect(),
            }
        });
        self.make_versions(engine, recipes, None)?;
        let elapsed = started.elapsed();
        self.shared.figures.swap_init_write.record(elapsed);
        Ok(())
    }
}

/// Whether pieces of one parameter, sorted by offset, can give it its values.
fn check_cover<'a>(core: &Core, pieces: impl Iterator<Item = &'a Partition<'a>>) -> Result<()> {
    let mut covered = None;
    for piece in pieces {
        let id = piece.parameter_id;
        let index = core.find(id)?;
        let record = core.record(index);
        core.check_not_out(index)?;
        let dtype = piece.tensor.dtype;
        if !is_convertible(dtype) {
            return Err(Error::DtypeMismatch(format!(
                "parameter {id} cannot be made from {}: f32, f16 and bf16 are known",
                dtype.name()
            )));
        }
        let (numel, end) = covered.unwrap_or((record.numel, 0));
        if piece.offset != end {
            return Err(Error::invalid(format!(
                "the pieces of parameter {id} must cover it exactly: element {end} is followed by \
                 a piece at {}",
                piece.offset
            )));
        }
        covered = Some((numel, end + piece.tensor.numel));
        let (numel, end) = (numel, end + piece.tensor.numel);
        if end > numel {
            return Err(Error::invalid(format!(
                "parameter {id} has {numel} elements, and a piece ends at {end}"
            )));
        }
    }
    match covered {
        Some((numel, end)) if end < numel => Err(Error::invalid(format!(
            "the pieces of a parameter with {numel} elements cover {end}"
        ))),
        _ => Ok(()),
    }
}
