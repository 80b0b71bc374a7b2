"""Memory in both directions: ours as arrays of NumPy and torch, and theirs as tensors of the engine.

Nothing here copies an element.
"""

from __future__ import annotations

import builtins
from functools import partial
from operator import is_
from sys import modules
from typing import Any, Optional, Tuple

from tensorswap._library import check, ffi, lib
from tensorswap.dtype import (
    FORMATS,
    KNOWN,
    TYPESTRS,
    DType,
    DTypeLike,
    dtype_of,
    dtype_of_format,
    numpy_dtype,
    torch_dtype,
)
from tensorswap.errors import DtypeMismatchError, InvalidArgumentError, UnsupportedError

_VOID, _CHARS = ffi.typeof("void *"), ffi.typeof("char *")


class Memory:
    """Elements of one type, side by side, in memory of the library.

    `numpy()` and `torch()` show them as an array or a tensor, `memoryview()` as bytes-like object;
    `numpy.asarray(memory)`, `torch.from_dlpack(memory)` and, from Python 3.12 on, `memoryview(memory)` work
    too. None of them copies: writing to one writes to all. What they return holds the memory, so it stays
    valid as long as one of them is alive.
    """

    __slots__ = ("_address", "_dtype", "_numel", "_owner")

    def __init__(self, owner: Any, address: int, numel: int, dtype: DType) -> None:
        self._owner = owner
        self._address = address
        self._numel = numel
        self._dtype = dtype

    @property
    def address(self) -> int:
        """Where the first element is."""
        self._holder()
        return self._address

    @property
    def numel(self) -> int:
        """How many elements there are."""
        return self._numel

    @property
    def dtype(self) -> DType:
        """The type of an element."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._numel * self._dtype.itemsize

    def __len__(self) -> int:
        return self._numel

    def __repr__(self) -> str:
        return f"<tensorswap.{type(self).__name__} of {self._numel} {self._dtype.name.lower()}>"

    def view(self, dtype: DTypeLike = None, offset: int = 0, numel: Optional[int] = None) -> Memory:
        """A part of this memory, as elements of a type.

        It begins `offset` bytes in, and has `numel` elements, or as many as there is room for.
        """
        kind = self._dtype if dtype is None else dtype_of(dtype)
        room = (self.nbytes - offset) // kind.itemsize
        if numel is None:
            numel = room
        if offset < 0 or numel < 0 or numel > room:
            raise InvalidArgumentError(
                f"{numel} {kind.name.lower()} at byte {offset} do not fit in {self.nbytes} bytes"
            )
        return Memory(self._holder(), self._address + offset, numel, kind)

    def numpy(self, dtype: DTypeLike = None) -> Any:
        """A NumPy array of this memory.

        With `dtype` the bytes are read as elements of that type. NumPy alone has no bf16 and f8: their
        arrays need ml_dtypes, or are had as bits with "u16" or "u8".
        """
        import numpy

        part = self if dtype is None else self.view(dtype)
        return numpy.frombuffer(part._bytes(), dtype=numpy_dtype(part._dtype))

    def torch(self, dtype: DTypeLike = None) -> Any:
        """A torch tensor of this memory, on the CPU. With `dtype` as `numpy`."""
        import torch

        part = self if dtype is None else self.view(dtype)
        kind = torch_dtype(part._dtype)
        if part._numel == 0:  # which torch.frombuffer refuses
            return torch.empty(0, dtype=kind)
        return torch.frombuffer(part._bytes(), dtype=kind)

    def memoryview(self) -> builtins.memoryview:
        """A writable memoryview of this memory; of bytes where the struct module lacks the type."""
        plain: Any = memoryview(self._bytes()).cast("B")
        shown: builtins.memoryview = plain.cast(FORMATS[self._dtype] or "B")
        return shown

    def __buffer__(self, flags: int) -> builtins.memoryview:
        if FORMATS[self._dtype] is None:
            raise BufferError(f"the buffer protocol has no {self._dtype.name.lower()}")
        return self.memoryview()

    @property
    def __array_interface__(self) -> Any:
        typestr = TYPESTRS[self._dtype]
        if typestr is None:
            raise AttributeError(f"the array interface has no {self._dtype.name.lower()}")
        self._holder()
        return {"version": 3, "shape": (self._numel,), "typestr": typestr, "data": (self._address, False)}

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> Any:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} cannot be had as {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __dlpack__(self, **options: Any) -> Any:
        # Both make the capsule; torch is preferred because it has bf16.
        exporter = self.torch() if "torch" in modules else self.numpy()
        return exporter.__dlpack__(**options)

    def _holder(self) -> Any:
        """What keeps the memory; raises where it was given up."""
        if self._owner is None:
            raise InvalidArgumentError("the memory was given back")
        return self._owner

    def _bytes(self) -> Any:
        """A buffer of cffi that holds the owner."""
        # A destructor that does nothing but hold the owner until then. It is no Python function, in which a
        # signal's handler could raise.
        pointer = ffi.gc(ffi.cast(_CHARS, self.address), partial(is_, self._holder()))
        return ffi.buffer(pointer, self.nbytes)


#: Memory of the caller as the engine takes it: where it begins, its elements, their type, and what must stay
#: alive with it. A plain tuple, because one is made for every request.
Described = Tuple[Any, int, DType, Any]


def describe(data: Any, writable: bool, dtype: DTypeLike = None) -> Described:
    """Find address, length and type of an array, a tensor or anything else that holds memory.

    With `dtype` the bytes are taken as elements of that type, of the same size as the data's own.
    Raises for what is not contiguous, not in the host's memory, of an unknown type, or, with `writable`,
    read-only. Nothing is copied.
    """
    torch = modules.get("torch")
    if isinstance(data, Memory):
        found: Described = (_pointer(data.address), data._numel, data._dtype, data._owner)
    elif torch is not None and isinstance(data, torch.Tensor):
        found = _describe_torch(data, torch, dtype)
    else:
        numpy = modules.get("numpy")
        if numpy is not None and isinstance(data, numpy.ndarray):
            found = _describe_array(data, writable, dtype)
        elif hasattr(data, "__array_interface__"):
            found = _describe_array(_array_of(data), writable, dtype)
        else:
            found = _describe_other(data, writable, dtype)
    return found if dtype is None else _as_dtype(found, dtype_of(dtype))


def _pointer(address: int) -> Any:
    return ffi.cast(_VOID, address)


def _as_dtype(found: Described, dtype: DType) -> Described:
    """The same bytes as elements of another type."""
    pointer, numel, own, keep = found
    if own.itemsize == dtype.itemsize:
        return pointer, numel, dtype, keep
    if own is not DType.BYTES and dtype is not DType.BYTES:
        raise DtypeMismatchError(
            f"elements of {own.name.lower()} cannot be taken as {dtype.name.lower()}: their sizes differ"
        )
    nbytes = numel * own.itemsize
    if nbytes % dtype.itemsize != 0:
        raise DtypeMismatchError(f"{nbytes} bytes are no whole number of {dtype.name.lower()}")
    return pointer, nbytes // dtype.itemsize, dtype, keep


def _own_dtype(own: Any, dtype: DTypeLike, itemsize: int) -> DType:
    """The type of elements; with `dtype` given, one that is unknown is taken as bits."""
    try:
        return dtype_of(own)
    except DtypeMismatchError:
        if dtype is None or itemsize not in (1, 2, 4, 8):
            raise
        return {1: DType.U8, 2: DType.U16, 4: DType.U32, 8: DType.U64}[itemsize]


def _describe_torch(data: Any, torch: Any, dtype: DTypeLike) -> Described:
    if not data.is_cpu:
        raise UnsupportedError(f"a tensor on {data.device} cannot be swapped; copy it to the CPU first")
    if data.layout is not torch.strided:
        raise UnsupportedError(f"a tensor of layout {data.layout} cannot be swapped; make it dense first")
    if not data.is_contiguous():
        raise InvalidArgumentError(
            f"a tensor of shape {tuple(data.shape)} with strides {data.stride()} is not contiguous"
        )
    if data.is_neg() or data.is_conj():
        raise InvalidArgumentError("a tensor whose negation or conjugation is pending has no memory of its own")
    kind = data.dtype
    own = KNOWN.get(kind) or _own_dtype(kind, dtype, data.element_size())
    return _pointer(data.data_ptr()), data.numel(), own, data


def _describe_array(data: Any, writable: bool, dtype: DTypeLike) -> Described:
    flags = data.flags
    if not flags.c_contiguous:
        raise InvalidArgumentError(
            f"an array of shape {data.shape} with strides {data.strides} is not contiguous in C order"
        )
    if writable and not flags.writeable:
        raise InvalidArgumentError("a read-only array cannot be swapped in to")
    kind = data.dtype
    own = KNOWN.get(kind) or _own_dtype(kind, dtype, data.itemsize)
    try:
        pointer = ffi.from_buffer(data)
    except (ValueError, BufferError, TypeError):  # a type of ml_dtypes, or of the other byte order
        pointer = _pointer(data.__array_interface__["data"][0])
    # The array, and not only its buffer: its type may have an owner that is more.
    return pointer, data.size, own, (data, pointer)


def _array_of(data: Any) -> Any:
    """An array of the memory of what has the array interface."""
    import numpy

    array = numpy.asarray(data)
    if array.base is None:  # a copy, such as of a NumPy scalar
        raise DtypeMismatchError(f"{type(data).__name__} holds no memory to swap: give a NumPy array")
    return array


def _describe_other(data: Any, writable: bool, dtype: DTypeLike) -> Described:
    try:
        view = memoryview(data)
    except TypeError:
        if hasattr(data, "__dlpack__"):
            return _describe_dlpack(data, writable)
        raise DtypeMismatchError(
            f"{type(data).__name__} holds no memory to swap: give a NumPy array, a torch tensor, "
            "or what has the buffer protocol or DLPack"
        ) from None
    if not view.c_contiguous:
        raise InvalidArgumentError(f"a memoryview with strides {view.strides} is not contiguous")
    if writable and view.readonly:
        raise InvalidArgumentError(f"a read-only {type(data).__name__} cannot be swapped in to")
    pointer = ffi.from_buffer(view)
    own = DType.BYTES if dtype is not None else dtype_of_format(view.format)
    return pointer, view.nbytes // own.itemsize, own, pointer


def _describe_dlpack(data: Any, writable: bool) -> Described:
    """Memory of any framework with DLPack. Its capsule is kept, and never consumed, so it frees itself."""
    import ctypes

    device, _index = data.__dlpack_device__()
    if device not in (1, 3, 11):  # kDLCPU, kDLCUDAHost, kDLROCMHost
        raise UnsupportedError(f"memory on DLPack device {int(device)} cannot be swapped; copy it to the CPU first")
    readonly = False
    try:
        capsule = data.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer from before version 1
        capsule = data.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name = b"dltensor_versioned" if '"dltensor_versioned"' in repr(capsule) else b"dltensor"
    managed = pointer_of(capsule, name)
    if managed is None:
        raise InvalidArgumentError("the DLPack capsule holds nothing")
    if name == b"dltensor_versioned":
        # struct DLManagedTensorVersioned: version, manager_ctx, deleter, flags, dl_tensor
        readonly = bool(ffi.cast("uint64_t *", managed + 24)[0] & 1)
        managed += 32
    if writable and readonly:
        raise InvalidArgumentError(f"a read-only {type(data).__name__} cannot be swapped in to")
    tensor = ffi.new("tsw_tensor *")
    check(lib.tsw_tensor_from_dlpack(ffi.cast("void *", managed), tensor))
    return tensor.data, tensor.numel, DType(tensor.dtype), (data, capsule)
