"""Names and orientation of Hugging Face's BERT tensors against this package's parameters.

Hugging Face stores linear weights as [outputs, inputs]; here kernels are [inputs, outputs].
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.models.bert import param_shapes
from kaprune_jax.models.config import BertConfig, Head

_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn/up": "intermediate.dense",
    "ffn/down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_TOP = {
    "embeddings/word": "bert.embeddings.word_embeddings",
    "embeddings/position": "bert.embeddings.position_embeddings",
    "embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "embeddings/norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "head": "classifier",
    "lm_head/transform": "cls.predictions.transform.dense",
    "lm_head/norm": "cls.predictions.transform.LayerNorm",
}
_LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# Written by PyTorch but no parameters, or parts of heads that are dropped (next-sentence prediction).
_IGNORED = ("embeddings.position_ids", "cls.seq_relationship.")
_HEADS = ("classifier.", "cls.", "qa_outputs.")


def tensor_name(path: str, *, head: Head = "classification") -> str:
    """The Hugging Face name, with the `bert.` prefix, of a parameter path of a model with that head."""
    if path == "lm_head/bias":
        return "cls.predictions.bias"
    module, leaf = path.rsplit("/", 1)
    if module == "head" and head == "span":
        return f"qa_outputs.{_LEAF[leaf]}"
    if module.startswith("encoder/layers/"):
        _, _, index, part = module.split("/", 3)
        return f"bert.encoder.layer.{index}.{_LAYER[part]}.{_LEAF[leaf]}"
    return f"{_TOP[module]}.{_LEAF[leaf]}"


def _flat(config: BertConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """(path, tensor name, shape as stored) of every parameter."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        text = path_string(path)
        shape = leaf.shape[::-1] if text.endswith("/kernel") else leaf.shape
        rows.append((text, tensor_name(text, head=config.head), shape))
    return rows


def to_tensors(params: Params, config: BertConfig) -> dict[str, np.ndarray]:
    """Parameters under Hugging Face's names and in its orientation, contiguous.

    Raises:
      InputError: paths or shapes are not those of the configuration.
    """
    arrays = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wanted = _flat(config)
    if set(arrays) != {path for path, _, _ in wanted}:
        odd = sorted(set(arrays) ^ {path for path, _, _ in wanted})
        raise InputError(f"params: {odd[0]} and {len(odd) - 1} more paths are missing or have no place in this model")
    prefix = config.head == "none" or (config.pooling == "mean" and config.head not in ("masked-lm", "span"))
    tensors = {}
    for path, name, shape in wanted:
        array = np.asarray(arrays[path])
        array = array.T if path.endswith("/kernel") else array
        if array.shape != shape:
            raise InputError(f"params: {path} has shape {list(arrays[path].shape)}, which the configuration does not")
        tensors[name.removeprefix("bert.") if prefix else name] = np.ascontiguousarray(array)
    return tensors


def from_tensors(
    tensors: Mapping[str, np.ndarray], config: BertConfig, where: str, *, new: frozenset[str] = frozenset()
) -> Params:
    """Parameters in float32 from the tensors of a BERT-layout file.

    Args:
      tensors: by name, with or without the `bert.` prefix, any float type.
      config: what the model must have.
      where: the file or folder, for messages.
      new: top-level parts ("pooler", "head") that may be missing; they are left out of the result.

    Raises:
      InputError: a tensor is missing, unexpected or of another shape; the message names it.
    """
    named = {_canonical(name): array for name, array in tensors.items()}
    _check_layers(named, config, where)
    params: dict[str, Any] = {}
    used = set()
    for path, name, shape in _flat(config):
        if name not in named:
            if path.split("/", 1)[0] in new:
                continue
            raise InputError(f"{where}: tensor {name.removeprefix('bert.')} is missing (shape {list(shape)})")
        array = named[name]
        if array.shape != shape:
            raise InputError(
                f"{where}: tensor {name.removeprefix('bert.')} has shape {list(array.shape)}; "
                f"config.json asks for {list(shape)}"
            )
        used.add(name)
        array = np.asarray(array, np.float32)
        _insert(params, path.split("/"), np.ascontiguousarray(array.T) if path.endswith("/kernel") else array)
    extra = sorted(name for name in named if name not in used and not _may_be_left(name, config, new))
    if extra:
        raise InputError(
            f"{where}: {len(extra)} unexpected tensors, such as {extra[0]}; config.json has no place for them"
        )
    decoder = named.get("cls.predictions.decoder.weight")
    if config.head == "masked-lm" and decoder is not None:
        words = named["bert.embeddings.word_embeddings.weight"]
        if not np.array_equal(decoder, words):
            raise InputError(
                f"{where}: cls.predictions.decoder.weight differs from the word embeddings; only tied heads"
            )
    return params


def _check_layers(named: Mapping[str, np.ndarray], config: BertConfig, where: str) -> None:
    """Whether every layer has a LayerNorm, before a model of so many layers is built: that takes long."""
    for index in range(config.num_hidden_layers):
        name = f"encoder.layer.{index}.output.LayerNorm.weight"
        if f"bert.{name}" not in named:
            raise InputError(
                f"{where}: tensor {name} is missing (shape [{config.hidden_size}]); "
                f"config.json asks for num_hidden_layers={config.num_hidden_layers}"
            )


def _canonical(name: str) -> str:
    """Adds the `bert.` prefix where it is left out; old TensorFlow names gamma and beta become weight and bias."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", *_HEADS)) else f"bert.{name}"


def _may_be_left(name: str, config: BertConfig, new: frozenset[str]) -> bool:
    """Whether a tensor that the configuration does not use is expected in such a file."""
    bare = name.removeprefix("bert.")
    if bare.startswith(_IGNORED) or (bare.startswith("pooler.") and not config.has_pooler):
        return True
    if name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        return True
    return bool(new) and name.startswith(_HEADS)


def _insert(tree: dict, keys: list[str], value: np.ndarray) -> None:
    """Puts a value at a path, list positions as integers (as Flax NNX has them)."""
    for key in keys[:-1]:
        tree = tree.setdefault(int(key) if key.isdigit() else key, {})
    tree[keys[-1]] = value
