"""Every framed listing of docs/DEEPSPEED.md is run, and prints what the document says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = REPOSITORY / "docs" / "DEEPSPEED.md"
TRAIN = REPOSITORY / "bindings" / "python" / "deepspeed_runs" / "train.py"


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


def of_language(language: str):
    return [listing for listing in listings() if listing.language == language]


def test_the_document_has_no_listing_that_is_not_run():
    found = [listing.language for listing in listings()]
    assert sorted(set(found)) == ["json", "python", "sh"]
    assert found.count("json") == 1 and found.count("sh") == 2 and found.count("python") >= 3


@pytest.mark.parametrize("listing", of_language("python"), ids=lambda listing: f"line{listing.line}")
def test_a_program_of_the_document_prints_what_it_says(listing, tmp_path):
    (tmp_path / "listing.py").write_text(listing.code)
    environment = {**os.environ, "PATH": "/nonexistent"}  # no compiler
    ended = subprocess.run(
        [sys.executable, "listing.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(listing.output) and bool(listing.output) == bool(ended.stdout.strip()), ended.stdout


def test_the_package_is_installed_by_the_documents_command(tmp_path):
    (install,) = [listing for listing in of_language("sh") if "pip install" in listing.code]
    if shutil.which("cargo") is None:
        pytest.skip("no cargo to build with")
    # Not over the package that is tested. PIP_TARGET would keep it apart as well, but it also reaches the pip that
    # fetches what the build needs, and that one refuses it where it has a prefix (seen with pip 23.2).
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-euc", install.code], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    (installed,) = place.glob("lib/python*/site-packages")
    for name in ("tensorswap_deepspeed.pth", "_tensorswap_deepspeed.py", "tensorswap/deepspeed/__init__.py"):
        assert (installed / name).is_file()


def test_deepspeeds_launcher_trains_with_the_documents_configuration(tmp_path):
    """With an installed package, so that the variable reaches the rank by the file that Python reads at its start."""
    (start,) = [listing for listing in of_language("sh") if "TENSORSWAP_DEEPSPEED=1" in listing.code]
    (config,) = of_language("json")
    text = config.code.replace("/mnt/nvme", str(tmp_path / "nvme"))
    assert json.loads(text)["zero_optimization"]["offload_optimizer"]["nvme_path"] == str(tmp_path / "nvme")
    (tmp_path / "ds_config.json").write_text(text)
    shutil.copy(TRAIN, tmp_path / "train.py")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["bash", "-euc", start.code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    figures = json.loads((tmp_path / "out" / "0.json").read_text())
    assert set(figures["losses"]) == {"0", "1"}
    assert figures["engine"]["swap_out_bytes"] > 0 and figures["engine"]["swap_in_bytes"] > 0
