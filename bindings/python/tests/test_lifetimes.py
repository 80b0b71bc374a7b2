"""Memory stays as long as something uses it, and no longer."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine


def pinned_bytes(engine: Engine) -> int:
    gc.collect()
    return engine.stats().pinned_bytes


def test_a_closed_buffer_lives_as_long_as_its_arrays(engine: Engine) -> None:
    with engine.buffer(1 << 20) as buffer:
        array = buffer.numpy("f32")
        part = array[100:200]
    assert buffer.closed and pinned_bytes(engine) == 1 << 20
    del array
    part[:] = 7
    assert part.sum() == 700 and pinned_bytes(engine) == 1 << 20
    del part
    assert pinned_bytes(engine) == 0
    buffer.close()
    for use in (buffer.numpy, buffer.memoryview, lambda: buffer.address, lambda: buffer.view("f32"), lambda: buffer[0]):
        with pytest.raises((tensorswap.InvalidArgumentError, TypeError)):
            use()
    with pytest.raises(tensorswap.InvalidArgumentError, match="given back"):
        engine.swap_out(buffer, "nowhere")


@pytest.mark.parametrize("show", ["memoryview", "view", "asarray", "dlpack", "numpy"])
def test_every_form_of_pinned_memory_holds_it(engine: Engine, show: str) -> None:
    buffer = engine.buffer(4096)
    held = {
        "memoryview": lambda: buffer.memoryview(),
        "view": lambda: buffer.view("f32", 64, 10),
        "asarray": lambda: np.asarray(buffer.view("f32")),
        "dlpack": lambda: np.from_dlpack(buffer.view("f32")),
        "numpy": lambda: buffer.numpy("f64")[::3],
    }[show]()
    buffer.close()
    del buffer
    assert pinned_bytes(engine) == 4096
    del held
    assert pinned_bytes(engine) == 0


def test_a_buffer_outlives_its_engine() -> None:
    engine = Engine()
    array = engine.buffer(4096).numpy()
    engine.close()
    del engine
    gc.collect()
    array[:] = 3
    assert array.sum() == 3 * 4096


def test_memory_of_a_request_is_held_until_it_is_over(engine: Engine, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(64 << 20)
    values = np.ones(8 << 20)
    held = weakref.ref(values)
    blockers = [engine.swap_in(values, tmp_path / "file") for _ in range(20)]
    ticket = engine.swap_in(values, tmp_path / "file")
    del values
    gc.collect()
    assert held() is not None
    for other in blockers:
        other.wait()
    ticket.wait()
    gc.collect()
    assert held() is None


def test_memory_of_a_dropped_ticket_is_held_too(engine: Engine, tmp_path: Path) -> None:
    buffer = engine.buffer(32 << 20)
    buffer.numpy()[:] = 5
    engine.swap_out(buffer, tmp_path / "file")
    buffer.close()
    del buffer
    engine.wait_all()
    assert pinned_bytes(engine) == 0
    assert (np.fromfile(tmp_path / "file", np.uint8) == 5).all()


def test_an_engine_that_is_dropped_finishes_its_requests(tmp_path: Path) -> None:
    engine = Engine()
    engine.swap_out(np.full(4 << 20, 5, np.uint8), tmp_path / "file")
    del engine
    gc.collect()
    assert (np.fromfile(tmp_path / "file", np.uint8) == 5).all()


def test_registered_memory_is_held_until_the_buffer_ends(engine: Engine) -> None:
    values = np.ones(1000)
    held = weakref.ref(values)
    buffer = engine.register(values)
    view = buffer.view("f64").numpy()
    del values
    buffer.close()
    gc.collect()
    assert held() is not None and view.sum() == 1000
    del view
    gc.collect()
    assert held() is None


def test_a_swapper_holds_its_buffers(engine: Engine, tmp_path: Path) -> None:
    buffers = [engine.buffer(1 << 20) for _ in range(2)]
    swapper = tensorswap.Swapper(engine, buffers=buffers)
    for buffer in buffers:
        buffer.close()
    del buffers, buffer
    swapper.swap_out(np.arange(1_000_000.0), tmp_path / "file")
    swapper.close()
    assert (np.fromfile(tmp_path / "file") == np.arange(1_000_000.0)).all()
    del swapper
    assert pinned_bytes(engine) == 0


PROGRAMS = {
    "a request is under way": """
engine.swap_out(bytes(range(256)) * 200_000, path)
""",
    "everything is a global": """
buffer = engine.buffer(256 * 200_000)
array = numpy.asarray(buffer)
array[:] = numpy.frombuffer(bytes(range(256)) * 200_000, numpy.uint8)
ticket = engine.swap_out(array, path)
tensorswap.set_log(lambda *event: None, "trace")
""",
    "a swapper has staged it": """
swapper = tensorswap.Swapper(engine, buffers=[engine.buffer(256 * 200_000)])
swapper.swap_out(bytes(range(256)) * 200_000, path)
""",
    "an exception ends it": """
engine.swap_out(bytes(range(256)) * 200_000, path)
raise SystemExit
""",
    "it is in a cycle": """
class Cycle: pass
cycle = Cycle()
cycle.itself, cycle.engine, cycle.ticket = cycle, engine, engine.swap_out(bytes(range(256)) * 200_000, path)
del engine
""",
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_may_end_while(tmp_path: Path, case: str) -> None:
    program = "import sys, numpy, tensorswap\nengine, path = tensorswap.Engine(), sys.argv[1]\n" + PROGRAMS[case]
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) * 200_000
