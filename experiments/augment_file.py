"""The file that augmented training rows are kept in, and what they depend on."""

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from experiments.settings import Settings
from kaprune_jax._errors import InputError
from kaprune_jax.data.augment import Augmented
from kaprune_jax.data.rows import TaskData
from kaprune_jax.deploy.model import Model

AUGMENTED, PREVIEW = "augmented.jsonl.gz", "augmented.txt"
CANDIDATES, PROBABILITY = 15, 0.4  # TinyBERT's (arXiv:1909.10351, section 4.2)


def augmented_file(settings: Settings) -> Path:
    """Where the rows of a run are, or will be."""
    assert settings.out is not None
    return Path(settings.augment_file or Path(settings.out) / AUGMENTED)


def make_header(settings: Settings, data: TaskData, model: Model) -> dict[str, Any]:
    """What augmented rows depend on.

    Args:
      settings: of the run.
      data: the task.
      model: gives the candidates.
    """
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    words = [sorted(model.tokenizer.get_vocab().items()), repr(backend and backend.normalizer)]
    return {
        "data": data.fingerprint,
        "model": model.fingerprint,
        "tokenizer": _sha256(words),
        "head": model.config.head,
        "copies": settings.augment,
        "probability": PROBABILITY,
        "candidates": CANDIDATES,
        "seed": settings.seed,
        "version": 1,
    }


def rows_digest(made: Augmented) -> str:
    """SHA-256 (hex) over augmented rows and what they are made of."""
    return _sha256([made.origins, made.texts])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_rows(file: Path, header: dict[str, Any], made: Augmented) -> None:
    """Writes augmented rows, whole or not at all: a line of JSON with what they depend on, then one for each row.

    Raises:
      InputError: no space, no permission.
    """
    partial = file.with_name(f".{file.name}.partial")
    first = header | {"sha256": rows_digest(made)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as opened:
            opened.write(f"{json.dumps(first)}\n".encode())
            for origin, row in zip(made.origins, made.texts, strict=True):
                opened.write(f"{json.dumps([origin, *row], ensure_ascii=False)}\n".encode())
        os.replace(partial, file)
    except OSError as error:
        raise InputError(f"{file}: augmented rows cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_rows(file: Path, header: dict[str, Any]) -> Augmented:
    """Reads augmented rows.

    Raises:
      InputError: the file cannot be read, its rows are not those that were written, or they depend on something else
        than `header` says.
    """
    damaged = (OSError, EOFError, zlib.error, ValueError, TypeError, LookupError, AttributeError)
    try:
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            found, *rows = (json.loads(line) for line in opened)
        made = Augmented(tuple(tuple(row[1:]) for row in rows), tuple(row[0] for row in rows))
        whole = found["sha256"] == rows_digest(made)
    except damaged as error:
        raise InputError(f"{file}: not a readable file of augmented rows ({error})") from None
    for name, value in header.items():
        if found.get(name) != value:
            called = {"copies": "--augment", "seed": "--seed"}.get(name, name)
            was, wanted = str(found.get(name))[:12], str(value)[:12]  # of a long hash the beginning
            raise InputError(f"{file}: made with {called} {was}, this run has {wanted}; give another --augment-file")
    if not whole:
        raise InputError(f"{file}: its rows are not those that were written (their SHA-256 differs)")
    return made
