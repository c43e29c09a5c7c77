"""How long two models take on this machine for the same batch, measured in turn."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from experiments.runs.prepare import Prepared
from kaprune_jax._typing import Params
from kaprune_jax.data.loader import collate
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.config import BertConfig


def measure_speed(
    dense: tuple[BertConfig, Params], smaller: tuple[BertConfig, Params], prepared: Prepared, *, rounds: int = 9
) -> dict[str, Any]:
    """Seconds of a forward pass over one batch of dev rows, dense and smaller in turn: medians, and their ratio.

    Compilation, tokenisation and transfers are not counted. The rows are those around the median length.
    """
    sizes = np.array([len(row) for row in prepared.dev.input_ids])
    size = min(32, len(sizes))
    middle = np.argsort(sizes, kind="stable")[max(0, len(sizes) // 2 - size // 2) :][:size]
    length = -(-int(sizes[middle].max()) // 8) * 8
    batch = collate(prepared.dev, middle, min(length, prepared.dev.limit))
    inputs = jax.device_put((batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]))
    runs = []
    for config, params in (dense, smaller):
        apply = make_apply(config, dtype=prepared.settings.dtype)
        compiled = jax.jit(lambda p, *x, apply=apply: apply(p, *x).logits).lower(params, *inputs).compile()
        runs.append((compiled, jax.device_put(params)))
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for index, (compiled, params) in enumerate(runs):
            began = time.perf_counter()
            jax.block_until_ready(compiled(params, *inputs))
            if number >= 2:  # the first rounds warm up
                seconds[index].append(time.perf_counter() - began)
    ratios = sorted(one / other for one, other in zip(*seconds, strict=True))
    return {
        "batch": len(middle),
        "length": length,
        "dense_seconds": statistics.median(seconds[0]),
        "smaller_seconds": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "device": jax.devices()[0].device_kind,
    }
