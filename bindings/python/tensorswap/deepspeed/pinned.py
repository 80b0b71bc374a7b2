"""Pinned memory as tensors, and the question whether a tensor lies in it.

One list for the whole process, as DeepSpeed has it: a tensor that one handle allocated is pinned for all.
The memory itself is freed when the last tensor that shows it is gone, so freeing never leaves a view behind
that points to nothing.
"""

from __future__ import annotations

import bisect
import collections
import threading
import weakref
from typing import Any, Deque, Dict, List, NamedTuple

import torch

from tensorswap.deepspeed import process
from tensorswap.errors import InvalidArgumentError

__all__ = ["allocate", "free", "is_pinned"]

#: Of an engine that pinned memory starts: what DeepSpeed's own handle has as default.
BLOCK_SIZE = 1 << 20


class _Region(NamedTuple):
    end: int
    #: Tells a region from a later one at the same address.
    serial: int


_lock = threading.Lock()
_starts: List[int] = []
_regions: Dict[int, _Region] = {}
_serial = 0
#: Regions whose last tensor is gone. The garbage collector runs anywhere, also under the lock, so it only
#: leaves a note here.
_gone: Deque[Any] = collections.deque()


def allocate(num_elem: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of one dimension in pinned memory, all zero."""
    global _serial
    if num_elem < 0:
        raise InvalidArgumentError(f"a tensor cannot have {num_elem} elements")
    if num_elem == 0:
        return torch.empty(0, dtype=dtype)
    nbytes = num_elem * torch.empty(0, dtype=dtype).element_size()
    buffer = process.engine_for(BLOCK_SIZE, 0).buffer(nbytes)
    start, owner = buffer.address, buffer._holder()
    # A tensor of its own and no view of one: DeepSpeed ties the end of the memory to this very tensor.
    tensor = torch.frombuffer(buffer._bytes(), dtype=dtype, count=num_elem)
    with _lock:
        _sweep()
        _serial += 1
        _remove(start)
        _regions[start] = _Region(start + nbytes, _serial)
        bisect.insort(_starts, start)
        end_of_memory = weakref.finalize(owner, _gone.append, (start, _serial))
        end_of_memory.atexit = False
    return tensor


def free(address: int) -> bool:
    """Give up the pinned tensor that begins at an address; False where none does.

    It is no longer pinned from here on; its memory goes with the last tensor that shows it.
    """
    with _lock:
        _sweep()
        return _remove(address)


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether storage reads and writes a tensor without a copy: it, or what it is a view of, is pinned."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return False
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    with _lock:
        _sweep()
        index = bisect.bisect_right(_starts, start) - 1
        if index >= 0 and end <= _regions[_starts[index]].end:
            return True
    return bool(tensor.is_pinned())


def _remove(start: int) -> bool:
    if _regions.pop(start, None) is None:
        return False
    del _starts[bisect.bisect_left(_starts, start)]
    return True


def _sweep() -> None:
    while _gone:
        start, serial = _gone.popleft()
        region = _regions.get(start)
        if region is not None and region.serial == serial:
            _remove(start)


def _forget() -> None:
    """In the child of a fork: the memory is there, but neither locked nor known to the child's engine."""
    global _lock
    _lock = threading.Lock()
    _starts.clear()
    _regions.clear()
    _gone.clear()


process.on_fork(_forget)
