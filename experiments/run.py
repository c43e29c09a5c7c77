"""One run: a method trained from start to end, its evaluations, its models and its figures."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.memory import peak_bytes, restart_peak
from experiments.method import Plan, plan, recipe, short_name
from experiments.prepare import Prepared
from experiments.record import Recorder, environment, open_run, say, versions, write_json
from experiments.results import card, delivered, read_result
from experiments.settings import teacher_settings
from kaprune_jax._errors import InputError
from kaprune_jax.data.loader import Encoded, eval_batches
from kaprune_jax.data.metrics import majority_score, score_task
from kaprune_jax.deploy.folder import load, save
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.prune.masks import sparsity
from kaprune_jax.train.checkpoint import Checkpoints
from kaprune_jax.train.loop import Hooks, LogRecord, fit
from kaprune_jax.train.step import TrainState, get_masks, init_state, make_predict, make_train_step, split_projection

ShouldStop = Callable[[], bool]


def predict_rows(predict: Callable, params: Any, data: Encoded, *, batch_size: int) -> np.ndarray:
    """Logits [rows, classes] of a model, in the order of the rows."""
    pending = [(rows, predict(params, batch)) for rows, batch in eval_batches(data, batch_size=batch_size)]
    first = np.asarray(pending[0][1])
    logits = np.zeros((len(data.input_ids), first.shape[-1]), np.float32)
    for rows, values in pending:
        logits[rows] = np.asarray(values)[: len(rows)]
    return logits


def evaluate(predict: Callable, params: Any, prepared: Prepared, *, batch_size: int) -> dict[str, float]:
    """Scores of a model on the evaluation rows, the main one first."""
    return score_task(prepared.data, predict_rows(predict, params, prepared.dev, batch_size=batch_size))


def get_teacher(prepared: Prepared, folder: Path, should_stop: ShouldStop) -> tuple[Model, float]:
    """The given teacher, or the start fine-tuned on the task and kept in `folder`; and its score on dev.

    Raises:
      InputError: the teacher scores near what a constant prediction gets.
    """
    if prepared.teacher is not None:
        teacher = prepared.teacher
        predict = make_predict(make_apply(teacher.config, dtype=prepared.settings.dtype))
        metrics = evaluate(predict, teacher.params, prepared, batch_size=32)
        value = metrics[prepared.data.metrics[0]]
    else:
        value = run_method("dense", prepared, folder, should_stop)["dense"]
        teacher = load(folder)
    _check_teacher(prepared, value, None if prepared.teacher else folder)
    say(f"teacher: {prepared.data.metrics[0]} {value:.4f} on dev")
    return teacher, value


def _check_teacher(prepared: Prepared, value: float, folder: Path | None) -> None:
    """Refuses a teacher within two standard errors of the constant prediction, or half way from there to 1."""
    name = prepared.data.metrics[0]
    majority = majority_score(prepared.data)
    constant = majority.scores[name]
    # Where the constant is nearly perfect, closing half of what it leaves open is enough.
    least = constant + min(2 * majority.standard_error, 0.5 * (1.0 - constant))
    if value >= least:
        return
    line = (
        f"the teacher has {name} {value:.4f} on dev, and always answering the same gets {majority.scores[name]:.4f} "
        f"(at least {least:.4f} is wanted): there is nothing to distil"
    )
    if not prepared.settings.allow_weak_teacher:
        kept = f"; it is kept in {folder}" if folder else ""
        raise InputError(
            f"{line}{kept}; fine-tune another (--out NEW, --teacher-epochs, --teacher-learning-rate), start from a "
            f"related task (--model RUN), or go on with {'--resume ' if folder else ''}--allow-weak-teacher"
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
    settings, began = prepared.settings, time.perf_counter()
    if method == "dense":  # what prunes does not concern it
        settings = teacher_settings(settings)
        prepared = prepared._replace(settings=settings, augmented=None)
    restart_peak()
    planned = plan(method, prepared, teacher)
    open_run(folder, settings, planned.details, environment(prepared))
    if done := read_result(folder):
        return done
    config = teacher.config if method == "prune-finetuned" and teacher else prepared.start.config
    apply = make_apply(config, dtype=settings.dtype)
    distils = teacher is not None and planned.objective.needs_teacher
    teacher_apply = make_apply(teacher.config, dtype=settings.dtype) if distils and teacher else None
    traced = _CountTraces(make_train_step(apply, planned.tx, planned.objective, teacher=teacher_apply))
    key = jax.random.fold_in(jax.random.key(settings.seed), 2)
    state = init_state(planned.params, planned.tx, key)
    run = _Run(method, prepared, planned, folder, config, make_predict(apply), teacher, dense)
    try:
        state = run.begin(state, resume=settings.resume)
        for note in planned.notes:
            say(f"note: {note}")
        hooks = Hooks(run.on_log, run.on_eval, run.on_pause, should_stop)
        state = fit(
            jax.jit(traced, donate_argnums=0),
            state,
            prepared.train,
            steps=planned.steps,
            hooks=hooks,
            teacher_params=teacher.params if distils and teacher else None,
            log_every=settings.log_every,
            eval_every=max(1, -(-planned.steps // settings.evaluations)),
        )
        return run.finish(state, seconds=run.seconds_before + time.perf_counter() - began, traces=traced.count)
    finally:
        run.checkpoints.close()


class _CountTraces:
    """A function that knows how often it was traced, which is once per shape."""

    def __init__(self, function: Callable):
        self.function, self.count = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self.function(*arguments)


class _Run:
    """What happens around the steps of one run: records, evaluations, checkpoints, and the models that are kept."""

    def __init__(
        self,
        method: str,
        prepared: Prepared,
        planned: Plan,
        folder: Path,
        config: BertConfig,
        predict: Callable,
        teacher: Model | None,
        dense: float | None,
    ):
        self.method, self.prepared, self.plan, self.folder = method, prepared, planned, folder
        self.config, self.predict, self.teacher, self.dense = config, predict, teacher, dense
        self.recorder = Recorder(folder, planned.phase, f"{prepared.data.name} {method}", planned.steps)
        self.checkpoints = Checkpoints(folder / "ckpt")
        self.best: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self.rates: list[float] = []
        self.seconds_before = 0.0
        self._began = time.perf_counter()

    def begin(self, state: TrainState, *, resume: bool) -> TrainState:
        """The state to start from: a checkpoint when resuming, else the given one, which becomes the first."""
        if resume and self.checkpoints.latest is not None:
            state, extra = self.checkpoints.restore(state)
            self.best, self.last, self.seconds_before = extra["best"], extra["last"], extra["seconds"]
            self.rates = extra["rates"]
            self.recorder.rewind(int(state.step))
            say(f"going on at step {int(state.step)} of {self.plan.steps}")
        else:
            self._checkpoint(state)
        return state

    def on_log(self, record: LogRecord) -> None:
        self.rates.append(record.examples_per_second)
        self.recorder.train(record, float(np.asarray(self.plan.rate(record.step - 1))))

    def on_eval(self, state: TrainState) -> None:
        masks = get_masks(state.opt_state)
        removed = sparsity(masks) if masks is not None else 0.0
        settings, data = self.prepared.settings, self.prepared.data
        assert settings.batch_size is not None
        metrics = evaluate(self.predict, state.params, self.prepared, batch_size=settings.batch_size)
        step = int(state.step)
        self.recorder.evaluation(step, metrics, removed)
        self.last = metrics
        if step >= self.plan.target_step and metrics[data.metrics[0]] > self.best.get("score", -2.0):
            self.best = {"score": metrics[data.metrics[0]], "metrics": metrics, "step": step}
            self._save_model(state, "model")
        self._checkpoint(state)

    def on_pause(self, state: TrainState) -> None:
        self._checkpoint(state)

    def _checkpoint(self, state: TrainState) -> None:
        seconds = self.seconds_before + time.perf_counter() - self._began
        extra = {"best": self.best, "last": self.last, "seconds": seconds, "rates": self.rates}
        self.checkpoints.save(state, extra)

    def _save_model(self, state: TrainState, name: str) -> None:
        """Writes a model folder beside the old one, then puts it in its place."""
        params, _ = split_projection(state.params)
        settings, fresh = self.prepared.settings, self.folder / f"{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        details = {
            "task": self.prepared.data.name,
            "method": self.method,
            "pattern": settings.pattern,
            "sparsity": settings.sparsity if self.plan.target_step else 0.0,
            "source": {"name": short_name(settings.model), "sha256": self.prepared.start.fingerprint},
            "step": int(state.step),
            "recipe": recipe(self.method, self.prepared, self.plan, self.teacher),
        }
        masks = get_masks(state.opt_state)
        if masks is not None:
            masks, _ = split_projection(masks)
        save(fresh, params, self.config, tokenizer=self.prepared.tokenizer, masks=masks, details=details)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        fresh.rename(self.folder / name)

    def finish(self, state: TrainState, *, seconds: float, traces: int) -> dict[str, Any]:
        """Writes the last model, the model card and `result.json`."""
        self._save_model(state, "model-last")
        settings, data = self.prepared.settings, self.prepared.data
        new_rows = len(self.prepared.augmented.texts) if self.prepared.augmented else 0
        result = {
            "task": data.name,
            "method": self.method,
            "pattern": settings.pattern,
            "seed": settings.seed,
            "metric": data.metrics[0],
            "dense": self.best["score"] if self.method == "dense" else self.dense,
            "pruned": self.best["score"],
            "last": self.last[data.metrics[0]],
            "metrics": self.best["metrics"],
            "last_metrics": self.last,
            "best_step": self.best["step"],
            "target_step": self.plan.target_step,
            "examples": {"train": len(data.train.texts), "dev": len(data.dev.texts), "augmented": new_rows},
            "truncated": {"train": self.prepared.train.data.truncated, "dev": self.prepared.dev.truncated},
            **delivered(self.folder / "model", asked=(settings.sparsity or 0.0) if self.plan.target_step else 0.0),
            "steps": self.plan.steps,
            "seconds": round(seconds, 1),
            "examples_per_second": round(float(np.median(self.rates)), 1) if self.rates else None,
            "peak_memory_bytes": peak_bytes(),
            "compilations": traces,
            "batch_shapes": [[self.prepared.train.batch_size, length] for length in self.prepared.train.lengths],
            "versions": versions(),
        }
        for name in ("model", "model-last"):
            (self.folder / name / "README.md").write_text(card(result, self.prepared, last=name != "model"), "utf-8")
        write_json(self.folder / "result.json", result)
        return result
