"""The log."""

import gc
import logging
from pathlib import Path
from typing import Iterator

import pytest
import tensorswap
from tensorswap import Engine


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    yield
    tensorswap.set_log(None)


def test_events_come_until_the_receiver_is_taken_away(tmp_path: Path) -> None:
    events = []
    tensorswap.set_log(lambda *event: events.append(event), "debug")
    with Engine() as engine:
        engine.swap_out(b"1234", tmp_path / "file").wait()
    assert any(target.startswith("tensorswap") and "engine" in message for _level, target, message in events)
    assert all(1 <= level <= 4 for level, _target, _message in events)
    tensorswap.set_log(None)
    events.clear()
    Engine().close()
    assert events == []


def test_events_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    tensorswap.set_log(tensorswap.to_logging)
    with caplog.at_level(logging.DEBUG):
        Engine().close()
    assert any(record.name.startswith("tensorswap") and record.levelno == logging.INFO for record in caplog.records)


@pytest.mark.parametrize("level", ["loud", 6, ""])
def test_a_level_that_is_none_is_refused(level: object) -> None:
    with pytest.raises(tensorswap.InvalidArgumentError):
        tensorswap.set_log(print, level)  # type: ignore[arg-type]


def test_the_garbage_collector_may_run_in_a_receiver() -> None:
    with Engine() as engine:

        class Cycle:
            pass

        def leave_garbage() -> None:
            cycle = Cycle()
            cycle.itself, cycle.buffer = cycle, engine.buffer(4096)  # type: ignore[attr-defined]

        pinned_in_receiver = []

        def collect(_level: int, _target: str, _message: str) -> None:
            gc.collect()
            pinned_in_receiver.append(engine.stats().pinned_bytes)

        gc.collect()
        gc.disable()
        leave_garbage()
        gc.enable()
        tensorswap.set_log(collect, "info")
        Engine().close()  # says that it started
        assert pinned_in_receiver[0] == 4096  # nothing is freed in a receiver
        tensorswap.set_log(None)
        engine.buffer(4096).close()  # but with the next object
        assert engine.stats().pinned_bytes == 0
