"""One task after the other: what an auxiliary task leaves for the target to start from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.config.transfer_settings import TransferSettings, coupled_phases, couples_teacher
from experiments.coupling.auxiliary import fine_tune
from experiments.coupling.common import Auxiliary
from experiments.coupling.joint import run_joint
from experiments.coupling.structured import run_structured
from experiments.runs.method import count_steps
from experiments.runs.prepare import Prepared
from experiments.runs.record import say
from kaprune_jax._typing import Params
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.model import Model
from kaprune_jax.transfer.sharing import make_store, parts_of, shares_gates, shares_weights

PRUNING = (
    "sparsity pattern scope scores dropout target_at sparsity_schedule updates before after gates gate_learning_rate "
    "gate_start dual_learning_rate penalty stiffness train_embeddings loss_weights temperature layer_map projection "
    "regression_target learning_rate"
).split()
"""Settings of pruning that an auxiliary task takes over from the target."""


def carry_over(model: Model, source: Model, *, depth: int | None = None) -> Model:
    """A model with the encoder of another, or its first layers, and its own head."""
    parts = {"to": {"model": model.params}, "from": {"model": source.params}}
    store = make_store(parts, share="weights", target="from", depth=depth)
    return dataclasses.replace(model, params=parts_of(store, "to")["model"])


def start_after(
    prepared: Prepared,
    auxiliaries: list[Auxiliary],
    others: list[Prepared],
    folder: Path,
    should_stop: Callable[[], bool],
) -> tuple[Prepared, list[Auxiliary]]:
    """Fine-tunes on the auxiliary tasks one after the other, before they are trained together with the target.

    Returns:
      The target with the encoder that this leaves as its start (STILT, Phang et al., 2018, arXiv:1811.01088), and the
      auxiliary tasks with it too, beside the heads of their teachers.
    """
    settings, found = prepared.settings, []
    assert isinstance(settings, TransferSettings)
    for number, (auxiliary, other) in enumerate(zip(auxiliaries, others, strict=True)):
        prepared, auxiliary = _take_over(settings, prepared, auxiliary, other, number, folder, should_stop)
        found.append(auxiliary)
    depth = settings.share_depth
    return prepared, [each._replace(start=carry_over(each.teacher, prepared.start, depth=depth)) for each in found]


def _take_over(
    settings: TransferSettings,
    target: Prepared,
    auxiliary: Auxiliary,
    other: Prepared,
    number: int,
    folder: Path,
    should_stop: Callable[[], bool],
) -> tuple[Prepared, Auxiliary]:
    """The target's start after one more auxiliary task, which goes on from what the one before has left."""
    depth = settings.share_depth
    if number:
        other = other._replace(start=carry_over(other.start, target.start, depth=depth))
        if other.teacher is not None:
            say(f"note: the given teacher of {auxiliary.name} is not used: it is fine-tuned after the tasks before it")
        teacher = fine_tune(other, folder / f"teacher-{auxiliary.name}-after-others", should_stop)
        auxiliary = auxiliary._replace(teacher=teacher)
    return target._replace(start=carry_over(target.start, auxiliary.teacher, depth=depth)), auxiliary


def begin_sequential(
    prepared: Prepared,
    auxiliaries: list[Auxiliary],
    others: list[Prepared],
    folder: Path,
    should_stop: Callable[[], bool],
) -> tuple[Prepared, Params | None]:
    """Trains on the auxiliary tasks first, one after the other, in the phases asked for.

    "before": the target's start, and so its teacher, is the encoder fine-tuned on them (STILT, Phang et al., 2018,
    arXiv:1811.01088). "prune": gates or masks are learned on them first. What goes on to the target is what is shared.

    Returns:
      The target with that start, and the parts (weights, gates) to prune from, or None.
    """
    settings = prepared.settings
    assert isinstance(settings, TransferSettings)
    when, parts = coupled_phases(settings), None
    for number, (auxiliary, other) in enumerate(zip(auxiliaries, others, strict=True)):
        if couples_teacher(settings):
            prepared, auxiliary = _take_over(settings, prepared, auxiliary, other, number, folder, should_stop)
            other = other._replace(start=carry_over(other.start, prepared.start, depth=settings.share_depth))
        if "prune" in when:
            place = folder / f"first-{auxiliary.name}"
            parts = prune_first(settings, other, auxiliary, prepared, place, should_stop, first=parts)
    return prepared, parts


def prune_first(
    settings: TransferSettings,
    other: Prepared,
    auxiliary: Auxiliary,
    target: Prepared,
    folder: Path,
    should_stop: Callable[[], bool],
    *,
    first: Params | None,
) -> Params | None:
    """Prunes on an auxiliary task into a run folder of its own; gives the parts that the target starts from."""
    if settings.share == "nothing":
        return first
    own = {name: getattr(settings, name) for name in PRUNING} | {"steps": count_steps(target, dense=False)}
    prepared = other._replace(settings=dataclasses.replace(other.settings, method=settings.method, **own))
    if settings.method == "cofi":
        parts = run_structured(
            prepared, folder, should_stop, teacher=auxiliary.teacher, dense=None, first=first, gates_only=True
        )
    else:
        run_joint("sparsebert", prepared, folder, should_stop, teacher=auxiliary.teacher, dense=None, first=first)
        parts = {"model": load(folder / "model-last").params}
    mine: dict[str, Any] = {"model": target.start.params}
    if settings.method == "cofi":
        store = make_store(
            {"from": {key: parts[key] for key in ("model", "gates")}, "to": mine | {"gates": _fresh(settings, target)}},
            share=settings.share,
            target="from",
            depth=settings.share_depth,
        )
        return parts_of(store, "to")
    return _masked(settings, parts["model"], target.start.params)


def _fresh(settings: TransferSettings, target: Prepared) -> Params:
    from experiments.config.checks import gate_names
    from kaprune_jax.l0.gates import init_gates
    from kaprune_jax.models.layout import bert_layout

    return init_gates(bert_layout(target.start.config), enabled=gate_names(settings.gates), keep=settings.gate_start)


def _masked(settings: TransferSettings, pruned: Params, start: Params) -> Params:
    """What a run with magnitude masks leaves: its weights, or its zeros in the start's weights, or both."""
    import jax
    import numpy as np

    from kaprune_jax._tree import path_string

    depth = settings.share_depth

    def covered(path: tuple) -> bool:
        text = path_string(path)
        inside = text.startswith("encoder/") and text.endswith("/kernel")
        return inside and (depth is None or int(text.split("/")[2]) < depth)

    weights = start
    if shares_weights(settings.share):
        store = make_store(
            {"from": {"model": pruned}, "to": {"model": start}}, share="weights", target="from", depth=depth
        )
        weights = parts_of(store, "to")["model"]
    if not shares_gates(settings.share):
        return {"model": weights}
    encoder = {"encoder": pruned["encoder"]}
    zeros = jax.tree_util.tree_map_with_path(
        lambda path, leaf, mask: np.where(np.asarray(mask) != 0, leaf, 0) if covered(path) else leaf,
        {"encoder": weights["encoder"]},
        encoder,
    )
    return {"model": {**weights, **zeros}, "gates": True}
