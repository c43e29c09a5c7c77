"""Run folders to `report.html`, a page that needs nothing else, and `table.md`.

python -m experiments.report runs/A
python -m experiments.report runs/A runs/B runs/C --out runs/compared
python -m experiments.report runs/study/figures.csv
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.flags import Parser
from experiments.grid.figures import read_figures
from experiments.pages.data import find_runs
from experiments.pages.write import write_comparison, write_report
from kaprune_jax._errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
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
    try:
        options = parser.parse_args(arguments)
        tables = [place for place in options.runs if place.suffix == ".csv"]
        places = find_runs([place for place in options.runs if place not in tables])
        if len(places) == 1 and not tables:
            page = write_report(places[0], out=options.out)
        else:
            parent = os.path.commonpath([place.resolve().parent for place in (*places, *tables)])
            rows = {cell: run for table in tables for cell, run in read_figures(table).items()}
            out, coupled = Path(options.out or parent), all("coupling" in run.config for run in rows.values())
            if rows and coupled and not places:
                from experiments.pages.study import write_study

                page = write_study(out, list(rows.values()))
            else:
                page = write_comparison(out, [*places, *rows.values()])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
