"""The library's log."""

from __future__ import annotations

import atexit
from typing import Any, Callable, Optional, Union

from tensorswap._library import check, ffi, in_callback, lib, text_of
from tensorswap.errors import InvalidArgumentError

#: Receives the level (1 error to 5 trace), the part of the library, and one line of text.
LogReceiver = Callable[[int, str, str], None]

LEVELS = ("off", "error", "warn", "info", "debug", "trace")
#: What the logging module calls our levels; trace is below its debug.
_LOGGING_LEVELS = (0, 40, 30, 20, 10, 5)

_callback: Any = None


def set_log(receiver: Optional[LogReceiver], level: Union[str, int] = "info") -> None:
    """Receive the library's log, up to a level: off, error, warn, info, debug or trace.

    The library prints nothing by itself. The receiver is the process's: another one replaces it, None ends
    it. It runs on the thread on which the event happens, on several at once, and must not wait for a request
    nor close anything. `tensorswap.to_logging` hands everything to Python's logging.
    """
    global _callback
    if receiver is None:
        check(lib.tsw_set_log(ffi.NULL, ffi.NULL, 0))
        _callback = None
        return
    if isinstance(level, str):
        if level not in LEVELS:
            raise InvalidArgumentError(f"unknown log level {level!r}; there are {', '.join(LEVELS)}")
        level = LEVELS.index(level)
    wanted = receiver

    def on_event(_user_data: Any, event_level: int, target: Any, message: Any) -> None:
        in_callback.active = True
        try:
            wanted(event_level, text_of(target), text_of(message))
        finally:
            in_callback.active = False

    callback = ffi.callback("tsw_log_fn", on_event)
    check(lib.tsw_set_log(callback, ffi.NULL, level))
    # When tsw_set_log has returned, no call of the earlier one runs.
    _callback = callback


def to_logging(level: int, target: str, message: str) -> None:
    """A receiver that hands events to Python's logging, as loggers below "tensorswap"."""
    import logging

    logging.getLogger(target.replace("::", ".")).log(_LOGGING_LEVELS[level], "%s", message)


@atexit.register
def _silence() -> None:
    """Threads of an engine must not call into an interpreter that is going down."""
    if _callback is not None:
        lib.tsw_set_log(ffi.NULL, ffi.NULL, 0)
