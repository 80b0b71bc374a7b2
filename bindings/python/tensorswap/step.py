"""One step over parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Iterator, Optional

from tensorswap._library import check, failure, ffi, lib, unsigned
from tensorswap.errors import BusyError, CancelledError
from tensorswap.view import ParameterView

if TYPE_CHECKING:
    from tensorswap.optimizer import Optimizer

_END = 1
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
        self._given_up = False

    def begin(self) -> None:
        """Begin reading. A loop or a `with` block does it."""
        handle = self._optimizer._live()
        if self._ids is None:
            check(lib.tsw_optimizer_step_begin(handle, ffi.NULL, 0))
        else:
            check(lib.tsw_optimizer_step_begin(handle, ffi.new("uint64_t[]", self._ids), len(self._ids)))
        self._given_up = False

    def next(self) -> Optional[ParameterView]:
        """The next parameter, to be given back by `done`; None when all were given out. Any thread."""
        optimizer = self._optimizer
        handle = optimizer._live()
        found = ffi.new("tsw_parameter_view *")
        found.struct_size = _VIEW_SIZE
        status = lib.tsw_optimizer_step_next(handle, found)
        if status == _END:
            return None
        if status < 0:
            raise failure(status)
        return ParameterView(found, optimizer._states, handle)

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
        try:
            while True:
                view = None if self._given_up else self.next()
                if view is None:
                    break
                try:
                    yield view
                except BaseException:
                    self._drop(view)
                    raise
                self.done(view)
            if not self._shared:
                self.end()
        except BaseException:
            self._given_up = True
            if not self._shared:
                self.abort()
            raise

    def _drop(self, view: ParameterView) -> None:
        """Give back a view that may be half updated: abort first, so that what was changed is dropped."""
        self._given_up = True
        try:
            self.abort()
        except BusyError:
            pass
        finally:
            view.changed = True
            self.done(view)

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
            raise CancelledError("the step was aborted: a loop over it did not see its end")
        else:
            try:
                self.end()
            except BaseException:
                self.abort()
                raise
