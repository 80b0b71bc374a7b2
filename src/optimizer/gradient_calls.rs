//! The calls between backward and the step: gradients of parameters.

use super::optimizer_swapper::Optimizer;
use crate::base::error::Result;
use crate::base::sync::lock;
use crate::io::Tensor;

/// Sum of squares of a gradient's finite values, and how many are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradientNorm {
    /// Of the finite values.
    pub sum_of_squares: f64,
    /// Values that are infinite or not a number.
    pub nonfinite_count: u64,
}

impl Optimizer {
    /// Says that a backward pass begins. Clears nothing: gradients of several micro-batches add up.
    ///
    /// # Errors
    /// `Busy`.
    pub fn pre_backward(&self) -> Result<()> {
        self.enter().map(drop)
    }

    /// Takes gradients of a parameter: pieces of it, each at an offset in elements. Their memory is
    /// the caller's again at return. A piece goes over what was there, or, with
    /// [`ACCUMULATE`](crate::io::tensor::ACCUMULATE), is added to it.
    ///
    /// # Errors
    /// Before anything is taken: `UnknownParameter`, `DtypeMismatch` for types other than f32, f16
    /// and bf16, `InvalidArgument` for pieces that reach beyond the parameter, `Busy` while its view
    /// is out or a step is open. `NoMemory`; the failure of an earlier spill.
    pub fn swap_out_gradients(&self, id: u64, offsets: &[u64], gradients: &[Tensor]) -> Result<()> {
        let _desk = self.enter()?;
        let (index, numel) = {
            let core = lock(&self.shared.core);
            let index = core.find(id)?;
            core.check_no_step()?;
            core.check_not_out(index)?;
            (index, core.record(index).numel)
        };
        self.gradients
            .swap_out(index, id, numel, offsets, gradients)
    }

    /// Waits until all gradients that were spilled are written.
    ///
    /// # Errors
    /// The failure of a write.
    pub fn flush_gradients(&self) -> Result<()> {
        let _desk = self.enter()?;
        self.gradients.flush()
    }

    /// Says that a backward pass is over: what is to be spilled is written from now on.
    ///
    /// # Errors
    /// The failure of a write.
    pub fn post_backward(&self) -> Result<()> {
        let _desk = self.enter()?;
        self.gradients.submit()
    }

    /// Sums up a parameter's gradient, for clipping and overflow checks. Zero without a gradient.
    ///
    /// # Errors
    /// `UnknownParameter`, `Busy` while its view is out, the failure of a spill.
    pub fn gradient_norm(&self, id: u64) -> Result<GradientNorm> {
        let _desk = self.enter()?;
        // Until the norm is there, `step_next` waits with this parameter's view.
        let _turn = lock(&self.gradient_turn);
        let index = {
            let core = lock(&self.shared.core);
            let index = core.find(id)?;
            core.check_not_out(index)?;
            index
        };
        self.gradients.norm(index)
    }

    /// Drops all gradients.
    ///
    /// # Errors
    /// `Busy` while views are out or a step is open.
    pub fn discard_gradients(&self) -> Result<()> {
        let _desk = self.enter()?;
        let core = lock(&self.shared.core);
        core.check_no_step()?;
        core.check_none_out()?;
        drop(core);
        self.gradients.discard_all();
        Ok(())
    }
}
