//! `tsw_parameter_view`: a parameter in memory while it is updated.

use std::ffi::c_void;
use std::ptr;

use super::record::Sized32;
use crate::optimizer::{NO_PARAMETER, ParameterView, STATES_MAX, StateView};

/// No parameter has this id.
pub const TSW_NO_PARAMETER: u64 = u64::MAX;
/// The most states a parameter can have.
pub const TSW_STATES_MAX: usize = 8;

// The numbers of the header are those of the layer below.
const _: () = assert!(TSW_NO_PARAMETER == NO_PARAMETER && TSW_STATES_MAX == STATES_MAX);

/// Elements of one state, or of the gradient, in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_state_view {
    /// The first element, at a multiple of 64 bytes; NULL where there is nothing.
    pub data: *mut c_void,
    /// How many elements.
    pub numel: u64,
    /// Element type: `TSW_F32`, ...
    pub dtype: u32,
    /// Zero.
    pub reserved: u32,
}

/// A parameter in pinned memory, the caller's to read and write until it is given back.
///
/// Set `struct_size` to `sizeof(tsw_parameter_view)` before the call that fills it in. The memory
/// ends with `tsw_optimizer_step_done`, `tsw_optimizer_swap_out_state` or
/// `tsw_optimizer_release_state` of the parameter.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tsw_parameter_view {
    /// Size of this structure in bytes; filled in by the caller.
    pub struct_size: u32,
    /// How many of `states` there are.
    pub states_len: u32,
    /// The parameter; `TSW_NO_PARAMETER` where the call gave none.
    pub id: u64,
    /// Its elements.
    pub numel: u64,
    /// The gradient, in the type that state 0 has in memory. `data` is NULL where no region was
    /// swapped out; otherwise regions that were not are zero.
    pub gradient: tsw_state_view,
    /// The states, in the order of `tsw_optimizer_add_state`; the first is the master parameter.
    pub states: [tsw_state_view; TSW_STATES_MAX],
}

// SAFETY: `repr(C)`; pointers and integers only; the two `u32` of either structure fill eight bytes,
// so nothing is padded.
unsafe impl Sized32 for tsw_parameter_view {
    const SIZE_BYTES_MIN: usize = 16;
    fn set_struct_size(&mut self, struct_size: u32) {
        self.struct_size = struct_size;
    }
}

impl tsw_state_view {
    const NONE: tsw_state_view = tsw_state_view {
        data: ptr::null_mut(),
        numel: 0,
        dtype: 0,
        reserved: 0,
    };
}

impl tsw_parameter_view {
    /// What a call leaves that gave no parameter; `id` names the one it failed on, if any.
    pub(super) fn none(id: Option<u64>) -> tsw_parameter_view {
        tsw_parameter_view {
            struct_size: 0,
            states_len: 0,
            id: id.unwrap_or(TSW_NO_PARAMETER),
            numel: 0,
            gradient: tsw_state_view::NONE,
            states: [tsw_state_view::NONE; TSW_STATES_MAX],
        }
    }
}

impl From<&StateView> for tsw_state_view {
    fn from(view: &StateView) -> tsw_state_view {
        tsw_state_view {
            data: view.as_mut_ptr().cast(),
            numel: view.numel(),
            dtype: view.dtype().number(),
            reserved: 0,
        }
    }
}

impl From<ParameterView> for tsw_parameter_view {
    fn from(view: ParameterView) -> tsw_parameter_view {
        let mut filled = tsw_parameter_view::none(Some(view.id));
        filled.numel = view.numel;
        if let Some(gradient) = view.gradient() {
            filled.gradient = gradient.into();
        }
        for (index, place) in filled.states.iter_mut().enumerate() {
            if let Some(state) = view.state(index) {
                *place = state.into();
                filled.states_len += 1;
            }
        }
        filled
    }
}
