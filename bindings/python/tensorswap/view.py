"""A parameter in pinned memory while it is updated."""

from __future__ import annotations

from typing import Any, Iterator, Optional, Sequence, Tuple, Union, overload

from tensorswap._library import ffi
from tensorswap.dtype import DType
from tensorswap.errors import InvalidArgumentError
from tensorswap.memory import Memory


class StateViews(Sequence[Memory]):
    """The states of a parameter, by index or by name."""

    __slots__ = ("_memories", "_names")

    def __init__(self, names: Tuple[str, ...], memories: Tuple[Memory, ...]) -> None:
        self._names = names
        self._memories = memories

    @property
    def names(self) -> Tuple[str, ...]:
        """The names of the states, in the order of `Optimizer.add_state`."""
        return self._names

    @overload
    def __getitem__(self, which: Union[int, str]) -> Memory: ...
    @overload
    def __getitem__(self, which: slice) -> Tuple[Memory, ...]: ...
    def __getitem__(self, which: Union[int, str, slice]) -> Union[Memory, Tuple[Memory, ...]]:
        if isinstance(which, str):
            if which not in self._names:
                raise InvalidArgumentError(f"no state is named {which!r}; there are {', '.join(self._names)}")
            return self._memories[self._names.index(which)]
        return self._memories[which]

    def __len__(self) -> int:
        return len(self._memories)

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories)


class _Lease:
    """Holds the optimizer while a parameter is out, so that closing it frees nothing under an array."""

    __slots__ = ("handle",)

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class ParameterView:
    """A parameter in pinned memory, the program's to read and write until it is given back.

    Its arrays and tensors end with it: once the loop goes on to the next parameter, or `swap_out_state` or
    `release_state` was called, that memory holds another record, or is gone. Copy what is to be kept.
    """

    __slots__ = ("_lease", "changed", "gradient", "id", "numel", "states")

    def __init__(self, found: Any, names: Tuple[str, ...], handle: Any) -> None:
        lease = _Lease(handle)
        self._lease = lease
        #: The parameter.
        self.id: int = found.id
        #: Its elements.
        self.numel: int = found.numel
        #: Set it to False where nothing was changed: then nothing is written.
        self.changed = True
        memories = tuple(_memory_of(found.states[index], lease) for index in range(found.states_len))
        #: The states in memory, by index or name; the first is the master parameter.
        self.states = StateViews(names, memories)
        #: The gradient, in the type that state 0 has; None where none was given.
        self.gradient: Optional[Memory] = None
        if found.gradient.data != ffi.NULL:
            self.gradient = _memory_of(found.gradient, lease)

    def _end(self) -> None:
        """The memory is not ours any more."""
        self._lease.handle = None
        for memory in self.states:
            memory._owner = None
        if self.gradient is not None:
            self.gradient._owner = None

    def __repr__(self) -> str:
        return f"<tensorswap.ParameterView {self.id} of {self.numel} elements>"


def _memory_of(found: Any, lease: _Lease) -> Memory:
    return Memory(lease, int(ffi.cast("uintptr_t", found.data)), found.numel, DType(found.dtype))
