"""A parameter in pinned memory while it is updated."""

from __future__ import annotations

import struct
from typing import Any, Iterator, Optional, Sequence, Tuple, Union, overload

from tensorswap._library import ffi
from tensorswap.dtype import DType
from tensorswap.errors import InvalidArgumentError
from tensorswap.memory import Memory

_DTYPES = tuple(DType)
_STATES_MAX = 8
#: A tsw_parameter_view, read at once: size, states, id, numel; then the gradient and the states, each as
#: data, numel, dtype and a zero.
_FIELDS = struct.Struct("=IIQQ" + "QQII" * (1 + _STATES_MAX)).unpack
_GRADIENT, _STATES, _STRIDE = 4, 8, 4


class _Lease:
    """Holds the optimizer while a parameter is out, so that closing it frees nothing under an array."""

    __slots__ = ("handle",)

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class _Lent(Memory):
    """Memory of a parameter that is out, for as long as it is."""

    __slots__ = ()

    def _holder(self) -> Any:
        if self._owner.handle is None:
            raise InvalidArgumentError("the memory was given back with its parameter")
        return self._owner


class StateViews(Sequence[Memory]):
    """The states of a parameter, by index or by name."""

    __slots__ = ("_fields", "_lease", "_names")

    def __init__(self, names: Tuple[str, ...], fields: Tuple[int, ...], lease: _Lease) -> None:
        self._names = names
        self._fields = fields
        self._lease = lease

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
            return self._memory(self._names.index(which))
        found = range(len(self._names))[which]
        return self._memory(found) if isinstance(found, int) else tuple(map(self._memory, found))

    def _memory(self, index: int) -> Memory:
        return _memory_of(self._fields, _STATES + _STRIDE * index, self._lease)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Memory]:
        return map(self._memory, range(len(self._names)))


class ParameterView:
    """A parameter in pinned memory, the program's to read and write until it is given back.

    Its arrays and tensors end with it: once the loop goes on to the next parameter, or `swap_out_state` or
    `release_state` was called, that memory holds another record, or is gone. Copy what is to be kept.
    """

    __slots__ = ("_lease", "changed", "gradient", "id", "numel", "states")

    def __init__(self, found: Any, names: Tuple[str, ...], handle: Any) -> None:
        fields = _FIELDS(ffi.buffer(found))
        self._lease = lease = _Lease(handle)
        #: The parameter.
        self.id: int = fields[2]
        #: Its elements.
        self.numel: int = fields[3]
        #: Set it to False where nothing was changed: then nothing is written.
        self.changed = True
        #: The states in memory, by index or name; the first is the master parameter.
        self.states = StateViews(names, fields, lease)
        #: The gradient, in the type that state 0 has; None where none was given.
        self.gradient: Optional[Memory] = _memory_of(fields, _GRADIENT, lease) if fields[_GRADIENT] else None

    def _end(self) -> None:
        """The memory is not ours any more."""
        self._lease.handle = None

    def __repr__(self) -> str:
        return f"<tensorswap.ParameterView {self.id} of {self.numel} elements>"


def _memory_of(fields: Tuple[int, ...], place: int, lease: _Lease) -> Memory:
    return _Lent(lease, fields[place], fields[place + 1], _DTYPES[fields[place + 2]])
