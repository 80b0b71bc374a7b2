"""The optimizer's store, and steps over it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Optimizer, Partition

SIZES = {10: 1000, 11: 3, 20: 70_001, 21: 4096}


def opened(engine: Engine, path: Path, **keys: Any) -> Optimizer:
    optimizer = Optimizer(engine, path=path, **keys)
    for name in ("master", "momentum"):
        optimizer.add_state(name)
    for id, numel in SIZES.items():
        optimizer.add_parameter(id, numel, f"layer{id}")
    return optimizer


def gradient(id: int, step: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng([id, step]).standard_normal(SIZES[id], np.float32)


def masters() -> Dict[int, Any]:
    return {id: np.arange(numel, dtype=np.float32) for id, numel in SIZES.items()}


class InMemory:
    """The same training without a store."""

    def __init__(self) -> None:
        self.master, self.momentum = masters(), {id: np.zeros(n, np.float32) for id, n in SIZES.items()}

    def step(self, number: int) -> None:
        for id in SIZES:
            update(self.master[id], self.momentum[id], gradient(id, number))


def update(master: Any, momentum: Any, slope: Any) -> None:
    momentum *= np.float32(0.9)
    momentum += slope
    master -= np.float32(0.1) * momentum


def run_step(optimizer: Optimizer, number: int) -> None:
    for id in SIZES:
        optimizer.swap_out_gradient(id, gradient(id, number))
    for parameter in optimizer.step():
        states = parameter.states
        assert parameter.gradient is not None
        update(states["master"].numpy(), states[1].numpy(), parameter.gradient.numpy())


def assert_equal(optimizer: Optimizer, model: InMemory) -> None:
    for id, numel in SIZES.items():
        for state, expected in (("master", model.master[id]), ("momentum", model.momentum[id])):
            found = np.empty(numel, np.float32)
            optimizer.read_state(id, state, found)
            assert (found == expected).all(), (id, state)


@pytest.mark.parametrize("cache", ["0", "1GiB"])
def test_training_on_a_store_equals_training_in_memory_and_resumes(engine: Engine, tmp_path: Path, cache: str) -> None:
    model = InMemory()
    number = 0
    for _run in range(3):
        with opened(engine, tmp_path, cache_bytes=cache) as optimizer:
            assert optimizer.step_number == number
            assert optimizer.user_data == (b"" if number == 0 else f"after {number}".encode())
            assert optimizer.parameters() == list(SIZES.items())
            if number == 0:
                optimizer.initialize(masters())
                optimizer.commit()
            assert_equal(optimizer, model)
            for _turn in range(3):
                number += 1
                optimizer.user_data = f"after {number}".encode()
                run_step(optimizer, number)
                model.step(number)
            optimizer.commit()
            stats = optimizer.stats()
            assert (stats.steps_count, stats.durable_step, stats.parameters_count) == (number, number, len(SIZES))
            assert stats.written_bytes > 0 and "commit" in optimizer.timers()
            assert_equal(optimizer, model)


@pytest.mark.parametrize("end", ["exception", "break", "with", "return"])
def test_a_loop_that_is_left_aborts_the_step(engine: Engine, tmp_path: Path, end: str) -> None:
    model = InMemory()
    with opened(engine, tmp_path) as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
        run_step(optimizer, 1)
        model.step(1)

        def damage() -> None:
            for seen, parameter in enumerate(optimizer.step()):
                parameter.states["master"].numpy()[:] = -1
                if seen == 2:
                    if end == "return":
                        return
                    if end == "break":
                        break
                    raise ZeroDivisionError

        if end == "exception":
            with pytest.raises(ZeroDivisionError):
                damage()
        elif end == "with":
            with pytest.raises(ZeroDivisionError), optimizer.step() as step:
                for parameter in step:
                    parameter.states["master"].numpy()[:] = -1
                raise ZeroDivisionError
        else:
            damage()
        assert optimizer.step_number == 1
        assert_equal(optimizer, model)
        run_step(optimizer, 2)
        model.step(2)
        assert_equal(optimizer, model)


def test_threads_share_a_step(engine: Engine, tmp_path: Path) -> None:
    model = InMemory()
    with opened(engine, tmp_path, views_max=4) as optimizer:
        optimizer.initialize(masters())
        for number in range(1, 6):
            for id in SIZES:
                optimizer.swap_out_gradient(id, gradient(id, number))
            with optimizer.step() as step:

                def work() -> None:
                    for parameter in step:
                        assert parameter.gradient is not None
                        update(*(state.numpy() for state in parameter.states), parameter.gradient.numpy())

                threads = [threading.Thread(target=work) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            model.step(number)
            assert_equal(optimizer, model)
        assert optimizer.step_number == 5


def test_a_thread_that_fails_aborts_the_step_of_all(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path, views_max=4) as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
        lost = []

        def work(step: Any, fails: bool) -> None:
            try:
                for parameter in step:
                    parameter.states[0].numpy()[:] = -1
                    if fails:
                        raise ZeroDivisionError
            except (ZeroDivisionError, tensorswap.CancelledError) as error:
                lost.append(error)

        with pytest.raises(tensorswap.CancelledError, match="a loop over it did not see its end"):
            with optimizer.step() as step:
                threads = [threading.Thread(target=work, args=(step, number == 1)) for number in range(4)]
                threads[1].start()
                threads[1].join()
                for number in (0, 2, 3):
                    threads[number].start()
                    threads[number].join()
        assert any(isinstance(error, ZeroDivisionError) for error in lost)
        assert optimizer.step_number == 0
        assert_equal(optimizer, InMemory())


def test_a_step_over_some_parameters_and_unchanged_ones(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
        seen = []
        for parameter in optimizer.step([21, 10]):
            seen.append((parameter.id, parameter.numel))
            assert parameter.gradient is None and len(parameter.states) == 2
            assert parameter.states.names == ("master", "momentum")
            parameter.changed = False
        assert sorted(seen) == [(10, 1000), (21, 4096)]
        assert optimizer.stats().step_written_bytes == 0
        for ids in ([99], [10, 10], [2**64 - 1]):
            with pytest.raises(tensorswap.Error):
                list(optimizer.step(ids))
        for ids in ([-1], [2**64]):
            with pytest.raises(tensorswap.InvalidArgumentError):
                list(optimizer.step(ids))
        list(optimizer.step([]))
        assert optimizer.step_number == 2


def test_parameters_one_by_one(engine: Engine, tmp_path: Path) -> None:
    model = InMemory()
    with opened(engine, tmp_path) as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
        order = list(SIZES)
        optimizer.pre_backward()
        for id in order:
            optimizer.swap_out_gradients(id, [(0, gradient(id, 1)[:1]), (1, gradient(id, 1)[1:])])
        optimizer.flush_gradients()
        optimizer.post_backward()
        for id, next_id in zip(order, [*order[1:], None]):
            view = optimizer.swap_in_state(id, next_id)
            assert view.gradient is not None
            update(view.states["master"].numpy(), view.states["momentum"].numpy(), view.gradient.numpy())
            with pytest.raises(tensorswap.BusyError):
                optimizer.swap_in_state(id)
            optimizer.swap_out_state(id, wait=id == 20)
            with pytest.raises(tensorswap.InvalidArgumentError, match="given back"):
                view.states[0].numpy()
        optimizer.commit()
        model.step(1)
        assert optimizer.step_number == 1
        assert_equal(optimizer, model)
        optimizer.swap_in_state(10, 11)
        optimizer.release_state(10)
        optimizer.release_state(11)
        with pytest.raises(tensorswap.BusyError):
            optimizer.swap_out_state(10)


def test_gradients_add_up_and_are_measured(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as optimizer:
        ones = np.ones(1000, np.float32)
        assert optimizer.gradient_norm(10) == (0.0, 0)
        optimizer.swap_out_gradient(10, ones)
        optimizer.swap_out_gradient(10, ones[:10], 5, accumulate=True)
        optimizer.swap_out_gradients(10, [(0, ones[:1]), (999, ones[:1])], accumulate=True)
        assert optimizer.gradient_norm(10) == (1000 + 12 * 3, 0)
        optimizer.swap_out_gradient(10, np.full(2, np.inf, np.float32))
        assert optimizer.gradient_norm(10).nonfinite_count == 2
        optimizer.discard_gradients()
        assert optimizer.gradient_norm(10) == (0.0, 0)
        optimizer.swap_out_gradient(10, np.full(1000, 0x3FC0, np.uint16), dtype="bf16")
        assert optimizer.gradient_norm(10) == (2250.0, 0)
        for bad, error in (
            (np.ones(1001, np.float32), tensorswap.InvalidArgumentError),
            (np.ones(1000), tensorswap.DtypeMismatchError),
            (np.ones(1000, np.float32)[::2], tensorswap.InvalidArgumentError),
        ):
            with pytest.raises(error):
                optimizer.swap_out_gradient(10, bad)
        with pytest.raises(tensorswap.InvalidArgumentError):
            optimizer.swap_out_gradient(10, ones[:10], -1)


def test_a_state_may_be_smaller_on_storage(engine: Engine, tmp_path: Path) -> None:
    with Optimizer(engine, path=tmp_path) as optimizer:
        optimizer.add_state("master")
        optimizer.add_state("momentum", "f32", disk_dtype="bf16")
        optimizer.add_parameter(1, 5)
        assert optimizer.states == ("master", "momentum")
        for parameter in optimizer.step():
            parameter.states["momentum"].numpy()[:] = [1, 1.5, 1 + 2**-10, -3, 0]
        found = np.zeros(5, np.float32)
        optimizer.read_state(1, "momentum", found)
        assert found.tolist() == [1, 1.5, 1, -3, 0]


def test_states_are_written_purged_and_initialized_from_pieces(engine: Engine, tmp_path: Path) -> None:
    halves = np.arange(4096).astype(np.float16)
    engine.swap_out(halves[2000:], tmp_path / "raw", 64).wait()
    with opened(engine, tmp_path) as optimizer:
        optimizer.initialize_from_swapped(
            [
                Partition(21, 2000, path=tmp_path / "raw", file_offset=64, numel=2096, dtype="f16"),
                Partition(21, 0, halves[:2000]),
                Partition(11, data=np.ones(3, np.float32)),
            ]
        )
        found = np.zeros(4096, np.float32)
        optimizer.read_state(21, "master", found)
        assert (found == halves).all()
        optimizer.write_state(21, "momentum", found)
        optimizer.purge_state()
        optimizer.read_state(21, "momentum", found)
        assert (found == 0).all()
        for pieces in ([Partition(21)], [Partition(21, data=halves, path="x")], [Partition(21, data=halves[1:])]):
            with pytest.raises(tensorswap.InvalidArgumentError):
                optimizer.initialize_from_swapped(pieces)
        with pytest.raises(FileNotFoundError):
            optimizer.initialize_from_swapped([Partition(21, path=tmp_path / "none", numel=4096)])


def test_the_store_is_locked_until_the_optimizer_is_closed(engine: Engine, tmp_path: Path) -> None:
    first = opened(engine, tmp_path)
    kept = []
    for parameter in first.step():
        kept.append(parameter.states["master"].numpy())  # ends with the loop's turn; must not keep the lock
    with pytest.raises(tensorswap.LockedError) as raised:
        opened(engine, tmp_path)
    assert isinstance(raised.value, OSError) and raised.value.retryable
    first.close()
    first.close()
    assert first.closed
    opened(engine, tmp_path).close()
    with pytest.raises(tensorswap.ShutDownError, match="the optimizer is closed"):
        first.commit()


def test_a_view_that_is_out_keeps_a_closed_optimizer(engine: Engine, tmp_path: Path) -> None:
    optimizer = opened(engine, tmp_path)
    view = optimizer.swap_in_state(20)
    array = view.states["master"].numpy()
    optimizer.close()
    array[:] = 7
    assert array.sum() == 7 * SIZES[20]
    del array, view
    opened(engine, tmp_path).close()


REFUSED = {
    "no path": ({}, tensorswap.ConfigError),
    "an unknown key": ({"path": "{}", "pth": "x"}, tensorswap.ConfigError),
    "an unknown value": ({"path": "{}", "store": "maybe"}, tensorswap.ConfigError),
    "a store that is not there": ({"path": "{}", "store": "existing"}, FileNotFoundError),
    "a file for a directory": ({"path": "{}/file"}, OSError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_store_that_cannot_be_opened(engine: Engine, tmp_path: Path, case: str) -> None:
    keys, error = REFUSED[case]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(error) as raised:
        Optimizer(engine, {key: value.format(tmp_path) for key, value in keys.items()})
    assert isinstance(raised.value, tensorswap.Error) and "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_store_with_other_states_or_sizes_is_refused(engine: Engine, tmp_path: Path) -> None:
    opened(engine, tmp_path).close()
    with opened(engine, tmp_path) as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
    with Optimizer(engine, path=tmp_path) as optimizer:
        with pytest.raises(tensorswap.SizeMismatchError, match="master"):
            optimizer.add_state("weights")
        optimizer.add_state("master")
        optimizer.add_state("momentum")
        with pytest.raises(tensorswap.SizeMismatchError, match="1000"):
            optimizer.add_parameter(10, 999, "layer10")
        assert optimizer.states == ("master", "momentum")


def test_calls_with_wrong_arguments_say_so(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as optimizer:
        small = np.zeros(3, np.float32)
        for call, error in (
            (lambda: optimizer.read_state(99, "master", small), KeyError),
            (lambda: optimizer.read_state(11, "nothing", small), tensorswap.InvalidArgumentError),
            (lambda: optimizer.read_state(11, "master", np.zeros(4, np.float32)), tensorswap.InvalidArgumentError),
            (lambda: optimizer.read_state(11, "master", np.zeros(3)), tensorswap.DtypeMismatchError),
            (lambda: optimizer.read_state(11, "master", b"123456789012"), tensorswap.InvalidArgumentError),
            (lambda: optimizer.read_state(11, "a\0b", small), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_parameter(-1, 1), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_parameter(2**64 - 1, 1), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_parameter(1, 0), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_parameter(10, 1000), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_state("late"), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_state("x", "f33"), tensorswap.DtypeMismatchError),
            (lambda: optimizer.initialize({11: np.zeros(4, np.float32)}), tensorswap.InvalidArgumentError),
            (lambda: optimizer.initialize({99: small}), tensorswap.UnknownParameterError),
            (lambda: setattr(optimizer, "user_data", bytes((1 << 20) + 1)), tensorswap.InvalidArgumentError),
            (lambda: optimizer.add_parameter("x", 1), AttributeError),  # type: ignore[arg-type]
        ):
            with pytest.raises(error):
                call()


def test_a_damaged_record_is_a_checksum_error_and_the_step_is_undone(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path, checksum="verify") as optimizer:
        optimizer.initialize(masters())
        optimizer.commit()
    (data,) = [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size > SIZES[20] * 8]
    content = bytearray(data.read_bytes())
    place = content.find(np.arange(5000, 5100, dtype=np.float32).tobytes())
    while place >= 0:
        content[place] ^= 1
        place = content.find(np.arange(5000, 5100, dtype=np.float32).tobytes())
    data.write_bytes(content)
    with Engine() as fresh, opened(fresh, tmp_path, checksum="verify") as optimizer:
        with pytest.raises(tensorswap.ChecksumError, match="20"):
            for parameter in optimizer.step():
                parameter.states["master"].numpy()[:] = 0
        assert optimizer.step_number == 0
        found = np.zeros(1000, np.float32)
        optimizer.read_state(10, "master", found)
        assert (found == np.arange(1000)).all()
        with pytest.raises(OSError):
            optimizer.swap_in_state(20)
        with pytest.raises(tensorswap.CancelledError) as raised, optimizer.step() as step:
            thread = threading.Thread(target=lambda: [None for _parameter in swallow(step)])
            thread.start()
            thread.join()
        assert isinstance(raised.value.__cause__, tensorswap.ChecksumError)
        assert optimizer.step_number == 0


def test_a_snapshot_is_restored_into_another_store(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path / "store") as optimizer:
        optimizer.initialize(masters())
        with pytest.raises(tensorswap.InvalidArgumentError, match="nothing was committed"):
            optimizer.snapshot(tmp_path / "early")
        run_step(optimizer, 1)
        optimizer.commit()
        ticket = optimizer.snapshot(tmp_path / "snap")
        run_step(optimizer, 2)
        done, total = ticket.progress() if not ticket.done() else (1, 1)
        assert done <= total
        assert ticket.wait().bytes_done > 0
        with pytest.raises(tensorswap.Error, match="snap"):
            optimizer.snapshot(tmp_path / "snap")
        states = optimizer.states
    with tensorswap.Optimizer(engine, path=tmp_path / "other", store="new") as other:
        for name in states:
            other.add_state(name)
        with pytest.raises(FileNotFoundError):
            other.restore(tmp_path / "nowhere")
        other.restore(tmp_path / "snap")
        assert other.step_number == 1
        assert [parameter.id for parameter in other.parameters()] == list(SIZES)


def swallow(step: Any) -> Any:
    """Loops over a step in a thread, whose exceptions pytest would report."""
    try:
        yield from step
    except tensorswap.ChecksumError:
        pass


KILLED = """
import os, signal, sys, numpy, tensorswap
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_optimizer import SIZES, gradient, masters, opened, run_step, update
engine = tensorswap.Engine()
optimizer = opened(engine, Path(sys.argv[1]))
optimizer.initialize(masters())
optimizer.commit()
run_step(optimizer, 1)
optimizer.commit()
for id in SIZES:
    optimizer.swap_out_gradient(id, gradient(id, 2))
for seen, p in enumerate(optimizer.step()):
    update(p.states[0].numpy(), p.states[1].numpy(), p.gradient.numpy())
    if seen == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_in_a_step_resumes_before_it(engine: Engine, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    model = InMemory()
    model.step(1)
    with opened(engine, tmp_path, store="existing") as optimizer:
        assert optimizer.step_number == 1
        assert_equal(optimizer, model)
