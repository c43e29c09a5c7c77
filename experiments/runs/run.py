"""One run: a method trained from start to end, its evaluations, its models and its figures."""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config.settings import teacher_settings
from experiments.config.tuned import tuned
from experiments.runs.memory import peak_bytes, restart_peak
from experiments.runs.method import Plan, plan, recipe, short_name
from experiments.runs.prepare import Prepared, lengths_of, make_forward
from experiments.runs.record import environment, open_run, say, versions, write_json
from experiments.runs.results import card, delivered, read_result
from experiments.runs.stage import Stage
from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.data.loader import Encoded, eval_batches
from kaprune_jax.data.metrics import majority_score, score_task
from kaprune_jax.data.spans import score_spans
from kaprune_jax.deploy.folder import load, save
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.config import BertConfig
from kaprune_jax.prune.masks import sparsity
from kaprune_jax.train.processes import by_first, on_first
from kaprune_jax.train.sharding import fetch, mesh_text, place, place_batch
from kaprune_jax.train.step import (
    TrainState,
    get_masks,
    init_state,
    make_predict,
    make_train_step,
    split_projection,
)

ShouldStop = Callable[[], bool]
TOLD_EVERY = 60.0
"""Seconds after which a long evaluation says how far it is."""


def predict_rows(
    predict: Callable, params: Any, data: Encoded, *, batch_size: int, mesh: Mesh | None = None, **lengths: int
) -> np.ndarray:
    """Logits [rows, classes] of a model, in the order of the rows; on a mesh where the parameters are on one.

    Logits of tokens are [rows, tokens, 2], minus infinity behind a row's batch. `lengths` are those of `eval_batches`.
    """
    batches = eval_batches(data, batch_size=batch_size, **lengths)
    put = (lambda batch: batch) if mesh is None else functools.partial(place_batch, mesh=mesh)
    pending = [(rows, predict(params, put(batch))) for rows, batch in batches]
    first, told = np.asarray(pending[0][1]), _telling(pending, len(data.input_ids))
    if first.ndim == 3:
        logits = np.full((len(data.input_ids), data.limit, first.shape[-1]), -np.inf, np.float32)
        for rows, values in told:
            logits[rows, : values.shape[1]] = np.asarray(values)[: len(rows)]
        return logits
    logits = np.zeros((len(data.input_ids), first.shape[-1]), np.float32)
    for rows, values in told:
        logits[rows] = np.asarray(values)[: len(rows)]
    return logits


def _telling(pending: Iterable[tuple[np.ndarray, Any]], total: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Gives batches to who waits for each, and says on the terminal from time to time how many rows are done."""
    done, told_at = 0, time.monotonic()
    for rows, values in pending:
        yield rows, values
        done += len(rows)
        if time.monotonic() - told_at >= TOLD_EVERY and done < total:
            told_at = time.monotonic()
            line = f"predicted {done:,} of {total:,} rows"
            say(f"\r{line:<110}" if sys.stdout.isatty() else line)  # over the line of progress


def evaluate(predict: Callable, params: Any, prepared: Prepared, *, batch_size: int) -> dict[str, float]:
    """Scores of a model on the evaluation rows, the main one first; its parameters are on the run's devices."""
    options: dict[str, Any] = dict(batch_size=batch_size, mesh=prepared.mesh, **lengths_of(prepared.settings))
    logits = predict_rows(predict, params, prepared.dev, **options)
    if prepared.windows is not None:
        return score_spans(prepared.data, prepared.windows, logits)
    return score_task(prepared.data, logits)


def get_teacher(prepared: Prepared, folder: Path, should_stop: ShouldStop) -> tuple[Model, float]:
    """The given teacher, or the start fine-tuned on the task and kept in `folder`; and its score on dev.

    Raises:
      InputError: the teacher scores near what a constant prediction gets.
    """
    if prepared.teacher is not None:
        teacher = prepared.teacher
        predict = make_predict(make_forward(prepared, teacher.config), mesh=prepared.mesh)
        params = teacher.params if prepared.mesh is None else place(teacher.params, prepared.mesh)
        metrics = evaluate(predict, params, prepared, batch_size=32)
        value = metrics[prepared.data.metrics[0]]
    else:
        value = run_method("dense", prepared, folder, should_stop)["dense"]
        teacher = load(folder)
    check_teacher(prepared, value, None if prepared.teacher else folder)
    say(f"teacher: {prepared.data.metrics[0]} {value:.4f} on dev")
    return teacher, value


@by_first
def check_teacher(prepared: Prepared, value: float, folder: Path | None) -> None:
    """Refuses a teacher within two standard errors of the constant prediction, or half way from there to 1."""
    name = prepared.data.metrics[0]
    majority = majority_score(prepared.data)
    constant = majority.scores[name]
    # Where the constant is nearly perfect, closing half of what it leaves open is enough.
    least = constant + min(2 * majority.standard_error, 0.5 * (1.0 - constant))
    if value >= least:
        return
    same = "the first words of each passage get" if prepared.windows else "always answering the same gets"
    line = (
        f"the teacher has {name} {value:.4f} on dev, and {same} {majority.scores[name]:.4f} "
        f"(at least {least:.4f} is wanted): there is nothing to distil"
    )
    if not prepared.settings.allow_weak_teacher:
        kept, resume = (f"; it is kept in {folder}", "--resume ") if folder else ("", "")
        raise InputError(
            f"{line}{kept}; fine-tune another (--out NEW, --teacher-epochs, --teacher-learning-rate), start from "
            f"another model or from a run on a related task (--model), or go on with {resume}--allow-weak-teacher"
        )
    print(f"warning: {line}", file=sys.stderr)


def run_method(
    method: str,
    prepared: Prepared,
    folder: Path,
    should_stop: ShouldStop,
    *,
    teacher: Model | None = None,
    dense: float | None = None,
) -> dict[str, Any]:
    """Trains one method into a run folder and returns its result; a folder that has one is left as it is.

    Args:
      method: one of `settings.METHODS`.
      prepared: data and start.
      folder: the run folder.
      should_stop: asked after every step.
      teacher: the fine-tuned model, for every method but "dense".
      dense: its score on dev.
    """
    settings = prepared.settings
    if method == "dense":  # what prunes does not concern it
        settings = teacher_settings(settings)
        prepared = prepared._replace(settings=settings, augmented=None)
    restart_peak()
    planned = plan(method, prepared, teacher)
    open_run(folder, settings, planned.details, environment(prepared))
    if done := read_result(folder):
        return done
    config = teacher.config if method == "prune-finetuned" and teacher else prepared.start.config
    apply = make_forward(prepared, config, dropout=tuned(method, settings).dropout)
    distils = teacher is not None and planned.objective.needs_teacher
    teacher_apply = make_forward(prepared, teacher.config) if distils and teacher else None
    step = make_train_step(apply, planned.tx, planned.objective, teacher=teacher_apply, accumulate=settings.accumulate)
    key = jax.random.fold_in(jax.random.key(settings.seed), 2)
    state = init_state(planned.params, planned.tx, key)
    predict = make_predict(apply, mesh=prepared.mesh)
    assert settings.batch_size is not None

    def write(state: TrainState, place: Path) -> None:
        masks = get_masks(state.opt_state)
        deliver(
            place,
            fetch(split_projection(state.params)[0]),
            config,
            tokenizer=prepared.tokenizer,
            masks=None if masks is None else fetch(split_projection(masks)[0]),
            details=model_details(method, prepared, planned, teacher, int(state.step)),
        )

    stage = Stage(
        folder,
        title=f"{prepared.data.name} {method}",
        phase=planned.phase,
        steps=planned.steps,
        target_step=planned.target_step,
        rate=planned.rate,
        evaluate=lambda state: evaluate(predict, state.params, prepared, batch_size=settings.batch_size or 1),
        removed=lambda state: sparsity(get_masks(state.opt_state) or {}),
        write=write,
        mesh=prepared.mesh,
    )
    for note in planned.notes:
        say(f"note: {note}")
    taught = teacher.params if distils and teacher else None
    state = stage.train(step, state, prepared.train, settings=settings, should_stop=should_stop, teachers=taught)
    stage.save_model(state, "model-last")
    return write_result(method, prepared, planned, stage, dense=dense)


def deliver(place: Path, params: Params, config: BertConfig, **parts: Any) -> None:
    """Writes a model folder, of process 0; all of them have fetched the same."""
    on_first(lambda: save(place, params, config, **parts))


def model_details(method: str, prepared: Prepared, planned: Plan, teacher: Model | None, step: int) -> dict[str, Any]:
    """What a model folder says of how its weights were made."""
    settings = prepared.settings
    columns = [name.strip() for name in settings.text.split(",")]
    own = {"columns": {"text": columns, "label": settings.label}} if settings.train_file else {}
    return {
        "task": prepared.data.name,
        "metrics": list(prepared.data.metrics),
        "texts": len(prepared.data.train.texts[0]),
        **own,
        "method": method,
        "pattern": settings.pattern,
        "sparsity": settings.sparsity if planned.target_step else 0.0,
        "source": {"name": short_name(settings.model), "sha256": prepared.start.fingerprint},
        "step": step,
        "recipe": recipe(method, prepared, planned, teacher),
    }


@by_first
def write_result(
    method: str,
    prepared: Prepared,
    planned: Plan,
    stage: Stage,
    *,
    dense: float | None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the model cards and `result.json`, counting sizes from the files that are delivered."""
    settings, data, folder = prepared.settings, prepared.data, stage.folder
    new_rows = len(prepared.augmented.texts) if prepared.augmented else 0
    result = {
        "task": data.name,
        "method": method,
        "pattern": settings.pattern,
        "seed": settings.seed,
        "metric": data.metrics[0],
        "dense": stage.best["score"] if method == "dense" else dense,
        "pruned": stage.best["score"],
        "last": stage.last[data.metrics[0]],
        "metrics": stage.best["metrics"],
        "last_metrics": stage.last,
        "best_step": stage.best["step"],
        "target_step": planned.target_step,
        "examples": {"train": len(data.train.texts), "dev": len(data.dev.texts), "augmented": new_rows},
        "truncated": {"train": prepared.train.data.truncated, "dev": prepared.dev.truncated},
        **({"windows": _count_windows(prepared)} if prepared.windows else {}),
        **delivered(folder / "model", asked=(settings.sparsity or 0.0) if planned.target_step else 0.0),
        "steps": planned.steps,
        "seconds": round(stage.trained, 1),
        "examples_per_second": round(float(np.median(stage.rates)), 1) if stage.rates else None,
        "peak_memory_bytes": peak_bytes(),
        "mesh": mesh_text(prepared.mesh.shape) if prepared.mesh else None,
        "compilations": stage.compilations,
        "step_cost": max(stage.costs, key=lambda cost: cost.peak).figures() if stage.costs else None,
        "batch_shapes": [[prepared.train.batch_size, length] for length in prepared.train.lengths],
        **(more or {}),
        "versions": versions(),
    }
    for name in ("model", "model-last"):
        (folder / name / "README.md").write_text(card(result, prepared, last=name != "model"), "utf-8")
    write_json(folder / "result.json", result)
    return result


def _count_windows(prepared: Prepared) -> dict[str, int]:
    """How many rows the passages were cut into."""
    return {"train": len(prepared.train.data.input_ids), "dev": len(prepared.dev.input_ids)}
