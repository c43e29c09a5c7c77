"""Times the student + teacher training step of this library beside PyTorch eager, on the same machine and batch.

    python benchmarks/train_step.py --shape minilm --torch-python path/to/python/with/torch

Each side lives in a process of its own that builds its step once and then runs one step per request; requests
alternate, so both see the same load, and peak memory is counted per process. Both sides get the same sizes, batch,
padding and random-row lengths; both train with dropout 0.1, SparseBERT's loss (Xu et al., 2021, arXiv:2104.08682),
AdamW without gradient clipping, and masks fixed at 95 % (no mask update is timed). What the rival is: `torch_step.py`.

`--malloc keep` (default, for both sides) tells glibc to keep freed memory instead of returning it to the kernel after
every step; `--malloc default` leaves it alone.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from shapes import LEARNING_RATE, SHAPES, SPARSITY, make_batch, make_config, make_parser

KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def build_jax(shape: str, batch: int, length: int, seed: int) -> tuple[Callable[[], float], Callable[[], dict]]:
    """The library's step on a fixed batch, and a function that describes the process."""
    import jax
    import optax

    import kaprune_jax as kp
    from kaprune_jax.models.bert import init_params, make_apply
    from kaprune_jax.train.optimizer import adamw
    from kaprune_jax.train.step import init_state, make_train_step

    sizes = SHAPES[shape]
    config = make_config(sizes)
    apply = make_apply(config)
    # One mask update, in the first step, which is a warm-up step.
    pruning = kp.magnitude_pruning(kp.one_shot(SPARSITY, at=1), updates=1, prunable=r"encoder/.*/kernel")
    tx = optax.chain(adamw(LEARNING_RATE, clip=0.0), pruning)
    keys = jax.random.split(jax.random.key(seed), 3)
    state = init_state(init_params(config, keys[0]), tx, keys[2])
    teacher = init_params(config, keys[1])
    data: dict[str, Any] = {k: jax.numpy.asarray(v) for k, v in make_batch(batch, length, sizes.vocab, seed).items()}
    data["labels"] = jax.numpy.zeros(batch, jax.numpy.int32)
    train_step = jax.jit(make_train_step(apply, tx, kp.DistillConfig(), teacher=apply), donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, teacher, data)
        jax.block_until_ready(state)
        return float(metrics.loss)

    def describe() -> dict:
        device = jax.devices()[0]
        return {
            "version": f"jax {jax.__version__}",
            "device": f"{device.platform} {device.device_kind}",
            "threads": len(os.sched_getaffinity(0)),
            "compilations": train_step._cache_size(),
        }

    return step, describe


def build_torch(shape: str, batch: int, length: int, seed: int) -> tuple[Callable[[], float], Callable[[], dict]]:
    """The rival's step, and a function that describes the process."""
    import torch

    import torch_step

    step = torch_step.build(shape, batch, length, seed)
    about = {"version": f"torch {torch.__version__}", "device": "cpu", "threads": torch.get_num_threads()}
    return step, lambda: about


def work(side: str, arguments: argparse.Namespace) -> None:
    """Worker: builds a step, then answers each line on stdin with one JSON line."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no answer

    def answer(content: dict) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        scale = 1 if sys.platform == "darwin" else 1024
        answers.write(json.dumps(content | {"peak_memory_bytes": usage.ru_maxrss * scale}) + "\n")
        answers.flush()

    def timed() -> dict:
        before, start = time.process_time(), time.perf_counter()
        loss = step()
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - before, "loss": loss}

    build = build_jax if side == "jax" else build_torch
    step, describe = build(arguments.shape, arguments.batch, arguments.length, arguments.seed)
    answer(timed())
    for line in sys.stdin:
        answer(timed() if line.strip() == "step" else describe())


class Worker:
    """A process that holds a built step."""

    def __init__(self, side: str, python: str, arguments: argparse.Namespace):
        command = [python, __file__, "--worker", side, "--shape", arguments.shape]
        for name in ("batch", "length", "seed"):
            command += [f"--{name}", str(getattr(arguments, name))]
        root = str(pathlib.Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        keep = KEEP_MEMORY if arguments.malloc == "keep" else {}
        environment = os.environ | keep | {"PYTHONPATH": path}
        self.side = side
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first = self._read()

    def _read(self) -> dict:
        pipe: TextIO | None = self.process.stdout
        line = pipe.readline() if pipe else ""
        if not line:
            sys.exit(f"the {self.side} worker stopped with exit code {self.process.wait()}; its error is above")
        return json.loads(line)

    def ask(self, what: str) -> dict:
        """Sends "step" or "describe" and returns the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def spread(values: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "p10": float(low), "p90": float(high)}


def measure(arguments: argparse.Namespace) -> dict:
    """Runs the rounds and gathers the report."""
    workers = [Worker("jax", sys.executable, arguments)]
    if not arguments.no_torch:
        workers.append(Worker("torch", arguments.torch_python, arguments))
    records: dict[str, list[dict]] = {worker.side: [] for worker in workers}
    for number in range(-1, arguments.rounds):  # one more warm-up round
        for worker in workers if number % 2 else workers[::-1]:
            record = worker.ask("step")
            if number >= 0:
                records[worker.side].append(record)
    report: dict[str, Any] = {
        "benchmark": "train_step",
        **{name: getattr(arguments, name) for name in ("shape", "batch", "length", "rounds", "seed", "malloc")},
        "sparsity": SPARSITY,
        "machine": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "sides": {},
    }
    for worker in workers:
        rows = records[worker.side]
        report["sides"][worker.side] = {
            **worker.ask("describe"),
            "first_step_seconds": worker.first["seconds"],
            "seconds": spread([row["seconds"] for row in rows]),
            "cpu_seconds": spread([row["cpu_seconds"] for row in rows]),
            "examples_per_second": arguments.batch / statistics.median([row["seconds"] for row in rows]),
            "first_loss": worker.first["loss"],
            "last_loss": rows[-1]["loss"],
            "rounds": [row["seconds"] for row in rows],
        }
        worker.close()
    if not arguments.no_torch:
        pairs = zip(records["torch"], records["jax"], strict=True)
        ratios = [rival["seconds"] / own["seconds"] for rival, own in pairs]
        report["speedup_over_torch"] = {**spread(ratios), "rounds": ratios}
    return report


def show(report: dict) -> None:
    """Prints the report."""
    print(
        f"{report['shape']}  batch {report['batch']}  length {report['length']}  float32  "
        f"{report['rounds']} rounds  malloc {report['malloc']}"
    )
    for side, row in report["sides"].items():
        time_, cpu = row["seconds"], row["cpu_seconds"]
        extra = f"  compilations {row['compilations']}" if "compilations" in row else ""
        print(
            f"{side:6s} {row['version']:18s} threads {row['threads']}  step {time_['median']:.3f} s "
            f"(p10 {time_['p10']:.3f}, p90 {time_['p90']:.3f})  cpu {cpu['median']:.2f} s  "
            f"{row['examples_per_second']:.1f} examples/s  peak {row['peak_memory_bytes'] / 2**30:.2f} GiB  "
            f"first step {row['first_step_seconds']:.1f} s{extra}"
        )
    if "speedup_over_torch" in report:
        ratio = report["speedup_over_torch"]
        print(f"speed-up over torch {ratio['median']:.2f} (p10 {ratio['p10']:.2f}, p90 {ratio['p90']:.2f})")
        print("per round " + " ".join(f"{value:.2f}" for value in ratio["rounds"]))


def main() -> None:
    """Command line."""
    parser = make_parser(__doc__, shape="minilm", rounds=10)
    parser.add_argument("--seed", type=int, default=0, help="of weights and batch")
    parser.add_argument("--malloc", choices=("keep", "default"), default="keep", help="glibc memory, see above")
    parser.add_argument("--no-torch", action="store_true", help="time this library alone")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the report")
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments)
        return
    report = measure(arguments)
    show(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
