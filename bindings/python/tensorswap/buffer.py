"""Pinned memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorswap._library import check, destructor, ffi, lib
from tensorswap.dtype import DType
from tensorswap.errors import InvalidArgumentError
from tensorswap.memory import Described, Memory

if TYPE_CHECKING:
    from tensorswap.engine import Engine


class Buffer(Memory):
    """Pinned memory that storage reads and writes without a copy.

    Made by `Engine.buffer` and `Engine.register`. It shows its memory as every `Memory` does; without a
    type it is bytes. `close()`, or the end of a `with` block, gives it up; the memory is freed as soon as no
    array, tensor or request uses it any more, so what still shows it never dangles.
    """

    __slots__ = ("_engine", "__weakref__")

    def __init__(self, engine: Engine, handle: Any, keep: Any = None) -> None:
        self._engine = engine
        # `keep` is the registered memory's owner: it must live until tsw_buffer_free has returned.
        free = lib.tsw_buffer_free if keep is None else _FreeThenForget(keep)
        owner = ffi.gc(handle, destructor(free))
        address = int(ffi.cast("uintptr_t", lib.tsw_buffer_data(owner)))
        super().__init__(owner, address, int(lib.tsw_buffer_len(owner)), DType.BYTES)

    @classmethod
    def _new(cls, engine: Engine, nbytes: int) -> Buffer:
        if not 0 < nbytes < 2**63:
            raise InvalidArgumentError(f"a buffer cannot have {nbytes} bytes")
        out = ffi.new("tsw_buffer **")
        check(lib.tsw_buffer_new(engine._live(), nbytes, out))
        return cls(engine, out[0])

    @classmethod
    def _register(cls, engine: Engine, found: Described) -> Buffer:
        out = ffi.new("tsw_buffer **")
        pointer, numel, kind, keep = found
        check(lib.tsw_buffer_register(engine._live(), pointer, numel * kind.itemsize, ffi.NULL, ffi.NULL, out))
        return cls(engine, out[0], keep)

    @property
    def closed(self) -> bool:
        """Whether it was given up."""
        return self._owner is None

    def close(self) -> None:
        """Give the memory up. Twice is fine."""
        self._owner = None

    def __contains__(self, item: object) -> bool:
        """Whether an address lies in it."""
        return isinstance(item, int) and self._owner is not None and 0 <= item - self._address < self._numel

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class _FreeThenForget:
    """Frees a registered buffer, and only then lets go of the memory's owner."""

    __slots__ = ("keep",)

    def __init__(self, keep: Any) -> None:
        self.keep = keep

    def __call__(self, handle: Any) -> None:
        lib.tsw_buffer_free(handle)
        self.keep = None
