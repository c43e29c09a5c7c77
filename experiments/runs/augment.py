"""Augmented training rows of a run: made once, kept in a file, labelled by the teacher."""

import time
from pathlib import Path

import numpy as np

from experiments.runs.augment_file import (
    CANDIDATES,
    PREVIEW,
    PROBABILITY,
    augmented_file,
    make_header,
    read_rows,
    write_rows,
)
from experiments.runs.method import count_steps
from experiments.runs.prepare import Prepared, make_batches
from experiments.runs.record import say
from experiments.runs.run import ShouldStop, predict_rows
from kaprune_jax._errors import InputError
from kaprune_jax.data.augment import Augmented, augment
from kaprune_jax.data.loader import Encoded, encode
from kaprune_jax.data.rows import Rows
from kaprune_jax.deploy.candidates import candidates
from kaprune_jax.deploy.model import Model
from kaprune_jax.models.bert import make_apply
from kaprune_jax.train.loop import Interrupted
from kaprune_jax.train.processes import on_first
from kaprune_jax.train.step import make_predict

_SHOWN = 20


def add_rows(prepared: Prepared, teacher: Model, out: Path, should_stop: ShouldStop) -> Prepared:
    """The same with augmented rows beside the task's own training rows; without --augment as it was.

    Rows that were not found in a file are made and written there; a preview goes into the run folder. The new rows'
    labels are what the teacher predicts. Rows that are equal to others once they are truncated are left out.

    Raises:
      InputError: no word can be replaced; a file cannot be written.
      Interrupted: `should_stop` said so.
    """
    settings, own = prepared.settings, prepared.train.data
    if settings.augment is None:
        return prepared
    made = prepared.augmented or _make(prepared)
    assert settings.batch_size is not None
    blank = np.zeros(len(made.texts), own.labels.dtype)
    new = encode(Rows(made.texts, blank), prepared.tokenizer, max_length=own.limit, pad=own.pad)
    made, new = _without_equal(own, made, new)
    if should_stop():
        raise Interrupted("stopped while augmented rows were made")
    predict = make_predict(make_apply(teacher.config, dtype=settings.dtype))
    logits = predict_rows(predict, teacher.params, new, batch_size=settings.batch_size)
    labels = (logits[:, 0] if prepared.data.kind == "regression" else logits.argmax(axis=-1)).astype(own.labels.dtype)
    if should_stop():
        raise Interrupted("stopped while augmented rows were labelled")
    on_first(lambda: _write_preview(out / PREVIEW, prepared, made, labels))
    both = own._replace(
        input_ids=own.input_ids + new.input_ids,
        token_type_ids=own.token_type_ids + new.token_type_ids,
        labels=np.concatenate([own.labels, labels]),
    )
    made_longer = prepared._replace(train=make_batches(settings, both), augmented=made)
    seen = count_steps(made_longer, dense=False) * settings.batch_size
    if seen < len(both.input_ids):
        say(
            f"note: the run sees {seen} rows, fewer than the {len(both.input_ids)} there are with the augmented ones; "
            "--epochs makes it longer"
        )
    return made_longer


def _make(prepared: Prepared) -> Augmented:
    """The rows of the run's file; process 0 makes and writes them where it is not there."""
    assert prepared.proposer is not None
    file = augmented_file(prepared.settings)
    on_first(lambda: None if file.exists() else make_rows(prepared, file))
    header = make_header(prepared.settings, prepared.data, prepared.proposer)
    return read_rows(file, header, prepared.data.train.texts)


def make_rows(prepared: Prepared, file: Path) -> None:
    """Makes the augmented rows of a run and writes them.

    Raises:
      InputError: no word can be replaced; the file cannot be written.
    """
    settings, rows, model = prepared.settings, prepared.data.train.texts, prepared.proposer
    assert settings.augment is not None
    assert model is not None
    began = time.perf_counter()
    propose = candidates(model, count=CANDIDATES)
    made = augment(rows, propose, copies=settings.augment, probability=PROBABILITY, seed=settings.seed)
    if not made.texts:
        raise InputError(f"--augment {settings.augment}: none of the {len(rows)} training rows has a word to replace")
    write_rows(file, make_header(settings, prepared.data, model), made)
    means = "masked language model" if model.config.head == "masked-lm" else "input embeddings"
    took = time.perf_counter() - began
    say(f"{len(made.texts)} augmented rows, candidates by {means}, made in {took:.0f} s and kept in {file}")


def _without_equal(own: Encoded, made: Augmented, new: Encoded) -> tuple[Augmented, Encoded]:
    """The new rows whose tokens are not those of their own row or of an earlier copy of it."""
    known = {(index, tuple(ids)) for index, ids in enumerate(own.input_ids)}
    kept = []
    for place, (origin, ids) in enumerate(zip(made.origins, new.input_ids, strict=True)):
        if (origin, tuple(ids)) not in known:
            known.add((origin, tuple(ids)))
            kept.append(place)
    if not kept:
        raise InputError("--augment: every new row is equal to its own after --max-length; longer rows are needed")
    made = made._replace(
        texts=tuple(made.texts[place] for place in kept), origins=tuple(made.origins[place] for place in kept)
    )
    new = new._replace(
        input_ids=tuple(new.input_ids[place] for place in kept),
        token_type_ids=tuple(new.token_type_ids[place] for place in kept),
        labels=new.labels[kept],
    )
    return made, new


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
