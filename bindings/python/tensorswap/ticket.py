"""Requests under way, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generator, NamedTuple, Optional, Sequence, Tuple

from tensorswap.errors import Error, error_of_status

if TYPE_CHECKING:
    from tensorswap.engine import Engine


class Completion(NamedTuple):
    """How a request ended."""

    #: 0, or the status of its first error.
    status: int
    #: The errno behind it; 0 where there is none.
    errno: int
    #: Index of the tensor that failed first; None where none did.
    failed_index: Optional[int]
    #: Bytes of tensors that were moved.
    bytes_done: int
    #: Nanoseconds from submission to completion.
    elapsed_ns: int
    #: The tag of the failed tensor, else of the first one.
    tag: int
    #: What happened, in one line; empty on success.
    message: str


class Untold:
    """A failure that nobody heard of yet; it goes to the log where nobody ever does.

    Only tickets that failed have one: a `__del__` of tickets would cost every request its call.
    """

    __slots__ = ("message", "told")

    def __init__(self, message: str) -> None:
        self.message = message
        self.told = False

    def __del__(self) -> None:
        if not self.told:
            import logging

            logging.getLogger("tensorswap").error("nobody waited for a request that failed: %s", self.message)


class Ticket:
    """One request under way.

        ticket = engine.swap_out(array, path)
        ticket.wait()            # or, in a coroutine, `await ticket`

    The memory of the request stays referenced by its ticket until the request is over, also when the
    program drops the ticket. Until then it must not be written, and for a swap-in not be read. Any thread
    may use a ticket.
    """

    # What most tickets never change, so that making one costs little.
    _completion: Optional[Completion] = None
    _untold: Optional[Untold] = None
    #: Pairs of event loop and future to be woken.
    _futures: Tuple[Any, ...] = ()

    def __init__(self, engine: Engine, ticket_id: int, keep: Any, paths: Sequence[bytes]) -> None:
        #: The number by which the library knows it.
        self.id = ticket_id
        self._engine = engine
        self._keep = keep
        self._paths = paths

    def wait(self, timeout: Optional[float] = None) -> Completion:
        """Wait until the request is over, and tell how it ended.

        `timeout` is in seconds; None waits as long as it takes. Raises what the request had to say, or
        TimedOutError, and the ticket then stays valid. Other threads run meanwhile, and Ctrl-C interrupts.
        It may be called again: it then tells the same once more.
        """
        completion = self._completion
        if completion is None:
            completion = self._engine._wait(self, timeout)
        if completion.status < 0:
            raise self._error(completion)
        return completion

    def done(self) -> bool:
        """Whether the request is over, well or not. Never waits."""
        if self._completion is None:
            self._engine.poll()
        return self._completion is not None

    def error(self) -> Optional[Error]:
        """The error of a request that is over; None where it ended well or is still under way."""
        completion = self._completion
        if completion is None or completion.status >= 0:
            return None
        return self._error(completion)

    def cancel(self) -> None:
        """Ask the request to stop. It still has to be waited for: it ends with CancelledError, or as ever."""
        self._engine._cancel(self)

    def progress(self) -> Tuple[int, int]:
        """Bytes moved, and bytes in all."""
        return self._engine._progress(self)

    def __await__(self) -> Generator[Any, None, Completion]:
        if self._completion is None:
            yield from self._engine._future_of(self)
        return self.wait()

    def __repr__(self) -> str:
        completion = self._completion
        state = "under way" if completion is None else "failed" if completion.status < 0 else "done"
        return f"<tensorswap.Ticket {self.id:#x} {state}>"

    def _error(self, completion: Completion) -> Error:
        if self._untold is not None:
            self._untold.told = True
        index = completion.failed_index
        path = None
        if index is not None and index < len(self._paths):
            path = self._paths[index].decode("utf-8", "surrogateescape")
        return error_of_status(completion.status, completion.message, completion.errno, path)
