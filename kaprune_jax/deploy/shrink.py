"""A pruned BERT made physically smaller: parameters, configuration, and what was kept of the whole."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kaprune_jax._typing import Params
from kaprune_jax.l0.finalize import alive
from kaprune_jax.l0.materialize import shrink
from kaprune_jax.models.config import BertConfig, LayerShape
from kaprune_jax.models.layout import bert_layout


class Shrunk(NamedTuple):
    """A smaller model.

    Attributes:
      params: numpy arrays; `make_apply(config)` runs them.
      config: its configuration.
      kept: what is left of the whole, as masks over it: "hidden" [hidden], "head" [layers, heads], "unit"
        [layers, units].
    """

    params: Params
    config: BertConfig
    kept: dict[str, np.ndarray]


def materialize(params: Params, gates: Mapping[str, Any], config: BertConfig) -> Shrunk:
    """Folds gates into the weights and takes away what is closed (CoFi, arXiv:2204.00408).

    Args:
      params: of the whole model; may have a "projection" of hidden states, whose rows shrink too.
      gates: values in [0, 1], as `kp.finalize` gives them; families that are absent are open. An attention all of
        whose heads are closed goes with its output's bias, so its own gate must be closed too, as `kp.finalize` does.
      config: of the whole model. A masked-LM head, which reads the whole embeddings, is left out.

    Returns:
      a model with the same logits as the gated one, to float error.

    Raises:
      ValueError: a gate has another shape than the model, or values beyond [0, 1], such as those of log α.
      InputError: the model was shrunk before.
    """
    layout = bert_layout(config)
    layout.check(gates)
    for name, value in gates.items():
        low, high = float(np.min(value)), float(np.max(value))
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"gates {name!r}: from {low:.3g} to {high:.3g}; kp.finalize makes gates in [0, 1] of log α"
            )
    if config.head == "masked-lm":
        params = {name: part for name, part in params.items() if name != "lm_head"}
        config = config.replace(head="none", pooling="mean")
    kept = {axis.name: alive(gates, layout, axis.name) for axis in layout.axes}
    layers = tuple(
        LayerShape(tuple(np.flatnonzero(heads).tolist()), int(units.sum()))
        for heads, units in zip(kept["head"], kept["unit"], strict=True)
    )
    smaller = config.replace(
        hidden_size=int(kept["hidden"].sum()),
        layers=layers,
        attention_head_size=config.head_size,
        pooler_size=config.hidden_size if config.has_pooler else None,
    )
    return Shrunk(shrink(params, gates, layout), smaller, kept)


def matrix_masks(kept: Mapping[str, np.ndarray], config: BertConfig) -> Params:
    """Which weights of the whole model's encoder matrices are left: the masks that a sparse model would have.

    Args:
      kept: of `Shrunk`.
      config: of the whole model.

    Returns:
      boolean arrays [inputs, outputs] at the matrices' places in the tree.
    """
    hidden, wide = kept["hidden"], np.repeat(kept["head"], config.head_size, axis=1)
    layers = {}
    for number, (heads, units) in enumerate(zip(wide, kept["unit"], strict=True)):
        inward = {name: {"kernel": np.outer(hidden, heads)} for name in ("query", "key", "value")}
        layers[number] = {
            "attention": inward | {"output": {"kernel": np.outer(heads, hidden)}},
            "ffn": {"up": {"kernel": np.outer(hidden, units)}, "down": {"kernel": np.outer(units, hidden)}},
        }
    return {"encoder": {"layers": layers}}
