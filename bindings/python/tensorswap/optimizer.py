"""The optimizer: keeps the states of parameters in a crash-consistent store."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

from tensorswap._library import check, destructor, ffi, lib, unsigned
from tensorswap.config import ConfigLike, config_of
from tensorswap.dtype import DTypeLike, dtype_of
from tensorswap.engine import Engine
from tensorswap.errors import InvalidArgumentError, ShutDownError
from tensorswap.memory import describe
from tensorswap.stats import OptimizerStats, Timer, stats_of, timers_of
from tensorswap.step import Step
from tensorswap.tensor import Path, path_bytes
from tensorswap.ticket import Ticket
from tensorswap.view import ParameterView

_NO_PARAMETER = 2**64 - 1
_ACCUMULATE = 1


class Partition(NamedTuple):
    """One piece of a parameter, in memory or in a raw file."""

    #: The parameter.
    id: int
    #: Elements of the parameter before the piece.
    offset: int = 0
    #: The piece in memory; or None, and `path` tells its file.
    data: Any = None
    #: The file, where the piece is not in memory.
    path: Optional[Path] = None
    #: Where in the file it begins, in bytes.
    file_offset: int = 0
    #: Its elements in the file.
    numel: int = 0
    #: Their type, f32, f16 or bf16; of memory, where it is not the data's own.
    dtype: Optional[DTypeLike] = None


class ParameterInfo(NamedTuple):
    """A parameter that the store records."""

    id: int
    numel: int


class GradientNorm(NamedTuple):
    """What `Optimizer.gradient_norm` tells."""

    #: Over the elements that are finite.
    sum_of_squares: float
    #: How many are not.
    nonfinite_count: int


class Optimizer:
    """Keeps the states of parameters in a store on storage, and brings them in to be updated.

        optimizer = tensorswap.Optimizer(engine, path="/mnt/nvme/run1")
        for name in ("master", "exp_avg", "exp_avg_sq"):
            optimizer.add_state(name)
        optimizer.add_parameter(7, 1_000_000, "layer0")
        if optimizer.step_number == 0:
            optimizer.initialize({7: weights})
            optimizer.commit()

    The key `path` names the directory of the store; it is made, or opened at its last durable step. One
    thread at a time may use an optimizer, a second one gets BusyError; but loops over a `Step` and what only
    asks may run in any thread. `close()`, or the end of a `with` block, drops what was not committed and
    unlocks the store.
    """

    def __init__(self, engine: Engine, config: ConfigLike = None, **keys: Any) -> None:
        self._states: Tuple[str, ...] = ()
        self._views: Dict[int, ParameterView] = {}
        self._engine = engine
        self._handle: Any = None
        out = ffi.new("tsw_optimizer **")
        check(lib.tsw_optimizer_new(engine._live(), config_of(config, keys), out))
        self._handle = ffi.gc(out[0], destructor(lib.tsw_optimizer_free))

    # What there is

    def add_state(self, name: str, dtype: DTypeLike = "f32", disk_dtype: DTypeLike = None) -> None:
        """Add a state that every parameter has; the first is the master parameter.

        `dtype` is its type in memory, `disk_dtype` the one on storage, where it is another one: of f32, f16
        and bf16. Call it in the same order in every run, before any parameter is added.
        """
        kind = dtype_of(dtype)
        disk = kind if disk_dtype is None else dtype_of(disk_dtype)
        check(lib.tsw_optimizer_add_state(self._live(), _name(name), kind, disk))
        self._states += (name,)

    def add_parameter(self, id: int, numel: int, name: Optional[str] = None) -> None:
        """Register a parameter of `numel` elements under an id: a number that is the same in every run.

        In a store that was there it attaches to what is recorded. One that is never initialized is zero.
        """
        c_name = ffi.NULL if name is None else _name(name)
        check(lib.tsw_optimizer_add_parameter(self._live(), unsigned(id, "id"), c_name, unsigned(numel, "numel")))

    @property
    def states(self) -> Tuple[str, ...]:
        """The names of the states, in the order in which they were added."""
        return self._states

    def parameters(self) -> List[ParameterInfo]:
        """The parameters that the store records, in the order of first registration."""
        handle = self._live()
        id_out, numel_out = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        found = []
        for index in range(lib.tsw_optimizer_parameters_len(handle)):
            check(lib.tsw_optimizer_parameter_at(handle, index, id_out, numel_out))
            found.append(ParameterInfo(int(id_out[0]), int(numel_out[0])))
        return found

    @property
    def step_number(self) -> int:
        """How many steps were done, counting from the store's beginning."""
        return int(lib.tsw_optimizer_step_number(self._live()))

    @property
    def user_data(self) -> bytes:
        """The bytes that were set last, or that the store was opened with."""
        handle = self._live()
        length = lib.tsw_optimizer_get_user_data(handle, ffi.NULL, 0)
        memory = ffi.new("char[]", max(length, 1))
        length = min(length, lib.tsw_optimizer_get_user_data(handle, memory, length))
        data: bytes = ffi.unpack(memory, length)
        return data

    @user_data.setter
    def user_data(self, data: Any) -> None:
        """Set what is committed with the next step, at most 1 MiB: what else a resumed run needs."""
        view = memoryview(data).cast("B")
        check(lib.tsw_optimizer_set_user_data(self._live(), ffi.from_buffer(view), view.nbytes))

    # Values

    def initialize(self, masters: Mapping[int, Any]) -> None:
        """Give parameters the values of their master, and zero to their other states.

        `masters` tells by id an array or a tensor of f32, f16 or bf16. Pending until the next `commit`.
        """
        ids = [unsigned(id, "id") for id in masters]
        array, _keep = _tensors(list(masters.values()), False, 0)
        check(lib.tsw_optimizer_initialize_parameters(self._live(), ffi.new("uint64_t[]", ids), array, len(ids)))

    def initialize_from_swapped(self, partitions: Iterable[Partition]) -> None:
        """Give parameters the values of their master from pieces, in memory or in raw files.

        The pieces of a parameter may come in any order and must cover it exactly. Pending until `commit`.
        """
        pieces = list(partitions)
        array = ffi.new("tsw_partition[]", len(pieces))
        keep = []
        for slot, piece in zip(array, pieces):
            if (piece.data is None) == (piece.path is None):
                raise InvalidArgumentError("a partition has either data or a path")
            slot.param_id, slot.offset = unsigned(piece.id, "id"), unsigned(piece.offset, "offset")
            if piece.path is not None:
                text = ffi.new("char[]", path_bytes(piece.path))
                keep.append(text)
                slot.path = text
                slot.tensor.numel = unsigned(piece.numel, "numel")
                slot.tensor.dtype = dtype_of("f32" if piece.dtype is None else piece.dtype)
                slot.tensor.file_offset = unsigned(piece.file_offset, "file_offset")
            else:
                pointer, numel, kind, owner = describe(piece.data, False, piece.dtype)
                keep.append(owner)
                slot.tensor.data, slot.tensor.numel, slot.tensor.dtype = pointer, numel, kind
        check(lib.tsw_optimizer_initialize_from_swapped(self._live(), array, len(pieces)))

    def snapshot(self, directory: Path) -> Ticket:
        """Start a copy of the step that was committed last, in a directory that is not there yet.

            optimizer.commit()
            ticket = optimizer.snapshot("/mnt/nvme/snapshots/1000")

        It appears there whole, once the ticket has ended, or not at all. Training goes on meanwhile; one snapshot
        at a time. With several ranks each has a directory of its own: `snap/rank0`, `snap/rank1`, and so on.
        """
        text = path_bytes(directory)
        out = ffi.new("tsw_ticket *")
        check(lib.tsw_optimizer_snapshot(self._live(), ffi.new("char[]", text), out))
        return self._engine._enter(out[0], None, (text,))

    def restore(self, directory: Path) -> None:
        """Bring a snapshot back, into a new store to which the states of the snapshot were added.

        It registers the parameters, verifies every byte, and commits: the store is then at the snapshot's step.
        """
        check(lib.tsw_optimizer_restore(self._live(), ffi.new("char[]", path_bytes(directory))))

    def export_safetensors(self, file: Path, shard_bytes_max: int = 0) -> None:
        """Write all states of all parameters, committed or not, as safetensors, in place of what is there.

        The master has the name of its parameter (`parameter.<id>` without one), other states `.` and their own
        name behind it, each of one dimension and in its type on storage. Data longer than `shard_bytes_max`, where
        that is not 0, goes into several files, which `<file>.index.json` lists as Hugging Face's libraries do.
        """
        text = ffi.new("char[]", path_bytes(file))
        check(lib.tsw_optimizer_export_safetensors(self._live(), text, unsigned(shard_bytes_max, "shard_bytes_max")))

    def initialize_from_safetensors(self, file: Path, ids: Union[Iterable[int], Mapping[int, Optional[str]]]) -> None:
        """Give parameters the values of their master from a safetensors file, or from an index of several.

        `ids` are the parameters; a mapping tells for each the name of its tensor, where it is not the one that an
        export gives it, or None. The tensors are f32, f16 or bf16, of any shape. Pending until `commit`.
        """
        numbers = [unsigned(id, "id") for id in ids]
        names = [ids[id] for id in ids] if isinstance(ids, Mapping) else [None] * len(numbers)
        texts = [ffi.NULL if name is None else ffi.new("char[]", _name(name)) for name in names]
        check(
            lib.tsw_optimizer_initialize_from_safetensors(
                self._live(),
                ffi.new("char[]", path_bytes(file)),
                ffi.new("uint64_t[]", numbers),
                ffi.new("char *[]", texts),
                len(numbers),
            )
        )

    def purge_state(self) -> None:
        """Set the moments of all parameters back to zero; the masters stay. Pending until `commit`."""
        check(lib.tsw_optimizer_purge_state(self._live()))

    def read_state(self, id: int, state: str, destination: Any) -> None:
        """Copy one state of a parameter into an array or a tensor of the state's type and size."""
        array, _keep = _tensors([destination], True, 0)
        check(lib.tsw_optimizer_read_state(self._live(), unsigned(id, "id"), _name(state), array))

    def write_state(self, id: int, state: str, source: Any) -> None:
        """Replace one state of a parameter by the values of an array or a tensor. Pending until `commit`."""
        array, _keep = _tensors([source], False, 0)
        check(lib.tsw_optimizer_write_state(self._live(), unsigned(id, "id"), _name(state), array))

    # Gradients

    def pre_backward(self) -> None:
        """Say that a backward pass begins. It clears nothing."""
        check(lib.tsw_optimizer_pre_backward(self._live()))

    def post_backward(self) -> None:
        """Say that a backward pass is over."""
        check(lib.tsw_optimizer_post_backward(self._live()))

    def swap_out_gradient(
        self, id: int, data: Any, offset: int = 0, *, accumulate: bool = False, dtype: DTypeLike = None
    ) -> None:
        """Take a region of a parameter's gradient, `offset` elements into it; f32, f16 or bf16.

        It replaces what was there or, with `accumulate`, is added to it. The memory is the program's again
        when this returns. Gradients end with the step.
        """
        pointer, numel, kind, _keep = describe(data, False, dtype)
        tensor = ffi.new("tsw_tensor *", (pointer, numel, kind, _ACCUMULATE if accumulate else 0))
        offsets = ffi.new("uint64_t *", unsigned(offset, "offset"))
        check(lib.tsw_optimizer_swap_out_gradients(self._live(), unsigned(id, "id"), offsets, tensor, 1))

    def swap_out_gradients(
        self, id: int, regions: Iterable[Tuple[int, Any]], *, accumulate: bool = False
    ) -> None:
        """Take several regions of a parameter's gradient: pairs of offset and data. All are checked first."""
        pairs = list(regions)
        offsets = ffi.new("uint64_t[]", [unsigned(offset, "offset") for offset, _data in pairs])
        array, _keep = _tensors([data for _offset, data in pairs], False, _ACCUMULATE if accumulate else 0)
        check(lib.tsw_optimizer_swap_out_gradients(self._live(), unsigned(id, "id"), offsets, array, len(pairs)))

    def flush_gradients(self) -> None:
        """Wait until gradients that go to storage are there. Raises what storage had to say."""
        check(lib.tsw_optimizer_flush_gradients(self._live()))

    def gradient_norm(self, id: int) -> GradientNorm:
        """The sum of squares of a parameter's gradient, and how many elements are not finite."""
        total, nonfinite = ffi.new("double *"), ffi.new("uint64_t *")
        check(lib.tsw_optimizer_gradient_norm(self._live(), unsigned(id, "id"), total, nonfinite))
        return GradientNorm(float(total[0]), int(nonfinite[0]))

    def discard_gradients(self) -> None:
        """Forget all gradients."""
        check(lib.tsw_optimizer_discard_gradients(self._live()))

    # Updates

    def step(self, ids: Optional[Iterable[int]] = None) -> Step:
        """A step over some parameters, or over all: to be looped over, see `Step`."""
        return Step(self, ids)

    def swap_in_state(self, id: int, next_id: Optional[int] = None) -> ParameterView:
        """Bring one parameter in, and begin to bring in the one that is asked for next.

        Give it back by `swap_out_state` or `release_state`. `next_id` must then be the next one brought in,
        or be released.
        """
        handle = self._live()
        found = ffi.new("tsw_parameter_view *")
        found.struct_size = ffi.sizeof("tsw_parameter_view")
        announced = _NO_PARAMETER if next_id is None else unsigned(next_id, "id")
        check(lib.tsw_optimizer_swap_in_state(handle, unsigned(id, "id"), announced, found))
        view = ParameterView(found, self._states, handle)
        self._views[id] = view
        return view

    def swap_out_state(self, id: int, *, wait: bool = False) -> None:
        """Write a parameter that was brought in back. With `wait` it is written when this returns.

        Durable with the next `commit`, which then counts a step.
        """
        check(lib.tsw_optimizer_swap_out_state(self._live(), unsigned(id, "id"), 0 if wait else 1))
        self._ended(id)

    def release_state(self, id: int) -> None:
        """Give a parameter up that was brought in, or announced as the next, and was not changed."""
        check(lib.tsw_optimizer_release_state(self._live(), unsigned(id, "id")))
        self._ended(id)

    def _ended(self, id: int) -> None:
        view = self._views.pop(id, None)
        if view is not None:
            view._end()

    def commit(self) -> None:
        """Make all that is done durable, and wait for it."""
        check(lib.tsw_optimizer_commit(self._live()))

    # What it does

    def stats(self) -> OptimizerStats:
        """What the optimizer has done, and what its last step was like."""
        return stats_of(OptimizerStats, lib.tsw_optimizer_get_stats, self._live())

    def timers(self) -> Dict[str, Timer]:
        """The timers that have run, by their names, which are DeepSpeed's."""
        return timers_of(lib.tsw_optimizer_timer_names, lib.tsw_optimizer_get_timer, self._live())

    # End

    def close(self) -> None:
        """Free the optimizer and unlock its store. Twice is fine.

        What was not committed is dropped. Where the program still holds a parameter that is out, or a call is
        under way in another thread, that happens as soon as it is over.
        """
        self._handle = None
        self._views.clear()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _live(self) -> Any:
        """The handle. A call that holds it keeps the optimizer from being freed meanwhile."""
        handle = self._handle
        if handle is None:
            raise ShutDownError("the optimizer is closed")
        return handle


def _name(name: str) -> Any:
    encoded = name.encode("utf-8")
    if b"\0" in encoded:
        raise InvalidArgumentError(f"a name cannot hold a NUL: {name!r}")
    return encoded


def _tensors(data: List[Any], writable: bool, flags: int) -> Tuple[Any, List[Any]]:
    """Arrays as the list that the optimizer's functions take, and what must stay alive with it."""
    array = ffi.new("tsw_tensor[]", len(data))
    keep = []
    for slot, item in zip(array, data):
        pointer, numel, kind, owner = describe(item, writable)
        keep.append(owner)
        slot.data, slot.numel, slot.dtype, slot.flags = pointer, numel, kind, flags
    return array, keep
