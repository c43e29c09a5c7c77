"""How tasks are trained together: each task, what the gates are to come to, and how auxiliary tasks come in."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from kaprune_jax.distill.objective import DistillConfig
from kaprune_jax.l0.lagrangian import Penalty
from kaprune_jax.l0.layout import Layout
from kaprune_jax.train.step import Apply

Fade = Literal["constant", "fade-in", "fade-out"]
Surgery = Literal["none", "pcgrad", "attittud"]


class Task(NamedTuple):
    """How one task is trained.

    Attributes:
      apply: the student: `apply(params, input_ids, attention_mask, token_type_ids, gates=..., dropout_key=...)`.
      objective: its loss.
      teacher: the teacher's forward pass; None where no term needs it.
      alive: which layers a student without gates has; None for all.
    """

    apply: Apply
    objective: DistillConfig
    teacher: Apply | None = None
    alive: tuple[bool, ...] | None = None


class Constraint(NamedTuple):
    """What the gates are to come to.

    Attributes:
      layout: the model's gates.
      sparsity: the sparsity asked for in the end, in [0, 1).
      begin: optimizer steps before which all gates are open: plain fine-tuning.
      warmup: steps over which the asked sparsity then rises linearly.
      kind: of the penalty.
      stiffness: of the "augmented" penalty.
    """

    layout: Layout
    sparsity: float
    begin: int
    warmup: int
    kind: Penalty = "augmented"
    stiffness: float = 10.0

    def asked(self, step: Array) -> Float[Array, ""]:
        """The sparsity of a step, counted from 0."""
        risen = (step + 1 - self.begin).astype(jnp.float32) / max(self.warmup, 1)
        return self.sparsity * jnp.clip(risen, 0.0, 1.0)


class Coupling(NamedTuple):
    """How the auxiliary tasks come in.

    Attributes:
      weight: of the auxiliary loss, >= 0.
      fade: the weight stays, rises from 0 ("fade-in"), or falls to 0 ("fade-out").
      steps: over which it rises or falls.
      surgery: what is done to the auxiliary gradient before it is added.
      filtered: what surgery acts on, of what is shared: "weights", "gates" or "both".
      parts: the target batch is cut into so many, whose gradients span the space that "attittud" looks at; their mean
        is the target's gradient, in which the parts, not their tokens, then weigh alike.
      tie: μ ‖log α_target - log α_auxiliary‖² / gates, where tasks have gates of their own; >= 0.
    """

    weight: float = 1.0
    fade: Fade = "constant"
    steps: int = 1
    surgery: Surgery = "none"
    filtered: Literal["weights", "gates", "both"] = "both"
    parts: int = 4
    tie: float = 0.0

    def strength(self, step: Array) -> Float[Array, ""]:
        """λ of a step, counted from 0."""
        share = jnp.clip(step.astype(jnp.float32) / max(self.steps - 1, 1), 0.0, 1.0)
        return self.weight * {"constant": jnp.float32(1.0), "fade-in": share, "fade-out": 1.0 - share}[self.fade]
