"""These tests need torch and DeepSpeed; bindings/python/test-deepspeed makes an environment that has them."""

import os
from typing import Iterator

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.pop("TENSORSWAP_DEEPSPEED", None)
os.environ.pop("TENSORSWAP_DEEPSPEED_CONFIG", None)
# One variable says that a test which cannot run is a failure.
if "deepspeed" not in os.environ.get("TSW_TEST_REQUIRE", ""):
    pytest.importorskip("torch")
    pytest.importorskip("deepspeed")


@pytest.fixture
def installed() -> Iterator[object]:
    """DeepSpeed on the engine, for one test."""
    import tensorswap.deepspeed

    tensorswap.deepspeed.install()
    yield tensorswap.deepspeed
    tensorswap.deepspeed.uninstall()


@pytest.fixture
def handle() -> object:
    """A handle as DeepSpeed makes it."""
    from tensorswap.deepspeed.handle import aio_handle

    return aio_handle(block_size=1 << 20, queue_depth=8, overlap_events=True, intra_op_parallelism=1)
