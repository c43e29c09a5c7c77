"""The figures of a run, counted from the files it delivers, and the model card."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.method import short_name
from experiments.runs.prepare import Prepared
from kaprune_jax._reading import read_json
from kaprune_jax._tree import select
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.masks import read_masks
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import PRUNABLE
from kaprune_jax.train.processes import by_first


@by_first
def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is complete, else None."""
    return read_json(folder / "result.json") if (folder / "result.json").is_file() else None


def delivered(folder: Path, *, asked: float) -> dict[str, Any]:
    """Sparsity, parameters and bytes of a model folder, from zeros in the weights it holds.

    "stored" is what a file without zeros takes in float32 (`kaprune_jax.deploy.zeros`): of each encoder matrix one bit
    per weight and the kept values, the rest as it is. The folder itself has its zeros in place, or pieces cut out.
    """
    import jax

    model = load(folder)
    params = model.params
    if model.config.is_shrunk:
        return _delivered_smaller(model, asked=asked)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    matrices = {path: np.asarray(leaf) for path, leaf in select(params, PRUNABLE)}
    size = sum(matrix.size for matrix in matrices.values())
    zeros = {path: int(matrix.size - np.count_nonzero(matrix)) for path, matrix in matrices.items()}
    removed = sum(zeros.values())
    sparse = 4 * (total - removed) + sum(-(-matrix.size // 8) for matrix in matrices.values())
    return {
        "sparsity": {"asked": asked, "encoder": removed / size, "all": removed / total},
        "parameters": {"dense": total, "kept": total - removed, "encoder": size},
        "bytes": {"dense": 4 * total, "stored": min(sparse, 4 * total)},
        "per_matrix": {path: zeros[path] / matrix.size for path, matrix in matrices.items()},
    }


def _delivered_smaller(model: Model, *, asked: float) -> dict[str, Any]:
    """The same of a model whose pieces are physically gone, against the whole that its folder names."""
    import jax

    whole = model.details["whole"]
    total = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    size = sum(np.count_nonzero(leaf) for _, leaf in select(model.params, PRUNABLE))
    return {
        "sparsity": {"asked": asked, "encoder": 1 - size / whole["encoder"], "all": 1 - total / whole["all"]},
        "parameters": {"dense": whole["all"], "kept": total, "encoder": whole["encoder"]},
        "bytes": {"dense": 4 * whole["all"], "stored": 4 * total},
        "per_matrix": {path: float(1 - mask.mean()) for path, mask in read_masks(model.folder)},
    }


def card(result: dict[str, Any], prepared: Prepared, *, last: bool) -> str:
    """The model card: what it is, its figures, how to use it."""
    settings, config = prepared.settings, prepared.start.config
    metrics = result["last_metrics"] if last else result["metrics"]
    figures = "\n".join(f"| {name} (dev) | {value:.4f} |" for name, value in metrics.items())
    dense = "" if result["dense"] is None else f"| {result['metric']} of the dense model | {result['dense']:.4f} |\n"
    at_target = " at the target sparsity" if result["target_step"] else ""
    chosen = "the last step" if last else f"step {result['best_step']}, the best on dev{at_target}"
    loader = "AutoModelForQuestionAnswering" if config.head == "span" else "AutoModelForSequenceClassification"
    stock = (
        f"`{loader}` of `transformers` loads this folder as it is."
        if config.pooling == "cls" or config.head == "span"
        else "The sentence vector is the mean of the last hidden states over real tokens, which no stock BERT "
        "classifier computes: `AutoModel` of `transformers` loads the encoder, and the logits are that mean times "
        "`classifier.weight` (transposed) plus `classifier.bias`, both in `model.safetensors`."
    )
    added = f" and {n:,} augmented" if (n := result["examples"]["augmented"]) else ""
    sparse = f"{result['sparsity']['encoder']:.2%} of the encoder's\nmatrices are zeros (pattern {result['pattern']})"
    stored = "with its zeros / without (experiments.export --to small --dtype float32)"
    zeros = " Zeros alone do not make a dense matrix product faster." if result["target_step"] else ""
    if "removed" in result:
        gone = "matrices are cut out (heads, units, hidden dimensions)"
        sparse = f"{result['sparsity']['encoder']:.2%} of the encoder's\n{gone}"
        stored, zeros = "whole / smaller model", ""
        stock = (
            "`kp.load` reads this folder; no stock class does, since layers differ in their heads and units. The "
            "weights are stored dense, at the size that is left."
        )
    start = short_name(settings.model)
    units = "questions" if config.head == "span" else "rows"
    return f"""# {result["task"]}: {start}, {result["method"]}

Fine-tuned on {result["task"]} from `{start}`; {sparse}, {result["sparsity"]["all"]:.2%} of all parameters.
Weights of {chosen}.

| figure | value |
| --- | --- |
{dense}{figures}
| parameters kept | {result["parameters"]["kept"]:,} of {result["parameters"]["dense"]:,} |
| bytes, {stored} | {result["bytes"]["dense"]:,} / {result["bytes"]["stored"]:,} |
| training {units}, steps, seed | {result["examples"]["train"]:,}{added}, {result["steps"]:,}, {result["seed"]} |

```python
import kaprune_jax as kp

model = kp.load("path/to/this/folder")
print(model.predict([{_example(prepared)}]))
```

{textwrap.fill(stock + zeros, 120)}
"""


def _example(prepared: Prepared) -> str:
    row = prepared.data.dev.texts[0]
    if prepared.data.kind == "span":  # question and passage
        row = (row[0], textwrap.shorten(row[1], 200, placeholder=" ..."))
    return repr(row[0] if len(row) == 1 else tuple(row))
