"""A saved model as one program for inference, compiled ahead of time for batches of one size."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.deploy.model import Model, Prediction
from kaprune_jax.deploy.packed import Choice, make_forward, pack_model
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.config import BertConfig


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled model for batches of one size; smaller ones are filled up, larger ones cut.

    Attributes:
      model: what it was made from.
      batch: rows of a call.
      length: tokens of a row.
      plan: how each matrix runs.
      weights: its arrays, an argument of `program`.
      program: `program(weights, input_ids, attention_mask, token_type_ids)`, logits [batch, classes], or
        [batch, length, 2] for spans.
    """

    model: Model
    batch: int
    length: int
    plan: tuple[Choice, ...]
    weights: Any
    program: Callable[..., Array]

    def logits(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Float[np.ndarray, "rows ..."]:
        """The logits of any number of rows of up to `length` tokens; for spans those of the tokens given.

        Raises:
          InputError: no rows, or longer ones.
        """
        arrays = [np.asarray(part, np.int32) for part in (input_ids, attention_mask, token_type_ids)]
        rows, seq = arrays[0].shape
        if not rows or not seq:
            raise InputError(f"compiled model: an empty batch, {rows} rows of {seq} tokens")
        if seq > self.length:
            raise InputError(f"compiled model: rows of {seq} tokens; it was compiled for up to {self.length}")
        arrays = [np.pad(part, ((0, -rows % self.batch), (0, self.length - seq))) for part in arrays]
        parts = [
            self.program(self.weights, *(part[start : start + self.batch] for part in arrays))
            for start in range(0, len(arrays[0]), self.batch)
        ]
        logits = np.concatenate([np.asarray(part) for part in parts])[:rows]
        return logits[:, :seq] if self.model.config.head == "span" else logits

    def predict(self, rows: Sequence[str | tuple[str, ...]]) -> list[Prediction]:
        """Labels and probabilities, or answers, as `Model.predict`; rows are cut to `length` tokens."""
        return self.model.predict(rows, batch_size=self.batch, max_length=self.length, logits=self.logits)


def compile(
    model: Model, *, backend: str = "auto", batch: int = 32, length: int | None = None, dtype: str = "float32"
) -> Compiled:
    """Compiles a loaded model for inference: what its zeros make superfluous is taken out, blocks are packed.

    Args:
      model: with the head of a task; sparse, structured or dense.
      backend: of its matrices, as for `kp.block_matmul`; "auto" takes for each what is known to win at its density.
      batch: rows of a call, >= 1.
      length: tokens of a row, from 1 to the model's positions; 128, or all positions where there are fewer.
      dtype: of weights and activations, "float32" or "bfloat16".

    Returns:
      a model with the logits of `model`, to 1e-4 in float32.

    Raises:
      InputError: a size or type that is not allowed, or a model without such a head.
      NotImplementedError: a named backend that cannot run here.
    """
    config = model.config
    if not config.num_logits:
        raise InputError(f"{model.folder}: a model with the head of a task is needed, not {config.head}")
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype {dtype!r}: allowed: float32, bfloat16")
    if batch < 1:
        raise InputError(f"batch {batch}: at least 1 is needed")
    length = min(128, config.max_position_embeddings) if length is None else length
    if not 1 <= length <= config.max_position_embeddings:
        raise InputError(f"length {length}: from 1 to the model's {config.max_position_embeddings} positions")
    found = make_program(model.params, config, batch=batch, length=length, backend=backend, dtype=dtype)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    program = jax.jit(found.function).lower(found.weights, ids, ids, ids).compile()
    return Compiled(model, batch, length, found.plan, found.weights, program)


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      function: `function(weights, input_ids, attention_mask, token_type_ids)`, logits [batch, classes], or
        [batch, length, 2] for spans.
      weights: its arrays.
      plan: how each matrix runs.
    """

    function: Callable[..., Array]
    weights: Any
    plan: tuple[Choice, ...]


def make_program(
    params: Params, config: BertConfig, *, batch: int, length: int, backend: str = "auto", dtype: str = "float32"
) -> Program:
    """Chooses what runs a model for batches of one size; arguments as for `compile`."""
    weights, plan = pack_model(params, config, backend=backend, dtype=dtype)
    if jax.default_backend() != "cpu":
        return Program(make_forward(config, dtype=dtype), weights, plan)
    rows = rows_at_once(batch, length)
    if config.is_shrunk and all(choice.path == "dense" for choice in plan):
        # Cut down already, and nothing to skip: with tokens first, as the model has them, it is as fast or faster.
        apply = make_apply(config, dtype=dtype)

        def logits(weights: Params, *inputs: Array) -> Any:
            return apply(weights, *inputs).logits

        return Program(in_parts(logits, rows), params, plan)
    return Program(in_parts(make_forward(config, dtype=dtype), rows), weights, plan)


def rows_at_once(batch: int, length: int) -> int:
    """Rows of a batch whose activations stay in a processor's caches: about 1024 tokens, in parts of one size."""
    return -(-batch // max(1, round(batch * length / 1024)))


def in_parts(function: Callable[..., Array], rows: int) -> Callable[..., Array]:
    """The same function of weights and batch, computed for so many rows after so many; the last part is filled up."""

    def whole(weights: Any, *inputs: Array) -> Array:
        batch = inputs[0].shape[0]
        if batch <= rows:
            return function(weights, *inputs)
        filled = (jnp.pad(part, ((0, -batch % rows), (0, 0))).reshape(-1, rows, part.shape[1]) for part in inputs)
        logits = jax.lax.map(lambda part: function(weights, *part), tuple(filled))
        return logits.reshape(-1, *logits.shape[2:])[:batch]

    return whole
