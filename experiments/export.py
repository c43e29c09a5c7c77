"""A pruned model as a small file, or for others: `python -m experiments.export RUN --to small|hf|stablehlo|onnx`.

small: a folder for `kp.load` whose file has no zeros, in float16; with --words without the tokens that some texts do
not use. hf: a folder that stock `transformers` loads, zeros in place. stablehlo: a program that runs with JAX alone,
without this package. onnx: a model for onnxruntime and what else reads ONNX. Each is read back and run on rows of the
model's own words before it is called done. Exit codes: 0 done; 2 bad input.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.config.flags import Parser, exit_code
from kaprune_jax._errors import InputError

FORMATS = ("small", "hf", "stablehlo", "onnx")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    parser = Parser(
        prog="python -m experiments.export", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="run or model folder")
    parser.add_argument("--to", required=True, choices=FORMATS, help="what for")
    parser.add_argument("--out", help="new folder [RUN_OR_MODEL/export-FORMAT]")
    parser.add_argument("--dtype", choices=("float16", "float32"), help="small: type of the weights [float16]")
    parser.add_argument("--words", metavar="FILE", help="small: keep only the tokens of these texts (.txt .tsv .csv)")
    settings = parser.parse_args(arguments)
    for flag in ("dtype", "words"):
        if settings.to != "small" and getattr(settings, flag) is not None:
            raise InputError(f"--{flag} goes with --to small, not --to {settings.to}")
    settings.out = settings.out or str(Path(settings.model) / f"export-{settings.to}")
    return settings


def run(settings: argparse.Namespace) -> Path:
    """Writes the folder beside its place, checks it there, then gives it its place.

    Raises:
      InputError: no such model, one that this format cannot hold, or a folder that is there already.
    """
    from experiments.inference.formats import to_hugging_face, to_onnx, to_stablehlo
    from experiments.inference.small import to_small
    from kaprune_jax.deploy.folder import load

    out = Path(settings.out)
    model = load(settings.model)
    if not model.config.num_logits:
        raise InputError(f"{settings.model}: a model with the head of a task is needed, not {model.config.head}")
    if out.exists():
        raise InputError(f"--out {out}: is there already; a new folder is needed")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: its parent is no folder")
    work = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}-"))
    try:
        if settings.to == "small":
            found = to_small(model, work, dtype=settings.dtype or "float16", words=settings.words)
        else:
            found = {"hf": to_hugging_face, "stablehlo": to_stablehlo, "onnx": to_onnx}[settings.to](model, work)
        (work / "export.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{out}: {found['says']}")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return exit_code(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
