"""Is it faster? `python -m experiments.bench RUN_OR_MODEL...`: a pruned model beside its dense one, on this machine.

Every variant is compiled ahead of time with its weights as arguments, checked against the model's own logits, then
timed in turn with the others, in an order drawn anew in each round. `--shapes` times random weights of known sizes
instead, and single products. Exit codes: 0 done; 2 bad input.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from experiments.config.flags import Parser, exit_code
from kaprune_jax._errors import InputError


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    from experiments.inference.rivals import RIVALS
    from experiments.inference.shapes import SHAPES
    from kaprune_jax.kernels.block_sparse.api import Backend

    backends = get_args(Backend)
    parser = Parser(
        prog="python -m experiments.bench",
        description=__doc__.split("\n\n")[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="*", metavar="RUN_OR_MODEL", help="run or model folders")
    parser.add_argument("--shapes", help=f"random weights of these sizes instead: {', '.join(SHAPES)}, comma-separated")
    parser.add_argument("--densities", default="0.2,0.1,0.05", help="with --shapes: blocks that are left, in (0, 1]")
    parser.add_argument(
        "--within", metavar="HEADS,UNITS", help="with --shapes: heads and units of each layer that have blocks at all"
    )
    parser.add_argument("--batch", default="1,8,32", help="rows of a call, each >= 1")
    parser.add_argument("--length", type=int, help="tokens of a row, >= 1; None is 128, or the model's positions")
    parser.add_argument("--backend", default="auto", choices=backends, help="of packed matrices")
    parser.add_argument("--rivals", default="", help=f"dense models of other tools: {', '.join(RIVALS)}")
    parser.add_argument(
        "--rounds", type=int, default=30, help="most rounds of two calls, >= 1; fewer after 2 s of each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of batch, random weights and order")
    parser.add_argument("--out", default="bench.json", help="file for all figures; FILE.html has the picture")
    settings = parser.parse_args(arguments)
    settings.shapes = [name for name in (settings.shapes or "").split(",") if name]
    settings.rivals = [name for name in settings.rivals.split(",") if name]
    settings.batch = _numbers("batch", settings.batch, int, lambda n: n >= 1, "whole numbers >= 1")
    settings.densities = _numbers("densities", settings.densities, float, lambda x: 0 < x <= 1, "fractions in (0, 1]")
    if settings.within is not None:
        if not settings.shapes:
            raise InputError(f"--within {settings.within}: only with --shapes")
        settings.within = tuple(_numbers("within", settings.within, int, lambda n: n >= 1, "two whole numbers >= 1"))
        if len(settings.within) != 2:
            raise InputError(f"--within {settings.within[0]}: two whole numbers >= 1, comma-separated, are needed")
    for name, allowed in (("shapes", SHAPES), ("rivals", RIVALS)):
        for value in getattr(settings, name):
            if value not in allowed:
                raise InputError(f"--{name} {value}: allowed: {', '.join(allowed)}")
    if bool(settings.models) == bool(settings.shapes):
        raise InputError("run or model folders are needed, or --shapes NAMES; one of the two")
    for name in ("length", "rounds"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: a whole number >= 1 is needed")
    if Path(settings.out).suffix != ".json" or not Path(settings.out).absolute().parent.is_dir():
        raise InputError(f"--out {settings.out}: a file that ends in .json, in a folder that is there, is needed")
    if Path(settings.out).is_dir() or not os.access(Path(settings.out).absolute().parent, os.W_OK):
        raise InputError(f"--out {settings.out}: cannot be written there")
    return settings


def _numbers(name: str, text: str, kind: Any, good: Any, allowed: str) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = [None]
    if not all(value is not None and good(value) for value in values):
        raise InputError(f"--{name} {text}: {allowed}, comma-separated, are needed")
    return values


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """Measures, writes the file and the page, prints the table, and returns the figures."""
    from experiments.inference.cost import probe_peaks
    from experiments.inference.page import as_text, write_page
    from experiments.inference.subjects import random_subjects, saved_subjects, single_products
    from kaprune_jax.kernels.block_sparse.api import choose_backend

    choose_backend(settings.backend)  # says what it lacks before anything is compiled
    subjects = saved_subjects(settings) if settings.models else random_subjects(settings)
    peaks = probe_peaks()
    rows = [row for subject in subjects for batch in settings.batch for row in subject(batch, peaks)]
    if settings.shapes:
        rows += single_products(settings, peaks)
    report = {"benchmark": "inference", **_machine(settings), "peaks": peaks._asdict(), "rows": rows}
    out = Path(settings.out)
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    write_page(report, out.with_suffix(".html"))
    print(as_text(report))
    print(f"figures: {out}   picture: {out.with_suffix('.html')}")
    return report


def _machine(settings: argparse.Namespace) -> dict[str, Any]:
    import platform
    import shlex

    import jax

    from experiments.runs.record import versions

    given = {name: value for name, value in vars(settings).items() if name != "out"}
    return {
        "settings": given,
        "command": f"python -m experiments.bench {shlex.join(sys.argv[1:])}",
        "versions": versions(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "processors": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return exit_code(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
