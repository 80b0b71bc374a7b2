"""Every listing of docs/PYTHON.md runs, and prints what the document says."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Iterator, List, NamedTuple

import pytest

from conftest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "PYTHON.md"


class Listing(NamedTuple):
    language: str
    line: int
    code: str
    #: What follows as `text`; None where nothing does.
    output: str


def listings() -> Iterator[Listing]:
    text = DOCUMENT.read_text(encoding="utf-8")
    fences = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M))
    for fence, after in zip(fences, [*fences[1:], None]):
        if fence.group(1) != "text":
            output = after.group(2) if after is not None and after.group(1) == "text" else ""
            yield Listing(fence.group(1), text[: fence.start()].count("\n") + 1, fence.group(2), output)


def of_language(language: str) -> List[Listing]:
    return [listing for listing in listings() if listing.language == language]


def need_torch(listing: Listing) -> None:
    if re.search(r"\btorch\b|train_adam", listing.code) and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")


def test_the_document_has_no_listing_that_is_not_run() -> None:
    assert {listing.language for listing in listings()} == {"python", "sh"}
    assert len(of_language("python")) >= 12 and len(of_language("sh")) == 3


@pytest.mark.parametrize("listing", of_language("python"), ids=lambda listing: f"line{listing.line}")
def test_a_listing_prints_what_the_document_says(listing: Listing, tmp_path: Path) -> None:
    need_torch(listing)
    program = tmp_path / "listing.py"
    program.write_text(listing.code)
    command = [sys.executable, str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == listing.output
    if "Run this program twice" in DOCUMENT.read_text() and "step {optimizer.step_number}" in listing.code:
        again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert again.stdout == "step 2: weights[0] = -1.4375\n"


@pytest.mark.parametrize("listing", of_language("sh"), ids=lambda listing: f"line{listing.line}")
def test_a_command_of_the_document_works(listing: Listing, tmp_path: Path) -> None:
    need_torch(listing)
    if "pip install" in listing.code and shutil.which("cargo") is None:
        pytest.skip("no cargo to build with")
    if "calls.py" in listing.code and shutil.which("cc") is None:
        pytest.skip("no C compiler to compare with")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DIRECTORY": str(tmp_path),
        # pip installs beside the package that is tested, and not over it.
        "PIP_TARGET": str(tmp_path / "installed"),
    }
    ended = subprocess.run(
        ["bash", "-euc", listing.code], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    if "pip install" in listing.code:
        installed = tmp_path / "installed"
        assert (installed / "tensorswap" / "libtensorswap.so").is_file()
        (tags,) = re.findall(r"^Tag: (.*)$", next(installed.glob("tensorswap-*/WHEEL")).read_text(), re.M)
        assert tags.startswith("py3-none-linux_")


def test_one_wheel_serves_every_python(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("no cargo to build with")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(REPOSITORY / "bindings/python")]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["tensorswap/libtensorswap.so"]
    assert "tensorswap/_abi.py" in names and "tensorswap/py.typed" in names
    assert not any("tests" in name or "hatch_build" in name for name in names)
