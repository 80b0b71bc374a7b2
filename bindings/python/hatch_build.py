"""Builds the engine and the description of its C interface, and puts both into the wheel.

The wheel holds three things: the Python files, libtensorswap.so as cargo builds it, and _abi.py, which
cffi generates from include/tensorswap.h. Nothing in it is compiled against Python, so one wheel serves
every Python from 3.9 on.
"""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Dict, List

from cffi import FFI
from cffi.recompiler import make_py_source
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What puts the engine under DeepSpeed where TENSORSWAP_DEEPSPEED=1 is set.
AUTOLOAD = ("tensorswap_deepspeed.pth", "_tensorswap_deepspeed.py")
HERE = Path(__file__).resolve().parent
CRATE = HERE.parent.parent


def declarations(header: str) -> str:
    """The header without what cffi does not read: the preprocessor's lines and the C++ braces."""
    sizes = dict(re.findall(r"^#define (TSW_\w+_MAX) (\d+)$", header, re.MULTILINE))
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    header = re.sub(r'#ifdef __cplusplus\n.*?#endif[^\n]*\n', "", header, flags=re.DOTALL)
    header = re.sub(r"^#.*$", "", header, flags=re.MULTILINE)
    for name, value in sizes.items():
        header = re.sub(rf"\b{name}\b", value, header)
    return header


def write_abi(header: Path, target: Path) -> None:
    """Generate the module that tells cffi the types and functions of the header."""
    ffi = FFI()
    ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    make_py_source(ffi, "tensorswap._abi", str(target))


def build_library() -> Path:
    """Build the engine with cargo, and return where the shared library is."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise SystemExit("tensorswap: cargo is not found; install Rust 1.88 or later from https://rustup.rs")
    if not (CRATE / "Cargo.toml").is_file():
        raise SystemExit(f"tensorswap: {CRATE} is not the engine's source; install from a checkout of the repository")
    command: List[str] = [
        cargo, "build", "--release", "--locked", "--lib",
        "--manifest-path", str(CRATE / "Cargo.toml"), "--package", "tensorswap",
        "--message-format", "json-render-diagnostics",
    ]  # fmt: skip
    built = subprocess.run(command, stdout=subprocess.PIPE, cwd=CRATE, check=False)
    if built.returncode != 0:
        raise SystemExit(f"tensorswap: the engine could not be built: cargo exited with {built.returncode}")
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or message["target"]["name"] != "tensorswap":
            continue
        for file in message["filenames"]:
            if file.endswith(".so"):
                return Path(file)
    raise SystemExit("tensorswap: cargo built no shared library; only Linux is supported")


class TensorswapBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Adds the two built files to a wheel, or to the tree for an editable installation."""

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        library = build_library()
        # Read by Python at its start; only in site-packages itself.
        autoload = {str(HERE / "autoload" / name): name for name in AUTOLOAD}
        build_data["force_include"].update(autoload)
        build_data.setdefault("force_include_editable", {}).update(autoload)
        if version == "editable":
            place = HERE / "tensorswap"
            # A new file, not new content: a running process has the old one mapped.
            (place / "libtensorswap.so").unlink(missing_ok=True)
            shutil.copy2(library, place / "libtensorswap.so")
            write_abi(CRATE / "include" / "tensorswap.h", place / "_abi.py")
        else:
            place = library.parent / "python"
            place.mkdir(exist_ok=True)
            write_abi(CRATE / "include" / "tensorswap.h", place / "_abi.py")
            build_data["force_include"][str(library)] = "tensorswap/libtensorswap.so"
            build_data["force_include"][str(place / "_abi.py")] = "tensorswap/_abi.py"
            for name in ("LICENSE-APACHE", "LICENSE-MIT"):
                build_data["force_include"][str(CRATE / name)] = f"tensorswap/{name}"
        platform = os.environ.get("TENSORSWAP_WHEEL_PLATFORM") or sysconfig.get_platform()
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + re.sub(r"[^0-9A-Za-z_]", "_", platform)
