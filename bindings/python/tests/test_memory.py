"""What can be swapped, what cannot, and what pinned memory looks like."""

import array
import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorswap
from tensorswap import DType

TYPES = {
    "f32": np.float32, "f16": np.float16, "f64": np.float64, "i8": np.int8, "i16": np.int16, "i32": np.int32,
    "i64": np.int64, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "bool": np.bool_,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_arrays_of_every_type_come_back(engine: tensorswap.Engine, tmp_path: Path, name: str) -> None:
    sent = np.arange(1001).astype(TYPES[name])
    engine.swap_out(sent, tmp_path / "file").wait()
    assert (tmp_path / "file").read_bytes() == sent.tobytes()
    received = np.zeros_like(sent)
    engine.swap_in(received, tmp_path / "file").wait()
    assert (received == sent).all()


def test_arrays_of_ml_dtypes_come_back(engine: tensorswap.Engine, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        sent = np.arange(100).astype(kind)
        engine.swap_out(sent, tmp_path / "file").wait()
        received = np.zeros_like(sent)
        engine.swap_in(received, tmp_path / "file").wait()
        assert (received == sent).all()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 11), (3, 1, 5)])
def test_shapes_do_not_matter(engine: tensorswap.Engine, tmp_path: Path, shape: Any) -> None:
    sent = np.full(shape, 3.5)
    assert engine.swap_out(sent, tmp_path / "file").wait().bytes_done == sent.nbytes
    received = np.zeros(shape)
    engine.swap_in(received, tmp_path / "file").wait()
    assert (received == sent).all()


def holders(nbytes: int) -> Any:
    """Things with the buffer protocol that can be written."""
    yield bytearray(nbytes)
    yield memoryview(bytearray(nbytes))
    yield array.array("d", bytes(nbytes))
    yield mmap.mmap(-1, nbytes)
    yield (ctypes.c_float * (nbytes // 4))()


def test_whatever_has_the_buffer_protocol_is_swapped(engine: tensorswap.Engine, tmp_path: Path) -> None:
    sent = bytes(range(64))
    engine.swap_out(sent, tmp_path / "file").wait()
    for holder in holders(64):
        engine.swap_in(holder, tmp_path / "file").wait()
        assert bytes(memoryview(holder).cast("B")) == sent


class Interface:
    """It has nothing but the array interface."""

    def __init__(self, values: Any) -> None:
        self.__array_interface__ = values.__array_interface__
        self.values = values


def test_what_has_the_array_interface_is_swapped(engine: tensorswap.Engine, tmp_path: Path) -> None:
    sent, received = np.arange(5000.0), np.zeros(5000)
    engine.swap_out(Interface(sent), tmp_path / "file").wait()
    engine.swap_in(Interface(received), tmp_path / "file").wait()
    assert (received == sent).all()


class Foreign:
    """An array of another framework: it has nothing but DLPack."""

    def __init__(self, values: Any, device: Any = (1, 0)) -> None:
        self.values, self.device = values, device

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)


class Legacy(Foreign):
    """One from before DLPack had versions."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self.values.__dlpack__()


@pytest.mark.parametrize("kind", [Foreign, Legacy])
def test_what_has_dlpack_is_swapped(engine: tensorswap.Engine, tmp_path: Path, kind: Any) -> None:
    sent, received = np.arange(5000.0), np.zeros(5000)
    engine.swap_out(kind(sent), tmp_path / "file").wait()
    engine.swap_in(kind(received), tmp_path / "file").wait()
    assert (received == sent).all()


def test_dlpack_that_is_read_only_or_elsewhere_is_refused(engine: tensorswap.Engine, tmp_path: Path) -> None:
    values = np.zeros(4)
    values.flags.writeable = False
    if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 1):  # the first whose DLPack knows read-only
        engine.swap_out(Foreign(values), tmp_path / "file").wait()
        with pytest.raises(tensorswap.InvalidArgumentError, match="read-only Foreign"):
            engine.swap_in(Foreign(values), tmp_path / "file")
    with pytest.raises(BufferError):  # what it says itself
        engine.swap_in(Legacy(values), tmp_path / "file")
    with pytest.raises(tensorswap.UnsupportedError, match="device 2"):
        engine.swap_out(Foreign(np.zeros(4), (2, 0)), tmp_path / "other")
    with pytest.raises(tensorswap.UnsupportedError):
        engine.swap_out(Foreign(np.zeros((4, 4)).T[1:]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


REFUSED = {
    "a step": (lambda: np.zeros(10)[::2], tensorswap.InvalidArgumentError, "not contiguous"),
    "Fortran order": (lambda: np.zeros((3, 4)).T, tensorswap.InvalidArgumentError, "not contiguous"),
    "memoryview with a step": (lambda: memoryview(bytearray(10))[::2], tensorswap.InvalidArgumentError, "contiguous"),
    "byte order": (lambda: np.zeros(3, ">f4"), tensorswap.DtypeMismatchError, "unknown dtype"),
    "complex": (lambda: np.zeros(3, complex), tensorswap.DtypeMismatchError, "unknown dtype"),
    "objects": (lambda: np.array([object()]), tensorswap.DtypeMismatchError, "unknown dtype"),
    "dates": (lambda: np.zeros(3, "M8[s]"), tensorswap.DtypeMismatchError, "unknown dtype"),
    "structures": (lambda: np.zeros(3, "f4,f4"), tensorswap.DtypeMismatchError, "unknown dtype"),
    "a scalar": (lambda: np.float32(1), tensorswap.DtypeMismatchError, "float32 holds no memory"),
    "text": (lambda: "text", tensorswap.DtypeMismatchError, "str holds no memory"),
    "a list": (lambda: [1.0, 2.0], tensorswap.DtypeMismatchError, "list holds no memory"),
    "nothing": (lambda: None, tensorswap.DtypeMismatchError, "NoneType holds no memory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_swapped_is_refused_before_a_file_is_made(
    engine: tensorswap.Engine, tmp_path: Path, case: str
) -> None:
    make, error, message = REFUSED[case]
    for call in (engine.swap_out, engine.swap_in):
        with pytest.raises(error, match=message) as raised:
            call(make(), tmp_path / "file")
        assert "\n" not in str(raised.value)
    with pytest.raises(error, match=message):
        engine.swap_out_many([(np.zeros(4), tmp_path / "good"), (make(), tmp_path / "file")])
    assert list(tmp_path.iterdir()) == []


def test_read_only_memory_goes_out_but_not_in(engine: tensorswap.Engine, tmp_path: Path) -> None:
    values = np.arange(10)
    values.flags.writeable = False
    for data in (values, bytes(80), memoryview(bytearray(80)).toreadonly()):
        engine.swap_out(data, tmp_path / "file").wait()
        with pytest.raises(tensorswap.InvalidArgumentError, match="read-only"):
            engine.swap_in(data, tmp_path / "file")


def test_a_dtype_that_is_given_says_what_the_bits_are(engine: tensorswap.Engine, tmp_path: Path) -> None:
    bits = np.arange(100, dtype=np.uint16)
    engine.swap_out(bits, tmp_path / "file", dtype="bf16").wait()
    engine.swap_out(b"abcdefgh", tmp_path / "file", dtype="f32").wait()
    engine.swap_out(np.zeros(4, ">u2"), tmp_path / "file", dtype="bf16").wait()
    with pytest.raises(tensorswap.DtypeMismatchError, match="sizes differ"):
        engine.swap_out(bits, tmp_path / "file", dtype="f32")
    with pytest.raises(tensorswap.DtypeMismatchError, match="no whole number"):
        engine.swap_out(b"abc", tmp_path / "file", dtype="f32")
    with pytest.raises(tensorswap.DtypeMismatchError, match="unknown dtype 'float99'; there are bytes, f32"):
        engine.swap_out(bits, tmp_path / "file", dtype="float99")


@pytest.mark.parametrize("name", ["f32", "float32", "torch.float32", np.float32, np.dtype("f4"), DType.F32])
def test_a_dtype_has_many_names(engine: tensorswap.Engine, name: Any) -> None:
    assert engine.buffer(64).view(name).dtype is DType.F32


@pytest.mark.parametrize("name", [None, 1, 1.5, "", "F32 ", object(), np.complex64, [], {}])
def test_a_dtype_that_is_none_is_refused(name: Any) -> None:
    from tensorswap.dtype import dtype_of

    with pytest.raises(tensorswap.DtypeMismatchError, match="unknown dtype"):
        dtype_of(name)


def test_pinned_memory_is_one_memory_in_every_form(engine: tensorswap.Engine) -> None:
    buffer = engine.buffer(4096)
    assert buffer.address % 4096 == 0
    assert (len(buffer), buffer.nbytes, buffer.dtype) == (4096, 4096, DType.BYTES)
    numbers = buffer.numpy("f32")
    assert (numbers.size, numbers.dtype, numbers[7]) == (1024, np.float32, 0)
    numbers[7] = 5.5
    assert buffer.view("f32", offset=28, numel=1).memoryview()[0] == 5.5
    assert np.asarray(buffer.view("f32"))[7] == 5.5
    assert np.from_dlpack(buffer.view("f32"))[7] == 5.5
    assert np.asarray(buffer).dtype == np.uint8
    buffer.memoryview()[28:32] = bytes(4)
    assert numbers[7] == 0
    assert numbers.ctypes.data == buffer.address
    assert numbers.flags.writeable


def test_bf16_needs_ml_dtypes_or_comes_as_bits(engine: tensorswap.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    view = engine.buffer(64).view("bf16")
    assert view.numpy("u16").dtype == np.uint16
    assert view.memoryview().format == "B"
    ml_dtypes = pytest.importorskip("ml_dtypes")
    view.numpy()[3] = 1.5
    assert view.numpy("u16")[3] == 0x3FC0
    assert np.asarray(view).dtype == ml_dtypes.bfloat16
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(tensorswap.UnsupportedError, match="NumPy has no bf16: install ml_dtypes"):
        view.numpy()


def test_a_view_beyond_the_end_is_refused(engine: tensorswap.Engine) -> None:
    buffer = engine.buffer(100)
    assert buffer.view("f32").numel == 25
    assert buffer.view("f64", offset=96).numel == 0
    for arguments in ({"offset": 101}, {"offset": -1}, {"numel": 101}, {"offset": 4, "numel": 97}, {"numel": -1}):
        with pytest.raises(tensorswap.InvalidArgumentError, match="do not fit in 100 bytes"):
            buffer.view(**arguments)


@pytest.mark.parametrize("nbytes", [0, -1, 2**64, 2**62])
def test_a_buffer_that_cannot_be_is_refused(engine: tensorswap.Engine, nbytes: int) -> None:
    with pytest.raises((tensorswap.InvalidArgumentError, tensorswap.NoMemoryError)):
        engine.buffer(nbytes)


def test_memory_of_the_program_can_be_registered(engine: tensorswap.Engine, tmp_path: Path) -> None:
    values = np.arange(100_000, dtype=np.float32)
    with engine.register(values) as buffer:
        assert buffer.address == values.ctypes.data
        assert values.ctypes.data + 5 in buffer and values.ctypes.data + values.nbytes not in buffer
        assert engine.stats().pinned_bytes >= values.nbytes
        engine.swap_out(values, tmp_path / "file").wait()
    assert engine.stats().pinned_bytes == 0
    assert (np.fromfile(tmp_path / "file", np.float32) == values).all()
    with pytest.raises(tensorswap.InvalidArgumentError, match="read-only"):
        engine.register(b"constant")
