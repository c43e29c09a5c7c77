"""What the benchmark is about: saved models, random weights of known sizes, single products."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.inference.cost import Peaks, total
from experiments.inference.rivals import rival_variants
from experiments.inference.shapes import SHAPES
from experiments.inference.timing import Variant, check, measure
from experiments.inference.variants import encoder_variants, matmul_variants, random_blocks
from kaprune_jax._errors import InputError
from kaprune_jax._reading import read_json
from kaprune_jax._tree import select
from kaprune_jax.deploy.expand import fitting_structure
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import PRUNABLE, init_params
from kaprune_jax.models.config import BertConfig

Subject = Callable[[int, Peaks], list[dict[str, Any]]]
LENGTH = 128
"""Tokens of a row unless told otherwise."""
CONTENDED = 0.1
"""Share of the processor used by others from which on a row is marked."""


def saved_subjects(settings: argparse.Namespace) -> list[Subject]:
    """One for every folder.

    Raises:
      InputError: a folder that holds no model, or one without such a head, or too few positions.
    """
    return [_saved(name, settings) for name in settings.models]


def _saved(name: str, settings: argparse.Namespace) -> Subject:
    model = load(name)
    config = model.config
    if not config.num_logits:
        raise InputError(f"{name}: a model with the head of a task is needed, not {config.head}")
    settings = _with_length(settings, name, config)
    whole = _whole(model)
    kept = sum(int(np.count_nonzero(leaf)) for _, leaf in select(model.params, PRUNABLE))
    full = sum(leaf.size for _, leaf in select(init_shapes(whole), PRUNABLE))
    about = {
        "subject": name,
        "sparsity": 1.0 - kept / full,
        **_scores(Path(name)),
        **_tokenised(model, settings.length),
    }

    def subject(batch: int, peaks: Peaks) -> list[dict[str, Any]]:
        options = {"batch": batch, "length": settings.length, "backend": settings.backend, "seed": settings.seed}
        variants = encoder_variants(config, model.params, whole=whole, kept=kept, **options)
        return _rows(variants, whole, batch, settings, peaks, about)

    return subject


def _with_length(settings: argparse.Namespace, name: str, config: BertConfig) -> argparse.Namespace:
    """The settings with the length of a row: as asked, else `LENGTH`, or what the model has positions for.

    Raises:
      InputError: more are asked for than it has.
    """
    most = config.max_position_embeddings
    if settings.length is not None and settings.length > most:
        raise InputError(f"--length {settings.length}: {name} has {most} positions")
    return argparse.Namespace(**vars(settings) | {"length": settings.length or min(LENGTH, most)})


def random_subjects(settings: argparse.Namespace) -> list[Subject]:
    """One for every shape and density: as many blocks of 32 by 128 in every panel, at random places.

    Raises:
      InputError: more heads, units, positions or weights are asked for than there are.
    """
    return [_random(name, density, settings) for name in settings.shapes for density in settings.densities]


def _random(name: str, density: float, settings: argparse.Namespace) -> Subject:
    hidden, layers, heads, units = SHAPES[name]
    whole = BertConfig(30522, hidden, layers, heads, units, head="classification", labels=("no", "yes"))
    settings = _with_length(settings, name, whole)
    within, subject_name = None, f"{name}, random blocks"
    if settings.within:
        within = _within(name, density, settings.within)
        subject_name += " in {} heads and {} units of a layer".format(*settings.within)

    def subject(batch: int, peaks: Peaks) -> list[dict[str, Any]]:
        start = init_params(whole, jax.random.key(settings.seed))
        params = random_blocks(start, density=density, within=within, seed=settings.seed)
        matrices = [leaf for _, leaf in select(params, PRUNABLE)]
        kept = sum(int(np.count_nonzero(leaf)) for leaf in matrices)
        about = {"subject": subject_name, "sparsity": 1.0 - kept / sum(leaf.size for leaf in matrices)}
        options = {"batch": batch, "length": settings.length, "backend": settings.backend, "seed": settings.seed}
        return _rows(
            encoder_variants(whole, params, whole=whole, kept=kept, **options), whole, batch, settings, peaks, about
        )

    return subject


def _within(name: str, density: float, kept: tuple[int, int]) -> tuple[int, int]:
    """Value dimensions and units that blocks are left in.

    Raises:
      InputError: there are fewer, or they cannot hold so many blocks.
    """
    hidden, _, heads, units = SHAPES[name]
    flag = f"--within {kept[0]},{kept[1]}"
    if kept[0] > heads or kept[1] > units:
        raise InputError(f"{flag}: {name} has {heads} heads and {units} units in a layer")
    held = min(kept[0] / heads, kept[1] / units)
    if density > held:
        raise InputError(f"{flag}: that is {held:.3g} of a matrix of {name}, too little for --densities {density:g}")
    return kept[0] * hidden // heads, kept[1]


def single_products(settings: argparse.Namespace, peaks: Peaks) -> list[dict[str, Any]]:
    """The first feed-forward product of each shape alone, at the densities, at all blocks, and at none."""
    found = []
    backend = "xla" if settings.backend == "auto" else settings.backend
    settings = argparse.Namespace(**vars(settings) | {"length": settings.length or LENGTH})
    for name in settings.shapes:
        hidden, _, _, units = SHAPES[name]
        for batch in settings.batch:
            tokens = batch * settings.length
            for density in (1.0, *settings.densities, 0.0):
                options = {"density": density, "backend": backend, "seed": settings.seed}
                variants = matmul_variants(hidden, units, tokens, **options)
                about = {"subject": f"{name}, one product {hidden}x{units}", "sparsity": 1.0 - density}
                found += _rows(variants, None, batch, settings, peaks, about)
    return found


def _rows(
    variants: list[Variant],
    whole: BertConfig | None,
    batch: int,
    settings: argparse.Namespace,
    peaks: Peaks,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Checks and times variants; the first is what the others are compared with."""
    if whole is not None and settings.rivals:
        variants = variants + rival_variants(
            settings.rivals, whole, batch=batch, length=settings.length, seed=settings.seed
        )
    errors = {variant.name: check(variant) for variant in variants}
    timings, others = measure(variants, rounds=settings.rounds, seed=settings.seed)
    base = peaks.seconds(list(variants[0].costs))
    rows = []
    for variant in variants:
        row: dict[str, Any] = {**about, "variant": variant.name, "batch": batch, "length": settings.length}
        row |= {"error": errors[variant.name], **timings[variant.name].summary(), "others": others}
        row["contended"] = None if others is None else others > CONTENDED
        if variant.costs:
            dtype = (variant.about or {}).get("dtype", "float32")
            cost, least = total(list(variant.costs)), peaks.seconds(list(variant.costs), dtype)
            row |= {"flops": cost.flops, "bytes": cost.bytes, "ceiling": base / least, "of_peak": least / row["median"]}
        rows.append(row | (variant.about or {}) | {"seconds": timings[variant.name].seconds})
    return rows


def _whole(model: Model) -> BertConfig:
    """What the model was before whole structures were cut out of it."""
    config = model.config
    if not config.is_shrunk:
        return config
    structure = fitting_structure(model)
    return config.replace(
        hidden_size=structure.hidden.size, layers=(), attention_head_size=None, pooler_size=None
    )  # fmt: skip


def init_shapes(config: BertConfig) -> Any:
    """The tree of parameters, shapes only."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _scores(folder: Path) -> dict[str, Any]:
    """What a run's result says of its score; nothing for a bare model folder."""
    for place in (folder / "result.json", folder.parent / "result.json"):
        if place.is_file():
            result = read_json(place)
            return {name: result.get(name) for name in ("task", "metric", "dense", "pruned", "last", "method")}
    return {}


def _tokenised(model: Model, length: int) -> dict[str, float]:
    """Seconds that the tokenizer takes for a row: what a user waits for besides."""
    words = [word for word in model.tokenizer.get_vocab() if word.isalpha()][: length - 2] or ["a"]
    texts = [" ".join(words)] * 32
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        model.tokenizer(texts, truncation=True, max_length=length)
        seconds.append((time.perf_counter() - began) / len(texts))
    return {"tokenizer_seconds_per_row": min(seconds)}
