"""Random requests against a model: files as byte strings. Seeded, so a failure can be repeated."""

import random
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Swapper, Tensor

FILES = 4
LENGTH_MAX = 40_000


class Model:
    """What the files must hold."""

    def __init__(self) -> None:
        self.files: Dict[int, bytes] = {}

    def write(self, entries: List[Tuple[int, int, bytes, bool]]) -> None:
        """One request: file, offset, content, and whether the length is kept."""
        for number in {entry[0] for entry in entries}:
            mine = [entry for entry in entries if entry[0] == number]
            before = self.files.get(number, b"")
            end = max(offset + len(content) for _number, offset, content, _keep in mine)
            cut = any(offset == 0 and not keep for _number, offset, _content, keep in mine)
            content = bytearray(before.ljust(end, b"\0"))
            for _number, offset, piece, _keep in mine:
                content[offset : offset + len(piece)] = piece
            self.files[number] = bytes(content[:end] if cut else content)

    def read(self, number: int, offset: int, length: int) -> Optional[bytes]:
        content = self.files.get(number)
        if content is None or (length > 0 and offset + length > len(content)):
            return None
        return content[offset : offset + length]


def random_data(choose: random.Random, pinned: Any) -> Any:
    """Memory of some kind with random bytes; sometimes odd in address and length."""
    length = choose.choice((0, 1, 7, 4096, choose.randrange(LENGTH_MAX)))
    content = choose.randbytes(length)
    kind = choose.randrange(4)
    if kind == 0:
        return bytearray(content)
    if kind == 1:
        return np.frombuffer(content, np.uint8).copy()
    if kind == 2:
        whole = np.zeros(length + 8, np.uint8)
        part = whole[3 : 3 + length]
        part[:] = np.frombuffer(content, np.uint8)
        return part
    start = choose.choice((0, 4096, choose.randrange(1000)))
    part = pinned[start : start + length]
    part[:] = np.frombuffer(content, np.uint8)
    return part


def random_offset(choose: random.Random) -> int:
    return choose.choice((0, 0, 4096, choose.randrange(LENGTH_MAX)))


@pytest.mark.parametrize("backend", ["auto", "threads", "memory"])
@pytest.mark.parametrize("seed", range(5))
def test_requests_do_what_the_model_does(tmp_path: Path, backend: str, seed: int) -> None:
    choose, model = random.Random(seed), Model()
    paths = [tmp_path / str(number) for number in range(FILES)]
    with Engine(backend=backend) as engine:
        pinned = engine.buffer(LENGTH_MAX + 4096).numpy()
        for _turn in range(150):
            number, offset = choose.randrange(FILES), random_offset(choose)
            data = random_data(choose, pinned)
            if choose.random() < 0.5:
                keep = choose.random() < 0.3
                engine.swap_out(data, paths[number], offset, keep_length=keep).wait()
                model.write([(number, offset, bytes(data), keep)])
            else:
                expected = model.read(number, offset, len(data))
                if expected is None:
                    with pytest.raises((FileNotFoundError, tensorswap.SizeMismatchError)):
                        engine.swap_in(data, paths[number], offset).wait()
                else:
                    engine.swap_in(data, paths[number], offset).wait()
                    assert bytes(data) == expected
    if backend != "memory":
        for number, content in model.files.items():
            assert paths[number].read_bytes() == content


@pytest.mark.parametrize("seed", range(5))
def test_requests_that_overlap_in_time_take_effect_in_order(engine: Engine, tmp_path: Path, seed: int) -> None:
    choose, model = random.Random(1000 + seed), Model()
    paths = [tmp_path / str(number) for number in range(FILES)]
    under_way: List[Any] = []
    for _turn in range(200):
        number, offset, content = choose.randrange(FILES), random_offset(choose), choose.randbytes(choose.randrange(9000))
        if choose.random() < 0.6:
            under_way.append((engine.swap_out(content, paths[number], offset, keep_length=True), None, None))
            model.write([(number, offset, content, True)])
        else:
            expected = model.read(number, offset, len(content))
            received = bytearray(len(content))
            if expected is not None:
                under_way.append((engine.swap_in(received, paths[number], offset), received, expected))
        if choose.random() < 0.1:
            choose.shuffle(under_way)
            for ticket, received, expected in under_way:
                ticket.wait()
                assert received == expected
            under_way = []
    engine.wait_all()
    assert all(received == expected for _ticket, received, expected in under_way)
    for number, content in model.files.items():
        assert paths[number].read_bytes() == content


@pytest.mark.parametrize("seed", range(5))
def test_a_swapper_does_what_the_model_does(engine: Engine, tmp_path: Path, seed: int) -> None:
    choose, model = random.Random(2000 + seed), Model()
    paths = [tmp_path / str(number) for number in range(FILES)]
    pinned = engine.buffer(LENGTH_MAX + 4096).numpy()
    with Swapper(engine, buffers=[engine.buffer(16_384) for _ in range(3)]) as swapper:
        for _turn in range(150):
            action = choose.random()
            number, offset, data = choose.randrange(FILES), random_offset(choose), random_data(choose, pinned)
            if action < 0.5:
                swapper.swap_out_many([Tensor(data, paths[number], offset, keep_length=True)])
                model.write([(number, offset, bytes(data), True)])
                data[:] = bytes(len(data)) if isinstance(data, bytearray) else 0  # ours again
            elif action < 0.9:
                expected = model.read(number, offset, len(data))
                if expected is None:
                    with pytest.raises((FileNotFoundError, tensorswap.SizeMismatchError)):
                        swapper.swap_in(data, paths[number], offset)
                else:
                    swapper.swap_in(data, paths[number], offset)
                    assert bytes(data) == expected
            elif action < 0.95:
                swapper.submit()
            else:
                swapper.flush()
    for number, content in model.files.items():
        assert paths[number].read_bytes() == content
