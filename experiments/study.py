"""A grid of runs as independent, resumable run folders: `--study FILE`, and `--cell I/N` for one slice of it.

FILE is JSON:

    {"out": "runs/study", "base": {"task": "micro-rte"}, "runs": {"first": {"task": "micro-nli"}},
     "grids": [{"sparsity": [0.9, 0.95], "method": ["sparsebert", "logits"], "model": ["mini", "@first"], "seed": [0]}]}

`base` has flags of the command, without dashes, for every cell; each grid is crossed out, and cells that two grids have
in common are run once. `runs` are dense models fine-tuned before, by name; "@NAME" is one as a cell's model or teacher.
Teachers are shared by the cells that have the same ones. Slices may run at the same time, on several machines with a
common folder: cell k belongs to slice k modulo N. A grid that has grown since keeps the cells it has, and so does a
folder that has only `figures.csv` left of them.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from experiments.lock import Busy, hold, release
from experiments.report_data import Run
from experiments.settings import Settings
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json

S = TypeVar("S", bound=Settings)
Flags = dict[str, Any]
ShouldStop = Callable[[], bool]

_OURS = ("study", "cell", "out", "resume", "rank", "distributed")
_MODELS = ("model", "teacher")
_MOST_CELLS = 10_000
_HEAVY = ("ckpt", "ckpt-after", "model-last")


class Grid(NamedTuple):
    """What a study's file says.

    Attributes:
      out: the study's folder.
      runs: flags of the dense models that are made first, by name.
      cells: flags of every cell, in order.
    """

    out: Path
    runs: dict[str, Flags]
    cells: list[Flags]


@dataclasses.dataclass(frozen=True)
class Kind(Generic[S]):
    """How the cells of a command's studies are run.

    Attributes:
      settings: the type of its settings.
      defaults: flags of every cell that does not say otherwise.
      resolve: settings with every default filled in, checked.
      run: runs a cell: its settings, its folder, the study's folder.
      write: writes the report into a folder, of the finished cells and the folders of the others; gives its place.
      reduce: the flags of a cell without those that say nothing of it, so that equal cells are one.
    """

    settings: type[S]
    defaults: Flags
    resolve: Callable[[S], S]
    run: Callable[[S, Path, Path, ShouldStop], None]
    write: Callable[[Path, list[Run], list[Path]], Path]
    reduce: Callable[[Flags], Flags] = lambda cell: cell


def read_grid(file: str, kind: Kind[S]) -> Grid:
    """Reads a study.

    Raises:
      InputError: no such file, or something in it that is no flag, no list of values, or no run of its own.
    """
    raw = read_json(Path(file))
    out, grids, base, runs = raw.get("out"), raw.get("grids"), raw.get("base", {}), raw.get("runs", {})
    unknown = set(raw) - {"out", "base", "runs", "grids"}
    if unknown or not isinstance(out, str) or "\0" in out or not isinstance(grids, list) or not grids:
        raise InputError(
            f"--study {file}: an object with out, base and grids is needed, and runs where cells start from others"
        )
    if not isinstance(base, dict) or not all(isinstance(grid, dict) and grid for grid in grids):
        raise InputError(f"--study {file}: base and every grid must be objects")
    if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()):
        raise InputError(f"--study {file}: runs must be an object of objects")
    if bad := [name for name in runs if not re.fullmatch(r"[A-Za-z0-9._-]*[A-Za-z0-9]", name)]:
        raise InputError(f"--study {file}: {bad[0]!r} is no name of a run; letters, digits, and . _ - are allowed")
    hints = get_type_hints(kind.settings)
    fields = [field.name for field in dataclasses.fields(kind.settings)]
    allowed = {name: hints[name] for name in fields if name not in _OURS}

    def check(name: str, value: Any) -> Any:
        if name not in allowed:
            raise InputError(f"--study {file}: {name!r} is no flag of this command, or one that a cell cannot have")
        kinds = _types(allowed[name])
        value = float(value) if float in kinds and type(value) is int else value
        if kinds and (not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool))):
            names = ["null" if each is type(None) else each.__name__ for each in kinds]
            raise InputError(f"--study {file}: {name}={value!r} is no {' or '.join(names)}")
        if name in _MODELS and str(value).startswith("@") and value[1:] not in runs:
            raise InputError(f"--study {file}: {name}={value!r}; runs has {', '.join(runs) or 'none'}")
        return value

    cells: dict[str, Flags] = {}
    for grid in grids:
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"--study {file}: {name}={values!r}; a list of values is needed in a grid")
        if (count := len(cells) + math.prod(map(len, grid.values()))) > _MOST_CELLS:
            raise InputError(f"--study {file}: its grids have {count} cells; up to {_MOST_CELLS} are allowed")
        for values in itertools.product(*grid.values()):
            flags = {**base, **dict(zip(grid, values, strict=True))}
            cell = kind.reduce({name: check(name, value) for name, value in flags.items()})
            cells.setdefault(json.dumps(cell, sort_keys=True), cell)
    main = {field.name for field in dataclasses.fields(Settings)} - {"method"}
    for run in runs.values():
        if odd := [name for name in run if name not in main]:
            raise InputError(f"--study {file}: {odd[0]!r} is no flag of a dense model of experiments.glue")
        if str(run.get("model", "")).startswith("@"):
            raise InputError(f"--study {file}: model={run['model']!r}; a run starts from no other run")
    first = {name: {key: check(key, value) for key, value in run.items()} for name, run in runs.items()}
    return Grid(Path(out), first, list(cells.values()))


def _types(hint: Any) -> tuple[type, ...]:
    """The types that a flag's values may have; of a choice that of the choices."""
    if get_origin(hint) is Literal:
        return tuple({type(choice) for choice in get_args(hint)})
    if arguments := get_args(hint):
        return tuple(kind for argument in arguments for kind in _types(argument))
    return (hint,)


def read_slice(text: str | None) -> tuple[int, int]:
    """Reads "I/N": slice I of N, from 1.

    Raises:
      InputError: something else.
    """
    if text is None:
        return 1, 1
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--cell {text!r}: I/N with 1 <= I <= N is needed")
    return int(found[1]), int(found[2])


def run_study(kind: Kind[S], file: str, cell: str | None, should_stop: ShouldStop) -> None:
    """Runs the cells of a slice that have no result yet, then writes the report of all that have one.

    Each result is kept in `figures.csv` too, and is there even when its folder has gone.
    """
    from experiments.record import say

    grid = read_grid(file, kind)
    number, count = read_slice(cell)
    resolved = _resolve(kind, grid, file)  # says what is wrong before it runs
    folders = [Path(settings.out or "") for settings in resolved]
    known = _finished(grid.out, folders)
    mine = [settings for index, settings in enumerate(resolved) if index % count == number - 1]
    _compile_once(grid.out)
    for name, flags in grid.runs.items():
        make_once(grid.out / "runs" / name, lambda work, flags=flags: _run_first(flags, work, should_stop), should_stop)
    for index, settings in enumerate(mine, 1):
        folder = Path(settings.out or "")
        if _cell_of(folder) in known or (folder / "result.json").is_file():
            continue
        say(f"\ncell {index} of {len(mine)}: {folder.name}")
        hold(folder)
        kind.run(settings, folder, grid.out, should_stop)
        lighten(folder)
        release(folder)
        _keep(grid.out, folders)
    runs = _keep(grid.out, folders)
    cells = {_cell_of(folder): folder for folder in folders}
    missing = [folder for cell, folder in cells.items() if cell not in runs]
    say(f"report: {kind.write(grid.out, [runs[cell] for cell in cells if cell in runs], missing)}")


def _cell_of(folder: Path) -> str:
    """The digest of a cell's flags, in which its folder's name ends."""
    return folder.name[-8:]


def _finished(out: Path, folders: Sequence[Path]) -> dict[str, Run]:
    """The runs of finished cells by their digests: from their folders, else from the table of figures."""
    from experiments.figures import FIGURES, read_figures
    from experiments.report_data import read_run

    known = read_figures(out / FIGURES) if (out / FIGURES).exists() else {}
    return known | {_cell_of(folder): read_run(folder) for folder in folders if (folder / "result.json").is_file()}


def _keep(out: Path, folders: Sequence[Path]) -> dict[str, Run]:
    """Brings the table of figures up to date; gives the runs in it."""
    from experiments.figures import FIGURES, format_figures
    from experiments.report import write_files

    if runs := _finished(out, folders):
        write_files(out, {FIGURES: format_figures(runs)})
    return runs


def _resolve(kind: Kind[S], grid: Grid, file: str) -> list[S]:
    """The settings of every cell, each with the folder it has."""
    from experiments.settings import resolve

    for name, flags in grid.runs.items():
        try:
            resolve(Settings(**{"method": "dense", **flags}))
        except InputError as error:
            raise InputError(f"--study {file}: run {name}: {error}") from None
    cells = grid.cells
    varied = sorted({name for cell in cells for name in cell if len({str(other.get(name)) for other in cells}) > 1})
    found = []
    for cell in cells:
        models = {name: _of_run(grid.out, value) for name, value in cell.items() if name in _MODELS}
        try:
            settings = kind.resolve(kind.settings(**{**kind.defaults, **cell, **models}))
        except InputError as error:
            raise InputError(f"--study {file}: cell {json.dumps(cell)}: {error}") from None
        name = "-".join(_short(cell[name]) for name in varied if name in cell) or "cell"
        known = sorted((grid.out / "cells").glob(f"*-{digest(cell)}"))  # named by a grid that has grown since
        place = known[0] if known else grid.out / "cells" / f"{name}-{digest(cell)}"
        found.append(dataclasses.replace(settings, out=str(place), resume=True))
    return found


def _of_run(out: Path, value: Any) -> Any:
    return str(out / "runs" / value[1:]) if isinstance(value, str) and value.startswith("@") else value


def _run_first(flags: Flags, work: Path, should_stop: ShouldStop) -> None:
    """Fine-tunes a model that cells start from."""
    from experiments.prepare import prepare
    from experiments.run import run_method
    from experiments.settings import resolve
    from experiments.source import load_task

    settings = resolve(Settings(**{"method": "dense", **flags, "out": str(work), "resume": True}))
    run_method("dense", prepare(settings, data=load_task(settings)), work, should_stop)


def make_once(
    place: Path, make: Callable[[Path], object], should_stop: ShouldStop, *, light: bool = True, wait: float = 2.0
) -> None:
    """Makes a folder under another name, then gives it its place; where another process is making it, waits for that.

    What a process that was killed has left under that name is gone on with.

    Args:
      place: the folder.
      make: makes it in the folder that it is given; leaves nothing where there is nothing to be made.
      should_stop: asked while waiting.
      light: without checkpoints, in the end.
      wait: seconds between two looks.

    Raises:
      Interrupted: `should_stop` said so.
    """
    from experiments.record import say
    from kaprune_jax.train.loop import Interrupted

    work, guard = (place.with_name(f".{place.name}.{name}") for name in ("work", "making"))
    waiting = False
    while not place.is_dir():
        try:
            hold(guard)
        except Busy as error:
            if not waiting:
                say(f"waiting for what another process makes: {error}")
            waiting = True
            if should_stop():
                raise Interrupted(f"stopped while waiting for {place}") from None
            time.sleep(wait)
            continue
        if not place.is_dir():
            make(work)
            release(work)
            if light:
                lighten(work)
            if work.is_dir():  # else all was given, so nothing was made
                work.rename(place)
        release(guard)
        with contextlib.suppress(OSError):  # there is one in it again
            guard.rmdir()
        return


def lighten(folder: Path) -> None:
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


def digest(value: Flags) -> str:
    """A name for what flags say: eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def digest_of(settings: Settings, names: Sequence[str]) -> str:
    """The same for some of the settings."""
    return digest({name: getattr(settings, name) for name in names})
