"""The engine of this process: one for each rank, shared by all of its handles.

It is made when the first handle or the first pinned tensor needs it, and again in the child of a fork, where
the parent's cannot be used. The process that only imports DeepSpeed never starts one.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Dict, List, Mapping, Optional

from tensorswap.engine import Engine

__all__ = ["configure", "engine", "engine_for", "on_fork"]

#: The least that is kept in flight. DeepSpeed's own default of 8 leaves a drive half idle.
QUEUE_DEPTH_MIN = 32
QUEUE_DEPTH_MAX = 4096
#: What the key `block_bytes` accepts.
BLOCK_BYTES_QUANTUM = 4096
BLOCK_BYTES_MAX = 1 << 30
#: DeepSpeed submits every tensor as one operation and takes note of them all at once, much later.
TICKETS_MAX = 65536

_lock = threading.Lock()
_engine: Optional[Engine] = None
_configuration: Dict[str, Any] = {}
_forgetters: List[Any] = []


def configure(keys: Mapping[str, Any]) -> None:
    """Set the keys of the engine, as long as there is none. The same keys again are fine."""
    global _configuration
    with _lock:
        if _engine is not None and dict(keys) != _configuration:
            raise RuntimeError("tensorswap.deepspeed: the engine of this process is running; configure it before")
        _configuration = dict(keys)


def engine() -> Optional[Engine]:
    """The engine of this process, for its figures (`stats()`, `describe()`); None before its first use."""
    return _engine


def engine_for(block_size: int, queue_depth: int) -> Engine:
    """The engine of this process. The first to ask decides about what the configuration leaves open."""
    global _engine
    found = _engine
    if found is not None:
        return found
    with _lock:
        if _engine is None:
            blocks = -(-block_size // BLOCK_BYTES_QUANTUM)
            keys: Dict[str, Any] = {
                "block_bytes": min(blocks * BLOCK_BYTES_QUANTUM, BLOCK_BYTES_MAX),
                "queue_depth": min(max(queue_depth, QUEUE_DEPTH_MIN), QUEUE_DEPTH_MAX),
                "tickets_max": TICKETS_MAX,
            }
            keys.update(_configuration)
            _engine = Engine(keys)
        return _engine


def on_fork(forget: Any) -> None:
    """Call `forget` in the child of every fork from now on."""
    _forgetters.append(forget)


def _after_fork() -> None:
    """In the child: everything under way is the parent's."""
    global _engine, _lock
    _lock = threading.Lock()
    _engine = None
    for forget in _forgetters:
        forget()


os.register_at_fork(after_in_child=_after_fork)
