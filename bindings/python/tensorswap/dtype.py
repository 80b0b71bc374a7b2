"""Element types, and what NumPy and torch call them."""

from __future__ import annotations

import enum
from typing import Any, Dict, Union

from tensorswap.errors import DtypeMismatchError, UnsupportedError


class DType(enum.IntEnum):
    """Type of an element.

    Functions take one of these, its name ("bf16"), the name that NumPy and torch use ("bfloat16"), or a
    dtype object of NumPy, torch or ml_dtypes.
    """

    #: Bytes of one element.
    itemsize: int

    BYTES = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    F64 = 4
    F8_E4M3 = 5
    F8_E5M2 = 6
    I8 = 7
    I16 = 8
    I32 = 9
    I64 = 10
    U8 = 11
    U16 = 12
    U32 = 13
    U64 = 14
    BOOL = 15


#: Anything that names an element type.
DTypeLike = Union[DType, str, Any]

for _dtype, _size in zip(DType, (1, 4, 2, 2, 8, 1, 1, 1, 2, 4, 8, 1, 2, 4, 8, 1)):
    _dtype.itemsize = _size

#: The names that torch and NumPy use; those that NumPy lacks are in ml_dtypes.
NUMPY_NAMES = (
    "uint8", "float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip

#: Type strings of the array interface; None where NumPy has no such type.
TYPESTRS = (
    "|u1", "<f4", "<f2", None, "<f8", None, None,
    "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1",
)  # fmt: skip

#: Formats of the buffer protocol; None where the struct module has none.
FORMATS = ("B", "f", "e", None, "d", None, None, "b", "h", "i", "q", "B", "H", "I", "Q", "?")

#: The element type of everything that was asked for so far.
KNOWN: Dict[Any, DType] = {}
for _dtype in reversed(DType):
    KNOWN[_dtype.name.lower()] = _dtype
    if _dtype is not DType.BYTES:
        KNOWN[NUMPY_NAMES[_dtype]] = _dtype
        KNOWN[f"torch.{NUMPY_NAMES[_dtype]}"] = _dtype
#: Formats by which memoryviews call their elements. "l" and "L" have 8 bytes on every Linux of 64 bits.
_BY_FORMAT = {"c": DType.BYTES, "l": DType.I64, "L": DType.U64}
for _dtype in reversed(DType):
    _format = FORMATS[_dtype]
    if _format is not None:
        _BY_FORMAT[_format] = _dtype


def dtype_of(dtype: DTypeLike) -> DType:
    """The element type that something names.

    Raises DtypeMismatchError, with the names there are, where it names none.
    """
    try:
        return KNOWN[dtype]
    except (KeyError, TypeError):
        pass
    if isinstance(dtype, DType):
        return dtype
    name = str(dtype)
    if isinstance(dtype, type):  # numpy.float32, ml_dtypes.bfloat16
        name = dtype.__name__
    if isinstance(dtype, (int, float)) or name not in KNOWN:
        names = ", ".join(item.name.lower() for item in DType)
        raise DtypeMismatchError(f"unknown dtype {dtype!r}; there are {names}")
    found = KNOWN[name]
    if not isinstance(dtype, str) and type(dtype).__hash__ is not None:
        KNOWN[dtype] = found
    return found


def dtype_of_format(format: str) -> DType:
    """The element type of a memoryview's format."""
    found = _BY_FORMAT.get(format.lstrip("@=<"))
    if found is None:
        raise DtypeMismatchError(f"unknown buffer format {format!r}; give a dtype, or cast it to 'B'")
    return found


def numpy_dtype(dtype: DType) -> Any:
    """NumPy's dtype, from ml_dtypes where NumPy has none."""
    import numpy

    if TYPESTRS[dtype] is not None:
        return numpy.dtype(TYPESTRS[dtype])
    try:
        import ml_dtypes
    except ImportError:
        name = dtype.name.lower()
        raise UnsupportedError(
            f"NumPy has no {name}: install ml_dtypes, ask for its bits with dtype='u{8 * dtype.itemsize}', or use torch"
        ) from None
    return numpy.dtype(getattr(ml_dtypes, NUMPY_NAMES[dtype]))


def torch_dtype(dtype: DType) -> Any:
    """Torch's dtype."""
    import torch

    found = getattr(torch, NUMPY_NAMES[dtype], None)
    if found is None:
        raise UnsupportedError(f"torch {torch.__version__} has no {NUMPY_NAMES[dtype]}")
    return found
