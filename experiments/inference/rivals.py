"""Dense models of other tools on the same machine, where they are installed: what a user would take instead."""

import functools
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.inference.timing import Variant
from kaprune_jax._errors import InputError
from kaprune_jax.models.config import BertConfig, to_hugging_face

RIVALS = ("torch", "onnxruntime")
_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def rival_variants(names: list[str], whole: BertConfig, *, batch: int, length: int, seed: int = 0) -> list[Variant]:
    """Stock BERT classifiers with random weights of the dense model's sizes.

    Raises:
      InputError: a tool that is not installed.
    """
    found: list[Variant] = []
    for name in names:
        try:
            model, inputs = _stock(whole, batch, length, seed)
            found += _torch(model, inputs) if name == "torch" else _onnxruntime(model, inputs)
        except ImportError as error:
            raise InputError(f"--rivals {name}: {error.name or error} is not installed here") from None
    return found


def _stock(whole: BertConfig, batch: int, length: int, seed: int) -> tuple[Any, tuple[Any, ...]]:
    """A model of `transformers` and a batch."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.manual_seed(seed)
    raw = to_hugging_face(whole.replace(pooling="cls", head="classification", labels=("no", "yes")))
    raw = {name: value for name, value in raw.items() if name not in ("kaprune", "architectures")}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**raw)).eval()
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.integers(1, whole.vocab_size, (batch, length)))
    return model, (ids, torch.ones_like(ids), torch.zeros_like(ids))


def _torch(model: Any, inputs: tuple[Any, ...]) -> list[Variant]:
    """Float32 as written and compiled, bfloat16 compiled; attention is that of `transformers`' default."""
    torch = importlib.import_module("torch")

    def call(run: Any, dtype: Any) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            return run(*inputs).logits.float().numpy()

    compiled = torch.compile(model)
    kinds = {
        "torch float32": (model, torch.float32),
        "torch float32 compiled": (compiled, torch.float32),
        "torch bfloat16 compiled": (compiled, torch.bfloat16),
    }
    about = {"version": torch.__version__, "threads": torch.get_num_threads()}
    return [Variant(name, functools.partial(call, *kind), about=about) for name, kind in kinds.items()]


def _onnxruntime(model: Any, inputs: tuple[Any, ...]) -> list[Variant]:
    """Float32, and int8 by dynamic quantisation."""
    torch, onnxruntime = importlib.import_module("torch"), importlib.import_module("onnxruntime")
    quantize = importlib.import_module("onnxruntime.quantization").quantize_dynamic
    feed = {name: value.numpy() for name, value in zip(_INPUTS, inputs, strict=True)}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": Path(folder) / "float32.onnx", "int8": Path(folder) / "int8.onnx"}
        options = {"input_names": _INPUTS, "output_names": ["logits"], "dynamo": False}
        torch.onnx.export(model, inputs, str(files["float32"]), **options)
        quantize(str(files["float32"]), str(files["int8"]))
        for dtype, file in files.items():
            session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
            call = functools.partial(_run, session, feed)
            found.append(Variant(f"onnxruntime {dtype}", call, about={"version": onnxruntime.__version__}))
    return found


def _run(session: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    return session.run(["logits"], feed)[0]
