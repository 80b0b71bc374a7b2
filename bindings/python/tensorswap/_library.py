"""The shared library: loaded here once, with what every call to it needs.

Calls through cffi let go of the interpreter lock, so other Python threads run while one waits here.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Callable, List, Optional, Tuple

from tensorswap.errors import Error, InvalidArgumentError, error_of_status

try:
    from tensorswap._abi import ffi as _ffi
except ModuleNotFoundError:
    raise ImportError(
        "tensorswap: this is its source, which is not built: `pip install ./bindings/python`, and run from elsewhere"
    ) from None


#: The binary interface that this package is written for.
ABI = 1
ERR_TIMED_OUT = -24
#: Waits are cut into slices of this length, and the interpreter looks for signals between them.
WAIT_SLICE_NS = 50_000_000

ffi: Any = _ffi


def _load() -> Any:
    """Load the library beside this file, or the one that TENSORSWAP_LIBRARY names."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libtensorswap.so")
    path = os.environ.get("TENSORSWAP_LIBRARY") or beside
    try:
        library = ffi.dlopen(path)
        abi = library.tsw_abi()
    except (OSError, AttributeError) as error:
        raise ImportError(f"tensorswap: {path} cannot be loaded: {error}") from None
    if abi != ABI:
        raise ImportError(f"tensorswap: {path} has binary interface {abi}, this package needs {ABI}")
    return library


lib: Any = _load()


def text_of(pointer: Any) -> str:
    """The text behind a `const char *` of the library."""
    text: str = ffi.string(pointer).decode("utf-8", "replace")
    return text


def grown_text(fill: Callable[[Any, int], int]) -> str:
    """The whole text of a function that follows the rule of snprintf; it may grow between two calls."""
    cap = 4096
    while True:
        memory = ffi.new("char[]", cap)
        needed = fill(memory, cap)
        if needed < cap:
            return text_of(memory)
        cap = needed + 1024


def last_error() -> Tuple[str, int]:
    """Message and errno of this thread's last failed call."""
    return grown_text(lib.tsw_last_error_message), lib.tsw_last_error_os()


def failure(status: int, path: Optional[str] = None) -> Error:
    """The exception for a call of this thread that just returned `status`."""
    message, os_error = last_error()
    return error_of_status(status, message, os_error, path)


def check(status: int) -> None:
    """Raise the exception for a status that is an error."""
    if status < 0:
        raise failure(status)


def deadline_of(timeout: Optional[float]) -> Optional[int]:
    """When to stop waiting, on the monotonic clock in nanoseconds; None for never."""
    if timeout is None:
        return None
    if not 0 <= timeout < 1e9:
        raise InvalidArgumentError(f"a timeout is a number of seconds from 0 on, not {timeout!r}")
    return time.monotonic_ns() + int(timeout * 1e9)


def slice_ns(deadline: Optional[int]) -> int:
    """How long to wait before the next look at signals and deadline."""
    if deadline is None:
        return WAIT_SLICE_NS
    return max(0, min(WAIT_SLICE_NS, deadline - time.monotonic_ns()))


def is_over(deadline: Optional[int]) -> bool:
    """Whether a deadline has passed."""
    return deadline is not None and time.monotonic_ns() >= deadline


def wait_in_slices(timeout: Optional[float], wait: Callable[[int], int]) -> int:
    """Call a function that waits for some nanoseconds until it does not time out, and return its status."""
    deadline = deadline_of(timeout)
    while True:
        status = wait(slice_ns(deadline))
        if status != ERR_TIMED_OUT or is_over(deadline):
            return status


def unsigned(value: int, what: str) -> int:
    """A number of 64 bits without a sign, or an exception that names it."""
    number = value.__index__()
    if not 0 <= number < 2**64:
        raise InvalidArgumentError(f"{what} {value} is not a number from 0 to 2**64 - 1")
    return number


class _InCallback(threading.local):
    active = False


#: Whether this thread runs a callback of the library, which must not free anything.
in_callback = _InCallback()
_postponed: List[Tuple[Any, Any]] = []


def destructor(free: Any) -> Callable[[Any], None]:
    """A destructor for `ffi.gc` that frees by `free`, but never inside of a callback.

    The garbage collector runs where it likes, also in a log callback on a thread of the engine; freeing
    there would wait for that very thread. What falls due there is freed with the next object.
    """

    def destroy(handle: Any) -> None:
        _postponed.append((free, handle))
        while _postponed and not in_callback.active:
            try:
                function, pointer = _postponed.pop()
            except IndexError:  # another thread was quicker
                return
            function(pointer)

    return destroy
