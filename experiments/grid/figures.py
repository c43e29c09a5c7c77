"""What a study came to as one small table, `figures.csv`: a row for each finished cell, its figures and its command.

The table is what is left to keep, to publish, and to go on from where the run folders are gone: a study whose folder
has it does not run those cells again, and `python -m experiments.report FIGURES.csv` makes tables and curves of it.
"""

import csv
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config import settings as of_glue
from experiments.config import transfer_settings as of_transfer
from experiments.config.settings import AROUND, Settings
from experiments.config.transfer_settings import TransferSettings
from experiments.config.tuned import tuned
from experiments.pages.data import Run, number
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_text

FIGURES = "figures.csv"
_TEXTS = ("task", "method", "pattern", "metric")
_NUMBERS = (
    "seed dense last pruned sparsity.asked sparsity.encoder sparsity.all bytes.stored steps seconds examples.train "
    "examples.dev examples.augmented"
).split()
_OTHERS = ("last_metrics", "revision", "devices", "cell", "command")
COLUMNS = (*_TEXTS, *_NUMBERS, *_OTHERS)
# Where a run lies and how it is watched says nothing of what it computes.
_AROUND = (*AROUND, "study", "cell", "augment_file")
_COMMANDS = {
    "experiments.glue": (Settings, of_glue.parse),
    "experiments.transfer": (TransferSettings, of_transfer.parse),
}


def read_figures(file: Path) -> dict[str, Run]:
    """The rows of a table of figures.

    Args:
      file: what `format_figures` gave; rows of several such tables may stand below one header.

    Returns:
      Runs as `read_run` gives them, without records, by their cell: the digits in which its folder's name ends.

    Raises:
      InputError: there is no such file, or it, or one of its rows, is none of this kind.
    """
    text = read_text(file)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{file}: no table of figures ({error})") from None
    header = rows[0] if rows else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(f"{file}: no column {missing[0]!r}; a table of figures has {', '.join(COLUMNS)}")
    found = {}
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"{file}, row {line}: {len(row)} values, {len(header)} are needed")
        values = dict(zip(header, row, strict=True))
        found[values["cell"]] = _read_row(values, f"{file}, row {line}", file.parent)
    return found


def format_figures(runs: Mapping[str, Run]) -> str:
    """The table of runs by cell, in order of task, sparsity, method and seed."""

    def order(item: tuple[str, Run]) -> tuple:
        cell, run = item
        return run.task, -run.figure("sparsity", "asked"), run.name, run.figure("seed"), cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(cell, run) for cell, run in sorted(runs.items(), key=order))
    return text.getvalue()


def command_of(run: Run) -> str:
    """The command of a run by itself, with every setting that is not the default, those of its recipe too."""
    module = "experiments.transfer" if "coupling" in run.config else "experiments.glue"
    kind, _ = _COMMANDS[module]
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    config = {name: run.config.get(name, default) for name, default in fields.items() if name not in _AROUND}
    if config["train_file"] is not None:
        del config["task"]  # which is the file's name
    if config["stride"] is not None:  # of questions, for which there is no other
        config["pooling"] = "auto"
    if module == "experiments.glue" and run.method not in ("cofi", "dense"):
        chosen = tuned(run.method, Settings(**{**config, "task": config.get("task", Settings.task)}))
        config |= chosen._asdict()
    words = ["python", "-m", module]
    for name, value in config.items():
        is_given = value != "" or run.config.get(name) == ""  # no changes to loss weights, where a recipe has some
        if value != fields[name] and value is not None and is_given:
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _row(cell: str, run: Run) -> list[str]:
    numbers = [number(run.result, *name.split(".")) for name in _NUMBERS]
    metrics = run.result.get("last_metrics")
    devices = run.environment.get("devices")
    others = {
        "last_metrics": " ".join(f"{name}={value:.6g}" for name, value in (metrics or {}).items()),
        "revision": str(run.environment.get("revision", "unknown")),
        "devices": " ".join(dict.fromkeys(map(str, devices or []))),
        "cell": cell,
        "command": command_of(run),
    }
    texts = [str(run.result.get(name, "?")) for name in _TEXTS]
    return [*texts, *(f"{value:.10g}" if math.isfinite(value) else "" for value in numbers), *others.values()]


def _read_row(row: Mapping[str, str], where: str, out: Path) -> Run:
    result: dict[str, Any] = {name: row[name] for name in _TEXTS}
    for name in _NUMBERS:
        inner = result
        *path, last = name.split(".")
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = _read_number(row[name], f"{where}: {name}")
    pairs = [text.partition("=") for text in row["last_metrics"].split()]
    result["last_metrics"] = {name: _read_number(value, f"{where}: last_metrics") for name, _, value in pairs}
    try:
        _, _, module, *arguments = shlex.split(row["command"])
        config = dataclasses.asdict(_COMMANDS[module][1](arguments))
        if config["train_file"] is not None:
            config["task"] = row["task"]
        environment = {"revision": row["revision"], "devices": row["devices"].split()}
        run = Run(out / "cells" / row["cell"], config | {"command": row["command"]}, environment, result, [])
        command_of(run)  # can be written again
        return run
    except InputError as error:
        raise InputError(f"{where}: command: {error}") from None
    except (ValueError, KeyError, SystemExit):  # the last is that of --help
        allowed = " or ".join(f"python -m {module}" for module in _COMMANDS)
        raise InputError(f"{where}: command {row['command'][:60]!r}; {allowed} with its flags is needed") from None


def _read_number(text: str, where: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise InputError(f"{where} {text[:60]!r} is no number") from None
