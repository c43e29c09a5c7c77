"""Studies of `experiments.glue`: methods, recipes and settings side by side, over tasks, sparsities and seeds."""

import dataclasses
from pathlib import Path

from experiments.config.resolve import resolve
from experiments.config.settings import TEACHER, Settings, teacher_settings
from experiments.grid.cells import make_once
from experiments.grid.file import Kind, ShouldStop, digest_of
from experiments.pages.data import Run
from kaprune_jax._errors import InputError


def make_kind() -> Kind[Settings]:
    """How the cells of a study of the main job are run."""
    return Kind(Settings, {"method": "sparsebert", "allow_weak_teacher": True}, _resolve, _run, _write)


def _resolve(settings: Settings) -> Settings:
    resolved = resolve(settings)
    if len(resolved.methods) > 1 or resolved.methods == ("dense",):
        raise InputError(
            f"method={resolved.method!r}; one that prunes is needed in each cell (the dense model is its teacher)"
        )
    return resolved


def _run(settings: Settings, folder: Path, out: Path, should_stop: ShouldStop) -> None:
    from experiments.coupling.structured import run_structured
    from experiments.pages.write import write_report
    from experiments.runs.augment import add_rows, make_rows
    from experiments.runs.augment_file import AUGMENTED
    from experiments.runs.prepare import prepare
    from experiments.runs.run import get_teacher, run_method
    from experiments.runs.source import load_task

    rows = None
    if settings.augment is not None and settings.augment_file is None:
        rows = out / "augmented" / digest_of(settings, [*TEACHER, "augment"])
        settings = dataclasses.replace(settings, augment_file=str(rows / AUGMENTED))
    prepared = prepare(settings, data=load_task(settings))
    if rows is not None and prepared.augmented is None:
        make_once(rows, lambda work: make_rows(prepared, work / AUGMENTED), should_stop)
    settings = prepared.settings
    alone = prepared._replace(
        settings=dataclasses.replace(teacher_settings(settings), allow_weak_teacher=settings.allow_weak_teacher)
    )
    place = out / "teachers" / digest_of(settings, TEACHER)
    if settings.teacher is None:
        make_once(place, lambda work: run_method("dense", alone, work, should_stop), should_stop)
    teacher, dense = get_teacher(alone, place, should_stop)
    training = add_rows(prepared, teacher, folder, should_stop)
    if settings.method == "cofi":
        run_structured(training, folder, should_stop, teacher=teacher, dense=dense)
    else:
        assert settings.method is not None
        run_method(settings.method, training, folder, should_stop, teacher=teacher, dense=dense)
    write_report(folder)


def _write(out: Path, runs: list[Run], missing: list[Path]) -> Path:
    """The page of the finished cells; before there is one, none is written."""
    from experiments.pages.write import write_comparison

    return write_comparison(out, runs) if runs else out
