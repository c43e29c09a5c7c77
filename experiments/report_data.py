"""Reads run folders for the report: settings, records, figures and masks, and groups runs that can be compared."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kaprune_jax._errors import InputError
from kaprune_jax.deploy.weights import read_json

METHODS = ("sparsebert", "hard-labels", "logits", "prune-finetuned", "prune-then-finetune", "cofi", "dense")
# May differ between the runs that one mean is taken over.
_FREE = frozenset({"seed", "out", "command", "resume", "method", "teacher", "log_every", "augment_file"})


class Run(NamedTuple):
    """A run folder as read.

    Attributes:
      folder: where it lies.
      config: every setting, and "command".
      environment: versions, devices, hashes; empty where `env.json` is missing.
      result: the figures of `result.json`.
      records: the lines of `metrics.jsonl`.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def task(self) -> str:
        return str(self.result.get("task", "?"))

    @property
    def method(self) -> str:
        return str(self.result.get("method", "?"))

    @property
    def name(self) -> str:
        """The method, and whether it had augmented rows: what is compared."""
        copies = self.config.get("augment") if self.figure("examples", "augmented") > 0 else None
        return f"{self.method}, augment {copies}" if copies else self.method

    @property
    def metric(self) -> str:
        return str(self.result.get("metric", "score"))

    @property
    def pattern(self) -> str:
        return str(self.result.get("pattern", "?"))

    @property
    def command(self) -> str:
        return str(self.config.get("command", ""))

    def figure(self, *keys: str) -> float:
        """A number of `result.json`, `figure("sparsity", "encoder")`; NaN where it is missing or no finite number."""
        return number(self.result, *keys)

    def select(self, kind: str, phase: str | None = None) -> list[dict[str, Any]]:
        """The records of a kind, and of a phase if one is named, in order of their step."""
        chosen = [r for r in self.records if r.get("kind") == kind and phase in (None, r.get("phase"))]
        return sorted(chosen, key=lambda record: number(record, "step"))

    @property
    def phase(self) -> str:
        """The phase that the run is about: "prune" where there is one, else whatever it recorded."""
        phases = [str(record["phase"]) for record in self.records if "phase" in record]
        return "prune" if "prune" in phases or not phases else phases[-1]


class Setting(NamedTuple):
    """What runs have in common whose methods can be compared."""

    task: str
    metric: str
    pattern: str
    sparsity: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (NaN for one value) of n finite values."""

    mean: float
    deviation: float
    n: int


def number(value: Any, *keys: str) -> float:
    """A finite number inside nested objects, or NaN."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else math.nan


def read_run(folder: Path) -> Run:
    """Reads a run folder; `metrics.jsonl` and `result.json` must be there. A teacher trained inside it is read too.

    Raises:
      InputError: the folder or one of the two files is missing, or a file or one of its lines is not JSON.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a run folder is needed")
    for name in ("result.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; the folder of a finished run is needed")
    config, environment = (
        read_json(folder / name) if (folder / name).is_file() else {} for name in ("config.json", "env.json")
    )
    records = _read_lines(folder / "metrics.jsonl")
    result = read_json(folder / "result.json")
    own_teacher = folder / "teacher" / "metrics.jsonl"
    if own_teacher.is_file() and not any(record.get("phase") == "teacher" for record in records):
        records += [record for record in _read_lines(own_teacher) if record.get("phase") == "teacher"]
    return Run(folder, config, environment, result, records)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    records = []
    for row, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file}: line {row}: not JSON ({error.msg})") from None
            if not isinstance(record, dict):
                raise InputError(f"{file}: line {row}: {line.strip()[:40]} is no JSON object")
            records.append(record)
    return records


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders, each once; a folder that only holds run folders stands for them, in order of their names."""
    found: dict[Path, Path] = {}
    for folder in folders:
        inner = [] if (folder / "metrics.jsonl").exists() else sorted(folder.glob("*/result.json"))
        for place in [file.parent for file in inner] or [folder]:
            found.setdefault(place.resolve(), place)
    return list(found.values())


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of the finite ones among the values."""
    good = [value for value in values if math.isfinite(value)]
    deviation = statistics.stdev(good) if len(good) > 1 else math.nan
    return Spread(statistics.fmean(good) if good else math.nan, deviation, len(good))


def group_runs(runs: Sequence[Run]) -> dict[Setting, dict[str, list[Run]]]:
    """Runs by setting and by `Run.name`; tasks by name, methods in the order of `METHODS`, runs by seed."""

    def order(run: Run) -> tuple:
        rank = METHODS.index(run.method) if run.method in METHODS else len(METHODS)
        return run.task, run.pattern, _sortable(run.figure("sparsity", "asked")), rank, run.name, _seed(run)

    groups: dict[Setting, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=order):
        asked = _sortable(run.figure("sparsity", "asked"))
        setting = Setting(run.task, run.metric, run.pattern, asked)
        groups.setdefault(setting, {}).setdefault(run.name, []).append(run)
    return groups


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings, other than the seed and places, in which runs of one mean differ: name to the values there are."""
    names = sorted(set().union(*(run.config for run in runs)) - _FREE)
    values = {
        name: sorted({"not given" if (value := run.config.get(name)) is None else str(value) for run in runs})
        for name in names
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def _seed(run: Run) -> float:
    return _sortable(run.figure("seed"))
