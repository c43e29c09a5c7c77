"""The formats of `experiments.export`: each writes a folder, reads it back and compares logits."""

import contextlib
import importlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kaprune_jax._errors import InputError
from kaprune_jax.deploy.expand import expand
from kaprune_jax.deploy.folder import load, save
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import make_apply

NEAR = 1e-4
"""Largest difference of logits from the model's, as a fraction of the largest."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_RUN = '''"""Prints the logits of one row, by JAX and flatbuffers alone: python run.py 101 7592 102 (its token ids)."""

import sys
from pathlib import Path

import jax
import numpy as np

program = jax.export.deserialize(bytearray((Path(__file__).parent / "model.stablehlo").read_bytes()))
rows = np.array([[int(word) for word in sys.argv[1:]]], np.int32)
print(np.asarray(program.call(rows, np.ones_like(rows), np.zeros_like(rows))).tolist())
'''


def to_hugging_face(model: Model, out: Path) -> dict[str, Any]:
    """A folder in Hugging Face's layout with the shapes of the whole model, zeros where something was cut out.

    Raises:
      InputError: hidden dimensions are gone: LayerNorm over the whole would count their zeros.
    """
    params, config = expand(model)
    shutil.rmtree(out)
    save(out, params, config, tokenizer=model.tokenizer, details={"source": "exported"})
    error = _check(model, load(out).apply, load(out).params)
    whole = "AutoModelForQuestionAnswering" if config.head == "span" else "AutoModelForSequenceClassification"
    stock = whole if config.pooling == "cls" or config.head == "span" else "AutoModel (the encoder, no head)"
    return {"format": "hf", "difference": error, "loads_with": stock, "says": f"transformers' {stock} loads it"}


def to_stablehlo(model: Model, out: Path) -> dict[str, Any]:
    """A serialised program with its weights, for any batch and length, for CPU, CUDA and TPU; and how to run it."""
    apply = make_apply(model.config)
    batch, seq = jax.export.symbolic_shape("batch, seq", constraints=[f"seq <= {model.config.max_position_embeddings}"])
    like = jax.ShapeDtypeStruct((batch, seq), jnp.int32)
    program = jax.jit(lambda ids, mask, types: apply(model.params, ids, mask, types).logits)
    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(like, like, like)
    (out / "model.stablehlo").write_bytes(exported.serialize())
    (out / "run.py").write_text(_RUN, "utf-8")
    model.tokenizer.save_pretrained(out)
    again = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    error = _check(model, lambda _, *inputs: _Logits(again.call(*inputs)), None)
    _check_alone(model, out)
    says = "model.stablehlo runs with JAX alone, see run.py"
    return {"format": "stablehlo", "difference": error, "labels": list(model.config.labels), "says": says}


def to_onnx(model: Model, out: Path) -> dict[str, Any]:
    """An ONNX model for any batch and length, converted by jax2onnx and compared in onnxruntime.

    Raises:
      InputError: jax2onnx or onnxruntime is not installed.
    """
    try:
        convert = importlib.import_module("jax2onnx").to_onnx
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise InputError(
            f"--to onnx: {error.name or error} is not installed here; it comes with the extra onnx"
        ) from None
    apply = make_apply(model.config)
    program = lambda ids, mask, types: apply(model.params, ids, mask, types).logits  # noqa: E731
    file = out / "model.onnx"
    names = {"input_names": list(_INPUTS), "output_names": ["logits"]}
    with _quiet_logs():
        convert(program, [_Dynamic()] * 3, opset=21, return_mode="file", output_path=str(file), **names)
    model.tokenizer.save_pretrained(out)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(_: Any, *inputs: Any) -> _Logits:
        feed = {name: np.asarray(value) for name, value in zip(_INPUTS, inputs, strict=True)}
        return _Logits(session.run(["logits"], feed)[0])

    error = max(_check(model, run, None), _check(model, run, None, rows=1))  # two batches: shapes are free
    says = "model.onnx runs in onnxruntime: int32 input_ids, attention_mask, token_type_ids to logits"
    return {"format": "onnx", "difference": error, "labels": list(model.config.labels), "says": says}


class _Dynamic:
    """An input of any number of rows and tokens, as jax2onnx reads them."""

    shape, dtype = ("batch", "length"), np.dtype(np.int32)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """The converter warns of shapes it leaves out of the file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Logits:
    def __init__(self, logits: Any):
        self.logits = logits


def sample_texts(model: Model) -> list[str]:
    """Texts of the model's own vocabulary, of different lengths."""
    words = [word for word in model.tokenizer.get_vocab() if word.isalpha()]
    return [" ".join(words[start::97][: 2 + start % 9]) for start in range(16)]


def encode_texts(model: Model, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and types of texts, [texts, tokens] each."""
    limit = model.config.max_position_embeddings
    batch = model.tokenizer(
        texts, padding=True, truncation=True, max_length=limit, return_token_type_ids=True, return_tensors="np"
    )
    columns = (batch[name].astype(np.int32) for name in _INPUTS)
    ids, mask, types = columns
    return ids, mask, types


def _check(model: Model, apply: Any, params: Any, *, rows: int = 16) -> float:
    """The largest difference of logits over the first few rows, as a fraction of the largest.

    Raises:
      InputError: more than `NEAR`: what was written is not the model.
    """
    ids, mask, types = (part[:rows] for part in encode_texts(model, sample_texts(model)))
    length = int(mask.sum(axis=1).max())
    inputs = [jnp.asarray(part[:, :length]) for part in (ids, mask, types)]
    wanted = np.asarray(model.apply(model.params, *inputs).logits)
    error = float(np.abs(np.asarray(apply(params, *inputs).logits) - wanted).max() / np.abs(wanted).max())
    if not error <= NEAR:
        raise InputError(f"{model.folder}: the export's logits differ by {error:.1e} of the largest; nothing was kept")
    return error


def _check_alone(model: Model, out: Path) -> None:
    """Runs the written program in a process of its own, which cannot import this package."""
    row = encode_texts(model, sample_texts(model))[0][0].tolist()
    wanted = np.asarray(model.apply(model.params, jnp.asarray([row])).logits)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ALONE, str(out / "run.py"), *map(str, row)],
        capture_output=True, text=True, env={"PATH": "", "JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"{model.folder}: the exported program does not run: {done.stderr.strip().splitlines()[-1]}")
    found = np.array(json.loads(done.stdout))
    if not np.abs(found - wanted).max() <= NEAR * np.abs(wanted).max():
        raise InputError(f"{model.folder}: the exported program gives other logits; nothing was kept")


_ALONE = """
import sys
sys.modules["kaprune_jax"] = None
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""
