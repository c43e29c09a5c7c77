"""Answers of a saved model to the rows of a file: `python -m experiments.predict RUN_OR_MODEL FILE`.

Where the file has labels, or right answers, the model's score on them is printed too. --out keeps every answer beside
its texts. Exit codes: 0 done; 2 bad input; 130 interrupted.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.flags import Parser, exit_code
from experiments.pages.write import write_files
from kaprune_jax._errors import InputError, printable

if TYPE_CHECKING:
    from experiments.inference.asked import Asked
    from kaprune_jax.deploy.model import Model, Prediction

_SHOWN = 5
"""Rows that are printed where no file keeps them."""
_SHORTEST = 8
"""Fewest tokens of a row."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    parser = Parser(
        prog="python -m experiments.predict", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="run or model folder")
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".txt, a text on each line; .tsv, .csv or .jsonl; .json of questions; also with .gz",
    )
    parser.add_argument("--text", help="one text column or two, comma-separated [those of the training rows]")
    parser.add_argument("--label", help="label column, '' for none [that of the training rows, if there]")
    parser.add_argument("--batch-size", type=int, default=32, help="rows at a time, >= 1 [32]")
    parser.add_argument("--max-length", type=int, help="tokens that rows are cut to, >= 8 [as in training]")
    parser.add_argument("--out", help="new file for all answers, .csv or .jsonl [none; some are printed]")
    settings = parser.parse_args(arguments)
    for name, least in (("batch_size", 1), ("max_length", _SHORTEST)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: a whole number >= {least} is needed")
    if settings.out is not None:
        out = Path(settings.out)
        if out.suffix not in (".csv", ".jsonl"):
            raise InputError(f"--out {out}: a name that ends in .csv or .jsonl is needed")
        if os.path.lexists(out):
            raise InputError(f"--out {out}: is there already; a new file is needed")
        if not os.access(out.absolute().parent, os.W_OK):
            raise InputError(f"--out {out}: cannot be written there")
    return settings


def run(settings: argparse.Namespace) -> dict[str, float]:
    """Predicts, scores, prints, and writes; returns the scores.

    Raises:
      InputError: no such model or file, or rows that do not fit the model.
    """
    from experiments.inference.asked import check_columns, read_asked, score_asked
    from kaprune_jax.deploy.folder import load

    model = load(settings.model)
    if not model.config.num_logits:
        raise InputError(f"{settings.model}: a model with the head of a task is needed, not {model.config.head}")
    asked = read_asked(model, Path(settings.file), text=settings.text, label=settings.label)
    if settings.out:
        check_columns(asked)
    rows = [row[0] if len(row) == 1 else row for row in asked.texts]
    cut: dict[str, Any] = {"max_length": settings.max_length} if settings.max_length else _as_trained(model)
    kind = "question" if model.config.head == "span" else "row"
    names = [f"{settings.file}, {kind} {name}" for name in asked.names]
    given = model.predict(rows, batch_size=settings.batch_size, names=names, **cut)
    for name, each in zip(asked.names, given, strict=True):
        values = [*each.probabilities.values(), each.score, each.label]
        if not all(math.isfinite(value) for value in values if isinstance(value, float)):
            raise InputError(f"{settings.model}: its answer to row {name} of {settings.file} is no finite number")
    scores = score_asked(model, asked, given)
    if settings.out:
        out = Path(settings.out)
        write_files(out.absolute().parent, {out.name: _table(out.suffix, asked, given)})
    else:
        for name, row, each in list(zip(asked.names, asked.texts, given, strict=True))[:_SHOWN]:
            print(printable(f"row {name}: {_shown(each)}  {' '.join(' | '.join(row).split()):.80}"))
    where = f", in {settings.out}" if settings.out else ""
    print(printable(f"{len(given)} row{'s' * (len(given) != 1)} of {settings.file}{_classes(given)}{where}"))
    if short := sum(each.truncated for each in given):
        most = model.config.max_position_embeddings
        read = min(cut.get("max_length", most), most)
        more = f"; --max-length {most} reads all that the model can" if read < most else ""
        print(f"of {short} row{'s' * (short != 1)} only the first {read} tokens were read{more}")
    for name, value in scores.items():
        error = (value * (1 - value) / len(given)) ** 0.5 if name == "accuracy" else 0.0
        print(f"{name} {value:.4f}{f' ± {error:.4f} (standard error)' if error else ''}")
    return scores


def _as_trained(model: "Model") -> dict[str, int]:
    """The length that rows were cut to in training, and how windows overlapped, as far as the folder tells."""
    recipe = model.details.get("recipe")
    found = {name: recipe.get(name) for name in ("max_length", "stride")} if isinstance(recipe, dict) else {}
    if type(length := found.get("max_length")) is not int or length < _SHORTEST:
        return {}
    return {name: value for name, value in found.items() if type(value) is int and 0 <= value < length + 1}


def _shown(each: "Prediction") -> str:
    if each.probabilities:
        return f"{each.label} ({max(each.probabilities.values()):.3f})"
    return f"{each.label!r} ({each.score:.3f})" if each.score is not None else f"{each.label:.3f}"


def _classes(given: Sequence["Prediction"]) -> str:
    """How often each class was given."""
    if not given[0].probabilities:
        return ""
    counts = Counter(str(each.label) for each in given)
    return ": " + ", ".join(f"{counts[name]} {name}" for name in given[0].probabilities)


def _table(ending: str, asked: "Asked", given: Sequence["Prediction"]) -> str:
    """All rows: row, texts, label if there is one, prediction, and how sure the model is."""
    text, writer = io.StringIO(), None
    for number, (name, row, each) in enumerate(zip(asked.names, asked.texts, given, strict=True)):
        record: dict[str, Any] = {"row": name, **dict(zip(asked.columns, row, strict=True))}
        if asked.label:
            record[asked.label] = asked.labels[number]
        record["prediction"] = each.label
        if each.probabilities or each.score is not None:
            record["probability"] = each.score if each.score is not None else max(each.probabilities.values())
        if ending == ".jsonl":
            shares = {"probabilities": each.probabilities} if each.probabilities else {}
            text.write(json.dumps(record | shares) + "\n")
            continue
        if writer is None:
            writer = csv.DictWriter(text, list(record), lineterminator="\n")
            writer.writeheader()
        writer.writerow(record)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return exit_code(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
