"""Run folders to `report.html`, a page that needs nothing else, and `table.md`.

python -m experiments.report runs/A
python -m experiments.report runs/A runs/B runs/C --out runs/compared
python -m experiments.report runs/study/figures.csv
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.flags import Parser, exit_code
from experiments.grid.figures import read_figures
from experiments.pages.data import find_runs
from experiments.pages.study import write_study
from experiments.pages.write import write_comparison, write_report


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags.

    Raises:
      InputError: an unknown flag, or no runs.
    """
    parser = Parser(prog="python -m experiments.report", description="Run folders to report.html and table.md.")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="run folder, a folder that holds run folders, or the figures.csv of a study",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: the run folder; for several, their common parent)",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Path:
    """Writes the page of one run, of several, or of a study, and prints where it is.

    Raises:
      InputError: a run or a table that is missing or broken, or nothing can be written.
    """
    tables = [place for place in options.runs if place.suffix == ".csv"]
    places = find_runs([place for place in options.runs if place not in tables])
    if len(places) == 1 and not tables:
        if places[0] != options.runs[0]:
            print(f"the one run in {options.runs[0]}: {places[0].name}")
        page = write_report(places[0], out=options.out)
    else:
        parent = os.path.commonpath([place.resolve().parent for place in (*places, *tables)])
        rows = {cell: run for table in tables for cell, run in read_figures(table).items()}
        out, coupled = Path(options.out or parent), all("coupling" in run.config for run in rows.values())
        if rows and coupled and not places:
            page = write_study(out, list(rows.values()))
        else:
            page = write_comparison(out, [*places, *rows.values()])
    print(page)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return exit_code(lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
