"""Torch tensors, and the example that trains with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tensorswap
from tensorswap import DType, Engine

torch = pytest.importorskip("torch", reason="torch is not installed")

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_adam.py"
TYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2",
         "int8", "int16", "int32", "int64", "uint8", "bool")  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_tensors_of_every_type_come_back(engine: Engine, tmp_path: Path, name: str) -> None:
    sent = torch.arange(1001).to(getattr(torch, name))
    engine.swap_out(sent, tmp_path / "file").wait()
    assert (tmp_path / "file").read_bytes() == bytes(sent.view(torch.uint8).tolist())
    received = torch.zeros_like(sent)
    engine.swap_in(received, tmp_path / "file").wait()
    assert torch.equal(received.view(torch.uint8), sent.view(torch.uint8))


def test_a_parameter_and_a_part_of_a_tensor_are_swapped_in_place(engine: Engine, tmp_path: Path) -> None:
    layer = torch.nn.Linear(7, 5)
    before = layer.weight.detach().clone()
    engine.swap_out(layer.weight, tmp_path / "file").wait()
    with torch.no_grad():
        layer.weight.zero_()
    engine.swap_in(layer.weight, tmp_path / "file").wait()
    assert torch.equal(layer.weight, before)
    whole = torch.zeros(10, 7)
    engine.swap_in(whole[3:8], tmp_path / "file").wait()
    assert torch.equal(whole[3:8], before) and whole[:3].sum() == 0


REFUSED = {
    "strides": (lambda: torch.zeros(4, 6).t(), tensorswap.InvalidArgumentError, "not contiguous"),
    "a step": (lambda: torch.zeros(10)[::2], tensorswap.InvalidArgumentError, "not contiguous"),
    "another device": (lambda: torch.zeros(4, device="meta"), tensorswap.UnsupportedError, "a tensor on meta"),
    "sparse": (lambda: torch.eye(3).to_sparse(), tensorswap.UnsupportedError, "layout torch.sparse_coo"),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), tensorswap.DtypeMismatchError, "unknown dtype"),
    "negated": (lambda: torch.zeros(3, dtype=torch.complex64).conj().imag, tensorswap.InvalidArgumentError, "contiguous|pending"),
    "expanded": (lambda: torch.zeros(1).expand(5), tensorswap.InvalidArgumentError, "not contiguous"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_cannot_be_swapped(engine: Engine, tmp_path: Path, case: str) -> None:
    make, error, message = REFUSED[case]
    for call in (engine.swap_out, engine.swap_in):
        with pytest.raises(error, match=message):
            call(make(), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_on_a_gpu_is_refused_and_pinned_memory_is_not(engine: Engine, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    with pytest.raises(tensorswap.UnsupportedError, match="a tensor on cuda:0"):
        engine.swap_out(torch.zeros(4, device="cuda"), tmp_path / "file")
    engine.swap_out(torch.zeros(4).pin_memory(), tmp_path / "file").wait()


def test_pinned_memory_is_a_tensor_without_a_copy(engine: Engine) -> None:
    buffer = engine.buffer(4096)
    tensor = buffer.torch("bf16")
    assert (tensor.dtype, tensor.numel(), tensor.data_ptr()) == (torch.bfloat16, 2048, buffer.address)
    tensor[5] = 1.5
    assert buffer.view("bf16").torch()[5] == 1.5
    assert torch.from_dlpack(buffer.view("bf16"))[5] == 1.5
    assert torch.frombuffer(buffer.memoryview(), dtype=torch.bfloat16)[5] == 1.5
    assert buffer.view("f32", 4096).torch().numel() == 0
    buffer.close()
    part = tensor[5:6]
    del tensor, buffer
    assert engine.stats().pinned_bytes == 4096 and part.item() == 1.5
    del part
    assert engine.stats().pinned_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.bool])
def test_a_dtype_of_torch_names_ours(engine: Engine, dtype: Any) -> None:
    assert engine.buffer(64).view(dtype).dtype.name == {"bfloat16": "BF16", "uint8": "U8", "bool": "BOOL"}[
        str(dtype).split(".")[1]
    ]
    assert engine.buffer(64).view(dtype).torch().dtype == dtype
    assert DType.U8.itemsize == 1


def run(directory: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLE), str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=directory)


def test_the_example_equals_adam_bit_for_bit_across_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(tmp_path), "--steps", "100000"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert running.stdout is not None
    running.stdout.readline()
    time.sleep(0.2)  # into the middle of some step
    running.send_signal(signal.SIGKILL)
    running.wait()
    resumed = run(tmp_path, "--steps", "0", "--compare")
    reached = int(resumed.stdout.split("resumed after step ")[1].split()[0])
    assert reached >= 9  # step 10 was said to be done, and is durable with the next one
    ended = run(tmp_path, "--steps", str(reached + 20), "--compare")
    assert ended.returncode == 0, ended.stderr
    assert f"step {reached + 20}: every weight equals that of torch.optim.Adam, bit for bit" in ended.stdout


def test_the_example_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = run(tmp_path, "--steps", "1")
    assert ended.returncode == 0
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "file"), "--steps", "1"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.startswith("train_adam.py: ") and wrong.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "rank0")
