"""`experiments.export --to small`: the same model in a file without its zeros."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inference.formats import encode_texts, sample_texts
from kaprune_jax._errors import InputError
from kaprune_jax.data.tables import read_content
from kaprune_jax.deploy.folder import load, save
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.deploy.model import Model
from kaprune_jax.deploy.vocabulary import prune_vocabulary, used_ids
from kaprune_jax.deploy.weights import weight_files

_ENDINGS = (".txt", ".tsv", ".csv")


def to_small(model: Model, out: Path, *, dtype: str, words: str | None) -> dict[str, Any]:
    """A folder for `kp.load` whose file has no zeros, in float16 unless asked otherwise.

    Args:
      model: of any run or model folder.
      out: an empty folder.
      dtype: "float16" or "float32".
      words: a file of texts; the tokens that none of them has are left out.

    Raises:
      InputError: the texts cannot be read, weights beyond float16, or what was written is not the model.
    """
    params, config, tokenizer = model.params, model.config, model.tokenizer
    if words:
        params, config, tokenizer = prune_vocabulary(params, config, tokenizer, _ids(Path(words), tokenizer))
    masks = dict(read_masks(model.folder)) if model.config.is_shrunk else None  # else the file itself says it
    shutil.rmtree(out)
    save(out, params, config, tokenizer=tokenizer, masks=masks, details=model.details, dtype=dtype, zeros=False)
    again = load(out)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)
    if not all(map(np.array_equal, jax.tree.leaves(again.params), jax.tree.leaves(rounded))):
        raise InputError(f"{model.folder}: what was written does not read back as the same weights; nothing was kept")
    before, after = _size(model.folder), _size(out)
    whole = 4 * model.details["whole"]["all"] if "whole" in model.details else 4 * _count(model.params)
    kept = f", {config.vocab_size:,} of {model.config.vocab_size:,} tokens" if words else ""
    says = (
        f"{after / 1e6:.1f} MB of weights in {dtype} without zeros{kept}; dense in float32 {whole / 1e6:.1f} MB, "
        f"{whole / after:.1f} times as much. kp.load reads it, stock classes do not"
    )
    name = ", ".join(str(model.details[key]) for key in ("task", "method") if key in model.details) or "A model"
    (out / "README.md").write_text(_CARD.format(name=name, says=says), "utf-8")
    return {
        "format": "small",
        "difference": _difference(model, again),
        "bytes": {"dense": whole, "before": before, "after": after},
        "tokens": config.vocab_size,
        "says": says,
    }


_CARD = """# {name}: a small file

{says}.

```python
import kaprune_jax as kp

model = kp.load("path/to/this/folder")
```
"""


def _ids(file: Path, tokenizer: Any) -> np.ndarray:
    """The ids of all tokens of a file of texts.

    Raises:
      InputError: the file cannot be read, or its ending is that of no such file.
    """
    ending = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    if ending not in _ENDINGS:
        raise InputError(f"--words {file}: ends in {file.suffix!r}; allowed are {', '.join(_ENDINGS)}, also with .gz")
    lines = read_content(file).split("\n")
    return used_ids(tokenizer(lines, add_special_tokens=False).input_ids)


def _difference(model: Model, small: Model) -> float:
    """The largest difference of logits over rows of the small model's words, as a fraction of the largest logit."""
    texts, found = sample_texts(small), []
    for each in (model, small):
        inputs = map(jnp.asarray, encode_texts(each, texts))
        found.append(np.asarray(each.apply(each.params, *inputs).logits))
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))
