"""Exceptions, one for each status of the library.

All derive from `Error`. Where Python has an exception with the same meaning they derive from that too, so
`except FileNotFoundError`, `except OSError` and `except MemoryError` work as they do elsewhere.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Tuple, Type


class Error(Exception):
    """What a call or a request had to say, in one line.

    Raised as such only for a status that a later version of the library added.
    """

    #: The status, such as -42; 0 where this package found the error before the library was asked.
    status: int = 0
    #: The name of the status, such as "TSW_ERR_NOT_FOUND".
    status_name: str = "TSW_ERR_UNKNOWN"
    #: Whether the same call can succeed later without a change of its arguments.
    retryable: bool = False
    #: The errno behind it; None where there is none.
    errno: Optional[int] = None
    #: One line that names what was done, the path, the offset and the errno.
    message: str
    #: The file it is about, where that is known.
    path: Optional[str] = None

    def __init__(self, message: str, errno: Optional[int] = None, path: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.errno = errno or None
        self.path = path
        if isinstance(self, OSError):
            named: Any = self
            named.strerror = os.strerror(errno) if errno else message
            named.filename = path

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Tuple[Any, ...]:
        return (type(self), (self.message, self.errno, self.path))


class InvalidArgumentError(Error, ValueError):
    """An argument is outside of what the function accepts."""


class InvalidFileError(InvalidArgumentError, OSError):
    """A path leads to what is no file to swap to, such as a directory; `errno` tells what it is."""


class DtypeMismatchError(Error, TypeError):
    """The element type is not the one agreed on, or is none that the library knows."""


class BadTicketError(Error, ValueError):
    """The ticket was never given out, or has ended."""


class UnknownParameterError(Error, KeyError):
    """No parameter has this id."""


class ConfigError(Error, ValueError):
    """A configuration key or value is not legal; the message tells what is."""


class ForkedError(Error, RuntimeError):
    """The object belongs to the parent of this forked process; make a new one here."""


class BusyError(Error, RuntimeError):
    """The object is in use, or a bound is reached; later it can succeed."""


class NoBuffersError(Error, RuntimeError):
    """No pinned buffer is to be had."""


class ShutDownError(Error, RuntimeError):
    """The engine takes nothing any more."""


class PoisonedError(Error, RuntimeError):
    """The library met a defect inside this object earlier; it can only be closed."""


class TimedOutError(Error, TimeoutError):
    """The time given for waiting is over; wait again."""


class CancelledError(Error):
    """The operation was cancelled. It is not asyncio's, which means that a task was."""


class LockedError(Error, OSError):
    """Another optimizer, of this process or another one, has the store open."""


class StorageError(Error, OSError):
    """Storage failed; `errno` tells why."""


class NoSpaceError(StorageError):
    """Storage, or the quota on it, is full."""


class NotFoundError(StorageError, FileNotFoundError):
    """A file or directory does not exist."""


class SizeMismatchError(StorageError, ValueError):
    """What is stored is shorter, or of another size or type, than asked for."""


class ChecksumError(StorageError):
    """What is stored is not what was written."""


class PermissionDeniedError(StorageError, PermissionError):
    """Access is not permitted."""


class CorruptError(StorageError):
    """The structure on storage is damaged."""


class NoMemoryError(Error, MemoryError):
    """Memory could not be allocated."""


class MemlockError(Error, MemoryError):
    """Memory could not be locked: raise `ulimit -l`, or set the key `pin` to prefer."""


class BudgetError(Error, MemoryError):
    """The budget of pinned memory is too small; the message names the bytes needed."""


class UnsupportedError(Error, RuntimeError):
    """The kernel, the file system or this build cannot do it."""


class UnsupportedFileError(UnsupportedError, OSError):
    """The file, or its file system, cannot be swapped to; `errno` tells why."""


class InternalError(Error, RuntimeError):
    """A defect of the library; the object is poisoned."""


_RETRYABLE = frozenset({-20, -21, -24, -25, -26, -41, -60, -61})

#: Status, its name, and the exception for it.
_STATUSES: Tuple[Tuple[int, str, Type[Error]], ...] = (
    (-1, "TSW_ERR_NULL_ARGUMENT", InvalidArgumentError),
    (-2, "TSW_ERR_INVALID_ARGUMENT", InvalidArgumentError),
    (-3, "TSW_ERR_DTYPE_MISMATCH", DtypeMismatchError),
    (-4, "TSW_ERR_BAD_TICKET", BadTicketError),
    (-5, "TSW_ERR_UNKNOWN_PARAMETER", UnknownParameterError),
    (-6, "TSW_ERR_CONFIG", ConfigError),
    (-7, "TSW_ERR_FORKED", ForkedError),
    (-20, "TSW_ERR_BUSY", BusyError),
    (-21, "TSW_ERR_NO_BUFFERS", NoBuffersError),
    (-22, "TSW_ERR_SHUT_DOWN", ShutDownError),
    (-23, "TSW_ERR_POISONED", PoisonedError),
    (-24, "TSW_ERR_TIMED_OUT", TimedOutError),
    (-25, "TSW_ERR_CANCELLED", CancelledError),
    (-26, "TSW_ERR_LOCKED", LockedError),
    (-40, "TSW_ERR_IO", StorageError),
    (-41, "TSW_ERR_NO_SPACE", NoSpaceError),
    (-42, "TSW_ERR_NOT_FOUND", NotFoundError),
    (-43, "TSW_ERR_SIZE_MISMATCH", SizeMismatchError),
    (-44, "TSW_ERR_CHECKSUM", ChecksumError),
    (-45, "TSW_ERR_PERMISSION", PermissionDeniedError),
    (-46, "TSW_ERR_CORRUPT", CorruptError),
    (-60, "TSW_ERR_NO_MEMORY", NoMemoryError),
    (-61, "TSW_ERR_MEMLOCK", MemlockError),
    (-62, "TSW_ERR_BUDGET", BudgetError),
    (-63, "TSW_ERR_UNSUPPORTED", UnsupportedError),
    (-90, "TSW_ERR_INTERNAL", InternalError),
)

_BY_STATUS: Dict[int, Type[Error]] = {}
for _status, _name, _class in _STATUSES:
    _BY_STATUS[_status] = _class
    # TSW_ERR_NULL_ARGUMENT shares its class; every other class has one status.
    _class.status, _class.status_name, _class.retryable = _status, _name, _status in _RETRYABLE

#: What they are where there is an errno, so that `except OSError` sees everything that files have to say.
_OF_FILES: Dict[Type[Error], Type[Error]] = {
    InvalidArgumentError: InvalidFileError,
    UnsupportedError: UnsupportedFileError,
}


def error_of_status(status: int, message: str, os_error: int = 0, path: Optional[str] = None) -> Error:
    """The exception for a status, a message and an errno (0 where there is none)."""
    kind = _BY_STATUS.get(status, Error)
    if os_error:
        kind = _OF_FILES.get(kind, kind)
    error = kind(message or f"status {status}", os_error, path)
    error.status = status
    return error
