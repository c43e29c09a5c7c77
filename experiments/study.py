"""A grid of coupled runs as independent, resumable run folders: `--study FILE`, and `--cell I/N` for one slice of it.

FILE is JSON:

    {"out": "runs/study", "base": {"task": "micro-rte", "auxiliary": "micro-nli"},
     "grids": [{"limit_train": [100, 300], "sparsity": [0.8, 0.9], "coupling": ["none", "joint"], "seed": [0, 1, 2]}]}

`base` has flags of this command, without dashes, for every cell; each grid is crossed out, and cells that two grids
have in common are run once. Teachers are shared by the cells that have the same ones. Slices may run at the same time,
on several machines with a common folder: cell k belongs to slice k modulo N.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from experiments.lock import hold, release
from experiments.transfer_settings import TransferSettings, couples_teacher, resolve
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json

_OURS = ("study", "cell", "out", "resume", "rank", "distributed")
_TEACHER = (
    "task data_dir source train_file dev_file text label model limit_train seed dtype pooling max_length lengths "
    "length_multiple batch_size evaluations teacher_steps teacher_epochs teacher_learning_rate schedule warmup "
    "weight_decay"
).split()
_OTHER = (
    "auxiliary auxiliary_dir auxiliary_text auxiliary_label auxiliary_rows auxiliary_seed data_dir source model dtype "
    "pooling max_length lengths length_multiple batch_size evaluations auxiliary_teacher_steps schedule warmup "
    "weight_decay"
).split()
_JOINTLY = (
    "auxiliary auxiliary_dir auxiliary_text auxiliary_label auxiliary_seed auxiliary_rows auxiliary_teacher_steps "
    "auxiliary_teacher surgery surgery_on surgery_parts share_depth auxiliary_weight auxiliary_schedule "
    "auxiliary_mixing"
).split()
_COUPLED = [*_JOINTLY, "share", "when", "tie"]
_MOST_CELLS = 10_000
_HEAVY = ("ckpt", "ckpt-after", "model-last")


def read_cells(file: str) -> tuple[Path, list[dict[str, Any]]]:
    """The study's folder and the flags of every cell, in order.

    Raises:
      InputError: no such file, or something in it that is no flag, or no list of values.
    """
    raw = read_json(Path(file))
    out, grids = raw.get("out"), raw.get("grids")
    unknown = set(raw) - {"out", "base", "grids"}
    if unknown or not isinstance(out, str) or "\0" in out or not isinstance(grids, list) or not grids:
        raise InputError(f"--study {file}: an object with out, base and grids is needed")
    hints = get_type_hints(TransferSettings)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(TransferSettings)}
    allowed = {name: kind for name, kind in fields.items() if name not in _OURS}
    base = raw.get("base", {})
    cells: dict[str, dict[str, Any]] = {}

    def check(name: str, value: Any) -> Any:
        if name not in allowed:
            raise InputError(f"--study {file}: {name!r} is no flag of this command, or one that a cell cannot have")
        kinds = tuple(kind for kind in (get_args(allowed[name]) or (allowed[name],)) if isinstance(kind, type))
        value = float(value) if float in kinds and type(value) is int else value
        if kinds and (not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool))):
            raise InputError(f"--study {file}: {name}={value!r} is no {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    if not isinstance(base, dict) or not all(isinstance(grid, dict) and grid for grid in grids):
        raise InputError(f"--study {file}: base and every grid must be objects")
    for grid in grids:
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"--study {file}: {name}={values!r}; a list of values is needed in a grid")
        if (count := len(cells) + math.prod(map(len, grid.values()))) > _MOST_CELLS:
            raise InputError(f"--study {file}: its grids have {count} cells; up to {_MOST_CELLS} are allowed")
        for values in itertools.product(*grid.values()):
            flags = {**base, **dict(zip(grid, values, strict=True))}
            cell = {name: check(name, value) for name, value in flags.items()}
            if cell.get("coupling") == "none":  # is the same whatever it is not coupled with
                cell = {name: value for name, value in cell.items() if name not in _COUPLED}
            cells.setdefault(json.dumps(cell, sort_keys=True), cell)
    return Path(out), list(cells.values())


def read_slice(text: str | None) -> tuple[int, int]:
    """Reads "I/N", I from 1; the whole is 1/1.

    Raises:
      InputError: something else.
    """
    if text is None:
        return 1, 1
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--cell {text!r}: I/N with 1 <= I <= N is needed")
    return int(found[1]), int(found[2])


def run_study(settings: TransferSettings, should_stop: Callable[[], bool]) -> None:
    """Runs the cells of a slice that have no result yet, then writes the report of all that have one."""
    from experiments.record import say
    from experiments.report_study import write_study

    assert settings.study is not None
    out, cells = read_cells(settings.study)
    number, count = read_slice(settings.cell)
    varied = sorted({name for cell in cells for name in cell if len({str(other.get(name)) for other in cells}) > 1})
    resolved = [_resolve(cell, varied, out, settings.study) for cell in cells]  # says what is wrong before it runs
    mine = [cell for index, cell in enumerate(resolved) if index % count == number - 1]
    _compile_once(out)
    for index, cell in enumerate(mine, 1):
        assert cell.out is not None
        folder = Path(cell.out)
        if (folder / "result.json").is_file():
            continue
        say(f"\ncell {index} of {len(mine)}: {folder.name}")
        hold(folder)
        _run_cell(cell, folder, out, should_stop)
        _lighten(folder)
        release(folder)
    say(f"report: {write_study(out, [Path(cell.out or '') for cell in resolved])}")


def _resolve(cell: dict[str, Any], varied: list[str], out: Path, file: str) -> TransferSettings:
    try:
        settings = resolve(TransferSettings(**{"allow_weak_teacher": True, **cell}))
    except InputError as error:
        raise InputError(f"--study {file}: cell {json.dumps(cell)}: {error}") from None
    if "," in settings.coupling:
        raise InputError(f"--study {file}: coupling={settings.coupling!r}; one in each cell is needed")
    name = "-".join(_short(cell[name]) for name in varied if name in cell) or settings.coupling
    digest = _digest(cell)
    known = sorted((out / "cells").glob(f"*-{digest}"))  # a grid that has grown since names its cells otherwise
    place = known[0] if known else out / "cells" / f"{name}-{digest}"
    return dataclasses.replace(settings, out=str(place), resume=True)


def _run_cell(settings: TransferSettings, folder: Path, out: Path, should_stop: Callable[[], bool]) -> None:
    from experiments.auxiliary import get_auxiliaries, prepare_auxiliaries
    from experiments.coupling import begin, get_target_teacher, prune
    from experiments.prepare import prepare
    from experiments.report import write_report
    from experiments.source import load_task
    from experiments.transfer import check

    prepared = prepare(settings, data=load_task(settings))
    check(settings, prepared)
    others, auxiliaries = [], []
    if settings.coupling != "none":
        others = prepare_auxiliaries(settings, prepared)
        place = out / "teachers" / f"auxiliary-{_digest({name: getattr(settings, name) for name in _OTHER})}"
        _make_once(place, lambda work: get_auxiliaries(settings, others, work, should_stop))
        auxiliaries = get_auxiliaries(settings, others, place, should_stop)
    beginning = begin(prepared, auxiliaries, others, folder, should_stop)
    same = (*_TEACHER, "coupling", *_JOINTLY) if couples_teacher(settings) else _TEACHER
    teacher = out / "teachers" / f"target-{_digest({name: getattr(settings, name) for name in same})}"
    if settings.teacher is None:
        _make_once(teacher, lambda work: get_target_teacher(beginning, work, should_stop))
    prune(beginning, teacher, folder, should_stop)
    write_report(folder)


def _make_once(place: Path, make: Callable[[Path], object]) -> None:
    """Makes a folder under a name of its own, then gives it its place, unless another process has been faster.

    What a process that was killed has left under such a name is gone on with.
    """
    if place.is_dir():
        return
    work = _take_over(place) or place.with_name(f".{place.name}-{socket.gethostname()}-{os.getpid()}")
    hold(work)
    make(work)
    _lighten(work)
    release(work)
    if not work.is_dir():  # all was given, so nothing was made
        return
    try:
        work.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(work, ignore_errors=True)


def _take_over(place: Path) -> Path | None:
    """The work that was begun for a folder by a process that is no longer there, now held by this one."""
    for left in sorted(place.parent.glob(f".{place.name}-*")):
        with contextlib.suppress(InputError):
            hold(left)
            return left
    return None


def _lighten(folder: Path) -> None:
    """Removes what only a run that goes on would need."""
    for name in _HEAVY:
        for place in (folder / name, *folder.glob(f"*/{name}")):
            shutil.rmtree(place, ignore_errors=True)


def _compile_once(out: Path) -> None:
    """Cells compile the same programs: kept in the study's folder."""
    import jax

    place = out / "compiled"
    place.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", os.fspath(place.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isalnum() or letter in "._+" else "_" for letter in text)[:24]


def _digest(value: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
