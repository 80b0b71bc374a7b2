"""The swapper: stages tensors through pinned buffers of its own."""

from __future__ import annotations

import atexit
import weakref
from typing import Any, Dict, Iterable, List, Optional, Sequence

from tensorswap._library import check, destructor, ffi, lib, wait_in_slices
from tensorswap.buffer import Buffer
from tensorswap.config import ConfigLike, config_of
from tensorswap.dtype import DTypeLike, dtype_of
from tensorswap.engine import Engine
from tensorswap.errors import Error, ForkedError, ShutDownError
from tensorswap.stats import SwapperStats, Timer, stats_of, timers_of
from tensorswap.tensor import Path, Tensor, TensorLike, TensorList

_swappers: weakref.WeakSet[Swapper] = weakref.WeakSet()


class Swapper:
    """Swaps tensors out and in through pinned buffers.

        with tensorswap.Swapper(engine, buffers=[engine.buffer(64 << 20) for _ in range(2)]) as swapper:
            swapper.swap_out(array, path)      # array may be changed from here on
            swapper.flush()                    # and now it is in the file

    The memory of a tensor is the program's again when a call returns, and any type of it may be given. With
    a `dtype` other than bytes all tensors must have that type. One thread at a time may use a swapper; a
    second one gets BusyError. `close()`, or the end of a `with` block, flushes, and gives the buffers back.
    """

    def __init__(
        self,
        engine: Engine,
        config: ConfigLike = None,
        *,
        buffers: Optional[Sequence[Buffer]] = None,
        dtype: DTypeLike = "bytes",
        **keys: Any,
    ) -> None:
        self._buffers: List[Buffer] = []
        # The buffers' memory: a swapper holds them, so `Buffer.close` must not free them meanwhile.
        self._owners: List[Any] = []
        self._handle: Any = None
        out = ffi.new("tsw_swapper **")
        check(lib.tsw_swapper_new(engine._live(), config_of(config, keys), out))
        self._handle = ffi.gc(out[0], destructor(lib.tsw_swapper_free))
        _swappers.add(self)
        if buffers is not None:
            self.add_buffers(buffers, dtype)

    def add_buffers(self, buffers: Sequence[Buffer], dtype: DTypeLike = "bytes") -> None:
        """Give the swapper the buffers it stages tensors in; leave their memory alone until they come back."""
        kind = dtype_of(dtype)
        owners = [buffer._holder() for buffer in buffers]
        check(lib.tsw_swapper_add_buffers(self._live(), ffi.new("tsw_buffer *[]", owners), len(owners), kind))
        self._buffers, self._owners = list(buffers), owners

    @property
    def has_buffers(self) -> bool:
        """Whether it has buffers."""
        return bool(lib.tsw_swapper_has_buffers(self._live()))

    def swap_out(
        self, data: Any, path: Path, offset: int = 0, *, dtype: DTypeLike = None, keep_length: bool = False
    ) -> None:
        """Copy a tensor and write it in the background; `flush` tells whether that went well."""
        self.swap_out_many([Tensor(data, path, offset, dtype, keep_length)])

    def swap_in(self, data: Any, path: Path, offset: int = 0, *, dtype: DTypeLike = None) -> None:
        """Read a tensor; the data is there when this returns."""
        self.swap_in_many([Tensor(data, path, offset, dtype)])

    def swap_out_many(self, tensors: Iterable[TensorLike]) -> None:
        """Copy tensors and write them in the background. Each is a `Tensor`, or a tuple of data, path, offset."""
        listed = TensorList(tensors, False)
        check(lib.tsw_swapper_swap_out(self._live(), listed.array, listed.paths, listed.count))

    def swap_in_many(self, tensors: Iterable[TensorLike]) -> None:
        """Read tensors; the data is there when this returns."""
        listed = TensorList(tensors, True)
        check(lib.tsw_swapper_swap_in(self._live(), listed.array, listed.paths, listed.count))

    def submit(self) -> None:
        """Start writing what is staged, without waiting for it."""
        check(lib.tsw_swapper_submit(self._live()))

    def flush(self, timeout: Optional[float] = None) -> None:
        """Wait until everything staged is written. Raises the first error of the writes since the last flush."""
        handle = self._live()
        check(wait_in_slices(timeout, lambda wait_ns: int(lib.tsw_swapper_flush(handle, wait_ns))))

    def release_buffers(self) -> List[Buffer]:
        """Flush, and give the buffers back, also where the flush fails."""
        count = ffi.new("size_t *")
        cap = len(self._owners)
        given = ffi.new("tsw_buffer *[]", cap)
        status = lib.tsw_swapper_release_buffers(self._live(), given, cap, count)
        buffers, self._buffers, self._owners = self._buffers, [], []
        check(status)
        return buffers

    def stats(self) -> SwapperStats:
        """What the swapper has done since it was made, and what it is doing."""
        return stats_of(SwapperStats, lib.tsw_swapper_get_stats, self._live())

    def timers(self) -> Dict[str, Timer]:
        """The timers that have run, by their names."""
        return timers_of(lib.tsw_swapper_timer_names, lib.tsw_swapper_get_timer, self._live())

    def close(self) -> None:
        """Flush, free the swapper, and give the buffers back. Twice is fine.

        Raises what the flush had to say; the swapper is closed all the same.
        """
        if self._handle is None:
            return
        try:
            self.flush()
        except ForkedError:  # it is the parent's
            pass
        finally:
            # In this order: freeing the swapper lets go of the buffers.
            self._handle = None
            self._buffers, self._owners = [], []

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def __enter__(self) -> Swapper:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _live(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ShutDownError("the swapper is closed")
        return handle


@atexit.register
def _flush_all() -> None:
    """At the end of the program, and before engines take nothing more: write what is staged."""
    for swapper in list(_swappers):
        if swapper._handle is not None:
            try:
                swapper.flush()
            except Error as error:
                import logging

                logging.getLogger("tensorswap").error("what a swapper had staged was not written: %s", error)
