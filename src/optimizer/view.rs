//! What a caller sees of a parameter while it updates it.

use crate::base::dtype::Dtype;
use crate::memory::MemoryRange;
use crate::store::STATES_MAX;

/// Elements of one state, or of the gradient, in memory.
#[derive(Debug, Clone, Copy)]
pub struct StateView {
    pub(crate) memory: MemoryRange,
    pub(crate) numel: u64,
    pub(crate) dtype: Dtype,
}

/// A parameter in memory, the caller's until it is given back.
#[derive(Debug, Clone, Copy)]
pub struct ParameterView {
    /// The parameter's id.
    pub id: u64,
    /// Its elements.
    pub numel: u64,
    pub(crate) gradient: Option<StateView>,
    pub(crate) states: [Option<StateView>; STATES_MAX],
    pub(crate) states_len: usize,
}

impl StateView {
    /// The first element.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    /// Elements.
    #[must_use]
    pub fn numel(&self) -> u64 {
        self.numel
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

impl ParameterView {
    /// The gradient in the type of state 0; `None` where no region was swapped out.
    #[must_use]
    pub fn gradient(&self) -> Option<&StateView> {
        self.gradient.as_ref()
    }

    /// The states, in the order in which they were added.
    pub fn states(&self) -> impl ExactSizeIterator<Item = &StateView> {
        self.states[..self.states_len]
            .iter()
            .flatten()
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// One state.
    #[must_use]
    pub fn state(&self, index: usize) -> Option<&StateView> {
        self.states.get(index)?.as_ref()
    }
}
