"""A grid of runs as independent, resumable run folders: `--study FILE`, and `--cell I/N` for one slice of it.

What the file says is in `experiments.grid.file`. Teachers are shared by the cells that have the same ones. Slices may
run at the same time, on several machines with a common folder: cell k belongs to slice k modulo N. So may processes
without slices: each takes the next cell that none of them works on. A grid that has grown since keeps the cells it has,
and so does a folder that has only `figures.csv` left of them.
"""

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.config.settings import TEACHER, Settings
from experiments.grid.file import MODELS, Flags, Grid, Kind, S, ShouldStop, digest, read_grid, read_slice
from experiments.pages.data import Run
from experiments.runs.lock import Busy, hold, release
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json

_HEAVY = ("ckpt", "ckpt-after", "model-last")


def run_study(kind: Kind[S], file: str, cell: str | None, should_stop: ShouldStop) -> None:
    """Runs the cells of a slice that have no result yet, then writes the report of all that have one.

    Each result is kept in `figures.csv` too, and is there even when its folder has gone. A cell that fails does not
    keep the others from being run.

    Raises:
      InputError, Diverged: of the first cell that failed, in the end; before the first cell, what is wrong in the file.
      Interrupted: `should_stop` said so.
    """
    from experiments.runs.record import say
    from kaprune_jax.train.loop import Diverged

    grid = read_grid(file, kind)
    number, count = read_slice(cell)
    resolved = _resolve(kind, grid, file)  # says what is wrong before it runs
    folders = [Path(settings.out or "") for settings in resolved]
    known = _finished(grid.out, folders)
    mine = [settings for index, settings in enumerate(resolved) if index % count == number - 1]
    _compile_once(grid.out)
    failed: list[Exception] = []
    for index, settings in enumerate(mine, 1):
        folder = Path(settings.out or "")
        if _cell_of(folder) in known or (folder / "result.json").is_file():
            continue
        try:
            hold(folder)
        except Busy:
            say(f"\ncell {index} of {len(mine)}: {folder.name}: left to another process, which is at work on it")
            continue
        if not (folder / "result.json").is_file():  # or another process has ended it meanwhile
            say(f"\ncell {index} of {len(mine)}: {folder.name}")
            try:
                _make_sources(grid, settings, should_stop)
                kind.run(settings, folder, grid.out, should_stop)
                lighten(folder)
            except (InputError, Diverged) as error:  # of this cell; others may do better
                say(f"cell {index} of {len(mine)} has failed: {error}")
                failed.append(error)
            _forget_programs()
        release(folder)
        _keep(grid.out, folders)
    runs = _keep(grid.out, folders)
    cells = {_cell_of(folder): folder for folder in folders}
    missing = [folder for cell, folder in cells.items() if cell not in runs]
    say(f"report: {kind.write(grid.out, [runs[cell] for cell in cells if cell in runs], missing)}")
    if failed:
        say(f"{len(failed)} of {len(mine)} cells have failed; the same command tries them again. The first:")
        raise failed[0]


def _cell_of(folder: Path) -> str:
    """The digest of a cell's flags, in which its folder's name ends."""
    return folder.name[-8:]


def _finished(out: Path, folders: Sequence[Path]) -> dict[str, Run]:
    """The runs of finished cells by their digests: from their folders, else from the table of figures."""
    from experiments.grid.figures import FIGURES, read_figures
    from experiments.pages.data import read_run

    known = read_figures(out / FIGURES) if (out / FIGURES).exists() else {}
    return known | {_cell_of(folder): read_run(folder) for folder in folders if (folder / "result.json").is_file()}


def _keep(out: Path, folders: Sequence[Path]) -> dict[str, Run]:
    """Brings the table of figures up to date; gives the runs in it."""
    from experiments.grid.figures import FIGURES, format_figures
    from experiments.pages.write import write_files

    if runs := _finished(out, folders):
        write_files(out, {FIGURES: format_figures(runs)})
    return runs


def _resolve(kind: Kind[S], grid: Grid, file: str) -> list[S]:
    """The settings of every cell, each with the folder it has."""
    from experiments.config.resolve import resolve

    for name, flags in grid.runs.items():
        try:
            first = resolve(Settings(**{"method": "dense", **flags}))
        except InputError as error:
            raise InputError(f"--study {file}: run {name}: {error}") from None
        _check_made(first, grid.out / "runs" / name, f"--study {file}: run {name}")
    cells = grid.cells
    varied = sorted({name for cell in cells for name in cell if len({str(other.get(name)) for other in cells}) > 1})
    found = []
    for cell in cells:
        models = {name: _of_run(grid.out, value) for name, value in cell.items() if name in MODELS}
        try:
            settings = kind.resolve(kind.settings(**{**kind.defaults, **cell, **models}))
        except InputError as error:
            raise InputError(f"--study {file}: cell {json.dumps(cell)}: {error}") from None
        name = "-".join(_short(cell[name]) for name in varied if name in cell) or "cell"
        known = sorted((grid.out / "cells").glob(f"*-{digest(cell)}"))  # named by a grid that has grown since
        place = known[0] if known else grid.out / "cells" / f"{name}-{digest(cell)}"
        found.append(dataclasses.replace(settings, out=str(place), resume=True))
    return found


def _check_made(settings: Settings, place: Path, where: str) -> None:
    """Whether a model that is there already was made with the flags that its name stands for now."""
    from experiments.runs.record import FOUND

    if not (place / "config.json").is_file():
        return
    made = read_json(place / "config.json")
    for name in (name for name in TEACHER if name not in FOUND and name in made):
        if (value := getattr(settings, name)) != made[name]:
            raise InputError(
                f"{where}: {name}={value!r}, but {place} was made with {made[name]!r}; give it another name"
            )


def _of_run(out: Path, value: Any) -> Any:
    return str(out / "runs" / value[1:]) if isinstance(value, str) and value.startswith("@") else value


def _make_sources(grid: Grid, settings: Settings, should_stop: ShouldStop) -> None:
    """Fine-tunes the models of the grid's `runs` that a cell starts from, unless they are there."""
    for name, flags in grid.runs.items():
        place = grid.out / "runs" / name
        if str(place) in (getattr(settings, flag, None) for flag in MODELS):
            make_once(place, lambda work, flags=flags: _run_first(flags, work, should_stop), should_stop)


def _run_first(flags: Flags, work: Path, should_stop: ShouldStop) -> None:
    """Fine-tunes a model that cells start from."""
    from experiments.config.resolve import resolve
    from experiments.runs.prepare import prepare
    from experiments.runs.run import run_method
    from experiments.runs.source import load_task

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
    from experiments.runs.record import say
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
        try:
            if not place.is_dir():
                make(work)
                release(work)
                if light:
                    lighten(work)
                if work.is_dir():  # else all was given, so nothing was made
                    work.rename(place)
        finally:  # where this one failed, others can try
            release(work)
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
    """Cells compile the same programs: kept in the study's folder, unless they are kept somewhere anyway."""
    import jax

    if jax.config.values.get("jax_compilation_cache_dir"):
        return
    place = out / "compiled"
    place.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", os.fspath(place.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _forget_programs() -> None:
    """Each cell makes programs of its own, for a model that no other has: kept, they fill the memory of a long study.

    Those that cells have in common are read again from the study's folder, but for the smallest.
    """
    import jax

    jax.clear_caches()
    gc.collect()


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isalnum() or letter in "._+" else "_" for letter in text)[:24]
