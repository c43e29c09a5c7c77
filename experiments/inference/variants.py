"""The ways to run an encoder that the benchmark compares, each compiled ahead of time with its weights as arguments."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.cost import dense_costs, linear_cost, packed_costs
from experiments.inference.timing import Variant
from kaprune_jax._typing import Params
from kaprune_jax.deploy.compile import make_program
from kaprune_jax.kernels.block_sparse.api import Backend, matmul_features_major
from kaprune_jax.kernels.block_sparse.format import pack
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig, LayerShape

SIZES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""
NEAR = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of logits that is allowed, as a fraction of the largest logit."""


def encoder_variants(
    config: BertConfig,
    params: Params,
    *,
    whole: BertConfig,
    batch: int,
    length: int,
    backend: str,
    kept: int,
    seed: int = 0,
) -> list[Variant]:
    """A pruned encoder, dense and as small and packed as it gets, on one batch.

    Args:
      config: of the pruned model, sparse or shrunk.
      params: its weights.
      whole: configuration before pruning.
      batch: rows.
      length: tokens of each.
      backend: of packed matrices.
      kept: encoder weights that are not zero, for the dense model of as many.
      seed: of the batch and of random weights.
    """
    random = np.random.default_rng(seed)
    ids = random.integers(1, config.vocab_size, (batch, length)).astype(np.int32)
    ones = np.ones_like(ids)
    inputs = jax.device_put((ids, ones, np.zeros_like(ids)))
    expected = np.asarray(make_apply(config)(params, *inputs).logits, np.float64)
    dense = init_params(whole, jax.random.key(seed))
    found = []

    def add(name: str, function: Callable[..., Any], weights: Params, expected, costs, dtype: str = "float32") -> None:
        began = time.perf_counter()
        compiled = jax.jit(function).lower(weights, *inputs).compile()
        about = {"compile_seconds": time.perf_counter() - began, "dtype": dtype}
        held = jax.device_put(weights)
        call = lambda: jax.block_until_ready(compiled(held, *inputs))  # noqa: E731
        found.append(Variant(name, call, expected, NEAR[dtype], costs, about))

    def add_compiled(name: str, config: BertConfig, params: Params, expected, dtype: str = "float32") -> None:
        program = make_program(params, config, batch=batch, length=length, backend=backend, dtype=dtype)
        if program.weights is params:
            costs = dense_costs(config, batch, length, SIZES[dtype])
        else:
            costs = packed_costs(program.weights, batch, length, SIZES[dtype])
        name = name if dtype == "float32" else f"{name} {dtype}"
        add(name, program.function, program.weights, expected, costs, dtype)
        found[-1].about["plan"] = [choice._asdict() for choice in program.plan]

    for dtype, size in SIZES.items():
        name = "dense" if dtype == "float32" else f"dense {dtype}"
        add(name, _logits(whole, dtype), dense, None, dense_costs(whole, batch, length, size), dtype)
    add_compiled("dense, compiled", whole, dense, None)
    name = "cut out" if config.is_shrunk else "zeros in place"
    add(name, _logits(config, "float32"), params, expected, dense_costs(config, batch, length))
    for dtype in SIZES:
        add_compiled("compiled", config, params, expected, dtype)
    if not config.is_shrunk:
        like = smaller_config(whole, kept)
        small = init_params(like, jax.random.key(seed))
        add("smaller dense", _logits(like, "float32"), small, None, dense_costs(like, batch, length))
        for dtype in SIZES:
            add_compiled("smaller dense, compiled", like, small, None, dtype)
        for variant in found[-3:]:
            variant.about["layers"] = [[len(shape.heads), shape.ffn] for shape in like.layers]
    return found


def smaller_config(whole: BertConfig, kept: int) -> BertConfig:
    """A dense encoder with about as many weights in its matrices: a third of them or more in heads, over the layers.

    Units come in sixteens, as the layers of a model that is made to be fast do.
    """
    hidden, layers, size = whole.hidden_size, whole.num_hidden_layers, whole.head_size
    head = 4 * hidden * size
    heads = math.ceil(kept / 3 / head)
    units = 16 * max(1, round((kept - heads * head) / (2 * hidden) / layers / 16))
    each = [heads // layers + (1 if index < heads % layers else 0) for index in range(layers)]
    shapes = tuple(LayerShape(tuple(range(min(count, whole.num_attention_heads))), units) for count in each)
    return whole.replace(layers=shapes, attention_head_size=size, pooler_size=hidden)


def random_blocks(params: Params, *, density: float, within: tuple[int, int] | None = None, seed: int = 0) -> Params:
    """Random zeros in blocks of 32 by 128: every panel of 128 outputs keeps as many, give or take one for the total.

    Args:
      params: of a whole encoder.
      density: fraction of the blocks that is kept, in (0, 1].
      within: value dimensions and units of each layer that may have any, all of them by default; these then have as
        many as makes `density` of the whole.
      seed: of the places.
    """
    random = np.random.default_rng(seed)
    params = jax.tree.map(np.array, params)
    for layer in params["encoder"]["layers"].values():
        attention, ffn = layer["attention"], layer["ffn"]
        values, units = within or (attention["value"]["kernel"].shape[1], ffn["up"]["kernel"].shape[1])
        for part, rows, columns in (
            *((attention[name], None, values) for name in ("query", "key", "value")),
            (attention["output"], values, None),
            (ffn["up"], None, units),
            (ffn["down"], units, None),
        ):
            kernel = part["kernel"]
            corner = kernel[:rows, :columns]
            blocks, panels = -(-corner.shape[0] // 32), -(-corner.shape[1] // 128)
            keep = _balanced(random, blocks, panels, density * kernel.size / corner.size)
            mask = np.zeros(kernel.shape, bool)
            mask[:rows, :columns] = np.repeat(np.repeat(keep, 32, 0), 128, 1)[: corner.shape[0], : corner.shape[1]]
            part["kernel"] = kernel * mask
    return params


def matmul_variants(
    inputs: int, outputs: int, tokens: int, *, density: float, backend: Backend, seed: int = 0
) -> list[Variant]:
    """One product of a random block-sparse matrix, features-major: dense, and packed."""

    random = np.random.default_rng(seed)
    count = -(-inputs // 32)
    keep = _balanced(random, count, -(-outputs // 128), density)
    mask = np.repeat(np.repeat(keep, 32, 0), 128, 1)[:inputs, :outputs]
    weight = random.normal(size=(inputs, outputs)).astype(np.float32) * mask
    x = jax.device_put(random.normal(size=(inputs, tokens)).astype(np.float32))
    expected = weight.T.astype(np.float64) @ np.asarray(x, np.float64)
    panels = pack(weight, mask)
    dense, packed = jnp.asarray(weight.T), jax.device_put(panels)
    product = jax.jit(lambda w, x: w @ x).lower(dense, x).compile()
    blocks = jax.jit(lambda p, x: matmul_features_major(x, p, backend=backend)).lower(packed, x).compile()
    return [
        Variant("dense", lambda: jax.block_until_ready(product(dense, x)), expected, 1e-5,
                [linear_cost(inputs, outputs, weight.size, tokens)]),
        Variant(f"blocks {density:.0%}", lambda: jax.block_until_ready(blocks(packed, x)), expected, 1e-5,
                [linear_cost(inputs, outputs, panels.blocks.size, tokens)]),
    ]  # fmt: skip


def _balanced(random: np.random.Generator, blocks: int, panels: int, density: float) -> np.ndarray:
    """Which of the blocks [blocks, panels] are kept: a fraction of them, spread evenly over the panels."""
    each, more = divmod(round(density * blocks * panels), panels)
    counts = each + (random.permutation(panels) < more)
    return np.argsort(np.argsort(random.random((blocks, panels)), axis=0), axis=0) < counts


def _logits(config: BertConfig, dtype: str) -> Callable[..., Any]:
    apply = make_apply(config, dtype=dtype)
    return lambda params, *inputs: apply(params, *inputs).logits
