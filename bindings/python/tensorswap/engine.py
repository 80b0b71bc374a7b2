"""The engine: moves tensors between memory and files."""

from __future__ import annotations

import atexit
import os
import struct
import threading
import time
import weakref
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

from tensorswap._library import (
    ERR_TIMED_OUT,
    check,
    deadline_of,
    destructor,
    failure,
    ffi,
    grown_text,
    is_over,
    last_error,
    lib,
    slice_ns,
    text_of,
    wait_in_slices,
)
from tensorswap.buffer import Buffer
from tensorswap.config import ConfigLike, config_of
from tensorswap.dtype import DTypeLike
from tensorswap.errors import BadTicketError, Error, ForkedError, InvalidArgumentError, ShutDownError, TimedOutError
from tensorswap.memory import describe
from tensorswap.stats import EngineStats, stats_of
from tensorswap.tensor import KEEP_LENGTH, Path, TensorLike, TensorList, path_list
from tensorswap.ticket import Completion, Ticket, Untold

_ERR_BAD_TICKET, _ERR_BUSY = -4, -20
_NONE_FAILED = 2**64 - 1
#: How many completions are taken at once.
_POLL_BATCH = 64
_COMPLETION_SIZE = ffi.sizeof("tsw_completion")
#: Reads what comes before the message of a tsw_completion at once.
_COMPLETION_FIELDS = struct.Struct("=IiiIQQQQQ").unpack_from
# Types that are made for every request, so that their names are read once.
_TENSOR, _TICKET = ffi.typeof("tsw_tensor *"), ffi.typeof("tsw_ticket *")
_COMPLETION, _COMPLETIONS = map(ffi.typeof, ("tsw_completion *", f"tsw_completion[{_POLL_BATCH}]"))
_LENGTH = ffi.typeof("size_t *")
#: Makes a named tuple at a third of the price of calling its class.
_new_completion = tuple.__new__

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Moves tensors between memory and files.

        with tensorswap.Engine(queue_depth=32) as engine:
            engine.swap_out(array, "/mnt/nvme/array").wait()

    Takes a `Config`, a mapping, or keys as arguments (`tensorswap.config_keys` lists them). Any thread may
    use it. `close()`, or the end of a `with` block, waits until everything under way is over.
    """

    def __init__(self, config: ConfigLike = None, **keys: Any) -> None:
        # Reentrant: the garbage collector may run a program's code, which may use the engine, anywhere.
        self._lock = threading.RLock()
        self._pending: Dict[int, Ticket] = {}
        # Completions that another thread took before their ticket was entered in `_pending`.
        self._early: Dict[int, Completion] = {}
        self._loops: Dict[Any, int] = {}
        self._handle: Any = None
        out = ffi.new("tsw_engine **")
        check(lib.tsw_engine_new(config_of(config, keys), out))
        self._handle = ffi.gc(out[0], destructor(lib.tsw_engine_free))
        _engines.add(self)

    # Requests

    def swap_out(
        self,
        data: Any,
        path: Path,
        offset: int = 0,
        *,
        dtype: DTypeLike = None,
        keep_length: bool = False,
        tag: int = 0,
    ) -> Ticket:
        """Start writing memory to a file, and return at once.

        `data` is a NumPy array, a torch tensor, a `Memory`, or anything with the buffer protocol or DLPack;
        contiguous, in the host's memory. It is written at byte `offset`. With `offset` 0 the file then ends
        with the data; with another one, or with `keep_length`, it only grows. A file that does not exist is
        made, a directory is not. The memory must not be written before the ticket is done.
        """
        pointer, numel, kind, keep = describe(data, False, dtype)
        return self._submit_one(
            lib.tsw_engine_swap_out, pointer, numel, kind, KEEP_LENGTH if keep_length else 0, offset, tag, path, keep
        )

    def swap_in(
        self, data: Any, path: Path, offset: int = 0, *, dtype: DTypeLike = None, tag: int = 0
    ) -> Ticket:
        """Start reading a file into memory, and return at once.

        `data` is filled from byte `offset` on; it must be writable. The memory must not be touched before
        the ticket is done. A file that is too short fails the ticket with SizeMismatchError.
        """
        pointer, numel, kind, keep = describe(data, True, dtype)
        return self._submit_one(lib.tsw_engine_swap_in, pointer, numel, kind, 0, offset, tag, path, keep)

    def swap_out_many(self, tensors: Iterable[TensorLike]) -> Ticket:
        """Start writing several tensors as one request, with one ticket.

        Each is a `Tensor`, or a tuple of the data, its path and, if not 0, its offset.
        """
        return self._submit_many(lib.tsw_engine_swap_out, tensors, False)

    def swap_in_many(self, tensors: Iterable[TensorLike]) -> Ticket:
        """Start reading several tensors as one request, with one ticket."""
        return self._submit_many(lib.tsw_engine_swap_in, tensors, True)

    def _submit_one(
        self,
        function: Any,
        pointer: Any,
        numel: int,
        kind: int,
        flags: int,
        offset: int,
        tag: int,
        path: Path,
        keep: Any,
    ) -> Ticket:
        name, paths, _text = path_list(path)
        try:
            tensor = ffi.new(_TENSOR, (pointer, numel, kind, flags, offset, tag))
        except OverflowError:
            raise InvalidArgumentError(f"offset {offset} or tag {tag} is not a number of 64 bits") from None
        out = ffi.new(_TICKET)
        try:
            status = function(self._live(), tensor, paths, 1, out)
            if status < 0:
                raise failure(status, os.fsdecode(name))
            return self._enter(out[0], keep, (name,))
        except BaseException:
            self._keep_started(out[0], keep, (name,))
            raise

    def _submit_many(self, function: Any, tensors: Iterable[TensorLike], writable: bool) -> Ticket:
        listed = TensorList(tensors, writable)
        out = ffi.new("tsw_ticket *")
        try:
            check(function(self._live(), listed.array, listed.paths, listed.count, out))
            return self._enter(out[0], listed.keep, listed.names)
        except BaseException:
            self._keep_started(out[0], listed.keep, listed.names)
            raise

    def _keep_started(self, ticket_id: int, keep: Any, names: Sequence[bytes]) -> None:
        """Note a request whose start a signal interrupted: its memory must be kept all the same."""
        if ticket_id != 0:
            self._pending.setdefault(ticket_id, Ticket(self, ticket_id, keep, names))

    def _enter(self, ticket_id: int, keep: Any, names: Sequence[bytes]) -> Ticket:
        """Make the ticket, and note it until its completion is delivered."""
        ticket = Ticket(self, ticket_id, keep, names)
        pending = self._pending
        pending[ticket_id] = ticket
        # Only then look: `poll` notes first and looks afterwards, so one of the two sees the other.
        if self._early:
            completion = self._early.pop(ticket_id, None)
            if completion is not None:
                pending.pop(ticket_id, None)
                self._settle(ticket, completion)
        if len(pending) % _POLL_BATCH == 0:
            # Tickets that the program dropped: their completions, and their memory, would pile up.
            self.poll()
        return ticket

    # Completions

    def wait_all(self, timeout: Optional[float] = None) -> None:
        """Wait for every request made before this call. Raises the first error among them.

        The tickets still tell their own errors.
        """
        handle = self._live()
        status = wait_in_slices(timeout, lambda wait_ns: int(lib.tsw_engine_wait_all(handle, wait_ns)))
        error = failure(status) if status < 0 else None
        self.poll()
        if error is not None:
            raise error

    def poll(self) -> int:
        """Take note of the requests that are over, and tell how many. Never waits.

        Their tickets are then done. Call it when `fileno()` is readable.
        """
        count: int = 0
        array = ffi.new(_COMPLETIONS)
        length = ffi.new(_LENGTH)
        content = ffi.buffer(array)
        while True:
            with self._lock:
                array[0].struct_size = _COMPLETION_SIZE
                length[0] = 0
                try:
                    check(lib.tsw_ticket_poll(self._live(), array, _POLL_BATCH, length))
                    self._deliver(array, content, length[0])
                except BaseException:  # a signal; what was taken must not be lost
                    self._deliver(array, content, length[0])
                    raise
            count += length[0]
            if length[0] < _POLL_BATCH:
                return count

    def _deliver(self, array: Any, content: Any, taken: int) -> None:
        """Hand completions to their tickets, or keep one for the thread that is about to make the ticket.

        Called once more where a signal interrupts it: those that were handed over have ticket 0 then.
        """
        for index in range(taken):
            ticket_id, completion = _completion_of(array, content, index)
            if ticket_id == 0:
                continue
            ticket = self._pending.get(ticket_id)
            if ticket is None:
                self._early[ticket_id] = completion
                ticket = self._pending.get(ticket_id)
                if ticket is None or self._early.pop(ticket_id, None) is None:
                    ticket = None  # it comes, or has seen it
            if ticket is not None:
                self._settle(ticket, completion)
                self._pending.pop(ticket_id, None)
            array[index].ticket = 0

    def fileno(self) -> int:
        """The descriptor that is readable while a completion waits to be delivered.

        For `select`, `selectors` and event loops: call `poll` when it is readable. Do not read, write or
        close it. asyncio needs nothing of it: `await` a ticket.
        """
        out = ffi.new("int32_t *")
        check(lib.tsw_engine_event_fd(self._live(), out))
        return int(out[0])

    def _settle(self, ticket: Ticket, completion: Completion) -> None:
        """Note how a request ended, and let go of its memory."""
        if completion.status < 0 and ticket._untold is None:
            ticket._untold = Untold(completion.message)
        ticket._completion = completion
        ticket._keep = None
        for loop, future in ticket._futures:
            _wake(loop, future)

    def _wait(self, ticket: Ticket, timeout: Optional[float]) -> Completion:
        deadline = deadline_of(timeout)
        result = ffi.new(_COMPLETION)
        while True:
            if ticket._completion is not None:
                return ticket._completion
            result.struct_size = _COMPLETION_SIZE
            try:
                status = lib.tsw_ticket_wait(self._live(), ticket.id, slice_ns(deadline), result)
                if result.ticket == ticket.id:
                    completion = self._take(ticket, result)
                    if status < 0:  # whole, where the completion has but the end of a long path
                        completion = ticket._completion = completion._replace(message=last_error()[0])
                    return completion
            except BaseException:
                if result.ticket == ticket.id:  # a signal; a completion is told but once
                    self._take(ticket, result)
                raise
            if status == _ERR_BAD_TICKET:
                # Another thread was told of it: it noted that under this lock.
                with self._lock:
                    if ticket._completion is not None:
                        return ticket._completion
                raise failure(status)
            if status not in (ERR_TIMED_OUT, _ERR_BUSY):
                raise failure(status)
            if is_over(deadline):
                raise TimedOutError(f"request {ticket.id:#x} is not over after {timeout} s")
            if status == _ERR_BUSY:  # another thread waits for this ticket, and will note what it hears
                time.sleep(0.001)

    def _take(self, ticket: Ticket, result: Any) -> Completion:
        """Note how a request ended that was waited for."""
        _ticket_id, completion = _completion_of(result, ffi.buffer(result), 0)
        self._settle(ticket, completion)
        self._pending.pop(ticket.id, None)
        return completion

    def _cancel(self, ticket: Ticket) -> None:
        if ticket._completion is None:
            status = lib.tsw_ticket_cancel(self._live(), ticket.id)
            if status < 0 and status != _ERR_BAD_TICKET:
                raise failure(status)

    def _progress(self, ticket: Ticket) -> Tuple[int, int]:
        done, total = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        if ticket._completion is None:
            status = lib.tsw_ticket_progress(self._live(), ticket.id, done, total)
            if status >= 0:
                return int(done[0]), int(total[0])
            if ticket._completion is None:
                raise failure(status)
        raise BadTicketError(f"request {ticket.id:#x} is over; its completion tells the bytes")

    def _future_of(self, ticket: Ticket) -> Any:
        """Wait in the running event loop until the ticket is done."""
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        ticket._futures += ((loop, future),)
        if self._loops.get(loop, 0) == 0:
            loop.add_reader(self.fileno(), self.poll)
        self._loops[loop] = self._loops.get(loop, 0) + 1
        try:
            if ticket._completion is None:
                yield from future.__await__()
        finally:
            self._loops[loop] -= 1
            if self._loops[loop] == 0:
                del self._loops[loop]
                if self._handle is not None:
                    loop.remove_reader(self.fileno())

    # Memory

    def buffer(self, nbytes: int) -> Buffer:
        """Allocate pinned memory: zeroed, aligned, of huge pages and locked where the system permits."""
        return Buffer._new(self, nbytes)

    def register(self, data: Any) -> Buffer:
        """Lend memory of the program to the engine as a pinned buffer.

        `data` is an array, a tensor or anything else that can be swapped in to. It is referenced until the
        buffer is given up and nothing uses it any more.
        """
        return Buffer._register(self, describe(data, True))

    # What it does

    def stats(self) -> EngineStats:
        """What the engine has done since it was made, and what it is doing."""
        return stats_of(EngineStats, lib.tsw_engine_get_stats, self._live())

    def describe(self) -> Dict[str, Any]:
        """What is in effect, and why: the backend and the reason for it, the options, the buffers."""
        import json

        handle = self._live()
        found: Dict[str, Any] = json.loads(
            grown_text(lambda memory, cap: int(lib.tsw_engine_describe(handle, memory, cap)))
        )
        return found

    def prometheus(self) -> str:
        """The figures of the engine, its swappers and its optimizers as text for Prometheus."""
        handle = self._live()
        return grown_text(lambda memory, cap: int(lib.tsw_engine_prometheus(handle, memory, cap)))

    # End

    def shutdown(self, timeout: Optional[float] = None) -> None:
        """Take nothing more, and wait until everything under way is over.

        Raises TimedOutError after `timeout` seconds; nothing more is taken all the same.
        """
        handle = self._live()
        check(wait_in_slices(timeout, lambda wait_ns: int(lib.tsw_engine_shutdown(handle, wait_ns))))
        self.poll()

    def close(self) -> None:
        """Wait until everything under way is over, and free the engine. Twice is fine.

        What tickets have to say stays to be asked. Buffers, swappers and optimizers go on to work until
        they are closed.
        """
        if self._handle is None:
            return
        try:
            self.shutdown()
        except ForkedError:  # it is the parent's, and goes on there
            pass
        finally:
            self._leave_loops()
            self._handle = None
            _engines.discard(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Before the garbage collector lets go of the memory of requests under way.
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _leave_loops(self) -> None:
        """Stop event loops from looking at a descriptor that is about to be closed."""
        if self._loops:
            import asyncio

            descriptor = self.fileno()
            running: Any = asyncio._get_running_loop()
            for loop in list(self._loops):
                if loop is running:
                    running.remove_reader(descriptor)
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(loop.remove_reader, descriptor)

    def _live(self) -> Any:
        """The handle. A call that holds it keeps the engine from being freed meanwhile."""
        handle = self._handle
        if handle is None:
            raise ShutDownError("the engine is closed")
        return handle




def _completion_of(array: Any, content: Any, index: int) -> Tuple[int, Completion]:
    """A completion in an array of which `content` is the memory, and the ticket it is of."""
    _size, status, os_error, _zero, failed, ticket_id, moved, elapsed, tag = _COMPLETION_FIELDS(
        content, index * _COMPLETION_SIZE
    )
    if status == 0:
        return ticket_id, _new_completion(Completion, (0, 0, None, moved, elapsed, tag, ""))
    failed_index = None if failed == _NONE_FAILED else failed
    message = text_of(array[index].message)
    return ticket_id, Completion(status, os_error, failed_index, moved, elapsed, tag, message)


def _wake(loop: Any, future: Any) -> None:
    """Resume a coroutine, in its own loop."""

    def resume() -> None:
        if not future.done():
            future.set_result(None)

    if not loop.is_closed():
        loop.call_soon_threadsafe(resume)


def _close_all() -> None:
    """At the end of the program: wait until what is under way has reached its files."""
    for engine in list(_engines):
        try:
            engine.shutdown()
        except Error:  # nobody is left to be told
            pass


def _renew_locks() -> None:
    """In the child of a fork: another thread of the parent may have held them."""
    for engine in list(_engines):
        engine._lock = threading.RLock()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_renew_locks)
