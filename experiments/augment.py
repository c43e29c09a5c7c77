"""Augmented training rows of a run: made once, kept in a file, labelled by the teacher."""

import time
from pathlib import Path

import numpy as np

from experiments.augment_file import CANDIDATES, PREVIEW, PROBABILITY, augmented_file, make_header, write_rows
from experiments.prepare import Prepared
from experiments.record import say
from experiments.run import predict_rows
from kaprune_jax._errors import InputError
from kaprune_jax.data.augment import Augmented, augment
from kaprune_jax.data.loader import TrainBatches, encode
from kaprune_jax.data.rows import Rows
from kaprune_jax.deploy.candidates import candidates
from kaprune_jax.deploy.folder import load
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import make_apply
from kaprune_jax.train.step import make_predict

_SHOWN = 20


def add_rows(prepared: Prepared, teacher: Model, out: Path) -> Prepared:
    """The same with augmented rows beside the task's own training rows; without --augment as it was.

    Rows that were not found in a file are made and written there; a preview goes into the run folder. The new rows'
    labels are what the teacher predicts.

    Raises:
      InputError: no word can be replaced; a file cannot be written.
    """
    settings, train = prepared.settings, prepared.data.train
    if settings.augment is None:
        return prepared
    made = prepared.augmented or _make(prepared)
    assert settings.max_length is not None
    assert settings.batch_size is not None
    assert settings.epochs is not None

    def encoded(rows: Rows):
        pad = prepared.start.config.pad_token_id
        return encode(rows, prepared.tokenizer, max_length=settings.max_length or 0, pad=pad)

    new = encoded(Rows(made.texts, np.zeros(len(made.texts), train.labels.dtype)))
    predict = make_predict(make_apply(teacher.config, dtype=settings.dtype))
    logits = predict_rows(predict, teacher.params, new, batch_size=settings.batch_size)
    labels = logits[:, 0] if prepared.data.kind == "regression" else logits.argmax(axis=-1)
    labels = labels.astype(train.labels.dtype)
    _write_preview(out / PREVIEW, prepared, made, labels)
    both = encoded(Rows((*train.texts, *made.texts), np.concatenate([train.labels, labels])))
    seen = round(settings.epochs * len(train.texts))
    if seen < len(both.input_ids):
        say(
            f"note: --epochs {settings.epochs:g} of {len(train.texts)} rows is {seen} rows, fewer than the "
            f"{len(both.input_ids)} there are with the augmented ones; more epochs make the run longer"
        )
    batches = TrainBatches(both, batch_size=settings.batch_size, seed=settings.seed)
    return prepared._replace(train=batches, augmented=made)


def _make(prepared: Prepared) -> Augmented:
    """Makes the rows and writes them."""
    settings, rows = prepared.settings, prepared.data.train.texts
    assert settings.augment is not None
    model, began = load(settings.model), time.perf_counter()  # the start of a task has lost its masked-LM head
    propose = candidates(model, count=CANDIDATES)
    made = augment(rows, propose, copies=settings.augment, probability=PROBABILITY, seed=settings.seed)
    if not made.texts:
        raise InputError(f"--augment {settings.augment}: none of the {len(rows)} training rows has a word to replace")
    file = augmented_file(settings)
    write_rows(file, make_header(settings, rows, prepared.start.fingerprint), made)
    means = "masked language model" if model.config.head == "masked-lm" else "input embeddings"
    took = time.perf_counter() - began
    say(f"{len(made.texts)} augmented rows, candidates by {means}, made in {took:.0f} s and kept in {file}")
    return made


def _write_preview(file: Path, prepared: Prepared, made: Augmented, labels: np.ndarray) -> None:
    """Some rows with what was made of them, for a person."""
    train, names = prepared.data.train, prepared.data.labels

    def line(sign: str, label: float, row: tuple[str, ...]) -> str:
        return f"{sign} {names[int(label)] if names else f'{label:.2f}'}\t" + "\t".join(row) + "\n"

    chosen = np.unique(np.linspace(0, len(made.texts) - 1, _SHOWN).astype(int))
    text = (
        f"{len(chosen)} of {len(made.texts)} augmented rows (+, label by the teacher) under the rows they are made of\n"
    )
    for index in chosen:
        origin = made.origins[index]
        text += (
            "\n"
            + line("-", float(train.labels[origin]), train.texts[origin])
            + line("+", float(labels[index]), made.texts[index])
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from None
