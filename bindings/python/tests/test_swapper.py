"""The swapper."""

from pathlib import Path

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Swapper


def test_memory_is_ours_again_when_a_call_returns(engine: Engine, tmp_path: Path) -> None:
    values = np.arange(300_000.0)
    with Swapper(engine, buffers=[engine.buffer(1 << 20) for _ in range(2)]) as swapper:
        swapper.swap_out(values, tmp_path / "file")
        values[:] = 0
        swapper.swap_in(values, tmp_path / "file")
        assert (values == np.arange(300_000.0)).all()
        swapper.flush()
        assert (np.fromfile(tmp_path / "file") == values).all()
        stats = swapper.stats()
        assert (stats.swap_out_tensors_count, stats.swap_out_elements_count) == (1, 300_000)
        assert swapper.timers()["swap_out"].runs == 1
        assert "flush" in swapper.timers() and "nothing" not in swapper.timers()


def test_buffers_come_back_and_may_be_given_again(engine: Engine, tmp_path: Path) -> None:
    buffers = [engine.buffer(8192) for _ in range(2)]
    swapper = Swapper(engine)
    assert not swapper.has_buffers
    with pytest.raises(tensorswap.NoBuffersError):
        swapper.swap_out(b"1234", tmp_path / "file")
    swapper.add_buffers(buffers, "f32")
    assert swapper.has_buffers
    with pytest.raises(tensorswap.BusyError):
        swapper.add_buffers(buffers)
    with pytest.raises(tensorswap.BusyError):
        Swapper(engine, buffers=buffers)
    with pytest.raises(tensorswap.DtypeMismatchError):
        swapper.swap_out(np.zeros(4), tmp_path / "file")
    swapper.swap_out(np.zeros(4, np.float32), tmp_path / "file")
    assert swapper.release_buffers() == buffers
    assert not swapper.has_buffers and (tmp_path / "file").stat().st_size == 16
    swapper.add_buffers(buffers)
    swapper.close()
    swapper.close()
    buffers[0].numpy()[:] = 1
    for call in (swapper.flush, swapper.submit, swapper.stats, swapper.release_buffers):
        with pytest.raises(tensorswap.ShutDownError, match="the swapper is closed"):
            call()


@pytest.mark.parametrize("case", ["none", "twice", "another engine", "closed"])
def test_buffers_that_cannot_be_are_refused(engine: Engine, case: str) -> None:
    buffer = engine.buffer(4096)
    other = Engine()
    closed = engine.buffer(4096)
    closed.close()
    wrong = {"none": [], "twice": [buffer, buffer], "another engine": [other.buffer(4096)], "closed": [closed]}[case]
    with pytest.raises(tensorswap.InvalidArgumentError):
        Swapper(engine, buffers=wrong)
    other.close()


def test_the_flush_tells_what_went_wrong(engine: Engine, tmp_path: Path) -> None:
    swapper = Swapper(engine, buffers=[engine.buffer(8192)])
    swapper.swap_out(bytes(100), tmp_path / "none" / "file")
    with pytest.raises(FileNotFoundError):
        swapper.flush()
    swapper.flush(1.0)
    swapper.swap_out(bytes(100), tmp_path / "none" / "file")
    with pytest.raises(FileNotFoundError):
        swapper.close()
    assert swapper.closed


def test_what_cannot_be_swapped_is_refused_before_anything_is_staged(engine: Engine, tmp_path: Path) -> None:
    with Swapper(engine, buffers=[engine.buffer(8192)]) as swapper:
        with pytest.raises(tensorswap.InvalidArgumentError, match="not contiguous"):
            swapper.swap_out_many([(b"1234", tmp_path / "good"), (np.zeros(8)[::2], tmp_path / "bad")])
        with pytest.raises(tensorswap.InvalidArgumentError, match="read-only"):
            swapper.swap_in(b"1234", tmp_path / "good")
    assert list(tmp_path.iterdir()) == []
