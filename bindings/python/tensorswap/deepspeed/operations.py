"""Operations of one handle that are under way.

Each holds the memory it moves until it is over, whatever becomes of the tensor meanwhile: of the tensor's
storage, because DeepSpeed gives tensors other memory (`tensor.data = ...`) as it likes.
"""

from __future__ import annotations

import atexit
import collections
import logging
import threading
import weakref
from typing import Any, Callable, Deque, List, Optional

from tensorswap._library import WAIT_SLICE_NS, failure, ffi, last_error, lib, text_of
from tensorswap.deepspeed import process
from tensorswap.engine import Engine
from tensorswap.errors import Error, error_of_status

__all__ = ["Operations"]

_ERR_TIMED_OUT, _ERR_BUSY = -24, -20
_COMPLETION_SIZE = ffi.sizeof("tsw_completion")
# The words that `submit` sets are these fields.
_FIELDS = ("data", "numel", "dtype", "flags", "file_offset")
assert [ffi.offsetof("tsw_tensor", field) for field in _FIELDS] == [0, 8, 16, 20, 24]
#: Every write keeps what lies behind it in the file, as pwrite does.
_KEEP_LENGTH = 2

#: Of all handles, so that the child of a fork can forget them.
_all: weakref.WeakSet[Operations] = weakref.WeakSet()


class Operation:
    """One transfer under way, or about to be."""

    __slots__ = ("engine", "finish", "keep", "path", "release", "ticket")

    def __init__(
        self,
        engine: Any,
        path: bytes,
        keep: Any,
        finish: Optional[Callable[[], None]],
        release: Optional[Callable[[], None]],
    ) -> None:
        #: The library fills it in.
        self.ticket = ffi.new("tsw_ticket *")
        self.engine = engine
        self.path = path
        #: Holds the memory.
        self.keep = keep
        #: Runs once the transfer went well: copies to where the data is wanted, or compares.
        self.finish = finish
        #: Runs at the end in any case.
        self.release = release


class Operations:
    """What one handle has submitted and nobody has waited for. Any thread may submit and wait."""

    def __init__(self) -> None:
        self._pending: Deque[Operation] = collections.deque()
        self._failures: List[Exception] = []
        self._over = 0
        # For the library to read: filled in anew for each submission, under the lock.
        self._tensor = ffi.new("tsw_tensor *")
        # The same as numbers, which are quicker to set: address, elements, type and flags, offset.
        self._words = ffi.cast("uint64_t *", self._tensor)
        self._paths = ffi.new("char *[1]")
        self._completion = ffi.new("tsw_completion *")
        self._renew_locks()
        _all.add(self)

    def abandon_with(self, handle: object) -> None:
        """Wait for what is still under way when a handle is dropped."""
        weakref.finalize(handle, self.abandon).atexit = False

    def _renew_locks(self) -> None:
        self._submit_lock = threading.Lock()
        self._wait_lock = threading.RLock()

    def submit(
        self,
        engine: Engine,
        write: bool,
        address: int,
        nbytes: int,
        path: bytes,
        offset: int,
        keep: Any,
        finish: Optional[Callable[[], None]] = None,
        release: Optional[Callable[[], None]] = None,
    ) -> None:
        """Start a transfer. Never waits, but where as many are under way as the engine takes."""
        handle = engine._live()
        function = lib.tsw_engine_swap_out if write else lib.tsw_engine_swap_in
        # Bytes objects end with a NUL.
        name = ffi.from_buffer(path)
        words = self._words
        while True:
            operation = Operation(handle, path, keep, finish, release)
            with self._submit_lock:
                words[0], words[1], words[3] = address, nbytes, offset
                words[2] = _KEEP_LENGTH << 32 if write else 0
                self._paths[0] = name
                # Before the call: Ctrl-C may strike right after it, and the memory must be held then.
                self._pending.append(operation)
                status = function(handle, self._tensor, self._paths, 1, operation.ticket)
                if status >= 0:
                    return
                self._pending.remove(operation)
            error = failure(status, _text(path))
            if status != _ERR_BUSY or not self._finish_oldest():
                if release is not None:
                    release()
                raise error

    def wait(self) -> int:
        """Wait for everything submitted so far; tell how many have ended since the last wait.

        Raises the first error among them, after all of them are over.
        """
        with self._wait_lock:
            for _ in range(len(self._pending)):
                self._finish_oldest()
            over, self._over = self._over, 0
            failures, self._failures = self._failures, []
        if failures:
            raise _one_of(failures)
        return over

    def abandon(self) -> None:
        """Wait for what nobody will wait for any more, so that memory is let go of; log what failed."""
        try:
            self.wait()
        except Exception as error:
            logging.getLogger("tensorswap.deepspeed").error("nobody waited for operations that failed: %s", error)

    def _finish_oldest(self) -> bool:
        """Wait for the oldest operation and note how it ended; False where there is none."""
        with self._wait_lock:
            if not self._pending:
                return False
            operation = self._pending[0]
            if not operation.ticket[0] and self._was_never_submitted(operation):
                return True
            error: Optional[Exception] = self._end_of(operation)
            if error is None and operation.finish is not None:
                try:
                    operation.finish()
                except Exception as wrong:  # also torch's and the system's: the operation is over all the same
                    error = wrong
            if error is not None:
                self._failures.append(error)
            self._over += 1
            self._pending.popleft()
        if operation.release is not None:
            operation.release()
        return True

    def _was_never_submitted(self, operation: Operation) -> bool:
        """Drop an operation that Ctrl-C kept from being submitted; false for one that is being submitted."""
        with self._submit_lock:
            if operation.ticket[0]:
                return False
            if operation in self._pending:
                self._pending.remove(operation)
        if operation.release is not None:
            operation.release()
        return True

    def _end_of(self, operation: Operation) -> Optional[Error]:
        """Wait until an operation is over. Ctrl-C interrupts, and the operation stays pending."""
        completion, ticket = self._completion, operation.ticket[0]
        message = ""
        # Ctrl-C may strike between the library's answer and its being noted: then it is there still.
        while completion.ticket != ticket:
            completion.struct_size = _COMPLETION_SIZE
            status = lib.tsw_ticket_wait(operation.engine, ticket, WAIT_SLICE_NS, completion)
            if status < 0 and status != _ERR_TIMED_OUT:
                if completion.ticket != ticket:
                    return failure(status, _text(operation.path))
                message = last_error()[0]
        if completion.status >= 0:
            return None
        # What the library keeps with the completion lacks the beginning of a long path.
        message = message or text_of(completion.message)
        return error_of_status(completion.status, message, completion.os_error, _text(operation.path))

    def _forget(self) -> None:
        """In the child of a fork: all of them are the parent's."""
        self._renew_locks()
        for operation in self._pending:
            if operation.release is not None:
                operation.release()
        self._pending.clear()
        self._failures.clear()
        self._over = 0


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _one_of(failures: List[Exception]) -> Exception:
    """The first error, which tells how many there were, where it is one of ours."""
    first = failures[0]
    if len(failures) == 1 or not isinstance(first, Error):
        return first
    more = f"{first.message}; {len(failures) - 1} more operations failed"
    return error_of_status(first.status, more, first.errno or 0, first.path)


def _forget_all() -> None:
    for operations in list(_all):
        operations._forget()


def _abandon_all() -> None:
    for operations in list(_all):
        operations.abandon()


process.on_fork(_forget_all)
# Registered after the engine's own, so that it runs before: the engine's takes completions for itself.
atexit.register(_abandon_all)
