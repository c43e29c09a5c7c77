"""The loop that every method shares: steps, logs, evaluations, and a way to stop.

Nothing is fetched from the device between logs, so that the host runs ahead of it, but only by a few steps: each that
waits holds memory, and a stop has to wait for all of them.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kaprune_jax._typing import Params
from kaprune_jax.train.step import StepMetrics, TrainState

_AHEAD = 3  # steps that may wait while the device is at work


class Diverged(RuntimeError):
    """The loss, the gradient's norm or a parameter is not finite.

    Attributes:
      step: the first step where that was seen.
      checkpoint: the newest checkpoint before it, where the caller of the loop keeps some.
    """

    def __init__(self, step: int, value: float, *, what: str = "loss"):
        super().__init__(f"{what} is {value} at step {step}")
        self.step = step
        self.checkpoint: Path | None = None


class Interrupted(RuntimeError):
    """A person or the system asked to stop; the state was handed to `on_keep`."""


class LogRecord(NamedTuple):
    """Means over the steps since the last log.

    Attributes:
      step: optimizer steps taken.
      loss: mean weighted loss.
      terms: mean of each loss term, unweighted.
      asked: sparsity asked for at the last of them, in [0, 1).
      delivered: fraction of prunable weights removed after the last of them.
      expected: with gates, the sparsity they are expected to give; else None.
      examples_per_second: rows, of the time for steps only, without evaluations and `Hooks.aside`.
      remaining: estimated seconds to the end of the phase, at that rate.
    """

    step: int
    loss: float
    terms: dict[str, float]
    asked: float
    delivered: float
    expected: float | None
    examples_per_second: float
    remaining: float


@runtime_checkable
class Batches(Protocol):
    """Batches by step number."""

    batch_size: int

    def __getitem__(self, step: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What happens beside the steps.

    Attributes:
      on_log: takes the means since the last log.
      on_eval: called every `eval_every` steps and at the end, only ever with finite losses and parameters.
      on_keep: called with the same after a log when `is_due`, and when a stop was asked for, before `Interrupted`.
      is_due: asked after a log that no evaluation follows: whether the state is to be kept.
      should_stop: asked after every step.
      aside: seconds that went into other things than steps up to now, such as compiling.
    """

    on_log: Callable[[LogRecord], None]
    on_eval: Callable[[TrainState], None]
    on_keep: Callable[[TrainState], None] = lambda state: None
    is_due: Callable[[], bool] = lambda: False
    should_stop: Callable[[], bool] = lambda: False
    aside: Callable[[], float] = lambda: 0.0


def fit(
    step: Callable[..., tuple[TrainState, StepMetrics]],
    state: TrainState,
    batches: Batches,
    *,
    steps: int,
    hooks: Hooks,
    teacher_params: Params | None = None,
    log_every: int = 50,
    eval_every: int = 500,
) -> TrainState:
    """Takes optimizer steps until `state.step` is `steps`.

    Args:
      step: a jitted `make_train_step`.
      state: where to start; its step number is the position in the data.
      batches: gives the batch of a step, counted from 0.
      steps: at which to end.
      hooks: logging, evaluation, stopping.
      teacher_params: handed to the step.
      log_every: steps between logs; each costs one wait for the device.
      eval_every: steps between evaluations.

    Raises:
      Diverged: a loss or the norm of a gradient was not finite, found at the next log; or a parameter, found before
        the next evaluation.
      Interrupted: `hooks.should_stop` said so.
    """
    waiting: list[StepMetrics] = []
    number = int(state.step)
    began = time.perf_counter() - hooks.aside()
    while number < steps:
        state, metrics = step(state, teacher_params, batches[number])
        number += 1
        waiting.append(metrics)
        if len(waiting) > _AHEAD:
            jax.block_until_ready(waiting[-1 - _AHEAD])
        stop = hooks.should_stop()
        evaluate = number % eval_every == 0 or number == steps
        if evaluate or stop or number % log_every == 0:
            metrics = jax.device_get(waiting)
            spent = time.perf_counter() - hooks.aside() - began
            record = _summarise(number, steps, metrics, batches.batch_size, spent)
            keep = (stop and number < steps) or (not evaluate and not stop and hooks.is_due())
            if (evaluate or keep) and not _all_finite(state.params):
                raise Diverged(number, float("nan"))
            hooks.on_log(record)
            waiting = []
            if evaluate:
                hooks.on_eval(state)
            if keep:
                hooks.on_keep(state)
            if stop and number < steps:
                raise Interrupted(f"stopped at step {number} of {steps}")
            began = time.perf_counter() - hooks.aside()
    return state


@jax.jit
def _all_finite(params: Params) -> Array:
    """Whether every parameter is a number: a loss says so only of the parameters before its own update.

    The largest of an array is NaN where one in it is; compiling that takes a third of what asking each number does.
    """
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(params)])
    return jnp.all(largest < jnp.inf)


def _summarise(number: int, steps: int, waiting: list[Any], batch_size: int, spent: float) -> LogRecord:
    first = number - len(waiting) + 1
    for offset, metrics in enumerate(waiting):
        if not math.isfinite(metrics.loss):
            raise Diverged(first + offset, float(metrics.loss))
        if metrics.grad_square is not None and not math.isfinite(metrics.grad_square):
            raise Diverged(first + offset, float(metrics.grad_square), what="the squared norm of the gradient")
    seconds = spent / len(waiting)

    def mean(values) -> float:
        return float(sum(values) / len(waiting))

    return LogRecord(
        step=number,
        loss=mean(metrics.loss for metrics in waiting),
        terms=_mean_terms(waiting),
        asked=float(waiting[-1].asked),
        delivered=float(waiting[-1].delivered),
        expected=None if waiting[-1].expected is None else float(waiting[-1].expected),
        examples_per_second=batch_size / seconds,
        remaining=(steps - number) * seconds,
    )


def _mean_terms(waiting: list[Any]) -> dict[str, float]:
    """Mean of each loss term over the steps that had it."""
    values: dict[str, list[float]] = {}
    for metrics in waiting:
        for name, value in metrics.terms.items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(found) / len(found) for name, found in values.items()}
