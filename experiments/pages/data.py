"""Reads run folders for the report: settings, records, figures and masks, and groups runs that can be compared."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.settings import AROUND, BY_METHOD, Settings
from experiments.config.transfer_settings import TransferSettings
from experiments.config.tuned import by_recipe
from experiments.presets import OWN_FILES, PRESETS, Preset, rank_of
from experiments.runs.source import HELD_OUT
from kaprune_jax._errors import InputError
from kaprune_jax._reading import as_object, inside, read_json, read_text

# May differ between the runs that one mean is taken over.
_FREE = frozenset((*AROUND, *"seed command task method teacher auxiliary_teacher study cell augment_file".split()))
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TransferSettings)}
# What else runs of one method may be compared by.
_CHANGES = "augment student target_at sparsity_schedule scope scores loss_weights temperature".split()
_CHANGES += "schedule warmup learning_rate dropout".split()
# Say nothing of a run without auxiliary tasks.
_COUPLED = frozenset(_DEFAULTS) - {field.name for field in dataclasses.fields(Settings)}
_COUPLED -= {"coupling", "init_from", "vote_rate"}
# Tell coupled runs apart; what surgery does only where there is surgery.
_TELLING = (
    "start share share_depth when auxiliary_weight auxiliary_schedule auxiliary_rows auxiliary_mixing tie".split()
)
_OF_SURGERY = ["surgery", "surgery_on"]


class Run(NamedTuple):
    """A run folder as read.

    Attributes:
      folder: where it lies.
      config: every setting, and "command".
      environment: versions, devices, hashes; empty where `env.json` is missing.
      result: the figures of `result.json`.
      records: the lines of `metrics.jsonl`.
      length: the fewest and the most steps that it and its like were trained for, where others beside them were trained
        for longer or for less.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]
    length: tuple[int, int] | None = None

    @property
    def task(self) -> str:
        return str(self.result.get("task", "?"))

    @property
    def method(self) -> str:
        return str(self.result.get("method", "?"))

    @property
    def name(self) -> str:
        """What is compared: the kind and, where there are several lengths of it, for how many steps it was trained."""
        if self.length is None:
            return self.kind
        fewest, most = self.length
        return f"{self.kind}, {fewest:,}{f' to {most:,}' if most > fewest else ''} steps"

    @property
    def kind(self) -> str:
        """The method, how it was coupled, its recipe and what it was changed to."""
        return self.name_without()

    def name_without(self, shared: Sequence[str] = ()) -> str:
        """The name, of a run with auxiliary tasks without some of its `coupling_parts`."""
        if isinstance(coupling := self.config.get("coupling"), str):
            kept = [part for part in self.coupling_parts if coupling == "none" or part not in shared]
            brackets = f" ({', '.join(kept)})" if kept else ""
            return f"{self.method}, {_name_coupling(coupling, self.config)}{brackets}"
        parts = [self.method, *(["paper's recipe"] if self.config.get("recipe") == "paper" else []), *_changes(self)]
        return ", ".join(parts)

    @property
    def coupling_parts(self) -> list[str]:
        """How a run is coupled otherwise than by default: what its name has in brackets."""
        return _coupling_parts(str(self.config.get("coupling")), self.config)

    @property
    def ranked_by(self) -> str:
        """By what weights were ranked, "magnitude" or "sensitivity"; empty where none were."""
        if self.method == "dense" or self.is_smaller:
            return ""
        given = None if self.method == "prune-then-finetune" else self.config.get("scores")
        return str(given or by_recipe(self.method, _preset_of(self)).scores)

    @property
    def is_smaller(self) -> bool:
        """Whether what was removed is physically gone, rather than zeros."""
        return self.method == "cofi" or "removed" in self.result

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
        """The records of a kind, and of a phase if one is named, in order of their step; "after" goes with "prune"."""
        phases = ("prune", "after") if phase == "prune" else (phase,)
        chosen = [r for r in self.records if r.get("kind") == kind and (phase is None or r.get("phase") in phases)]
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
      InputError: the folder or one of the two files is missing, or a file or one of its lines is not JSON, or is a
        link out of the folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a run folder is needed")
    names = ("result.json", "metrics.jsonl", "config.json", "env.json", "teacher/metrics.jsonl")
    places = {name: inside(folder, name) for name in names}
    for name in names[:2]:
        if not places[name].is_file():
            raise InputError(f"{folder}: no {name}; the folder of a finished run is needed")
    config, environment = (
        read_json(places[name]) if places[name].is_file() else {} for name in ("config.json", "env.json")
    )
    records = _read_lines(places["metrics.jsonl"])
    result = read_json(places["result.json"])
    own_teacher = places["teacher/metrics.jsonl"]
    if own_teacher.is_file() and not any(record.get("phase") == "teacher" for record in records):
        records += [record for record in _read_lines(own_teacher) if record.get("phase") == "teacher"]
    return Run(folder, config, environment, result, records)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    lines = enumerate(read_text(file).split("\n"), 1)
    return [as_object(line, file, line=row) for row, line in lines if line.strip()]


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
        asked = _sortable(run.figure("sparsity", "asked"))
        return run.task, run.pattern, asked, rank_of(run.method), run.kind, run.length or (0, 0), _seed(run)

    groups: dict[Setting, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=order):
        asked = _sortable(run.figure("sparsity", "asked"))
        setting = Setting(run.task, run.metric, run.pattern, asked)
        groups.setdefault(setting, {}).setdefault(run.name, []).append(run)
    return groups


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings, other than the seed and places, in which runs of one mean differ: name to the values there are."""
    names = sorted((_DEFAULTS.keys() & set().union(*(run.config for run in runs))) - _FREE)
    values = {
        name: sorted(
            {
                "not given" if (value := run.config.get(name)) is None else str(value)
                for run in runs
                if name not in _COUPLED or run.config.get("coupling") != "none"
            }
        )
        for name in names
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _changes(run: Run) -> list[str]:
    """What a run without auxiliary tasks does otherwise than its task's recipe, where methods are compared by it."""
    if run.method == "dense":
        return []
    preset = _preset_of(run)
    usual = {name: _DEFAULTS.get(name) for name in _CHANGES} | vars(preset) | by_recipe(run.method, preset)._asdict()
    found = []
    for name in _CHANGES:
        value = run.config.get(name, usual[name])
        if name == "augment":
            value = value if run.figure("examples", "augmented") > 0 else None
        if name in BY_METHOD and value is None:  # the recipe's
            continue
        if name == "scores" and run.method == "prune-then-finetune":  # which has no use for any
            continue
        if value != usual[name]:
            shown = f"{value:g}" if isinstance(value, float) else "none" if value in (None, "") else str(value)
            found.append(f"{name.replace('_', ' ')} {shown}")
    return found


def _preset_of(run: Run) -> Preset:
    recipe = "paper" if run.config.get("recipe") == "paper" else "best"
    return PRESETS[recipe].get(run.task.removesuffix(HELD_OUT), OWN_FILES[recipe])


def _name_coupling(coupling: str, config: dict[str, Any]) -> str:
    """How a run was coupled and with what."""
    if coupling == "none":
        return "alone"
    return (
        f"{coupling} with {' + '.join(part.split('=', 1)[0] for part in str(config.get('auxiliary', '?')).split(','))}"
    )


def _coupling_parts(coupling: str, config: dict[str, Any]) -> list[str]:
    telling = [] if coupling == "none" else _TELLING + _OF_SURGERY * (coupling == "surgery")
    found = [(name, config[name]) for name in telling if config.get(name, _DEFAULTS[name]) != _DEFAULTS[name]]
    if config.get("init_from"):
        found.append(("gates", "voted"))
        rate = config.get("vote_rate", _DEFAULTS["vote_rate"])
        found += [("vote_rate", rate)] * (rate != _DEFAULTS["vote_rate"])
    return [
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else str(value).replace(',', '+')}"
        for name, value in found
    ]


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def _seed(run: Run) -> float:
    return _sortable(run.figure("seed"))
