"""Signals whose handlers raise, such as Ctrl-C, at every instant."""

import gc
import signal
import weakref
from pathlib import Path
from typing import Any, Callable, Iterator, List

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Optimizer


class Interrupted(Exception):
    """What the handler raises."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[float, Callable[[], None]], bool]]:
    """Runs a function, interrupts it after some seconds, and tells whether it was."""

    def handle(_number: int, frame: Any) -> None:
        while frame is not None and frame.f_code.co_name != "attempt":
            frame = frame.f_back
        if frame is not None:  # else it came too late
            raise Interrupted

    def run(seconds: float, attempt: Callable[[], None]) -> bool:
        assert attempt.__name__ == "attempt"
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            attempt()
        except Interrupted:
            return True
        return False

    before = signal.signal(signal.SIGALRM, handle)
    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", range(3))
def test_no_completion_and_no_memory_is_lost(engine: Engine, tmp_path: Path, interrupt: Any, seed: int) -> None:
    choose = np.random.default_rng(seed)
    held: List[Any] = []
    interrupted = 0
    for turn in range(150):
        tickets: List[tensorswap.Ticket] = []

        def attempt() -> None:
            for number in range(1000):
                values = np.full(3000, turn)
                held.append(weakref.ref(values))
                tickets.append(engine.swap_out(values, tmp_path / str(number % 10)))
                del values
                if number % 7 == 0:
                    tickets[-1].wait()
                elif number % 11 == 0:
                    engine.poll()

        interrupted += interrupt(choose.uniform(0.0001, 0.004), attempt)
        for ticket in tickets:
            assert ticket.wait(30).bytes_done == 24_000
        engine.wait_all()
    assert interrupted > 0
    tickets.clear()
    del attempt, ticket
    gc.collect()
    # At most what was noted twice: handed over, but not yet struck off, when the signal came.
    assert engine._pending == {} and len(engine._early) <= interrupted
    assert [reference for reference in held if reference() is not None] == []


@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_step_is_undone(engine: Engine, tmp_path: Path, interrupt: Any, seed: int) -> None:
    choose = np.random.default_rng(seed)
    with Optimizer(engine, path=tmp_path, cache_bytes=str(choose.choice(["0", "1GiB"]))) as optimizer:
        optimizer.add_state("master")
        for id in range(30):
            optimizer.add_parameter(id, 2000)

        def attempt() -> None:
            for parameter in optimizer.step():
                weights = parameter.states[0].numpy()
                weights += 1

        interrupted = 0
        found = np.empty(2000, np.float32)
        for _turn in range(100):
            before = optimizer.step_number
            interrupted += interrupt(choose.uniform(0.0005, 0.006), attempt)
            assert optimizer.step_number in (before, before + 1)
            for id in (0, 7, 29):
                optimizer.read_state(id, "master", found)
                assert (found == optimizer.step_number).all()
        assert interrupted > 0
