"""The package as a whole."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorswap

PACKAGE = Path(tensorswap.__file__).parent


def test_importing_brings_in_neither_numpy_nor_torch() -> None:
    program = "import sys, tensorswap; print([m for m in ('numpy', 'torch', 'asyncio', 'logging') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.strip() == "[]"


def test_swapping_bytes_needs_no_numpy(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["numpy"] = sys.modules["torch"] = None
import tensorswap
with tensorswap.Engine() as engine, engine.buffer(8) as buffer:
    buffer.memoryview()[:] = b"12345678"
    engine.swap_out(buffer, "file").wait()
    data = bytearray(8)
    engine.swap_in(data, "file").wait()
    print(data.decode(), len(engine.describe()["buffers"]))
"""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout == "12345678 1\n"


def test_everything_public_is_documented_and_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    for name in tensorswap.__all__:
        thing = getattr(tensorswap, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if inspect.isfunction(value) and not member.startswith("_"):
                    assert inspect.getdoc(value), f"{name}.{member}"


def test_the_sources_are_python_of_the_oldest_version_promised() -> None:
    for file in PACKAGE.rglob("*.py"):
        ast.parse(file.read_text(), str(file), feature_version=(3, 9))


def test_a_library_that_cannot_be_used_is_an_import_error(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for path, message in ((tmp_path / "none.so", "none.so cannot be loaded"), (tmp_path / "text.so", "cannot be loaded")):
        command = [sys.executable, "-c", "import tensorswap"]
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env={"TENSORSWAP_LIBRARY": str(path)}
        )
        assert found.returncode == 1
        assert re.search(rf"^ImportError: tensorswap: .*{message}", found.stderr, re.M)


def test_what_python_adds_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "calls.py"
    command = [sys.executable, str(benchmark), "--directory", str(tmp_path), "--count", "500", "--rounds", "2"]
    found = subprocess.run([*command, "--tensors", "4", "--mib", "1"], capture_output=True, text=True, check=False)
    if "No such file or directory: 'cc'" in found.stderr:
        pytest.skip("no C compiler to compare with")
    assert found.returncode == 0, found.stderr
    with capsys.disabled():
        print("\n" + found.stdout)
    assert [line.split()[0] for line in found.stdout.splitlines()[2:7]] == [
        "calls", "swap_out+wait", "stats", "swap_in_state+release_state", "step_number",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
