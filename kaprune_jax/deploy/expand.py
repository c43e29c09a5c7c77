"""A structured model back at its whole shapes, zeros where something was cut out, for tools that know only those."""

import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.deploy.masks import MASKS, Structure, read_masks, structure_of
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.config import BertConfig


def expand(model: Model) -> tuple[Params, BertConfig]:
    """Parameters and configuration of the whole shapes with the same logits; a model that has them, as it is.

    Heads and units that were cut out come back as zeros, biases too, so they add nothing.

    Raises:
      InputError: hidden dimensions are gone: a LayerNorm over the whole would count their zeros.
    """
    config = model.config
    if not config.is_shrunk:
        return model.params, config
    kept = fitting_structure(model)
    if not kept.hidden.all():
        raise InputError(
            f"{model.folder}: {int((~kept.hidden).sum())} of {kept.hidden.size} hidden dimensions are gone, and a "
            "LayerNorm over the whole would count their zeros; prune with --gates attention,ffn,heads,units for this"
        )
    layers = {}
    for index in range(config.num_hidden_layers):
        layer = model.params["encoder"]["layers"][index]
        heads = np.repeat(kept.heads[index], config.head_size)
        shapes = {"query": heads, "key": heads, "value": heads}
        attention = {
            name: _outwards(layer.get("attention", {}).get(name), kept.hidden.size, to) for name, to in shapes.items()
        }
        attention["output"] = _inwards(layer.get("attention", {}).get("output"), heads, kept.hidden.size)
        ffn = {
            "up": _outwards(layer.get("ffn", {}).get("up"), kept.hidden.size, kept.units[index]),
            "down": _inwards(layer.get("ffn", {}).get("down"), kept.units[index], kept.hidden.size),
        }
        norms = {name: layer[name] for name in ("attention_norm", "ffn_norm")}
        layers[index] = {"attention": attention, "ffn": ffn, **norms}
    whole = config.replace(layers=(), attention_head_size=None, pooler_size=None)
    return {**model.params, "encoder": {"layers": layers}}, whole


def fitting_structure(model: Model) -> Structure:
    """What the masks of a shrunk model keep, as many heads, units and hidden dimensions as it has.

    Raises:
      InputError: there are no masks, or they are of another model.
    """
    config = model.config
    masks = dict(read_masks(model.folder))
    try:
        kept = structure_of(masks, config.num_attention_heads)
    except ValueError as error:
        raise InputError(f"{model.folder / MASKS}: {error}") from None
    left = [(int(heads.sum()), int(units.sum())) for heads, units in zip(kept.heads, kept.units, strict=True)]
    there = [(len(layer.heads), layer.ffn) for layer in map(config.layer, range(config.num_hidden_layers))]
    if left != there or kept.hidden.sum() != config.hidden_size:
        raise InputError(
            f"{model.folder / MASKS}: keeps {kept.hidden.sum()} hidden dimensions and (heads, units) {left}; the model "
            f"has {config.hidden_size} and {there}"
        )
    return kept


def _outwards(part: Params | None, inputs: int, kept: np.ndarray) -> Params:
    """A linear layer whose outputs were cut down."""
    kernel, bias = np.zeros((inputs, kept.size), np.float32), np.zeros(kept.size, np.float32)
    if part is not None and kept.any():
        kernel[:, kept], bias[kept] = part["kernel"], part["bias"]
    return {"kernel": kernel, "bias": bias}


def _inwards(part: Params | None, kept: np.ndarray, outputs: int) -> Params:
    """A linear layer whose inputs were cut down."""
    kernel, bias = np.zeros((kept.size, outputs), np.float32), np.zeros(outputs, np.float32)
    if part is not None:
        kernel[kept], bias = part["kernel"], np.asarray(part["bias"])
    return {"kernel": kernel, "bias": bias}
