"""The training objective: task labels, and what the student takes from the teacher.

SparseBERT (Xu et al., 2021, arXiv:2104.08682), eq. 3-6, all weights 1 by default:
L = Σ_{i=0..L} MSE(H_i^s W + b, H_i^t) + Σ_{i=1..L} MSE(A_i^s, A_i^t) + CE_soft(z^s/τ, z^t/τ).
CoFi (Xia et al., 2022, arXiv:2204.00408): 0.1 τ² KL(teacher || student, τ = 2) + 0.9 Σ_j MSE(W H^s_m(j), H^t_j) over
the teacher's layers at each quarter, m(j) being the nearest student layer that survives.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kaprune_jax.distill.losses import (
    attention_loss,
    hidden_loss,
    kl_loss,
    label_loss,
    over_tokens,
    soft_cross_entropy,
)
from kaprune_jax.distill.matching import STATIC, LayerMap, match_layers, nearest_layers, quarter_layers


@runtime_checkable
class Outputs(Protocol):
    """What a model returns; see `kaprune_jax.models.bert.BertOutput`."""

    @property
    def hidden_states(self) -> tuple[Any, ...]: ...
    @property
    def attention_scores(self) -> tuple[Any, ...]: ...
    @property
    def logits(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Weights of the loss terms, each >= 0; a term with weight 0 costs nothing.

    Attributes:
      embeddings: mean squared error of the embedding output.
      hidden: of each layer's output, summed over layers.
      attention: of each layer's attention scores before softmax, summed over layers.
      logits: soft cross-entropy of the class logits; for a regression the squared error to the score (or, with
        `regression_target="teacher"`, to the teacher's); for spans that over real tokens, mean of start and end.
      labels: cross-entropy with the task's own labels; for a regression the squared error to the gold score; for
        spans the cross-entropy over real tokens, mean of start and end.
      temperature: τ, divides both logits in the soft cross-entropy; above 0.
      layer_map: which teacher layer each student layer learns from, where their numbers differ: "uniform", "first",
        "last". Or CoFi's way round, with the teacher's layers at each quarter: the student layer at the same depth as
        long as it survives ("fixed"), the surviving one that is "nearest", or "nearest-ordered", where later teacher
        layers go with later student layers.
      divergence: of the logits: "cross-entropy" (SparseBERT) or "kl", times τ² (CoFi). Their gradients differ by τ².
      projection: learn one linear map of student states to the teacher's width, shared by all states, identity at
        the start where the widths agree. Needed where they differ.
      regression_target: "gold" (SparseBERT) or "teacher".
    """

    embeddings: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    logits: float = 1.0
    labels: float = 0.0
    temperature: float = 1.0
    layer_map: LayerMap = "uniform"
    divergence: str = "cross-entropy"
    projection: bool = False
    regression_target: str = "gold"

    def __post_init__(self):
        for name in ("embeddings", "hidden", "attention", "logits", "labels"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}; a weight >= 0 is needed")
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r}; a number above 0 is needed")
        if self.divergence not in ("cross-entropy", "kl"):
            raise ValueError(f"divergence={self.divergence!r}; allowed: cross-entropy, kl")
        if self.attention and self.layer_map not in STATIC:
            raise ValueError(
                f"layer_map={self.layer_map!r} matches hidden states; attention={self.attention} must be 0"
            )
        if self.regression_target not in ("gold", "teacher"):
            raise ValueError(f"regression_target={self.regression_target!r}; allowed: gold, teacher")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return any((self.embeddings, self.hidden, self.attention, self.logits))


def sparsebert_loss() -> DistillConfig:
    """SparseBERT's own objective: embeddings, hidden states, attention scores and logits, all with weight 1."""
    return DistillConfig()


def logits_loss() -> DistillConfig:
    """Only the logits are distilled."""
    return DistillConfig(embeddings=0.0, hidden=0.0, attention=0.0, regression_target="teacher")


def hard_labels_loss() -> DistillConfig:
    """No teacher: the task's labels only."""
    return DistillConfig(embeddings=0.0, hidden=0.0, attention=0.0, logits=0.0, labels=1.0)


def cofi_loss() -> DistillConfig:
    """CoFi's objective: logits at τ = 2, and hidden states of the nearest surviving layers through a learned map."""
    return DistillConfig(
        embeddings=0.0,
        hidden=0.9,
        attention=0.0,
        logits=0.1,
        temperature=2.0,
        layer_map="nearest-ordered",
        divergence="kl",
        projection=True,
        regression_target="teacher",
    )


def init_projection(student: int, teacher: int, key: Array) -> dict[str, Array]:
    """Parameters of the map from student to teacher width: identity if they agree, else a random near-isometry."""
    kernel = jnp.eye(student) if student == teacher else jax.random.normal(key, (student, teacher)) * student**-0.5
    return {"kernel": kernel, "bias": jnp.zeros((teacher,))}


def objective(
    config: DistillConfig,
    student: Outputs,
    teacher: Outputs | None,
    *,
    mask: Array,
    labels: Array | None = None,
    projection: dict[str, Array] | None = None,
    alive: Bool[Array, " layers"] | None = None,
    scales: Mapping[str, Float[Array, ""]] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The total loss of a batch and its terms, unweighted.

    Args:
      config: weights and options.
      student: outputs that gradients flow into.
      teacher: outputs taken as constants; None where no term needs them.
      mask: [batch, seq], nonzero for real tokens.
      labels: [batch], int32 class ids or float32 scores; float32 makes it a regression. [batch, 2], int32 places of
        the first and last token, where logits are [batch, seq, 2]. None, for classes or spans without gold labels,
        where `labels` has no weight.
      projection: parameters of `init_projection`, or None.
      alive: which student layers survive, for the "nearest" maps; all by default.
      scales: factors of terms, by name, where the batch is a part of another.

    Returns:
      the scalar Σ weight·term, and the terms by name: embeddings, hidden, attention, logits, labels.

    Raises:
      ValueError: a teacher or labels are needed but missing, head counts or widths differ where they must agree.
    """
    terms: dict[str, Array] = {}
    if config.needs_teacher:
        if teacher is None:
            raise ValueError("a distillation term has a weight above 0, but no teacher is given")
        terms |= _teacher_terms(config, student, _constant(teacher), mask, labels, projection, alive)
    if config.labels:
        if labels is None:
            raise ValueError("the term `labels` has a weight above 0, but no labels are given")
        terms["labels"] = label_loss(_rows(student.logits, mask), labels.reshape(-1)).mean()
    terms = {name: term * scales[name] if scales and name in scales else term for name, term in terms.items()}
    total = jnp.float32(0.0)
    for name, term in terms.items():
        total = total + getattr(config, name) * term
    return total, terms


def _rows(logits: Array, mask: Array) -> Array:
    """Rows of logits, whose losses are averaged: of each text over classes; of spans, start and end, over tokens."""
    return over_tokens(logits, mask) if logits.ndim == 3 else logits


def _constant(outputs: Outputs) -> Outputs:
    """The outputs with no gradient through them."""
    return jax.lax.stop_gradient(outputs)


def _teacher_terms(config, student, teacher, mask, labels: Array | None, projection, alive) -> dict[str, Array]:
    def project(states):
        if projection is not None:
            kernel, bias = (projection[name].astype(states.dtype) for name in ("kernel", "bias"))
            return states @ kernel + bias[None, None]
        if states.shape[-1] != teacher.hidden_states[0].shape[-1]:
            raise ValueError(
                f"student width {states.shape[-1]}, teacher width {teacher.hidden_states[0].shape[-1]}; "
                "set projection=True, or embeddings=0 and hidden=0"
            )
        return states

    terms: dict[str, Array] = {}
    pairs = (
        match_layers(len(student.hidden_states) - 1, len(teacher.hidden_states) - 1, strategy=config.layer_map)
        if (config.hidden or config.attention) and config.layer_map in STATIC
        else ()
    )
    if config.embeddings:
        terms["embeddings"] = hidden_loss(project(student.hidden_states[0]), teacher.hidden_states[0], mask)
    if config.hidden and config.layer_map not in STATIC:
        terms["hidden"] = _quarter_loss(
            config, [project(state) for state in student.hidden_states[1:]], teacher, mask, alive
        )
    elif config.hidden:
        states = student.hidden_states[1:]
        losses = [
            hidden_loss(project(state), teacher.hidden_states[j], mask) for state, j in zip(states, pairs, strict=True)
        ]
        terms["hidden"] = jnp.sum(jnp.stack(losses))
    if config.attention:
        matched = [(s, teacher.attention_scores[j - 1]) for s, j in zip(student.attention_scores, pairs, strict=True)]
        for mine, theirs in matched:
            if mine.shape[1] != theirs.shape[1]:
                raise ValueError(f"student has {mine.shape[1]} heads, teacher {theirs.shape[1]}; set attention=0")
        losses = [attention_loss(mine, theirs, mask) for mine, theirs in matched]
        terms["attention"] = jnp.sum(jnp.stack(losses))
    if config.logits:
        if labels is None or not jnp.issubdtype(labels.dtype, jnp.floating):
            divergence = kl_loss if config.divergence == "kl" else soft_cross_entropy
            rows = [_rows(outputs.logits, mask) for outputs in (student, teacher)]
            each = divergence(*rows, temperature=config.temperature)
        else:
            target = labels if config.regression_target == "gold" else teacher.logits[:, 0]
            each = label_loss(student.logits, target)
        terms["logits"] = each.mean()
    return terms


def _quarter_loss(config, states, teacher, mask, alive: Array | None) -> Float[Array, ""]:
    """Σ over the teacher's quarter layers of the error of the surviving student layer matched to each."""
    depth = len(teacher.hidden_states) - 1
    layers = quarter_layers(depth)
    there = jnp.ones(len(states), bool) if alive is None else alive
    if config.layer_map == "fixed":
        same = [-(-number * len(states) // depth) - 1 for number in layers]
        errors = [hidden_loss(states[i], teacher.hidden_states[j], mask) for i, j in zip(same, layers, strict=True)]
        return jnp.sum(jnp.stack(errors) * there[jnp.asarray(same)])
    errors = jnp.stack([jnp.stack([hidden_loss(s, teacher.hidden_states[j], mask) for s in states]) for j in layers])
    matched = nearest_layers(jax.lax.stop_gradient(errors), there, ordered=config.layer_map == "nearest-ordered")
    chosen = jnp.take_along_axis(errors, matched[:, None], axis=1)
    return jnp.sum(chosen) * jnp.any(there)
