"""Lets DeepSpeed read parameters ahead that it uses twice.

Its prefetcher lists parameters in the order of their use. One that the list has twice, because forward and
backward pass both need it soon, is given two buffers, and an assertion ends the training: "param 24 already
assigned swap buffer id 2".
"""

from __future__ import annotations

import functools
from typing import Any, Callable

__all__ = ["once_each"]


def once_each(own: Callable[..., Any]) -> Callable[..., Any]:
    """AsyncPartitionedParameterSwapper.swap_in, for a list that may hold a parameter twice."""

    @functools.wraps(own)
    def swap_in(self: Any, params: Any, async_op: bool = True, swap_in_buffers: Any = None) -> Any:
        if swap_in_buffers is None:
            params = list({param.ds_id: param for param in params}.values())
        return own(self, params, async_op=async_op, swap_in_buffers=swap_in_buffers)

    return swap_in
