//! SKELETON: the optimizer swapper as callers see it.
#![allow(unused_variables, clippy::unused_self, missing_docs)]
use super::{OptimizerStats, ParameterView};
use crate::base::config::Config;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::TimerSnapshot;
use crate::io::{Engine, Tensor};

/// No parameter has this id.
pub const NO_PARAMETER: u64 = u64::MAX;

/// Sum of squares of a gradient's finite values, and how many are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradientNorm {
    pub sum_of_squares: f64,
    pub nonfinite_count: u64,
}

/// One piece of a parameter: in memory, or (with `path`) in a raw file at the tensor's file offset.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    pub parameter_id: u64,
    /// Elements before the piece.
    pub offset: u64,
    pub tensor: Tensor,
    pub path: Option<&'a std::ffi::CStr>,
}

/// A record that could not be given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    /// The record, where the error is one record's.
    pub id: Option<u64>,
    pub error: Error,
}

#[derive(Debug)]
pub struct Optimizer {
    engine: Engine,
}

impl Optimizer {
    pub fn new(engine: &Engine, config: &Config) -> Result<Optimizer> {
        unimplemented!()
    }
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
    pub fn add_state(&self, name: &str, dtype: Dtype, disk_dtype: Dtype) -> Result<()> {
        unimplemented!()
    }
    pub fn add_parameter(&self, id: u64, name: Option<&str>, numel: u64) -> Result<()> {
        unimplemented!()
    }
    pub fn initialize_parameters(&self, ids: &[u64], sources: &[Tensor]) -> Result<()> {
        unimplemented!()
    }
    pub fn initialize_from_swapped(&self, partitions: &[Partition<'_>]) -> Result<()> {
        unimplemented!()
    }
    pub fn pre_backward(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn swap_out_gradients(&self, id: u64, offsets: &[u64], gradients: &[Tensor]) -> Result<()> {
        unimplemented!()
    }
    pub fn flush_gradients(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn post_backward(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn gradient_norm(&self, id: u64) -> Result<GradientNorm> {
        unimplemented!()
    }
    pub fn discard_gradients(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn swap_in_state(&self, id: u64, next: Option<u64>) -> Result<ParameterView> {
        unimplemented!()
    }
    pub fn swap_out_state(&self, id: u64, asynchronous: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn release_state(&self, id: u64) -> Result<()> {
        unimplemented!()
    }
    pub fn step_begin(&self, ids: Option<&[u64]>) -> Result<()> {
        unimplemented!()
    }
    /// `Ok(None)` when all were given out.
    pub fn step_next(&self) -> Result<Option<ParameterView>, StepError> {
        unimplemented!()
    }
    pub fn step_done(&self, id: u64, changed: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn step_end(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn step_abort(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn commit(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn purge_state(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn read_state(&self, id: u64, state: &str, destination: &Tensor) -> Result<()> {
        unimplemented!()
    }
    pub fn write_state(&self, id: u64, state: &str, source: &Tensor) -> Result<()> {
        unimplemented!()
    }
    pub fn parameters_len(&self) -> usize {
        unimplemented!()
    }
    /// Id and elements.
    pub fn parameter_at(&self, index: usize) -> Option<(u64, u64)> {
        unimplemented!()
    }
    pub fn set_user_data(&self, data: &[u8]) -> Result<()> {
        unimplemented!()
    }
    pub fn user_data(&self) -> Vec<u8> {
        unimplemented!()
    }
    pub fn step_number(&self) -> u64 {
        unimplemented!()
    }
    pub fn stats(&self) -> OptimizerStats {
        unimplemented!()
    }
    pub fn timer_names(&self) -> Vec<&'static str> {
        unimplemented!()
    }
    pub fn timer(&self, name: &str) -> Option<TimerSnapshot> {
        unimplemented!()
    }
}
