"""Figures of engines, swappers and optimizers, and their timers."""

from __future__ import annotations

import struct
from typing import Any, Dict, NamedTuple, Type, TypeVar

from tensorswap._library import check, ffi, lib, text_of

_T = TypeVar("_T")


class EngineStats(NamedTuple):
    """What an engine has done since it was made, and what it is doing. include/tensorswap.h tells each field."""

    swap_out_operations_count: int
    swap_out_bytes: int
    swap_out_in_flight_count: int
    swap_out_in_flight_peak_count: int
    swap_out_retries_count: int
    swap_out_short_transfers_count: int
    swap_out_fallbacks_count: int
    swap_out_errors_count: int
    swap_in_operations_count: int
    swap_in_bytes: int
    swap_in_in_flight_count: int
    swap_in_in_flight_peak_count: int
    swap_in_retries_count: int
    swap_in_short_transfers_count: int
    swap_in_fallbacks_count: int
    swap_in_errors_count: int
    requests_count: int
    requests_in_flight_count: int
    in_flight_count: int
    in_flight_peak_count: int
    bounced_bytes: int
    open_files_count: int
    pinned_bytes: int


class SwapperStats(NamedTuple):
    """What a swapper has done since it was made, and what it is doing."""

    swap_out_tensors_count: int
    swap_out_elements_count: int
    swap_out_bytes: int
    swap_in_tensors_count: int
    swap_in_elements_count: int
    swap_in_bytes: int
    in_flight_bytes: int
    in_flight_peak_bytes: int
    waited_ns: int
    copies_avoided_count: int
    copies_avoided_bytes: int
    buffers_count: int
    buffers_free_count: int
    buffers_in_flight_count: int
    errors_count: int


class OptimizerStats(NamedTuple):
    """What an optimizer has done since it was made, and what its last step was like."""

    parameters_count: int
    steps_count: int
    commits_count: int
    durable_step: int
    step_read_bytes: int
    step_written_bytes: int
    read_bytes: int
    written_bytes: int
    cache_hits_count: int
    cache_misses_count: int
    wait_read_ns: int
    wait_write_ns: int
    update_ns: int
    step_ns: int
    io_floor_ns: int
    compute_floor_ns: int
    pinned_computed_bytes: int
    pinned_used_bytes: int
    pinned_peak_bytes: int
    gradient_memory_bytes: int
    gradient_spilled_bytes: int
    checksum_errors_count: int
    store_bytes: int
    store_written_bytes: int


class Timer(NamedTuple):
    """How often something ran, and how long it took."""

    runs: int
    total_ns: int
    min_ns: int
    max_ns: int
    p50_ns: int
    p99_ns: int


#: The type of the C interface for each of ours; their fields have the same names.
C_TYPES: Dict[type, str] = {
    EngineStats: "tsw_engine_stats",
    SwapperStats: "tsw_swapper_stats",
    OptimizerStats: "tsw_optimizer_stats",
    Timer: "tsw_timer",
}


class _Layout:
    """How a structure is made and read: after struct_size and its filler every field has 64 bits."""

    __slots__ = ("made", "nbytes", "read")

    def __init__(self, kind: Type[Any]) -> None:
        self.made = ffi.typeof(C_TYPES[kind] + " *")
        self.nbytes = ffi.sizeof(C_TYPES[kind])
        self.read = struct.Struct(f"=8x{len(kind._fields)}Q").unpack


_LAYOUTS = {kind: _Layout(kind) for kind in C_TYPES}


def stats_of(kind: Type[_T], fill: Any, *arguments: Any) -> _T:
    """What a function that fills in a structure has to tell."""
    layout = _LAYOUTS[kind]
    values = ffi.new(layout.made)
    values.struct_size = layout.nbytes
    check(fill(*arguments, values))
    return kind(*layout.read(ffi.buffer(values)))


def timers_of(names: Any, get: Any, handle: Any) -> Dict[str, Timer]:
    """The timers of an object that have run, by their names."""
    count = names(handle, ffi.NULL, 0)
    array = ffi.new("const char *[]", max(count, 1))
    count = min(names(handle, array, count), count)
    return {text_of(array[index]): stats_of(Timer, get, handle, array[index]) for index in range(count)}


def version() -> str:
    """The version of the library."""
    return text_of(lib.tsw_version())
