"""One step over parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Optional

from tensorswap._library import check, failure, ffi, lib, unsigned
from tensorswap.errors import CancelledError, Error
from tensorswap.view import ParameterView

if TYPE_CHECKING:
    from tensorswap.optimizer import Optimizer

_END, _ERR_BUSY = 1, -20
_VIEW_SIZE = ffi.sizeof("tsw_parameter_view")


class Step:
    """A step: brings parameters in one after the other, to be updated in place.

        for parameter in optimizer.step():
            weights = parameter.states["master"].numpy()
            weights -= 0.1 * parameter.gradient.numpy()

    Each parameter is given back, and written in the background, when the loop goes on. When the loop has
    seen them all the step ends: it is counted, and becomes durable in the background. An exception in the
    loop, or a `break`, aborts it: all is as before, without this step's gradients.

    Several threads may share a step (set `views_max` to their number):

        with optimizer.step() as step:
            threads = [Thread(target=lambda: [update(p) for p in step]) for _ in range(4)]

    It then begins and ends with the `with` block, and is aborted where that, or one of the loops, is left
    by an exception.
    """

    def __init__(self, optimizer: Optimizer, ids: Optional[Iterable[int]]) -> None:
        self._optimizer = optimizer
        self._ids = None if ids is None else [unsigned(id, "id") for id in ids]
        self._shared = False
        # Whether a loop did not see its end, and the error that kept it from that, if it was ours.
        self._given_up = False
        self._cause: Optional[BaseException] = None

    def begin(self) -> None:
        """Begin reading. A loop or a `with` block does it."""
        handle = self._optimizer._live()
        ids = ffi.NULL if self._ids is None else ffi.new("uint64_t[]", self._ids)
        self._given_up, self._cause = False, None
        try:
            check(lib.tsw_optimizer_step_begin(handle, ids, len(self._ids or ())))
        except Error:
            raise
        except BaseException:  # a signal, when it was begun
            lib.tsw_optimizer_step_abort(handle)
            raise

    def next(self) -> Optional[ParameterView]:
        """The next parameter, to be given back by `done`; None when all were given out. Any thread."""
        out: List[ParameterView] = []
        return out[0] if self._fetch(out) else None

    def _fetch(self, out: List[ParameterView]) -> bool:
        """Put the next parameter in `out`; tell whether there was one.

        Where a signal interrupts it, a parameter is in `out`, or was given back.
        """
        optimizer = self._optimizer
        handle = optimizer._live()
        found = ffi.new("tsw_parameter_view *")
        found.struct_size = _VIEW_SIZE
        try:
            status = lib.tsw_optimizer_step_next(handle, found)
            if status == _END:
                return False
            if status < 0:
                raise failure(status)
            out[:] = [ParameterView(found, optimizer._states, handle)]
            return True
        except BaseException:
            if found.numel != 0:  # nobody has seen it
                lib.tsw_optimizer_step_done(handle, found.id, 0)
            raise

    def done(self, view: ParameterView) -> None:
        """Give a parameter back; it is written where its `changed` is true. Any thread."""
        view._end()
        check(lib.tsw_optimizer_step_done(self._optimizer._live(), view.id, 1 if view.changed else 0))

    def end(self) -> None:
        """Count the step; it becomes durable in the background."""
        check(lib.tsw_optimizer_step_end(self._optimizer._live()))

    def abort(self) -> None:
        """Undo the step. With views out it raises BusyError and takes effect all the same."""
        check(lib.tsw_optimizer_step_abort(self._optimizer._live()))

    def __iter__(self) -> Iterator[ParameterView]:
        if not self._shared:
            self.begin()
        out: List[ParameterView] = []
        try:
            yield from self._each(out)
            if not self._shared:
                self.end()
        except BaseException as error:
            if self._shared and not isinstance(error, GeneratorExit):
                self._cause = self._cause or error
            self._give_up(out)
            raise

    def _each(self, out: List[ParameterView]) -> Iterator[ParameterView]:
        """Parameter after parameter; in `out` is the one that is out.

        A function of its own, because Python takes signals at a loop's end outside of a `try` around it.
        """
        while not self._given_up and self._fetch(out):
            yield out[0]
            self.done(out[0])
            out.clear()

    def _give_up(self, out: List[ParameterView]) -> None:
        """Leave a loop that did not see its end: nothing of the step is kept."""
        self._given_up = True
        handle = self._optimizer._live()
        for view in out:
            # At first the abort, which takes effect with a view out: then what may be half updated is dropped
            # when it is given back. Where a signal interrupted that, it may have been given back already.
            lib.tsw_optimizer_step_abort(handle)
            view._end()
            lib.tsw_optimizer_step_done(handle, view.id, 1)
        if not self._shared:
            self._undo()

    def _undo(self) -> None:
        """Abort, unless the step ended just before an exception."""
        status = lib.tsw_optimizer_step_abort(self._optimizer._live())
        if status not in (0, _ERR_BUSY):
            raise failure(status)

    def __enter__(self) -> Step:
        self.begin()
        self._shared = True
        return self

    def __exit__(self, kind: Any, _value: Any, _traceback: Any) -> None:
        self._shared = False
        if kind is not None:
            self.abort()
        elif self._given_up:
            self.abort()
            raise CancelledError("the step was aborted: a loop over it did not see its end") from self._cause
        else:
            try:
                self.end()
            except BaseException:
                self._undo()
                raise
