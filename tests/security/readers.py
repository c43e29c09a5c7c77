"""Sound files of every kind that is read, and what reads them: tests spoil the one and run the other."""

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

import kaprune_jax as kp
from experiments.grid.figures import format_figures, read_figures
from experiments.grid.file import read_grid
from experiments.grid.transfer import make_kind
from experiments.pages.data import read_run
from experiments.pages.write import write_comparison, write_report
from experiments.runs.augment_file import read_rows as read_augmented
from experiments.runs.augment_file import write_rows
from kaprune_jax.data.augment import Augmented
from kaprune_jax.data.squad import load_squad_files
from kaprune_jax.data.tables import read_rows
from kaprune_jax.data.world import write_tokenizer
from kaprune_jax.deploy.expand import expand
from kaprune_jax.deploy.folder import load_start
from kaprune_jax.deploy.masks import MASKS, read_masks, save_masks
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.models.bert import param_shapes
from kaprune_jax.models.config import BertConfig, LayerShape

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bert"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER = {"data": "0" * 64, "copies": 2}
OWN = (("a good film .",), ("a bad film .",))
TABLES = {
    "rows.tsv": "sentence\tlabel\na good film .\tyes\na bad film .\tno\n",
    "rows.csv": 'sentence,label\n"a good, long film .",yes\na bad film .,no\n',
    "rows.jsonl": '{"sentence": "a good film .", "label": 1.5}\n{"sentence": "a bad film .", "label": "no"}\n',
}
QUESTIONS = {
    "data": [{"paragraphs": [{"context": "anna saw the owl .", "qas": [
        {"id": "q", "question": "who saw the owl ?", "answers": [{"text": "anna", "answer_start": 0}]},
        {"id": "r", "question": "what did anna see ?", "answers": [{"text": "the owl", "answer_start": 9}]},
    ]}]}]
}  # fmt: skip
STUDY = {
    "out": "runs/study",
    "base": {"task": "micro-rte", "auxiliary": "micro-nli", "steps": 10},
    "grids": [{"sparsity": [0.8, 0.9], "coupling": ["none", "joint"], "seed": [0, 1]}],
}
RESULT = {
    "task": "micro-rte", "method": "sparsebert", "pattern": "block-8x8", "seed": 0, "metric": "accuracy", "dense": 0.8,
    "pruned": 0.7, "last": 0.7, "metrics": {"accuracy": 0.7}, "best_step": 20, "target_step": 10, "steps": 20,
    "sparsity": {"asked": 0.9, "encoder": 0.9, "all": 0.6}, "parameters": {"dense": 1000, "kept": 400},
    "bytes": {"dense": 4000, "stored": 1600}, "per_matrix": {"encoder/layers/0/attention/query/kernel": 0.9},
    "removed": {"heads": {"of": 4}}, "seconds": 12.5, "examples": {"train": 100, "dev": 10},
}  # fmt: skip
RECORDS = [
    {"kind": "train", "phase": "prune", "step": 10, "loss": 0.5, "terms": {"logits": 0.5},
     "sparsity": {"asked": 0.9, "delivered": 0.9}, "learning_rate": 1e-4, "examples_per_second": 900.0},
    {"kind": "eval", "phase": "prune", "step": 20, "metrics": {"accuracy": 0.7}, "score": 0.7, "sparsity": 0.9},
]  # fmt: skip


def model(folder: Path, name: str = "encoder") -> Path:
    """A copy of a small model."""
    return Path(shutil.copytree(FIXTURES / name, folder / "model"))


def sentence_model(folder: Path) -> Path:
    """One with the files of a sentence encoder."""
    place = model(folder)
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return place


def sharded(folder: Path) -> Path:
    """One in two shards."""
    place = model(folder)
    tensors = load_file(place / WEIGHTS)
    (place / WEIGHTS).unlink()
    halves = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for half in set(halves.values()):
        save_file({name: tensors[name] for name in tensors if halves[name] == half}, place / half)
    (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": halves}))
    return place


def shrunk(folder: Path) -> Path:
    """A model whose layers have lost heads and units, with its masks."""
    shapes = LayerShape((0, 2), 10), LayerShape((1,), 5)
    config = BertConfig(20, 16, 2, 4, 24, 16, pooling="mean", layers=shapes, attention_head_size=4)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), param_shapes(config))
    layers = {}
    for index, shape in enumerate(shapes):
        heads, units = np.repeat(np.isin(range(4), shape.heads), 4), np.arange(24) < shape.ffn
        kept = {"attention/query": heads, "ffn/up": units}
        layers[index] = {name: {"kernel": np.tile(columns, (16, 1))} for name, columns in kept.items()}
    return kp.save(folder / "model", params, config, masks={"encoder": {"layers": layers}})


def masks(folder: Path) -> Path:
    """A model folder with nothing but masks."""
    rng = np.random.default_rng(0)
    query, up = rng.random((16, 16)) < 0.5, rng.random((16, 24)) < 0.5
    kernels = {"attention": {"query": {"kernel": query}}, "ffn": {"up": {"kernel": up}}}
    (folder / "model").mkdir(exist_ok=True)
    save_masks(folder / "model" / MASKS, {"encoder": {"layers": {0: kernels, 1: kernels}}})
    return folder / "model"


def table(folder: Path, name: str) -> Path:
    """A file of rows; packed where the name ends in .gz."""
    file, content = folder / name, TABLES[name.removesuffix(".gz")].encode()
    file.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return file


def squad(folder: Path, name: str) -> Path:
    """A file of questions; packed where the name ends in .gz."""
    file, content = folder / name, json.dumps(QUESTIONS).encode()
    file.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return file


def augmented(folder: Path) -> Path:
    """A file of augmented rows."""
    write_rows(folder / "augmented.jsonl.gz", HEADER, Augmented((("a fine film .",), ("a poor film .",)), (0, 1)))
    return folder / "augmented.jsonl.gz"


def study(folder: Path) -> Path:
    """A file for --study."""
    (folder / "study.json").write_text(json.dumps(STUDY))
    return folder / "study.json"


def run(folder: Path) -> Path:
    """A run folder that a report can be made of."""
    masks(folder)
    for name, value in {"result": RESULT, "config": {"task": "micro-rte"}, "env": {"platform": "Linux"}}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def figures(folder: Path) -> Path:
    """A table of a study's figures."""
    (folder / "run").mkdir()
    found = read_run(run(folder / "run"))
    shutil.rmtree(folder / "run")
    (folder / "figures.csv").write_text(format_figures({"0a1b2c3d": found, "4e5f6a7b": found}))
    return folder / "figures.csv"


def tokenizer(folder: Path) -> Path:
    """A model folder with nothing but a tokenizer."""
    (folder / "model").mkdir()
    write_tokenizer(folder / "model")
    return folder / "model"


def read_table(file: Path) -> object:
    return read_rows(file, text=("sentence",), label="label")


def read_questions(file: Path) -> object:
    return load_squad_files(file, file, name="squad")


def read_own(file: Path) -> object:
    return read_augmented(file, HEADER, OWN)


def start(folder: Path) -> object:
    return load_start(folder, head="classification", labels=("no", "yes"), key=jax.random.key(0))


def read_and_save_tokenizer(folder: Path) -> object:
    return load_tokenizer(folder).save_pretrained(folder / "saved")


def read_and_compare(file: Path) -> object:
    found = read_figures(file)
    format_figures(found)
    return write_comparison(file.parent / "page", [*found.values()])


def read_all_masks(folder: Path) -> object:
    return list(read_masks(folder))


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "model": (sentence_model, kp.load),
    "sharded": (sharded, kp.load),
    "shrunk": (shrunk, lambda folder: expand(kp.load(folder))),
    "start": (model, start),
    "masks": (masks, read_all_masks),
    **{name: (lambda folder, name=name: table(folder, name), read_table)
       for plain in TABLES for name in (plain, f"{plain}.gz")},
    **{name: (lambda folder, name=name: squad(folder, name), read_questions)
       for name in ("squad.json", "squad.json.gz")},
    "augmented": (augmented, read_own),
    "study": (study, lambda file: read_grid(str(file), make_kind())),
    "run": (run, write_report),
    "figures": (figures, read_and_compare),
    "tokenizer": (tokenizer, read_and_save_tokenizer),
}  # fmt: skip
"""What makes a sound file or folder, and what reads it."""


def change_json(file: Path, **changes: object) -> None:
    """Replaces values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_safetensors(file: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """A file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def write_mask(folder: Path, shape: str, bits: np.ndarray) -> None:
    """A file of one mask whose shape is given as text."""
    save_file({"encoder/x/kernel": bits}, folder / MASKS, metadata={"encoder/x/kernel": shape})


def bomb(head: bytes, unit: bytes, mebibytes: int) -> bytes:
    """A gzip file of so many MiB of a repeated unit; made in no time, since gzip files may follow one another."""
    piece = gzip.compress(unit * ((16 << 20) // len(unit)), mtime=0)
    return gzip.compress(head, mtime=0) + piece * (mebibytes // 16)
