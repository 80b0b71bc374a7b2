"""What the tests share: engines of every backend, in a directory of their own."""

from pathlib import Path
from typing import Iterator

import pytest
import tensorswap

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def engine() -> Iterator[tensorswap.Engine]:
    """An engine as the system has it."""
    with tensorswap.Engine() as made:
        yield made


@pytest.fixture(params=["auto", "threads", "memory"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[tensorswap.Engine]:
    """An engine of each backend in turn."""
    with tensorswap.Engine(backend=request.param) as made:
        yield made


@pytest.fixture(scope="session")
def header() -> str:
    """The C header, of which this package is a face."""
    return (REPOSITORY / "include" / "tensorswap.h").read_text(encoding="utf-8")
