"""First gates from what earlier runs kept: `--init-from RUN[,RUN]` (Meta-Vote Pruning, arXiv:2301.11560)."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config.checks import gate_names
from experiments.config.transfer_settings import TransferSettings
from experiments.runs.prepare import Prepared
from experiments.runs.run import predict_rows
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.masks import read_masks, structure_of
from kaprune_jax.deploy.model import Model
from kaprune_jax.l0.hard_concrete import log_alpha_of
from kaprune_jax.models.bert import make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.step import make_predict
from kaprune_jax.transfer.ranking import leep
from kaprune_jax.transfer.voting import vote


def voted_parts(settings: TransferSettings, prepared: Prepared) -> dict[str, Any]:
    """The target's start with gates that the kept structures of earlier runs vote on.

    A run weighs by how well the classes of its model predict the target's (LEEP over the training rows); runs weigh
    alike where either task is a regression.

    Raises:
      InputError: a run without gates, or of another architecture or vocabulary.
    """
    assert settings.init_from is not None
    start, votes, models = prepared.start, [], []
    for name in settings.init_from.split(","):
        model = load(name)
        votes.append(_kept(name, model, start))
        models.append(model)
    classes = prepared.data.kind == "classification" and all(model.config.head == "classification" for model in models)
    similarity = [_leep(model, prepared) if classes else 0.0 for model in models]
    enabled = gate_names(settings.gates)
    chances = vote(
        [{gate: mask for gate, mask in kept.items() if gate in enabled} for kept in votes],
        similarity,
        prior=settings.gate_start,
        rate=settings.vote_rate,
    )
    return {"model": start.params, "gates": {gate: log_alpha_of(chance) for gate, chance in chances.items()}}


def kept_structure(folder: Path, config: BertConfig) -> dict[str, np.ndarray]:
    """Which heads [layers, heads], units [layers, units] and hidden dimensions of the whole a folder's masks keep.

    Args:
      folder: a model folder with masks.
      config: of the whole model.

    Raises:
      InputError: it has no masks, or they are of another architecture.
    """
    masks = dict(read_masks(folder))
    try:
        kept = structure_of(masks, config.num_attention_heads)
    except ValueError as error:
        raise InputError(f"{folder}: {error}; a run with --method cofi on this model is needed") from None
    found = {"layers": len(kept.heads), "hidden dimensions": kept.hidden.size, "units": kept.units.shape[1]}
    wanted = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    for (name, there), here in zip(found.items(), wanted, strict=True):
        if there != here:
            raise InputError(f"{folder}: masks of another architecture, with {there} {name}; this model has {here}")
    return kept._asdict()


def _kept(name: str, model: Model, start: Model) -> dict[str, Any]:
    if not model.config.is_shrunk:
        raise InputError(
            f"--init-from {name}: nothing was removed from it as a whole; a run with --method cofi is needed"
        )
    kept = kept_structure(model.folder, start.config)
    if model.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise InputError(f"--init-from {name}: its vocabulary is not that of --model")
    return kept | {"attention": kept["heads"].any(axis=1), "ffn": kept["units"].any(axis=1)}


def _leep(model: Model, prepared: Prepared) -> float:
    logits = predict_rows(make_predict(make_apply(model.config)), model.params, prepared.train.data, batch_size=32)
    return leep(np.asarray(jax.nn.softmax(logits, axis=-1)), prepared.data.train.labels)
