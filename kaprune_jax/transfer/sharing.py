"""What tasks that are trained together have in common: the second axis of transfer for structured pruning.

Dery, Grangier and Hannun, 2023, arXiv:2311.06382, ask what is shared or transferred: weights, gates, both or nothing;
or the first layers of either.

A store of parameters is {"shared": parts, "own": {task: parts}}; the parts of a task are {"model": ..., "gates": ...,
"duals": ..., "projection": ...}, as far as it has them. Heads, poolers, multipliers and projections are a task's own.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp

from kaprune_jax._typing import Params

Share = Literal["nothing", "weights", "gates", "both"]
SHARE: tuple[Share, ...] = get_args(Share)
HEADS = ("head", "pooler", "lm_head")
_LAYERLESS = ("hidden",)


def shares_weights(share: Share) -> bool:
    """Whether the encoder is common."""
    return share in ("weights", "both")


def shares_gates(share: Share) -> bool:
    """Whether the gates are common."""
    return share in ("gates", "both")


def make_store(parts: Mapping[str, Params], *, share: Share, target: str, depth: int | None = None) -> Params:
    """Divides the parameters of several tasks into what is shared and what is their own.

    Args:
      parts: of each task; models of one shape, but for the head.
      share: what is common; its values are the target's.
      target: name of the target task.
      depth: only the first so many layers of it, with the embeddings and the hidden dimensions' gates; all by default.

    Raises:
      ValueError: an unknown `share`.
    """
    if share not in SHARE:
        raise ValueError(f"share={share!r}; allowed: {', '.join(SHARE)}")
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: dict(part) for name, part in parts.items()}
    if shares_weights(share):
        divided = {name: _divide_model(part["model"], depth) for name, part in parts.items()}
        shared["model"] = divided[target][0]
        own = {name: part | {"model": divided[name][1]} for name, part in own.items()}
    if shares_gates(share) and "gates" in parts[target]:
        divided = {name: _divide_gates(part["gates"], depth) for name, part in parts.items()}
        shared["gates"] = divided[target][0]
        own = {name: part | {"gates": divided[name][1]} for name, part in own.items()}
    return {"shared": shared, "own": own}


def parts_of(store: Params, task: str) -> Params:
    """The parameters that a task works with: what is shared and its own, put together."""
    return _merge(store["shared"], store["own"][task])


def has_own_gates(store: Params, task: str) -> bool:
    """Whether any gate is the task's alone."""
    return bool(store["own"][task].get("gates"))


def _divide_model(model: Params, depth: int | None) -> tuple[Params, Params]:
    layers = model["encoder"]["layers"]
    common = {key: layer for key, layer in layers.items() if depth is None or int(key) < depth}
    rest = {key: layer for key, layer in layers.items() if key not in common}
    shared = {name: part for name, part in model.items() if name not in (*HEADS, "encoder")}
    own = {name: part for name, part in model.items() if name in HEADS}
    return shared | {"encoder": {"layers": common}}, own | ({"encoder": {"layers": rest}} if rest else {})


def _divide_gates(gates: Params, depth: int | None) -> tuple[Params, Params]:
    if depth is None:
        return dict(gates), {}
    whole = {name: value for name, value in gates.items() if name in _LAYERLESS}
    layered = {name: value for name, value in gates.items() if name not in _LAYERLESS}
    rest = {name: value[depth:] for name, value in layered.items() if depth < len(value)}
    return whole | {name: value[:depth] for name, value in layered.items()}, rest


def _merge(first: Any, second: Any) -> Any:
    """Two trees as one; arrays that are in both are the first and the other rows of one."""
    if not isinstance(first, Mapping):
        return jnp.concatenate([first, second])
    return {
        key: _merge(first[key], second[key]) if key in first and key in second else (first | second)[key]  # pyright: ignore[reportOperatorIssue]
        for key in {**first, **second}
    }
