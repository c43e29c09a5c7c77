"""One task after the other: what an auxiliary task leaves for the target to start from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.config.transfer_settings import TransferSettings, coupled_phases, couples_teacher
from experiments.coupling.common import Auxiliary, carry_over, settings_of
from experiments.coupling.joint import run_joint
from experiments.coupling.structured import run_structured
from experiments.runs.method import count_steps
from experiments.runs.prepare import Prepared
from kaprune_jax._typing import Params
from kaprune_jax.deploy.folder import load
from kaprune_jax.transfer.sharing import make_store, parts_of, shares_gates, shares_weights

PRUNING = (
    "sparsity pattern scope scores dropout target_at sparsity_schedule updates before after gates gate_learning_rate "
    "gate_start dual_learning_rate penalty stiffness train_embeddings loss_weights temperature layer_map projection "
    "regression_target learning_rate"
).split()
"""Settings of pruning that an auxiliary task takes over from the target."""


def start_after(prepared: Prepared, auxiliaries: list[Auxiliary]) -> tuple[Prepared, list[Auxiliary]]:
    """What tasks that are trained together start from where the auxiliary ones come first.

    Returns:
      The target with the encoder of the last of their chained teachers as its start (STILT, Phang et al., 2018,
      arXiv:1811.01088), and the auxiliary tasks with it too, beside the heads of their teachers.
    """
    depth = settings_of(prepared).share_depth
    prepared = _go_on(prepared, auxiliaries[-1], depth)
    return prepared, [
        each._replace(start=carry_over(each.teacher, prepared.start, depth=depth)) for each in auxiliaries
    ]


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
    settings = settings_of(prepared)
    when, parts = coupled_phases(settings), None
    for auxiliary, other in zip(auxiliaries, others, strict=True):
        if couples_teacher(settings):
            prepared, other = (_go_on(each, auxiliary, settings.share_depth) for each in (prepared, other))
        if "prune" in when:
            place = folder / f"first-{auxiliary.name}"
            parts = prune_first(settings, other, auxiliary, prepared, place, should_stop, first=parts)
    return prepared, parts


def _go_on(prepared: Prepared, auxiliary: Auxiliary, depth: int | None) -> Prepared:
    """A task whose start has the encoder, or the first layers, of an auxiliary teacher."""
    return prepared._replace(start=carry_over(prepared.start, auxiliary.teacher, depth=depth))


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
