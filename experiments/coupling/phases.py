"""A run with gates: its three phases, and its plan.

Steps are divided into "before" (all gates open), "prune" and "after" (the smaller model), for which `--before`,
`--target-at` and `--after` are fractions of the run.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments.config.checks import gate_names, idle_with_gates
from experiments.config.settings import Settings
from experiments.config.tuned import tuned
from experiments.coupling.optimizers import gated_optimizer
from experiments.runs.method import Plan, count_steps, make_objective
from experiments.runs.prepare import Prepared
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.model import Model
from kaprune_jax.l0.hard_concrete import LOWEST, keep_probability
from kaprune_jax.models.layout import bert_layout
from kaprune_jax.train.optimizer import learning_rate
from kaprune_jax.transfer.coupling import Constraint


class Phases(NamedTuple):
    """Where the phases of a run begin, in optimizer steps.

    Attributes:
      before: steps with all gates open.
      reached: steps until the asked sparsity is that of the end.
      gated: steps before the model is made smaller.
      steps: of the whole run.
      turn: how many of those after `gated` are not the target's: the auxiliary tasks come first (`with_turn`).
    """

    before: int
    reached: int
    gated: int
    steps: int
    turn: int = 0

    def name(self, step: int) -> str:
        """The phase of a step, counted from 0."""
        return "before" if step < self.before else "prune" if step < self.gated else "after"


def phases(settings: Settings, steps: int) -> Phases:
    """The phases of a run of so many steps."""
    assert settings.target_at is not None
    before, after = round(settings.before * steps), round(settings.after * steps)
    reached = min(max(round(settings.target_at * steps), before + 1), steps - after)
    if not before < reached <= steps - after:
        flag = f"--steps {steps}" if settings.steps else f"--epochs {settings.epochs:g}"
        parts = f"--before {settings.before:g}, pruning and --after {settings.after:g}"
        raise InputError(f"{flag}: {steps} steps are too few for {parts}")
    return Phases(before, reached, steps - after, steps)


def plan_cofi(prepared: Prepared, teacher: Model | None) -> tuple[Plan, Phases, Constraint]:
    """Sets up pruning with gates.

    Raises:
      InputError: the gates cannot reach the sparsity, or start, teacher and settings do not fit.
    """
    settings = prepared.settings
    assert settings.sparsity is not None
    steps = count_steps(prepared, dense=False)
    where = phases(settings, steps)
    layout = bert_layout(prepared.start.config)
    enabled = gate_names(settings.gates)
    lowest = float(keep_probability(jnp.float32(LOWEST)))
    reach = min(layout.largest_sparsity(enabled, closed=lowest), 1 - layout.smallest_size(enabled) / layout.full_size)
    if settings.sparsity > reach:
        raise InputError(
            f"--sparsity {settings.sparsity}: with --gates {settings.gates} at most "
            f"{np.floor(reach * 1e4) / 1e4:.4f} of this model can be removed so that a path through it is left"
        )
    objective, notes = make_objective("cofi", settings, prepared.start, teacher)
    notes = (*notes, *idle_with_gates(settings))
    rate = segment_rate(settings, where)
    asked, settings = settings.sparsity, with_rates(settings, where)
    constraint = Constraint(
        layout,
        asked,
        where.before,
        where.reached - where.before,
        settings.penalty,  # pyright: ignore[reportArgumentType]
        settings.stiffness,
    )
    tx = optax.with_extra_args_support(gated_optimizer(settings, rate, prepared.data.name))
    plan = Plan("prune", prepared.start.params, objective, tx, rate, steps, where.gated, notes)
    return plan, where, constraint


def with_turn(planned: Plan, where: Phases) -> tuple[Plan, Phases]:
    """A sequential run whose auxiliary tasks have an "after" of their own, before the target has all of its.

    It is as long as the target's, and its learning rates are the same.
    """
    turn = where.steps - where.gated
    rate = planned.rate
    longer = planned._replace(
        steps=planned.steps + turn,
        rate=lambda step: rate(jnp.where(step < where.gated + turn, step, step - turn)),
    )
    return longer, where._replace(steps=where.steps + turn, turn=turn)


def with_rates(settings: Settings, where: Phases) -> Settings:
    """The rates of gates and multipliers filled in: what they can move in a run does not depend on its length."""
    steps = max(where.gated - where.before, 1)
    gates, duals = settings.gate_learning_rate, settings.dual_learning_rate
    by_length = 0.01 if settings.penalty == "signed" else min(300.0 / steps, settings.stiffness)
    return dataclasses.replace(
        settings,
        gate_learning_rate=min(max(60.0 / steps, 0.01), 0.3) if gates is None else gates,
        dual_learning_rate=by_length if duals is None else duals,
    )


def segment_rate(settings: Settings, where: Phases) -> optax.Schedule:
    """The learning rate: one schedule until the model is made smaller, and the same again after it."""
    peak = tuned("cofi", settings).learning_rate

    def over(steps: int) -> optax.Schedule:
        return learning_rate(
            peak,
            steps=max(steps, 1),
            schedule=settings.schedule,  # pyright: ignore[reportArgumentType]
            warmup=settings.warmup,
        )

    return optax.join_schedules([over(where.gated), over(where.steps - where.gated)], [where.gated])
