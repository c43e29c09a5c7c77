"""What the runs of a target and its auxiliary tasks have in common: batches, tasks, first parameters, figures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config.checks import gate_names
from experiments.config.transfer_settings import TransferSettings
from experiments.coupling.phases import Phases
from experiments.runs.prepare import Prepared, make_forward
from kaprune_jax._typing import Params
from kaprune_jax.data.loader import TrainBatches
from kaprune_jax.deploy.model import Model
from kaprune_jax.distill.objective import DistillConfig, init_projection
from kaprune_jax.l0.gates import init_gates, still_gates
from kaprune_jax.l0.lagrangian import init_duals
from kaprune_jax.train.step import PROJECTION
from kaprune_jax.train.turns import jit_whole
from kaprune_jax.transfer.sharing import HEADS, Share, make_store, parts_of
from kaprune_jax.transfer.step import Constraint, Coupling, Task


class Auxiliary(NamedTuple):
    """An auxiliary task, ready to train on.

    Attributes:
      name: of the task.
      start: the encoder of the target's start, with this task's head.
      teacher: fine-tuned on this task.
      train: its batches, of the target's batch size.
      share: how often it is drawn, among the auxiliary tasks; they sum to 1.
      fingerprint: SHA-256 (hex) of its rows.
    """

    name: str
    start: Model
    teacher: Model
    train: TrainBatches
    share: float = 1.0
    fingerprint: str = ""


def carry_over(model: Model, source: Model, *, depth: int | None = None) -> Model:
    """A model with the encoder of another, or its first layers, and its own head."""
    parts = {"to": {"model": model.params}, "from": {"model": source.params}}
    store = make_store(parts, share="weights", target="from", depth=depth)
    return dataclasses.replace(model, params=parts_of(store, "to")["model"])


def settings_of(prepared: Prepared) -> TransferSettings:
    """The settings, which are those of a coupled run."""
    assert isinstance(prepared.settings, TransferSettings)
    return prepared.settings


class CoupledBatches:
    """The target's batch of each step, and in coupled phases that of one auxiliary task, by task.

    Which one is drawn follows from the seed and the step alone.
    """

    def __init__(
        self,
        target: str,
        train: TrainBatches,
        auxiliaries: Sequence[Auxiliary],
        coupled: Callable[[int], bool],
        seed: int,
        *,
        alone: Callable[[int], bool] = lambda step: False,
    ):
        """Args:
        target: its name.
        train: its batches.
        auxiliaries: the others.
        coupled: whether an auxiliary task takes part in a step.
        seed: of the draw among several.
        alone: whether it then has the step to itself.
        """
        self.target, self.train, self.auxiliaries = target, train, tuple(auxiliaries)
        self.coupled, self.seed, self.batch_size, self.alone = coupled, seed, train.batch_size, alone

    def __getitem__(self, step: int) -> Mapping[str, Any]:
        """The batches of a step, counted from 0."""
        batches = {self.target: self.train[step]}
        if self.auxiliaries and self.coupled(step):
            random = np.random.default_rng([self.seed, 7, step])
            drawn = self.auxiliaries[random.choice(len(self.auxiliaries), p=[each.share for each in self.auxiliaries])]
            if self.alone(step):
                return {drawn.name: drawn.train[step]}
            batches[drawn.name] = drawn.train[step]
        return batches


class Team(NamedTuple):
    """The target and its auxiliary tasks, ready for `make_coupled_step`.

    Attributes:
      tasks: by name.
      store: their parameters.
      teachers: parameters of their teachers.
    """

    tasks: dict[str, Task]
    store: Params
    teachers: dict[str, Params]


def make_team(
    prepared: Prepared,
    teacher: Model | None,
    auxiliaries: Sequence[Auxiliary],
    objective: DistillConfig,
    *,
    share: Share,
    depth: int | None,
    first: Params | None,
    constraint: Constraint | None = None,
    dropout: float | None = None,
) -> Team:
    """Tasks and first parameters of a run: models, projections, and with a constraint gates and multipliers.

    Args:
      prepared: the target.
      teacher: the target's; None for a dense model.
      auxiliaries: the other tasks.
      objective: of every task.
      share: what is common.
      depth: in the first so many layers only.
      first: {"model", "gates"} for the target to start from, but for its own head.
      constraint: of the gates; None without.
      dropout: of the students; None for what their configuration says.
    """
    settings, target = prepared.settings, prepared.data.name
    everyone = [(target, prepared.start, teacher), *((each.name, each.start, each.teacher) for each in auxiliaries)]
    parts: dict[str, Any] = {}
    tasks, teachers = {}, {}
    for number, (name, start, fine_tuned) in enumerate(everyone):
        parts[name] = {"model": start.params}
        if constraint is not None:
            gates = init_gates(constraint.layout, enabled=gate_names(settings.gates), keep=settings.gate_start)
            parts[name] |= {"gates": gates, "duals": init_duals()}
        aim = None
        if fine_tuned is not None and objective.needs_teacher:
            aim, teachers[name] = make_forward(prepared, fine_tuned.config), fine_tuned.params
            if objective.projection:
                key = jax.random.fold_in(jax.random.key(settings.seed), 1 + 10 * number)
                widths = (start.config.hidden_size, fine_tuned.config.hidden_size)
                parts[name][PROJECTION] = init_projection(*widths, key)
        tasks[name] = Task(make_forward(prepared, start.config, dropout=dropout), objective, aim)
    if first:
        encoder = {name: part for name, part in first["model"].items() if name not in HEADS}
        parts[target]["model"] = {**prepared.start.params, **encoder}
        if constraint is not None:
            parts[target]["gates"] = first["gates"]
    return Team(tasks, make_store(parts, share=share, target=target, depth=depth), teachers)


def make_batches(
    prepared: Prepared, auxiliaries: Sequence[Auxiliary], where: Phases, when: Sequence[str]
) -> CoupledBatches:
    """The batches of a run; in sequential coupling the auxiliary tasks have steps of "after" to themselves."""
    sequential = getattr(prepared.settings, "coupling", "") == "sequential"
    turn = where.gated + where.turn if sequential else where.steps
    return CoupledBatches(
        prepared.data.name,
        prepared.train,
        auxiliaries,
        lambda step: where.name(step) in when and step < turn,
        prepared.settings.seed,
        alone=lambda step: sequential,
    )


def make_predict(
    apply: Callable[..., Any], target: str, *, gated: bool = False, mesh: Mesh | None = None
) -> Callable[[Params, Any], Any]:
    """The jitted evaluation pass of a task over a store, with its gates without noise where it has some."""

    def predict(store: Params, batch: Any):
        parts = parts_of(store, target)
        inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        return apply(parts["model"], *inputs, gates=still_gates(parts["gates"]) if gated else None).logits

    return jit_whole(predict, mesh)


def coupling_of(settings: Any, where: Phases) -> Coupling:
    """What the flags say of auxiliary tasks; without such flags, the default."""
    if not hasattr(settings, "coupling"):
        return Coupling()
    return Coupling(
        weight=settings.auxiliary_weight,
        fade=settings.auxiliary_schedule,
        steps=where.gated,
        surgery=settings.surgery if settings.coupling == "surgery" else "none",
        filtered=settings.surgery_on,
        parts=settings.surgery_parts,
        tie=settings.tie,
    )


def about(auxiliaries: Sequence[Auxiliary]) -> dict[str, Any]:
    """What went in besides the target, for `env.json`: fingerprints of auxiliary rows and teachers."""
    if not auxiliaries:
        return {}
    return {"auxiliary": {each.name: [each.fingerprint, each.teacher.fingerprint] for each in auxiliaries}}


def coupling_figures(settings: Any, auxiliaries: Sequence[Auxiliary]) -> dict[str, Any]:
    """How a run was coupled, for `result.json`."""
    if not hasattr(settings, "coupling"):
        return {}
    names = "coupling share share_depth when surgery surgery_on auxiliary_weight auxiliary_schedule tie".split()
    rows = {each.name: len(each.train.data.input_ids) for each in auxiliaries}
    return {"coupling": {name: getattr(settings, name) for name in names} | {"auxiliary": rows}}
