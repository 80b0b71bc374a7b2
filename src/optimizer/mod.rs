//! The optimizer swapper.

mod gradients;
mod optimizer;
mod stats;
mod view;

pub use crate::store::STATES_MAX;
pub use optimizer::{GradientNorm, NO_PARAMETER, Optimizer, Partition, StepError};
pub use stats::OptimizerStats;
pub use view::{ParameterView, StateView};
