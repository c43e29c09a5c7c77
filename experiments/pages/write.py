"""Writes the page and the tables of one run or of several."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.pages.compare import comparison
from experiments.pages.data import Run, read_run
from experiments.pages.html import run_page
from experiments.pages.lengths import tell_lengths
from experiments.pages.markdown import markdown
from experiments.pages.mask_pictures import study
from experiments.pages.structure_pictures import read_structure
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import read_masks


def write_report(run_folder: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Path:
    """Writes `report.html` and `table.md` of one run.

    Args:
      run_folder: of a finished run.
      out: where to; the run folder itself if not given.

    Returns:
      The path of the page.

    Raises:
      InputError: a file of the run is missing or broken, or nothing can be written there; then nothing is.
    """
    run = read_run(Path(run_folder))
    folder = Path(out or run_folder)
    write_files(folder, {"table.md": markdown([run]), "report.html": _page_of(run)})
    return folder / "report.html"


def write_comparison(folder: str | os.PathLike[str], runs: Sequence[str | os.PathLike[str] | Run]) -> Path:
    """Writes `report.html` and `table.md` of several runs, of one or more methods, seeds, tasks and sparsities.

    Where a method has several sparsities, `sparsity-TASK-METRIC-PATTERN.svg` has the score against them, a file of its
    own; where it was trained for several numbers of steps, `steps-TASK-METRIC-PATTERN-SPARSITY.svg`.

    Args:
      folder: where to; made if it is not there.
      runs: finished ones, at least one: their folders, or what was read.

    Returns:
      The path of the page.

    Raises:
      InputError: there are no runs, a file of one is missing or broken, or nothing can be written; then nothing is.
    """
    found = [run if isinstance(run, Run) else read_run(Path(run)) for run in runs]
    if not found:
        raise InputError(f"{folder}: no run folders to compare; at least one is needed")
    found = tell_lengths(found)
    write_files(Path(folder), {"table.md": markdown(found), **comparison(found, Path(folder))})
    return Path(folder) / "report.html"


def _page_of(run: Run) -> str:
    found = re.fullmatch(r"block-([1-9][0-9]{0,5})x([1-9][0-9]{0,5})(?:-balanced)?", run.pattern)
    block = (int(found[1]), int(found[2])) if found else (32, 128)
    return run_page(run, study(read_masks(run.folder / "model"), block=block), read_structure(run))


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """All files or, as far as the system allows, none.

    Args:
      folder: where to; made if it is not there.
      texts: name to content.

    Raises:
      InputError: nothing can be written there.
    """
    partial: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=folder, prefix=f".{name}-", delete=False
            ) as file:
                partial[name] = Path(file.name)
                file.write(text)
            partial[name].chmod(0o644)  # temporary files are for their owner only
        for name, place in partial.items():
            place.replace(folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        for place in partial.values():
            place.unlink(missing_ok=True)
