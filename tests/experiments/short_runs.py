"""Short whole runs to compare, in this process or in several beside each other.

    python tests/experiments/short_runs.py SIGNAL STEP MODULE FLAGS...

runs `experiments.MODULE` with FLAGS and sends itself SIGNAL after the STEP-th step of all its trainings together; with
SIGNAL "none" it does not.
"""

import dataclasses
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

QUICK = ["--epochs", "6", "--teacher-epochs", "40", "--batch-size", "8", "--evaluations", "3", "--log-every", "5"]
QUICK += ["--learning-rate", "3e-3", "--teacher-learning-rate", "3e-3", "--allow-weak-teacher"]
SHORT = ["--steps", "12", "--teacher-steps", "8", "--batch-size", "8", "--evaluations", "2", "--log-every", "4"]
SHORT += ["--allow-weak-teacher", "--updates", "4"]
COUPLED = ["--steps", "20", "--teacher-steps", "4", "--batch-size", "8", "--evaluations", "1", "--log-every", "10"]
COUPLED += ["--learning-rate", "3e-3", "--allow-weak-teacher", "--sparsity", "0.7"]


def last_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a run's last step."""
    return load_file(folder / "model-last" / "model.safetensors")


def same_tensors(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether names and values are the same, bit for bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def make_files(folder: Path) -> list[str]:
    """Own training and dev files of an easy task, as --train-file and --dev-file."""
    good, bad = ("good", "great", "lovely", "perfect"), ("bad", "awful", "boring", "dull")
    rows = [f"the {work} was {word} .\t{label}" for work in ("film", "song", "book", "show", "game", "meal")
            for label, words in (("yes", good), ("no", bad)) for word in words]  # fmt: skip
    train, dev = folder / "train.tsv", folder / "dev.tsv"
    train.write_text("sentence\tlabel\n" + "\n".join(rows[:40]) + "\n", "utf-8")
    dev.write_text("sentence\tlabel\n" + "\n".join(rows[40:]) + "\n", "utf-8")
    return ["--train-file", str(train), "--dev-file", str(dev)]


def lines(file: Path) -> list[dict]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def tree_of(folder: Path) -> list[str]:
    """Everything in a folder, by its path there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same(one: Path, two: Path, name: str = "model-last") -> None:
    """The same zeros, and nearly the same weights."""
    first, second = (load_file(folder / name / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_allclose(value, second[key], atol=2e-5, err_msg=key)
        np.testing.assert_array_equal(value == 0, second[key] == 0, err_msg=key)


def same_bits(one: Path, two: Path) -> None:
    """The same models to the bit, and the same evaluations."""
    for name in ("model", "model-last"):
        assert (one / name / "model.safetensors").read_bytes() == (two / name / "model.safetensors").read_bytes()
    first, second = ([row for row in lines(folder / "metrics.jsonl") if row["kind"] == "eval"] for folder in (one, two))
    assert first == second


class Ended(NamedTuple):
    """How a process ended: its exit code, what it said, and how many seconds after the first of all."""

    code: int
    out: str
    error: str
    later: float


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def together(
    programs: list[list[str]], *, seconds: float = 300.0, environment: dict[str, str] | None = None
) -> list[Ended]:
    """Runs Python programs beside each other, "ADDRESS" in their arguments being one that is free.

    Args:
      programs: arguments of each.
      seconds: after which they are ended.
      environment: besides this process's own.
    """
    address = f"127.0.0.1:{free_port()}"
    given = os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {})
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)
    running = [
        subprocess.Popen([sys.executable, *(part.replace("ADDRESS", address) for part in program)], **pipes)
        for program in programs
    ]
    began, ended = time.monotonic(), {}
    while len(ended) < len(running) and time.monotonic() - began < seconds:
        for index, process in enumerate(running):
            if process.poll() is not None:
                ended.setdefault(index, time.monotonic())
        time.sleep(0.1)
    for process in running:
        process.kill()
    said = [process.communicate() for process in running]
    first, now = min(ended.values(), default=0.0), time.monotonic()
    return [
        Ended(process.returncode, out, error, ended.get(index, now) - first)
        for index, (process, (out, error)) in enumerate(zip(running, said, strict=True))
    ]


def main() -> None:
    name, number, module, *flags = sys.argv[1:]
    command = importlib.import_module(f"experiments.{module}")
    if name != "none":
        import experiments.runs.stage
        from kaprune_jax.train.loop import fit

        steps = itertools.count(1)

        def signalled_fit(*arguments, **options):
            old = options["hooks"]

            def should_stop():
                if next(steps) == int(number):
                    os.kill(os.getpid(), getattr(signal, name))
                return old.should_stop()

            return fit(*arguments, **{**options, "hooks": dataclasses.replace(old, should_stop=should_stop)})

        experiments.runs.stage.fit = signalled_fit
    sys.argv = [module, *flags]
    sys.exit(command.main(flags))


if __name__ == "__main__":
    main()
