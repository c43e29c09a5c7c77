"""The file that augmented training rows are kept in, and what they depend on."""

import contextlib
import gzip
import hashlib
import json
import os
import uuid
from pathlib import Path
from reprlib import repr as short
from typing import Any

from experiments.config.settings import Settings
from kaprune_jax._errors import InputError
from kaprune_jax._reading import open_data, parse_json
from kaprune_jax.data.augment import Augmented, Texts
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
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")  # two runs may be given the same file
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


def read_rows(file: Path, header: dict[str, Any], own: Texts) -> Augmented:
    """Reads augmented rows.

    Args:
      file: what `write_rows` wrote.
      header: what `make_header` says of this run.
      own: the rows that they were made of.

    Raises:
      InputError: the file cannot be read, its rows are not those that were written, or they depend on something else
        than `header` says.
    """
    damaged = f"{file}: not a readable file of augmented rows"
    if file.is_dir():
        raise InputError(f"--augment-file {file}: a folder; the file that a run has kept its rows in is needed")
    try:
        with open_data(file, packed=True) as opened:
            lines = ((number, parse_json(line.decode("utf-8"))) for number, line in enumerate(opened, 1))
            _, found = next(lines, (1, None))
            if not isinstance(found, dict) or "sha256" not in found:
                raise InputError(f"{damaged} (line 1 is no JSON object with a sha256)")
            rows = [_row(value, f"{damaged} (line {number}") for number, value in lines]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{damaged} ({error})") from None
    made = Augmented(tuple(texts for _, texts in rows), tuple(origin for origin, _ in rows))
    for name, value in header.items():
        if found.get(name) != value:
            called = {"copies": "--augment", "seed": "--seed"}.get(name, name)
            was, wanted = str(found.get(name))[:12], str(value)[:12]  # of a long hash the beginning
            raise InputError(f"{file}: made with {called} {was}, this run has {wanted}; give another --augment-file")
    if found["sha256"] != rows_digest(made):
        raise InputError(f"{file}: its rows are not those that were written (their SHA-256 differs)")
    for origin, texts in rows:
        if origin >= len(own) or len(texts) != len(own[0]):
            raise InputError(
                f"{file}: a row of {len(texts)} texts made of row {origin}; {len(own)} rows of {len(own[0])} are there"
            )
    return made


def _row(value: Any, where: str) -> tuple[int, tuple[str, ...]]:
    """Origin and texts of a row, from a line of the file."""
    good = isinstance(value, list) and len(value) in (2, 3) and type(value[0]) is int and value[0] >= 0
    if not good or not all(isinstance(text, str) for text in value[1:]):
        raise InputError(f"{where} is {short(value)}; the number of a row and one or two texts are needed)")
    return value[0], tuple(value[1:])
