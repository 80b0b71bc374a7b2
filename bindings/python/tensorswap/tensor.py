"""Memory and its place in a file, as the engine and the swapper take them."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from tensorswap._library import ffi
from tensorswap.dtype import DTypeLike
from tensorswap.errors import InvalidArgumentError
from tensorswap.memory import describe

#: A path of a file.
Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]

KEEP_LENGTH = 2


class Tensor(NamedTuple):
    """Memory of the program and its place in a file."""

    #: An array, a tensor, or anything else that holds memory.
    data: Any
    #: The file.
    path: Path
    #: Where in the file its first byte is.
    offset: int = 0
    #: The type of its elements, where it is not the data's own.
    dtype: Optional[DTypeLike] = None
    #: Do not cut the file to the end of this request, even with `offset` 0.
    keep_length: bool = False
    #: Any number; the completion carries it.
    tag: int = 0


#: A `Tensor`, or a tuple of its first fields.
TensorLike = Union[Tensor, Tuple[Any, Path], Tuple[Any, Path, int]]


def path_bytes(path: Path) -> bytes:
    """A path as the system takes it."""
    name = os.fsencode(path) if type(path) is not str else path.encode("utf-8", "surrogateescape")
    if b"\0" in name:
        raise InvalidArgumentError(f"a path cannot hold a NUL: {path!r}")
    return name


_PATHS_MAX = 4096
_TEXT, _PATH = ffi.typeof("char[]"), ffi.typeof("char *[1]")
_paths: Dict[str, Tuple[bytes, Any, Any]] = {}


def path_list(path: Path) -> Tuple[bytes, Any, Any]:
    """A path, the list of C that has it alone, and what that list leads to.

    Training swaps the same files in every step, so the last ones are remembered.
    """
    found = _paths.get(path) if type(path) is str else None
    if found is None:
        name = path_bytes(path)
        text = ffi.new(_TEXT, name)
        found = (name, ffi.new(_PATH, (text,)), text)
        if type(path) is str:
            if len(_paths) >= _PATHS_MAX:
                _paths.clear()
            _paths[path] = found
    return found


class TensorList:
    """A list of tensors in the form of the C interface. It keeps what its pointers lead to."""

    __slots__ = ("_texts", "array", "count", "keep", "names", "paths")

    def __init__(self, tensors: Iterable[TensorLike], writable: bool) -> None:
        entries = [Tensor(*tensor) for tensor in tensors]
        found = [describe(entry.data, writable, entry.dtype) for entry in entries]
        self.count = len(entries)
        self.keep = [keep for _pointer, _numel, _kind, keep in found]
        self.names: List[bytes] = [path_bytes(entry.path) for entry in entries]
        self._texts = [ffi.new("char[]", name) for name in self.names]
        self.paths = ffi.new("char *[]", self._texts)
        self.array = ffi.new("tsw_tensor[]", self.count)
        for slot, entry, (pointer, numel, kind, _keep) in zip(self.array, entries, found):
            slot.data, slot.numel, slot.dtype = pointer, numel, kind
            slot.flags = KEEP_LENGTH if entry.keep_length else 0
            try:
                slot.file_offset, slot.user_tag = entry.offset, entry.tag
            except OverflowError:
                raise InvalidArgumentError(
                    f"offset {entry.offset} or tag {entry.tag} is not a number of 64 bits"
                ) from None
