"""DeepSpeed's own swappers on its own engine and on ours: the same Python above both, turn by turn. And our
own swapper and optimizer on the same work.

    python bench.py [--dir FOLDER] [--rounds 5] [--aio JSON] [--markdown FILE] [--only WORD]

Each engine has a process of its own; they take turns, so that a drive which changes its speed does so for
both. Files are written once before the first counted round, as in training. Every byte is random, changes
from round to round, and is compared when it is read. Depth is the drive's own count: the mean number of
requests that were with it while it was busy, from /sys/dev/block.

DeepSpeed's engine is compiled when it is first loaded: that needs g++, ninja and libaio-dev, and minutes.
Exit status 1 where data was wrong.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
#: What DeepSpeed takes where its configuration has no section "aio".
AIO = {"block_size": MIB, "queue_depth": 8, "single_submit": False, "overlap_events": True, "intra_op_parallelism": 1}
#: Name, kind, how many, bytes or elements of each.
WORKS = [
    ("64 x 16 MiB", "swap", 64, 16 * MIB),
    ("2000 x 64 KiB", "swap", 2000, 64 << 10),
    ("10000 x 64 KiB", "swap", 10000, 64 << 10),
    ("step over 32 x 8 Mi elements", "step", 32, 8 * MIB),
]
#: DeepSpeed's swappers on our engine and on its own, and our own swappers.
NAMES = {
    "tensorswap": "DeepSpeed's swapper on tensorswap",
    "DeepSpeed": "DeepSpeed's swapper on its engine",
    "own": "tensorswap's own",
    "own, half cached": "tensorswap's own, half of the state cached",
}
ENGINES = tuple(NAMES)


class Drive:
    """Counters of the block device under a folder."""

    def __init__(self, folder: str) -> None:
        device = os.stat(folder).st_dev
        self.path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"

    def counters(self):
        try:
            with open(self.path, encoding="ascii") as file:
                fields = file.read().split()
            return int(fields[9]), int(fields[10])  # ms busy, ms of all requests together
        except (OSError, IndexError):
            return 0, 0

    def depth(self, before) -> float:
        busy, waited = (now - then for now, then in zip(self.counters(), before))
        return waited / busy if busy else 0.0


def work_of_swap(folder, count, nbytes):
    """The tensors, and their files."""
    import torch

    source = torch.Generator().manual_seed(count)
    tensors = [
        torch.randint(-(2**31), 2**31 - 1, (nbytes // 4,), dtype=torch.int32, generator=source).view(torch.float32)
        for _ in range(count)
    ]
    return tensors, [os.path.join(folder, f"{index}.swp") for index in range(count)]


class Swap:
    """AsyncTensorSwapper writes tensors out; swap_in_tensors reads them back, as the optimizer swappers do."""

    def __init__(self, aio_handle, folder, count, nbytes, aio) -> None:
        import torch
        from deepspeed.runtime.swap_tensor.async_swapper import AsyncTensorSwapper

        self.handle = aio_handle(**aio)
        self.numel = nbytes // 4
        self.tensors, self.paths = work_of_swap(folder, count, nbytes)
        # As many buffers as DeepSpeed has by default, of four large tensors or 16 MiB each.
        room = max(4 * self.numel, 4 * MIB)
        self.buffers = [self.handle.new_cpu_locked_tensor(room, torch.zeros(1)) for _ in range(4)]
        self.swapper = AsyncTensorSwapper(self.handle, 1024 // 4, None)
        self.drive = Drive(folder)

    def round(self, number):
        import torch
        from deepspeed.runtime.swap_tensor.utils import swap_in_tensors

        for index, tensor in enumerate(self.tensors):
            tensor.view(torch.int32)[:: 4096 // 4] = number * 100_003 + index
        counters, began = self.drive.counters(), time.perf_counter()
        self.swapper.add_buffers(self.buffers)
        self.swapper.swap_out_tensors(self.tensors, self.paths)
        self.buffers = self.swapper.release_buffers()
        out, out_depth = time.perf_counter() - began, self.drive.depth(counters)

        places = [part for buffer in self.buffers for part in buffer.split(self.numel) if part.numel() == self.numel]
        counters, back = self.drive.counters(), 0.0
        for first in range(0, len(self.tensors), len(places)):
            wanted = self.tensors[first : first + len(places)]
            taken = places[: len(wanted)]
            began = time.perf_counter()
            swap_in_tensors(self.handle, taken, self.paths[first : first + len(places)])
            done = self.handle.wait()
            back += time.perf_counter() - began
            same = [torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(taken, wanted)]
            if done != len(wanted) or not all(same):
                raise SystemExit(f"wrong data in {same.count(False)} of {len(wanted)} tensors, {done} done")
        moved = sum(tensor.nbytes for tensor in self.tensors)
        return {"out": [moved / out, out_depth], "in": [moved / back, self.drive.depth(counters)]}


class Step:
    """PipelinedOptimizerSwapper: gradients out; then state and gradient in, and state out, group by group."""

    def __init__(self, aio_handle, folder, count, numel, aio) -> None:
        import torch
        from deepspeed.runtime.swap_tensor.pipelined_optimizer_swapper import PipelinedOptimizerSwapper
        from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

        config = DeepSpeedZeroOffloadOptimizerConfig(
            device="nvme", nvme_path=folder, buffer_count=12, pipeline_read=True, pipeline_write=True
        )
        self.count, self.numel, self.rounds = count, numel, 0
        self.optimizer = types.SimpleNamespace(state={})
        self.swapper = PipelinedOptimizerSwapper(
            config, {**aio, "use_gds": False}, folder, self.optimizer, numel, "cpu", torch.float32, None
        )
        self.parameters = []
        for index in range(count):
            parameter = torch.empty(0)
            parameter.ds_id = str(index)
            self.parameters.append(parameter)
            self.swapper.initialize_parameters([parameter], [self.values(index)])
        self.gradient = self.values(count)
        self.drive = Drive(folder)

    def values(self, index):
        import torch

        source = torch.Generator().manual_seed(index)
        return torch.randint(-(2**31), 2**31 - 1, (self.numel,), dtype=torch.int32, generator=source).view(
            torch.float32
        )

    def round(self, number):
        import torch

        counters, began = self.drive.counters(), time.perf_counter()
        bits = self.gradient.view(torch.int32)
        for index, parameter in enumerate(self.parameters):
            bits[:: 4096 // 4] = number * 100_003 + index
            self.swapper.swap_out_gradients(parameter, [0], [self.gradient])
        self.swapper.flush_gradients()
        for index, parameter in enumerate(self.parameters):
            following = self.parameters[index + 1] if index + 1 < self.count else None
            self.swapper.swap_in_optimizer_state(parameter, following)
            self.update(parameter, index, number)
            parameter.grad = None
            self.swapper.swap_out_optimizer_state(parameter, following is not None)
        took = time.perf_counter() - began
        self.rounds = number
        # Gradient out and in, three states in and out; the first round makes two of them.
        return {"step": [self.count * self.numel * 4 * 8 / took, self.drive.depth(counters)]}

    def update(self, parameter, index, number):
        """Check what came in, and change a part of every page, as an optimizer would change all of it."""
        import torch

        marks = parameter.grad.view(torch.int32)[:: 4096 // 4]
        if not bool((marks == number * 100_003 + index).all()):
            raise SystemExit(f"the gradient of parameter {index} is wrong in round {number}")
        state = self.optimizer.state.get(parameter)
        if state is None:
            state = {name: self.values(1000 + index) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = state
        elif number > 1:
            for tensor in (parameter, *state.values()):
                if not bool((tensor.view(torch.int32)[:: 4096 // 4] == number - 1).all()):
                    raise SystemExit(f"the state of parameter {index} is not that of round {number - 1}")
        for tensor in (parameter, *state.values()):
            tensor.view(torch.int32)[:: 4096 // 4] = number

    def check(self):
        """Compare every byte of what is on the drive with what must be there."""
        import torch

        for index in range(self.count):
            for name, seed in (
                (f"{index}", index),
                (f"exp_avg-{index}", 1000 + index),
                (f"exp_avg_sq-{index}", 1000 + index),
            ):
                wanted = self.values(seed).view(torch.int32)
                wanted[:: 4096 // 4] = self.rounds
                path = os.path.join(self.swapper.swap_folder, f"{name}.tensor.swp")
                found = torch.from_file(path, shared=False, size=self.numel, dtype=torch.int32)
                if not torch.equal(found, wanted):
                    raise SystemExit(f"{path} does not hold what was written")


def made_by(engine, folder, kind, count, size, aio):
    """The contestant, and what tells the engine of ours that is under it."""
    if engine.startswith("own"):
        import own

        if kind == "swap":
            made = own.Swap(folder, *work_of_swap(folder, count, size), Drive(folder))
        else:
            cache = {"cache_bytes": count * size * 4 * 3 // 2} if "cached" in engine else {}
            made = own.Step(folder, count, size, Drive(folder), **cache)
        return made, lambda: made.engine
    os.environ.update(
        MASTER_ADDR="127.0.0.1", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_PORT=str(20000 + os.getpid() % 20000)
    )
    ours = None
    if engine == "tensorswap":
        import tensorswap.deepspeed

        tensorswap.deepspeed.install()
        ours = tensorswap.deepspeed.engine
    import deepspeed
    from deepspeed.ops.op_builder import AsyncIOBuilder

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    made = {"swap": Swap, "step": Step}[kind](AsyncIOBuilder().load(verbose=False).aio_handle, folder, count, size, aio)
    return made, ours


def work(engine, folder, kind, count, size, aio):
    """One process: does a round for each line that it reads, and writes what it measured."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what DeepSpeed prints
    made, ours = made_by(engine, folder, kind, count, size, aio)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps(made.round(int(line))), file=answers, flush=True)
    if hasattr(made, "check"):
        made.check()
    print(json.dumps({"peak": ours and ours().stats().in_flight_peak_count}), file=answers, flush=True)
    os._exit(0)  # DeepSpeed's own engine does not always come to an end


def measure(kind, count, size, options):
    """Rounds of all by turns: {engine: {what: [[rate, depth], ...]}}, and how deep ours were at most."""
    folder = tempfile.mkdtemp(prefix="bench-", dir=options.dir)
    workers, found = {}, {}
    try:
        for engine in ENGINES:
            if kind == "swap" and "cached" in engine:
                continue  # a cache is the optimizer's
            place = os.path.join(folder, engine.replace(", ", "-"))
            os.mkdir(place)
            command = [
                sys.executable,
                os.path.abspath(__file__),
                "--work",
                json.dumps([engine, place, kind, count, size, options.aio]),
            ]
            environment = {**os.environ, "TENSORSWAP_DEEPSPEED": "0", "DS_ACCELERATOR": "cpu"}
            workers[engine] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            found[engine] = {}

        def ask(engine, text):
            worker = workers[engine]
            try:
                print(text, file=worker.stdin, flush=True)
                answer = worker.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                raise SystemExit(f"{engine}: {worker.stderr.read()[-3000:]}")
            return json.loads(answer)

        for number in range(options.rounds + 1):
            order = list(workers) if number % 2 else list(workers)[::-1]
            for engine in order:
                for what, pair in ask(engine, str(number + 1)).items():
                    if number > 0:
                        found[engine].setdefault(what, []).append(pair)
        return found, {engine: ask(engine, "end")["peak"] for engine in workers}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a folder on the drive to measure (default: this one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--aio", type=json.loads, default={}, help="keys of the section aio, for both engines")
    parser.add_argument("--only", default="", help="only works with this word in their name")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
    if not os.path.isdir(options.dir):
        parser.error(f"{options.dir} is not a directory")
    if not any(options.only in name for name, *_ in WORKS):
        parser.error(f"no work has {options.only!r} in its name; there are: {'; '.join(name for name, *_ in WORKS)}")
    if set(options.aio) - set(AIO):
        parser.error(f"unknown key {sorted(set(options.aio) - set(AIO))[0]}; there are {', '.join(AIO)}")
    options.dir, options.aio = os.path.abspath(options.dir), {**AIO, **options.aio}

    rows = ["| work | | who | rate | of DeepSpeed's engine | mean depth |", "|---|---|---|---|---|---|"]
    print(f"aio: {json.dumps(options.aio)}", *rows, sep="\n", flush=True)
    for name, kind, count, size in WORKS:
        if options.only not in name:
            continue
        found, peaks = measure(kind, count, size, options)
        for what in found["DeepSpeed"]:
            medians = {
                engine: [statistics.median(column) for column in zip(*of[what])] for engine, of in found.items()
            }
            for engine, (rate, depth) in medians.items():
                ratio = rate / medians["DeepSpeed"][0]
                most = f" (at most {peaks[engine]})" if peaks[engine] else ""
                shown = NAMES[engine]
                rows.append(f"| {name} | {what} | {shown} | {rate / 1e6:.0f} MB/s | {ratio:.2f} | {depth:.1f}{most} |")
                print(rows[-1], flush=True)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
