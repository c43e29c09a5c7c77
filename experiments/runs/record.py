"""What a run writes about itself: settings, environment, metrics, progress on the terminal."""

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.config.settings import AROUND, Settings
from experiments.runs.augment_file import rows_digest
from experiments.runs.lock import Busy, check_free, hold
from experiments.runs.parts import PARTS
from experiments.runs.prepare import Prepared
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.weights import read_json
from kaprune_jax.train.loop import LogRecord
from kaprune_jax.train.processes import by_first, is_first

# Settings that do not change what is computed, and those that data and model have a part in.
_FREE = (*AROUND, "command")
FOUND = ("pooling", "max_length", "stride", "batch_size")
# The phases that come before each in one run folder.
_BEFORE: dict[str, tuple[str, ...]] = {"teacher": (), "prune": (), "after": ("prune",)}


def say(text: str, *, end: str = "\n") -> None:
    """A line on the terminal, of process 0. Whoever reads it having gone, the run is asked to stop as by SIGTERM."""
    if not is_first():
        return
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")
    os.replace(partial, file)


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    names = (
        "kaprune-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "numpy",
        "scikit-learn",
    )
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def environment(prepared: Prepared) -> dict[str, Any]:
    """Versions, devices, source revision, and what went in."""
    return {
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "revision": _revision(Path(__file__).parents[2]),
        "data": prepared.data.fingerprint,
        "model": prepared.start.fingerprint,
        "teacher": prepared.teacher.fingerprint if prepared.teacher else None,
        "augmented rows": rows_digest(prepared.augmented) if prepared.augmented else None,
    }


def _revision(root: Path) -> str:
    """The source's git revision; an enclosing project's is not ours."""
    if not (root / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@by_first
def open_run(folder: Path, settings: Settings, details: dict[str, Any], env: dict[str, Any]) -> None:
    """Takes a run folder: writes its settings and environment, or, when resuming, checks that they are the same.

    Args:
      folder: the run folder.
      settings: resolved settings.
      details: what follows from settings, method and data, for the record; JSON values.
      env: what `environment` gives.

    Raises:
      InputError: the folder holds a run with other settings, another process is at work in it, or it cannot be written.
    """
    is_finished = any((folder / name).is_file() for name in ("result.json", PARTS))
    if is_finished:  # may be read by several at once; the lock of one that was killed goes
        with contextlib.suppress(Busy):
            check_free(folder)
    else:
        hold(folder)
    program = Path(sys.argv[0]).stem
    module = f"experiments.{program}" if program in ("glue", "transfer") else settings.MODULE
    config = dataclasses.asdict(settings) | details
    config["command"] = shlex.join(["python", "-m", module, *sys.argv[1:]])
    if _has_begun(folder):
        # A flag that a later version brought had its default.
        old = {field.name: field.default for field in dataclasses.fields(settings)} | read_json(folder / "config.json")
        before = read_json(folder / "env.json")
        different = [name for name in config if name not in _FREE and old.get(name) != config[name]]
        given = [name for name in different if name not in (*details, *FOUND)]
        if given:
            name = given[0]
            raise InputError(
                f"--resume: {folder} was started with --{name.replace('_', '-')} {old.get(name)}, now {config[name]}; "
                "other flags need another --out, without --resume"
            )
        # Of a finished run augmented rows are not looked at again, nor what follows from how many there are.
        without_rows = is_finished and env.get("augmented rows") is None and before.get("augmented rows") is not None
        for name in ("data", "model", "teacher", "augmented rows", "auxiliary"):
            if before.get(name) != env.get(name) and not (without_rows and name == "augmented rows"):
                raise InputError(f"--resume: {folder} was started with another {name}: its content has changed since")
        if different and not without_rows:
            name = different[0]
            raise InputError(f"--resume: {folder} was started with {name} {old.get(name)}, now {config[name]}")
        if not is_finished and (moved := _moved(before, env)):
            say(f"note: {folder} was started with {moved}; the last bits may differ from those of an undisturbed run")
        return
    try:
        write_json(folder / "env.json", env)
        write_json(folder / "config.json", config)  # last: with both the run has begun
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written ({error.strerror})") from None


def _moved(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What the bits of a run depend on and is no longer as it was, in words; empty where nothing is."""
    old, new = (
        {name: env.get(name) for name in ("cpus", "devices")} | env.get("versions", {}) for env in (before, now)
    )
    moved = [name for name, value in old.items() if value not in (None, new.get(name))]
    return ", ".join(f"{name} {old[name]} (now {new.get(name)})" for name in moved)


def _has_begun(folder: Path) -> bool:
    """Whether a run has written what it is; one that was killed before it had both files has trained nothing yet."""
    if not (folder / "config.json").is_file():
        return False
    return (folder / "env.json").is_file() or any(folder.glob("ckpt*/*"))


class Recorder:
    """Appends to `metrics.jsonl` and keeps a line of progress on the terminal, both of them in process 0.

    Attributes:
      closed: the file stays as it is, since a later phase has begun.
    """

    def __init__(self, folder: Path, phase: str, title: str, steps: int):
        """Args:
        folder: the run folder.
        phase: "teacher", "prune" or "after".
        title: what to call the run on the terminal.
        steps: of the whole phase.
        """
        self.file = folder / "metrics.jsonl"
        self.phase, self.title, self.steps = phase, title, steps
        self.closed = False
        self._live = sys.stdout.isatty()

    def rewind(self, step: int | None) -> None:
        """Drops records after a step of this phase, which is gone on from; None for before the phase began."""
        if self.closed or not is_first() or not self.file.is_file():
            return
        kept = []
        for line in self.file.read_text("utf-8").split("\n")[:-1]:  # what follows the last line end is half a record
            record = json.loads(line)
            before = record["phase"] in _BEFORE[self.phase]
            if before or (record["phase"] == self.phase and step is not None and record["step"] <= step):
                kept.append(line)
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text("".join(line + "\n" for line in kept), "utf-8")
        os.replace(partial, self.file)

    def train(self, record: LogRecord, learning_rate: float) -> None:
        """A record of training steps."""
        self._append(
            {
                "kind": "train",
                "phase": self.phase,
                "step": record.step,
                "loss": record.loss,
                "terms": record.terms,
                "sparsity": {"asked": record.asked, "delivered": record.delivered}
                | ({} if record.expected is None else {"expected": record.expected}),
                "learning_rate": learning_rate,
                "examples_per_second": record.examples_per_second,
            }
        )
        minutes, seconds = divmod(round(record.remaining), 60)
        line = (
            f"{self.title}  step {record.step}/{self.steps}  loss {record.loss:.4g}  sparsity {record.delivered:.4f}  "
            f"{record.examples_per_second:.0f} rows/s  {minutes}:{seconds:02d} left"
        )
        say(f"\r{line:<110}" if self._live else line, end="" if self._live else "\n")

    def evaluation(self, step: int, metrics: dict[str, float], sparsity: float) -> None:
        """A record of an evaluation."""
        score = next(iter(metrics.values()))
        self._append(
            {
                "kind": "eval",
                "phase": self.phase,
                "step": step,
                "metrics": metrics,
                "score": score,
                "sparsity": sparsity,
            }
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        line = f"{self.title}  step {step}/{self.steps}  dev {shown}  sparsity {sparsity:.4f}"
        say(f"\r{line:<110}" if self._live else line)

    def _append(self, record: dict[str, Any]) -> None:
        if self.closed or not is_first():
            return
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(record, allow_nan=False) + "\n")
