"""Answers of a saved model to the rows of a file: `python -m experiments.predict RUN_OR_MODEL FILE`.

Where the file has labels, or right answers, the model's score on them is printed too. --out keeps every answer beside
its texts. Exit codes: 0 done; 2 bad input.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.flags import Parser
from kaprune_jax._errors import InputError

if TYPE_CHECKING:
    from experiments.inference.asked import Asked
    from kaprune_jax.deploy.model import Prediction

_SHOWN = 5
"""Rows that are printed where no file keeps them."""


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
    parser.add_argument("--label", help="label column [that of the training rows, if the file has it]")
    parser.add_argument("--batch-size", type=int, default=32, help="rows at a time, >= 1 [32]")
    parser.add_argument("--max-length", type=int, help="tokens that rows are cut to, >= 8 [as in training]")
    parser.add_argument("--out", help="new file for all answers, .csv or .jsonl [none; some are printed]")
    settings = parser.parse_args(arguments)
    for name, least in (("batch_size", 1), ("max_length", 8)):
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
    from experiments.inference.asked import read_asked, score_asked
    from kaprune_jax.deploy.folder import load

    model = load(settings.model)
    if not model.config.num_logits:
        raise InputError(f"{settings.model}: a model with the head of a task is needed, not {model.config.head}")
    asked = read_asked(model, Path(settings.file), text=settings.text, label=settings.label)
    trained, cut = model.details.get("recipe"), {"max_length": settings.max_length}
    if settings.max_length is None and isinstance(trained, dict):  # as it was trained and scored
        cut = {name: trained[name] for name in ("max_length", "stride") if isinstance(trained.get(name), int)}
    rows = [row[0] if len(row) == 1 else row for row in asked.texts]
    given = model.predict(rows, batch_size=settings.batch_size, **cut)
    scores = score_asked(model, asked, given, settings.file)
    if settings.out:
        _write(Path(settings.out), asked, given)
    else:
        for name, row, each in list(zip(asked.names, asked.texts, given, strict=True))[:_SHOWN]:
            print(f"row {name}: {_shown(each)}  {' | '.join(row):.80}")
    print(f"{len(given)} rows of {settings.file}{_classes(given)}{f', in {settings.out}' if settings.out else ''}")
    for number, (name, value) in enumerate(scores.items()):
        error = (value * (1 - value) / len(given)) ** 0.5
        print(f"{name} {value:.4f}{f' ± {error:.4f} (standard error)' if not number and name == 'accuracy' else ''}")
    return scores


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


def _write(out: Path, asked: "Asked", given: Sequence["Prediction"]) -> None:
    """All rows, or no file: row, texts, label if there is one, prediction, and how sure the model is."""
    records = []
    for number, (name, row, each) in enumerate(zip(asked.names, asked.texts, given, strict=True)):
        record: dict[str, Any] = {"row": name, **dict(zip(asked.columns, row, strict=True))}
        if asked.labels:
            record["label"] = asked.labels[number]
        record["prediction"] = each.label
        if each.probabilities:
            record["probability"] = max(each.probabilities.values())
        elif each.score is not None:
            record["probability"] = each.score
        records.append((record, each.probabilities))
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="", dir=out.absolute().parent, prefix=f".{out.name}-", delete=False
    ) as file:
        try:
            if out.suffix == ".csv":
                writer = csv.DictWriter(file, list(records[0][0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(record for record, _ in records)
            else:
                for record, shares in records:
                    file.write(json.dumps({**record, **({"probabilities": shares} if shares else {})}) + "\n")
            file.flush()
            os.chmod(file.name, 0o644)
            os.rename(file.name, out)
        except BaseException:
            os.unlink(file.name)
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        run(parse(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
