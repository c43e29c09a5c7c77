"""Scores auxiliary candidates for a target before anything is trained on them together: `--rank`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config.settings import teacher_settings
from experiments.config.transfer_settings import TransferSettings
from experiments.coupling.auxiliary import get_auxiliaries
from experiments.coupling.sequential import PRUNING
from experiments.coupling.structured import run_structured
from experiments.runs.method import count_steps
from experiments.runs.prepare import Prepared
from experiments.runs.record import say, write_json
from experiments.runs.run import get_teacher, predict_rows
from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.data.loader import Encoded, eval_batches
from kaprune_jax.deploy.model import Model
from kaprune_jax.l0.finalize import alive, finalize
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.train.processes import on_first
from kaprune_jax.train.step import make_predict
from kaprune_jax.transfer.ranking import knn_score, leep, mask_overlap

SHORT = 0.1
"""Part of a whole run's steps after which masks are compared."""


def rank(
    settings: TransferSettings, target: Prepared, others: list[Prepared], out: Path, should_stop: Callable[[], bool]
) -> None:
    """Prints and writes, for every candidate and for "none", what speaks for it.

    kNN: how well the encoder's mean-pooled states, fine-tuned on the candidate, tell the target's training rows apart
    (leave one out). LEEP: how well the candidate's classes predict the target's; for classes only. Overlap: what a
    short prune on the candidate and one on the target both keep, of what either keeps.
    """
    auxiliaries = get_auxiliaries(settings, others, out, should_stop, chained=False)
    rows, labels = target.train.data, target.data.train.labels
    masks = None
    if settings.method == "cofi":
        alone = target._replace(
            settings=dataclasses.replace(teacher_settings(target.settings), allow_weak_teacher=True)
        )
        teacher, _ = get_teacher(alone, out / "teacher", should_stop)
        masks = _short_masks(settings, target, target, teacher, out / "short-target", should_stop)
    table = [{"candidate": "none", "knn": _knn(target.start, rows, labels), "leep": None, "overlap": None}]
    for auxiliary, other in zip(auxiliaries, others, strict=True):
        kinds = (other.data.kind, target.data.kind)
        row: dict[str, Any] = {"candidate": auxiliary.name, "knn": _knn(auxiliary.teacher, rows, labels), "leep": None}
        if kinds == ("classification", "classification"):
            predict = make_predict(make_apply(auxiliary.teacher.config))
            logits = predict_rows(predict, auxiliary.teacher.params, rows, batch_size=32)
            row["leep"] = leep(np.asarray(jax.nn.softmax(logits, axis=-1)), labels)
        row["overlap"] = None
        if masks is not None:
            place = out / f"short-auxiliary-{auxiliary.name}"
            theirs = _short_masks(settings, other, target, auxiliary.teacher, place, should_stop)
            row["overlap"] = mask_overlap(masks, theirs)["mean"]
        table.append(row)
    table.sort(key=lambda row: -row["knn"])
    on_first(lambda: write_json(out / "rank.json", {"target": target.data.name, "candidates": table}))
    say(f"{'candidate':<20}{'kNN':>8}{'LEEP':>10}{'overlap':>10}")
    for row in table:
        shown = [f"{row[name]:.4f}" if row[name] is not None else "–" for name in ("knn", "leep", "overlap")]
        say(f"{row['candidate']:<20}{shown[0]:>8}{shown[1]:>10}{shown[2]:>10}")
    say(f"written: {out / 'rank.json'}")


def _knn(model: Model, rows: Encoded, labels: np.ndarray) -> float:
    """Leave-one-out score of the model's mean-pooled last states on the target's training rows."""
    apply = make_apply(model.config)

    @jax.jit
    def pooled(params: Params, batch: Any):
        last = apply(params, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).hidden_states[-1]
        weight = batch["attention_mask"].astype(last.dtype)[..., None]
        return (last * weight).sum(axis=1) / weight.sum(axis=1)

    features = np.zeros((len(rows.input_ids), model.config.hidden_size), np.float32)
    for numbers, batch in eval_batches(rows, batch_size=32):
        features[numbers] = np.asarray(pooled(model.params, batch))[: len(numbers)]
    try:
        return knn_score(features, labels)
    except ValueError as error:
        raise InputError(f"--rank: {error}") from None


def _short_masks(
    settings: TransferSettings,
    prepared: Prepared,
    target: Prepared,
    teacher: Model,
    folder: Path,
    should_stop: Callable[[], bool],
) -> dict[str, np.ndarray]:
    """What a short run with gates on a task alone would keep."""
    own = prepared.settings
    changes = {name: getattr(settings, name) for name in PRUNING}
    steps = max(20, round(count_steps(target, dense=False) * SHORT))
    short = dataclasses.replace(own, method="cofi", steps=steps, evaluations=1, **changes)
    parts = run_structured(
        prepared._replace(settings=short), folder, should_stop, teacher=teacher, dense=None, gates_only=True
    )
    layout = bert_layout(prepared.start.config)
    assert isinstance(parts, dict)
    values = finalize(parts["gates"], layout, settings.sparsity or 0.0)
    return {axis.name: alive(values, layout, axis.name) for axis in layout.axes}
