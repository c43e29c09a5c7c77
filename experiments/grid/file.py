"""The file of a study: its grids crossed out into cells.

    {"out": "runs/study", "base": {"task": "micro-rte"}, "runs": {"first": {"task": "micro-nli"}},
     "grids": [{"sparsity": [0.9, 0.95], "method": ["sparsebert", "logits"], "model": ["mini", "@first"], "seed": [0]}]}

`base` has flags of the command, without dashes, for every cell; each grid is crossed out, and cells that two grids have
in common are run once. `runs` are dense models fine-tuned before, by name; "@NAME" is one as a cell's model or teacher.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from experiments.config.settings import Settings
from experiments.pages.data import Run
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json

S = TypeVar("S", bound=Settings)
Flags = dict[str, Any]
ShouldStop = Callable[[], bool]
MODELS = ("model", "teacher")
"""Flags whose value may be "@NAME", a run of the study's own."""

_OURS = ("study", "cell", "out", "resume", "rank", "distributed")
_LATER = ("accumulate",)  # so that what was made before is found
_MOST_CELLS = 10_000


class Grid(NamedTuple):
    """What a study's file says.

    Attributes:
      out: the study's folder.
      runs: flags of the dense models that cells start from, by name.
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
    if isinstance(out, str) and not out.strip():
        raise InputError(f"--study {file}: out={out!r}; a folder is needed")
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
        if name in MODELS and str(value).startswith("@") and value[1:] not in runs:
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


def digest(value: Flags) -> str:
    """A name for what flags say: eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def digest_of(settings: Settings, names: Sequence[str]) -> str:
    """The same for some of the settings; what earlier versions left out of it counts where it is not the default."""
    values = {name: getattr(settings, name) for name in names}
    left_out = {name for name in _LATER if values.get(name) == getattr(Settings, name)}
    return digest({name: value for name, value in values.items() if name not in left_out})
