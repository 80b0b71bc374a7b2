"""The handles and functions of DeepSpeed's operators, with its names, arguments and defaults.

`aio_handle`, `aio_read`, `aio_write` and `deepspeed_memcpy` stand for the operator `async_io`, `pin_handle`
for `pin_memory`. They keep DeepSpeed's meaning but for what is an error: where its own reports success, ends
the process or returns wrong data, these raise an exception that names file, offset and errno. Any address,
length and offset works.
"""

from __future__ import annotations

import operator
import os
import stat
import sys
from typing import Any, Callable, Optional, Tuple, Union

import torch

from tensorswap.deepspeed import pinned, process
from tensorswap.deepspeed.operations import Operations
from tensorswap.errors import InvalidArgumentError, StorageError, UnsupportedError
from tensorswap.tensor import path_bytes

__all__ = ["aio_handle", "aio_read", "aio_write", "deepspeed_memcpy", "pin_handle"]

#: Bytes that each thread's share of a DeepSpeed transfer is a multiple of. Callers round up to it; this
#: engine needs no alignment at all.
ALIGNMENT_BYTES = 512

_NOT_GIVEN: Any = object()
_STRIDED = torch.strided
_FILE_NAMES = sys.getfilesystemencoding()

Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


class pin_handle:
    """Allocates pinned tensors. All handles of a process share one list of them."""

    def new_cpu_locked_tensor(self, num_elem: int, example_tensor: torch.Tensor) -> torch.Tensor:
        """A pinned tensor of `num_elem` elements of the example's type, all zero."""
        return pinned.allocate(operator.index(num_elem), _tensor(example_tensor).dtype)

    def free_cpu_locked_tensor(self, locked_tensor: torch.Tensor) -> bool:
        """Give a pinned tensor up; False where it is none, or only a part of one.

        Tensors that still show its memory stay valid, and keep it.
        """
        return pinned.free(_tensor(locked_tensor).data_ptr())

    def free_cpu_locked_tensor_by_ptr(self, address: int) -> bool:
        """Give up the pinned tensor that begins at an address."""
        return pinned.free(operator.index(address))

    def is_pinned(self, buffer: torch.Tensor) -> bool:
        """Whether a tensor, or what it is a view of, is pinned: by this engine or by torch."""
        return pinned.is_pinned(_tensor(buffer))


class aio_handle:
    """Reads and writes tensors, many at once, and waits for them.

    All handles of a process share one engine. `block_size` and `queue_depth * intra_op_parallelism` of the
    first handle decide how it cuts transfers and how many parts it keeps in flight, at least 32;
    `single_submit` and `overlap_events` have no meaning here, because it never drains its queue.

    Any thread may use a handle; it lets go of the interpreter lock while it waits. Tensors are referenced as
    long as an operation uses them.
    """

    def __init__(
        self,
        block_size: int = 1024 * 1024,
        queue_depth: int = 128,
        single_submit: bool = False,
        overlap_events: bool = False,
        intra_op_parallelism: int = 1,
    ) -> None:
        self._block_size = _positive(block_size, "block_size")
        self._queue_depth = _positive(queue_depth, "queue_depth")
        self._single_submit = _flag(single_submit, "single_submit")
        self._overlap_events = _flag(overlap_events, "overlap_events")
        self._intra_op_parallelism = _positive(intra_op_parallelism, "intra_op_parallelism")
        self._operations = Operations()
        process.engine_for(self._block_size, self._depth())
        # A handle that is dropped with operations under way: its memory is held until they are over.
        self._operations.abandon_with(self)

    def _depth(self) -> int:
        return self._queue_depth * self._intra_op_parallelism

    def get_block_size(self) -> int:
        """As given."""
        return self._block_size

    def get_queue_depth(self) -> int:
        """As given."""
        return self._queue_depth

    def get_single_submit(self) -> bool:
        """As given."""
        return self._single_submit

    def get_overlap_events(self) -> bool:
        """As given."""
        return self._overlap_events

    def get_intra_op_parallelism(self) -> int:
        """As given."""
        return self._intra_op_parallelism

    def get_alignment(self) -> int:
        """The bytes that DeepSpeed's own handle wants lengths to be a multiple of."""
        return ALIGNMENT_BYTES * self._intra_op_parallelism

    # One transfer, and nothing else of this handle.

    def read(self, buffer: torch.Tensor, filename: Path, validate: bool, file_offset: int = 0) -> int:
        """Fill a tensor from a file, and return 0. Operations under way are left alone."""
        _now(self._depth(), self._block_size, False, buffer, filename, validate, file_offset)
        return 0

    def write(self, buffer: torch.Tensor, filename: Path, validate: bool, file_offset: int = 0) -> int:
        """Write a tensor to a file, and return 0. Operations under way are left alone."""
        _now(self._depth(), self._block_size, True, buffer, filename, validate, file_offset)
        return 0

    # Transfers that are waited for together.

    def pread(self, buffer: torch.Tensor, filename: Path, validate: bool, *args: Any, **kwargs: Any) -> int:
        """`pread(buffer, filename, validate, async, file_offset=0)`: as `async_pread` or `sync_pread`.

        With `validate` the file is read once more and compared.
        """
        return self._transfer(False, buffer, filename, validate, *_async_and_offset(args, kwargs))

    def pwrite(self, buffer: torch.Tensor, filename: Path, validate: bool, *args: Any, **kwargs: Any) -> int:
        """`pwrite(buffer, filename, validate, async, file_offset=0)`: as `async_pwrite` or `sync_pwrite`.

        With `validate` the file is read and compared.
        """
        return self._transfer(True, buffer, filename, validate, *_async_and_offset(args, kwargs))

    def sync_pread(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Fill a tensor from a file, and wait for all operations. Returns how many there were."""
        return self._transfer(False, buffer, filename, False, False, file_offset)

    def sync_pwrite(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Write a tensor to a file, and wait for all operations. Returns how many there were."""
        return self._transfer(True, buffer, filename, False, False, file_offset)

    def async_pread(self, buffer: torch.Tensor, filename: Path, file_offset: int = 0) -> int:
        """Start to fill a tensor from a file, and return 0. `wait` tells how it ended."""
        return self._transfer(False, buffer, filename, False, True, file_offset)

    def async_pwrite(
        self, buffer: torch.Tensor, filename: Any = _NOT_GIVEN, file_offset: int = 0, *, fd: Any = _NOT_GIVEN
    ) -> int:
        """`async_pwrite(buffer, filename, file_offset=0)` or `async_pwrite(buffer, fd, file_offset=0)`.

        Starts to write a tensor to a file, and returns 0. `wait` tells how it ended. What lies behind the
        tensor in the file stays. An open descriptor may be closed at once; it must be of a file that can be
        written, and be open for writing.
        """
        if type(filename) is str and fd is _NOT_GIVEN:
            return self._transfer(True, buffer, filename, False, True, file_offset)
        if (filename is _NOT_GIVEN) == (fd is _NOT_GIVEN):
            raise TypeError("async_pwrite takes a file name or a descriptor, one of them")
        descriptor = filename if fd is _NOT_GIVEN else fd
        if isinstance(descriptor, (str, bytes, os.PathLike)) and fd is _NOT_GIVEN:
            return self._transfer(True, buffer, descriptor, False, True, file_offset)
        self._start(True, buffer, _integer(descriptor, "fd"), False, file_offset)
        return 0

    def wait(self) -> int:
        """Wait for all operations of this handle. Returns how many ended since the last wait, also 0.

        Raises the first error among them, after all of them are over.
        """
        return self._operations.wait()

    # Pinned memory

    def new_cpu_locked_tensor(
        self, num_elem: int, example_tenosr: Optional[torch.Tensor] = None, **kwargs: Any
    ) -> torch.Tensor:
        """A pinned tensor of `num_elem` elements of the example's type, all zero.

        DeepSpeed spells the second argument `example_tenosr`; `example_tensor` is taken as well.
        """
        if example_tenosr is None:
            example_tenosr = kwargs.pop("example_tensor", None)
        if kwargs:
            raise TypeError(f"new_cpu_locked_tensor has no argument {sorted(kwargs)[0]!r}")
        return pinned.allocate(operator.index(num_elem), _tensor(example_tenosr).dtype)

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        """Give a pinned tensor up; False where it is none, or only a part of one.

        Tensors that still show its memory stay valid, and keep it.
        """
        return pinned.free(_tensor(tensor).data_ptr())

    def is_pinned(self, buffer: torch.Tensor) -> bool:
        """Whether a tensor, or what it is a view of, is pinned: by this engine or by torch."""
        return pinned.is_pinned(_tensor(buffer))

    # How it is done

    def _transfer(
        self, write: bool, buffer: torch.Tensor, filename: Path, validate: bool, background: bool, file_offset: int
    ) -> int:
        self._start(write, buffer, _path(filename), validate, file_offset)
        return 0 if background else self._operations.wait()

    def _start(
        self, write: bool, buffer: torch.Tensor, file: Union[bytes, int], validate: bool, file_offset: int
    ) -> None:
        """Submit one transfer, to a path or to an open descriptor."""
        engine = process.engine_for(self._block_size, self._depth())
        offset = _offset(file_offset)
        host, finish = _host_memory(buffer, write)
        nbytes = host.numel() * host.element_size()
        path, release = (file, None) if isinstance(file, bytes) else _path_of_descriptor(file)
        if _flag(validate, "validate"):
            finish = _compare_after(finish, host, path, offset)
        self._operations.submit(
            engine, write, host.data_ptr(), nbytes, path, offset, host.untyped_storage(), finish, release
        )


def aio_read(
    buffer: torch.Tensor,
    filename: Path,
    block_size: int,
    queue_depth: int,
    single_submit: bool,
    overlap_events: bool,
    validate: bool,
) -> int:
    """Fill a tensor from the beginning of a file, and return 0."""
    _flag(single_submit, "single_submit"), _flag(overlap_events, "overlap_events")
    depth = _positive(queue_depth, "queue_depth")
    _now(depth, _positive(block_size, "block_size"), False, buffer, filename, validate, 0)
    return 0


def aio_write(
    buffer: torch.Tensor,
    filename: Path,
    block_size: int,
    queue_depth: int,
    single_submit: bool,
    overlap_events: bool,
    validate: bool,
) -> int:
    """Write a tensor to the beginning of a file, and return 0."""
    _flag(single_submit, "single_submit"), _flag(overlap_events, "overlap_events")
    depth = _positive(queue_depth, "queue_depth")
    _now(depth, _positive(block_size, "block_size"), True, buffer, filename, validate, 0)
    return 0


def deepspeed_memcpy(dest: torch.Tensor, src: torch.Tensor) -> int:
    """Copy the elements of a tensor to the beginning of another one of its type, and return 0."""
    if _tensor(dest).dtype != _tensor(src).dtype:
        raise InvalidArgumentError(f"{src.dtype} cannot be copied to {dest.dtype} byte by byte")
    if src.numel() < dest.numel():
        raise InvalidArgumentError(f"{src.numel()} elements do not fill {dest.numel()}")
    with torch.no_grad():
        dest.copy_(src.reshape(-1)[: dest.numel()].view(dest.shape))
    return 0


def _now(
    depth: int, block_size: int, write: bool, buffer: torch.Tensor, filename: Path, validate: bool, file_offset: int
) -> None:
    """One transfer from beginning to end."""
    operations = Operations()
    path, offset = _path(filename), _offset(file_offset)
    host, finish = _host_memory(buffer, write)
    if _flag(validate, "validate"):
        finish = _compare_after(finish, host, path, offset)
    nbytes = host.numel() * host.element_size()
    engine = process.engine_for(block_size, depth)
    operations.submit(engine, write, host.data_ptr(), nbytes, path, offset, host.untyped_storage(), finish)
    operations.wait()


def _host_memory(buffer: torch.Tensor, write: bool) -> Tuple[torch.Tensor, Optional[Callable[[], None]]]:
    """A tensor on the host, without gaps, to move; and what to do after it was filled.

    It is the tensor itself where that is possible, and else a copy.
    """
    _tensor(buffer)
    if buffer.layout is _STRIDED and buffer.is_cpu and buffer.is_contiguous():
        if not buffer.is_neg() and not buffer.is_conj():
            return buffer, None
    if buffer.layout is not _STRIDED:
        raise UnsupportedError(f"a tensor of layout {buffer.layout} cannot be swapped; make it dense first")
    if buffer.is_meta:
        raise UnsupportedError("a tensor on the device meta has no data to swap")
    source = buffer.detach()
    if write:
        return source.resolve_conj().resolve_neg().to("cpu").contiguous(), None
    host = torch.empty(source.shape, dtype=source.dtype)

    def copy_back() -> None:
        source.copy_(host)

    return host, copy_back


def _compare_after(
    finish: Optional[Callable[[], None]], host: torch.Tensor, path: bytes, offset: int
) -> Callable[[], None]:
    """Read what was moved once more, another way than the engine does, and compare."""

    def compare() -> None:
        wanted = memoryview(host.detach().reshape(-1).view(torch.uint8).numpy())
        name = os.fsdecode(path)
        place = 0
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while place < len(wanted):
                found = file.read(min(1 << 20, len(wanted) - place))
                if not found or wanted[place : place + len(found)] != found:
                    place += next((i for i, byte in enumerate(found) if byte != wanted[place + i]), len(found))
                    raise StorageError(
                        f"validate {name} at {offset + place}: the file does not hold what memory does", path=name
                    )
                place += len(found)
        if finish is not None:
            finish()

    return compare


def _path_of_descriptor(descriptor: int) -> Tuple[bytes, Callable[[], None]]:
    """A path that leads to an open file, whatever its name is by now, and a function that ends it.

    The file is opened anew through it: for direct I/O of any alignment, and so that its flags and position
    stay as they are. The descriptor is doubled, so that the number cannot become another file's meanwhile.
    """
    import fcntl

    name = f"descriptor {descriptor}"
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        mode = os.fstat(descriptor).st_mode
    except (OSError, OverflowError) as error:
        raise StorageError(f"async_pwrite to {name}: {error}", getattr(error, "errno", None)) from None
    name = f"{name} ({os.readlink(f'/proc/self/fd/{descriptor}')})"
    if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_PATH:
        raise StorageError(f"async_pwrite to {name}: EBADF: it is not open for writing", 9)
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UnsupportedError(f"async_pwrite to {name}: it is no file, so there are no offsets to write at")
    double = os.dup(descriptor)
    open_doubles = [double]

    def close() -> None:
        if open_doubles:
            os.close(open_doubles.pop())

    return f"/proc/self/fd/{double}".encode(), close


def _tensor(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"a torch tensor is needed, not {type(value).__name__}")
    return value


def _path(value: Any) -> bytes:
    if type(value) is str and "\0" not in value:
        return value.encode(_FILE_NAMES, "surrogateescape")
    if isinstance(value, (str, bytes, os.PathLike)):
        return path_bytes(value)
    raise TypeError(f"a path is needed, not {type(value).__name__}")


def _positive(value: Any, name: str) -> int:
    number = _integer(value, name)
    if not 0 < number < 2**31:
        raise InvalidArgumentError(f"{name} must be from 1 to {2**31 - 1}, not {number}")
    return number


def _offset(value: Any) -> int:
    if type(value) is int and 0 <= value < 2**63:
        return value
    number = _integer(value, "file_offset")
    if not 0 <= number < 2**63:
        raise InvalidArgumentError(f"file_offset must be from 0 to {2**63 - 1}, not {number}")
    return number


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not a bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _async_and_offset(args: Tuple[Any, ...], kwargs: Any) -> Tuple[bool, int]:
    """The last two arguments of pread and pwrite. One is called `async`, which Python no longer allows."""
    values = dict(kwargs)
    for name, value in zip(("async", "file_offset"), args):
        if name in values:
            raise TypeError(f"argument {name!r} is given twice")
        values[name] = value
    if len(args) > 2 or "async" not in values or set(values) - {"async", "file_offset"}:
        raise TypeError("the arguments are (buffer, filename, validate, async, file_offset=0)")
    return _flag(values["async"], "async"), values.get("file_offset", 0)
