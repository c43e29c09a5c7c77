"""Which pooling a checkpoint was made for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kaprune_jax._reading import inside, read_json
from kaprune_jax.models.config import Pooling, architecture_of


def detect_pooling(folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[Pooling, str]:
    """The pooling of a checkpoint and the reason in a few words.

    In this order: its own `kaprune` section; the files of a sentence encoder; a pooler that is missing, or was never
    trained (its bias is exactly zero, as at initialisation); else "cls".
    """
    section = raw.get("kaprune", {})
    if "pooling" in section:
        return section["pooling"], "config.json says so"
    if (sentence := inside(folder, "1_Pooling/config.json")).is_file():
        modes = read_json(sentence)
        if modes.get("pooling_mode_mean_tokens"):
            return "mean", "1_Pooling/config.json says so"
        if modes.get("pooling_mode_cls_token"):
            return "cls", "1_Pooling/config.json says so"
    architecture = architecture_of(raw)
    if architecture != "BertModel":
        return "cls", f"a {architecture}"
    bias = next((array for name, array in tensors.items() if name.endswith("pooler.dense.bias")), None)
    if bias is None:
        return "mean", "the checkpoint has no pooler"
    if not np.any(bias):
        return "mean", "the checkpoint's pooler was never trained: its bias is zero"
    return "cls", "the checkpoint has a trained pooler"
