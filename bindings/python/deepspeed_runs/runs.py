"""Real DeepSpeed on the engine: trains a small transformer with ZeRO-3 in many ways and compares the losses.

    python runs.py [--dir FOLDER] [--ranks 1 2] [--only WORD] [--markdown FILE]

Each run is started by DeepSpeed's own launcher, as a user would start it; the engine gets there by
TENSORSWAP_DEEPSPEED=1. The losses must be the very same as those of DeepSpeed with CPU offload, which keeps
everything in memory and does not know of us. Everything runs on the CPU. Exit status 1 where a run differs.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Dict, List, NamedTuple, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, SAVED_AT = 6, 3
TIMEOUT_S = 900


class Run(NamedTuple):
    """One way to train."""

    name: str
    optimizer: Dict[str, object]
    params: Optional[Dict[str, object]] = None
    #: Stop halfway, save, and go on in new processes.
    resume: bool = False


def nvme(**keys: object) -> Dict[str, object]:
    """Offload to the folder that is filled in for each run."""
    return {"device": "nvme", "nvme_path": None, **keys}


REFERENCE = Run("all in memory (CPU offload)", {"device": "cpu"})
SERIAL = nvme(buffer_count=5)
PIPELINED = nvme(buffer_count=12, pipeline_read=True, pipeline_write=True)
RUNS = [
    Run("optimizer on NVMe", SERIAL),
    Run("optimizer on NVMe, pipelined", PIPELINED),
    Run("optimizer and parameters on NVMe", SERIAL, nvme(buffer_count=8, buffer_size=2_200_000, max_in_cpu=0)),
    Run("checkpoint and resume", SERIAL, resume=True),
    Run("checkpoint and resume, pipelined", PIPELINED, resume=True),
]


def configuration(run: Run, folder: str) -> Dict[str, object]:
    """The DeepSpeed configuration of a run whose swap files go to a folder."""
    zero: Dict[str, object] = {
        "stage": 3,
        "sub_group_size": 2_000_000,
        "stage3_param_persistence_threshold": 0,
        "offload_optimizer": {**run.optimizer},
    }
    if run.params is not None:
        zero["offload_param"] = {**run.params}
    for section in ("offload_optimizer", "offload_param"):
        if section in zero and "nvme_path" in zero[section]:
            zero[section]["nvme_path"] = os.path.join(folder, "nvme")
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "aio": {"block_size": 1048576, "queue_depth": 8, "intra_op_parallelism": 1},
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(config: str, out: str, ranks: int, engine: bool, more: List[str]) -> List[Dict[str, object]]:
    """Start DeepSpeed's launcher, and return what each rank wrote down."""
    environment = {
        **os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TENSORSWAP_DEEPSPEED": "1" if engine else "0",
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""),
    }  # fmt: skip
    command = [
        "deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port()),
        os.path.join(HERE, "train.py"), "--config", config, "--out", out, *more,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        text, _ = process.communicate(timeout=TIMEOUT_S)
    except BaseException:  # also Ctrl-C: the ranks are not in our process group
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nexited with {process.returncode}:\n{text[-6000:]}")
    found = []
    for rank in range(ranks):
        with open(os.path.join(out, f"{rank}.json"), encoding="utf-8") as file:
            found.append(json.load(file))
    return found


def train(run: Run, ranks: int, engine: bool, options: argparse.Namespace) -> List[Dict[str, object]]:
    """One run from beginning to end; the second half's figures where it is resumed."""
    folder = tempfile.mkdtemp(prefix="deepspeed-", dir=options.dir)
    try:
        config = os.path.join(folder, "config.json")
        with open(config, "w", encoding="utf-8") as file:
            json.dump(configuration(run, folder), file, indent=1)
        more = ["--optimizer", options.optimizer]
        if not run.resume:
            return launch(config, os.path.join(folder, "out"), ranks, engine, [*more, "--steps", str(STEPS)])
        saved = os.path.join(folder, "checkpoint")
        first = launch(
            config, os.path.join(folder, "out1"), ranks, engine, [*more, "--steps", str(SAVED_AT), "--save", saved]
        )
        # What the first half left behind must not be what the second half reads.
        shutil.rmtree(os.path.join(folder, "nvme"), ignore_errors=True)
        second = launch(
            config, os.path.join(folder, "out2"), ranks, engine, [*more, "--steps", str(STEPS), "--load", saved]
        )
        for before, after in zip(first, second):
            after["losses"] = {**before["losses"], **after["losses"]}
        return second
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(run: Run, found: List[Dict[str, object]], reference: List[Dict[str, object]]) -> List[str]:
    """What is wrong with a run; nothing, one hopes."""
    wrong = []
    for rank, (mine, wanted) in enumerate(zip(found, reference)):
        if mine["world"] != len(reference):
            wrong.append(f"{mine['world']} ranks instead of {len(reference)}")
        for step, loss in wanted["losses"].items():
            if mine["losses"].get(step) != loss:
                wrong.append(f"rank {rank} step {step}: loss {mine['losses'].get(step)} instead of {loss}")
        figures = mine["engine"]
        if not figures.get("swap_out_bytes") or not figures.get("swap_in_bytes"):
            wrong.append(f"rank {rank}: the engine moved nothing: {figures}")
        elif figures["swap_out_errors_count"] or figures["swap_in_errors_count"]:
            wrong.append(f"rank {rank}: errors of the engine: {figures}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".", help="a folder on the drive to use (default: this one)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="only runs with this word in their name")
    parser.add_argument("--optimizer", choices=["torch", "deepspeed"], default="torch", help="whose Adam")
    parser.add_argument("--stock", action="store_true", help="DeepSpeed's own engine instead, to see what it does")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    options = parser.parse_args()
    if not os.path.isdir(options.dir):
        parser.error(f"{options.dir} is not a directory")
    if not any(options.only in run.name for run in RUNS):
        parser.error(f"no run has {options.only!r} in its name; there are: {'; '.join(run.name for run in RUNS)}")
    options.dir = os.path.abspath(options.dir)

    rows = [
        "| run | ranks | losses | out, each rank | in, each rank | in flight | time |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = False
    print(*rows, sep="\n", flush=True)
    for ranks in options.ranks:
        reference = train(REFERENCE, ranks, False, options)
        for run in RUNS:
            if options.only not in run.name:
                continue
            began = time.monotonic()
            found = train(run, ranks, not options.stock, options)
            took = time.monotonic() - began
            figures = found[0]["engine"]
            wrong = compare(run, found, reference)
            if options.stock:
                wrong = [line for line in wrong if "loss" in line]
            failed = failed or bool(wrong)
            moved = [f"{figures[key] / 1e6:.0f} MB" if figures else "" for key in ("swap_out_bytes", "swap_in_bytes")]
            rows.append(
                f"| {run.name} | {ranks} | {'DIFFERENT' if wrong else 'the same'} | {moved[0]} | {moved[1]} "
                f"| {figures.get('in_flight_peak_count', '')} | {took:.0f} s |"
            )
            print(rows[-1], flush=True)
            for line in wrong:
                print(f"    {line}", flush=True)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(rows) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
