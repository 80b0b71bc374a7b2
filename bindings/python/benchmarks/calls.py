#!/usr/bin/env python3
"""Measures what Python adds: to a call, to a byte, and at the start.

    python calls.py [--directory DIR] [--count 20000] [--tensors 64] [--mib 16] [--rounds 5]

The same work is done from Python and by a C program (made of calls.c with cc) on the same library, in
interleaved rounds. Of calls the figure is processor time of the calling thread, the least of the rounds: what
else the machine does counts as little as can be. They do next to no I/O: their files are in memory. Bytes are
measured by the clock, and the median is shown.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy
import tensorswap
from tensorswap import _library

HERE = Path(__file__).resolve().parent


def build(directory: str) -> str:
    """Compile calls.c against the library that this package loads."""
    library = Path(_library.__file__).with_name("libtensorswap.so")
    program = f"{directory}/calls"
    include = HERE.parents[2] / "include"
    command = ["cc", "-O2", "-std=gnu11", f"-I{include}", str(HERE / "calls.c"), str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", program], check=True)
    return program


def each_ns(call: Callable[[], Any], count: int) -> float:
    started = time.thread_time_ns()
    for _ in range(count):
        call()
    return (time.thread_time_ns() - started) / count


def python_calls(count: int) -> Dict[str, float]:
    """Nanoseconds of each call from Python, loop included."""
    with tensorswap.Engine(backend="memory", tickets_max=100_000) as engine:
        array = engine.buffer(4096).numpy("f32")
        found = {}
        started = time.thread_time_ns()
        tickets = [engine.swap_out(array, "file") for _ in range(count)]
        engine.wait_all()
        for ticket in tickets:
            ticket.wait()
        found["swap_out+wait"] = (time.thread_time_ns() - started) / count
        found["stats"] = each_ns(engine.stats, count)
        with tensorswap.Optimizer(engine, path="store", backend="memory") as optimizer:
            optimizer.add_state("master")
            optimizer.add_parameter(1, 1024)

            def in_and_out() -> None:
                optimizer.swap_in_state(1)
                optimizer.release_state(1)

            found["swap_in_state+release_state"] = each_ns(in_and_out, count)
            found["step_number"] = each_ns(lambda: optimizer.step_number, count)
    return found


def c_calls(program: str, directory: str, count: int) -> Dict[str, float]:
    text = subprocess.run([program, directory, "call", str(count)], check=True, capture_output=True, text=True).stdout
    return {name: float(ns) for name, ns in (line.split() for line in text.splitlines())}


def python_bytes(directory: str, count: int, mib: int) -> Tuple[float, float]:
    """Seconds out and in of `count` tensors of `mib` MiB."""
    elapsed = []
    with tensorswap.Engine() as engine:
        memory = engine.buffer(count * mib << 20).numpy().reshape(count, -1)
        memory[:] = 1
        for submit in (engine.swap_out, engine.swap_in):
            started = time.perf_counter()
            for ticket in [submit(memory[i], f"{directory}/file{i}") for i in range(count)]:
                ticket.wait()
            elapsed.append(time.perf_counter() - started)
    return elapsed[0], elapsed[1]


def c_bytes(program: str, directory: str, count: int, mib: int) -> Tuple[float, float]:
    command = [program, directory, "bytes", str(count), str(mib)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    out, back = (float(number) for number in text.split())
    return out, back


def import_ms(module: str) -> float:
    program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    return 1e3 * float(subprocess.run(command, check=True, capture_output=True, cwd=HERE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", default=".", help="where to swap to; files are removed again")
    parser.add_argument("--count", type=int, default=20_000, help="calls in a round")
    parser.add_argument("--tensors", type=int, default=64)
    parser.add_argument("--mib", type=int, default=16, help="size of a tensor")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    print(f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}, tensorswap {tensorswap.__version__}")
    imports = [import_ms("tensorswap") for _ in range(options.rounds)]
    print(f"import: least {min(imports):.1f} ms, median {statistics.median(imports):.1f} ms")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        program = build(directory)
        ours: List[Dict[str, float]] = []
        theirs: List[Dict[str, float]] = []
        for _ in range(options.rounds):
            ours.append(python_calls(options.count))
            theirs.append(c_calls(program, directory, options.count))
        print(f"{'calls':30} {'C us':>8} {'Python us':>10} {'added us to each call':>22}")
        for name in ours[0]:
            in_python = min(found[name] for found in ours) / 1e3
            in_c = min(found[name] for found in theirs) / 1e3
            added = (in_python - in_c) / len(name.split("+"))
            print(f"{name:30} {in_c:8.2f} {in_python:10.2f} {added:22.2f}")
        moved = options.tensors * options.mib / 1024
        seconds: Dict[str, List[Tuple[float, float]]] = {"C": [], "Python": []}
        for _ in range(options.rounds):
            seconds["C"].append(c_bytes(program, directory, options.tensors, options.mib))
            seconds["Python"].append(python_bytes(directory, options.tensors, options.mib))
        for name, found in seconds.items():
            out, back = (moved / statistics.median(times) for times in zip(*found))
            print(f"{options.tensors} x {options.mib} MiB from {name:6}: out {out:.2f} GiB/s, in {back:.2f} GiB/s")


if __name__ == "__main__":
    main()
