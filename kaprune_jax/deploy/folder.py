"""Model folders: reading any BERT-layout Hugging Face folder, and writing our own in the same layout."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from kaprune_jax._errors import InputError
from kaprune_jax._reading import inside, read_json
from kaprune_jax._typing import Masks, Params
from kaprune_jax.deploy.masks import MASKS, save_masks
from kaprune_jax.deploy.model import Model
from kaprune_jax.deploy.pooling import detect_pooling
from kaprune_jax.deploy.weights import WEIGHTS, read_tensors
from kaprune_jax.deploy.zeros import leave_out
from kaprune_jax.models.bert import init_params, param_shapes
from kaprune_jax.models.config import BertConfig, Head, Pooling, from_hugging_face, to_hugging_face
from kaprune_jax.models.convert import from_tensors, to_tensors

MINI = Path(__file__).parent.parent / "assets" / "mini"


def load(folder: str | os.PathLike[str], *, pooling: Pooling | None = None) -> Model:
    """Loads a model folder of ours, any BERT-layout Hugging Face folder, or a hub name.

    Args:
      folder: a folder with `config.json`, safetensors and tokenizer files; "mini" for the bundled encoder; else a
        hub name, which needs the network or a filled cache.
      pooling: "cls" or "mean"; by default what the checkpoint was made for (`detect_pooling`).

    Raises:
      InputError: no such folder, no safetensors, tensors missing, unexpected or of the wrong shape.
    """
    place = find_folder(folder)
    raw = read_json(inside(place, "config.json"))
    config = from_hugging_face(raw, str(place / "config.json"))
    tensors = read_tensors(place)
    config = config.replace(pooling=pooling or detect_pooling(place, raw, tensors)[0])
    params = from_tensors(tensors, config, str(place))
    return Model(config, jax.tree.map(jnp.asarray, params), place, raw.get("kaprune", {}))


class Start(NamedTuple):
    """A pre-trained start for a task: the model, and what a person should know of how it was read."""

    model: Model
    notes: tuple[str, ...]


def load_start(
    folder: str | os.PathLike[str],
    *,
    head: Head,
    labels: tuple[str, ...],
    key: jax.Array,
    pooling: Pooling | None = None,
    head_bias: float = 0.0,
) -> Start:
    """Loads a checkpoint as the start of a task: its own head is kept if the labels are the same, else a new one made.

    Args:
      folder: as for `load`.
      head: "classification", "regression" or "span".
      labels: class names of the task, in the order of its ids.
      key: random key for the new parts.
      pooling: None for what the checkpoint was made for.
      head_bias: what a new head's bias starts at; a regression starts at the mean label.

    Raises:
      InputError: as for `load`; or whole structures were cut out of the model.
    """
    place = find_folder(folder)
    raw = read_json(inside(place, "config.json"))
    old = from_hugging_face(raw, str(place / "config.json"))
    if old.is_shrunk:
        raise InputError(f"{place}: whole structures were cut out of this model; a whole one is needed to start from")
    tensors = read_tensors(place)
    found, reason = detect_pooling(place, raw, tensors)
    notes = [f"pooling {pooling}, as asked" if pooling else f"pooling {found}: {reason}"]
    notes = [] if head == "span" else notes  # which pools nothing
    config = old.replace(head=head, labels=labels, pooling=pooling or found)
    same = (old.head, old.labels, old.pooling) == (config.head, config.labels, config.pooling)
    if old.num_logits and not same:
        was = ", ".join(old.labels) or old.head
        notes.append(f"the head of {place} ({was}) does not fit this task and is dropped")
        tensors = {
            name: array for name, array in tensors.items() if not name.startswith(("classifier.", "qa_outputs."))
        }
    params = from_tensors(tensors, config, str(place), new=frozenset({"pooler", "head"}))
    if not {"pooler", "head"} & set(params):
        config = config.replace(pooler_size=None)  # a new one is as wide as the model
    missing = tuple(sorted(set(param_shapes(config)) - set(params)))
    fresh = init_params(config, key, parts=missing)
    for part in missing:
        params[part] = fresh[part]
        if part == "head":
            params[part] = {**fresh[part], "bias": jnp.full_like(fresh[part]["bias"], head_bias)}
        else:
            notes.append(f"{place} has no {part}; it starts at random")
    model = Model(config, jax.tree.map(jnp.asarray, params), place, raw.get("kaprune", {}))
    return Start(model, tuple(notes))


def find_folder(name: str | os.PathLike[str]) -> Path:
    """The local folder behind a path, "mini", or a hub name.

    Raises:
      InputError: no such folder, or the hub has no such model or cannot be reached.
    """
    text = os.fspath(name)
    if text == "mini":
        return MINI
    place = Path(text).expanduser()
    for candidate in (place, place / "model"):  # a run folder stands for its model
        if (candidate / "config.json").is_file() and not (candidate / "result.json").is_file():
            if candidate == place and (place / "metrics.jsonl").is_file():
                continue
            inside(place, os.path.relpath(candidate, place))
            return candidate
    if os.path.lexists(place):
        inside_it = sorted(file.parent.parent for file in place.glob("*/model/config.json"))
        hint = f"; there are models in {', '.join(map(str, inside_it))}" if inside_it else ""
        raise InputError(f"{place}: no model folder: config.json is missing{hint}")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text:
        raise InputError(f"{text!r}: no such folder")
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "model*.safetensors", "README.md", "1_Pooling/*"]
    try:
        return Path(snapshot_download(text, allow_patterns=wanted))
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{text!r}: neither a folder here nor a model that the hub gave ({line})") from None


def save(
    folder: str | os.PathLike[str],
    params: Params,
    config: BertConfig,
    *,
    tokenizer: Any = None,
    masks: Masks | None = None,
    details: Mapping[str, Any] | None = None,
    card: str = "",
    dtype: str = "float32",
    zeros: bool = True,
) -> Path:
    """Writes a model folder that `load` and stock `transformers` read; all of it, or nothing.

    Args:
      folder: must not exist.
      params: the tree `load` gives.
      config: its configuration.
      tokenizer: written beside the weights.
      masks: what pruning kept; written as packed bits.
      details: goes into the `kaprune` section of `config.json`.
      card: text of the model card, Markdown.
      dtype: "float32", or "float16" for half the size.
      zeros: False leaves zeros out of the file (`kaprune_jax.deploy.zeros`): at 95 % a matrix takes 12 times less than
        in float32 (in float16 18 times less), and only `load` reads the folder.

    Raises:
      InputError: the folder exists, or it cannot be written (permission, disk space); weights beyond float16.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"dtype={dtype!r}; allowed: float32, float16")
    place = Path(folder)
    if place.exists():
        raise InputError(f"{place}: exists already; a new folder is needed")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror})") from None
    try:
        raw = to_hugging_face(config)
        raw["kaprune"] |= dict(details or {})
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
        tensors = {name: _cast(name, array, dtype) for name, array in to_tensors(params, config).items()}
        tensors, shapes = (tensors, {}) if zeros else leave_out(tensors)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt" if zeros else "kaprune", **shapes})
        if masks is not None:
            save_masks(partial / MASKS, masks)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card or f"# {place.name}\n", "utf-8")
        partial.chmod(0o755)
        for file in partial.glob("*.safetensors"):  # which are written for their owner only
            file.chmod(0o644)
        partial.rename(place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{place}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in another type.

    Raises:
      InputError: it has values beyond that type's.
    """
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all() and np.isfinite(array).all():
        raise InputError(f"{name}: values up to {np.abs(array).max():.3g}, beyond those of {dtype}")
    return cast
