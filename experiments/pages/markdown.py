"""The tables of several runs as Markdown."""

from collections.abc import Iterable, Sequence

from experiments.pages import text as words
from experiments.pages.data import Run
from experiments.pages.tasks import ABOUT_TASKS, task_table
from experiments.pages.versus import comparisons


def markdown(runs: Sequence[Run]) -> str:
    """Tasks side by side where there are several, every figure, how to read them, and the command of each run."""
    header, rows = task_table(runs)
    text = f"{markdown_table(header, rows)}\n{ABOUT_TASKS}\n\n" if rows else ""
    text += markdown_table(words.HEADER, words.table_rows(runs))
    text += "".join(f"\n{paragraph}\n" for paragraph in words.below_table(runs))
    notes = comparisons(runs) + words.caveats(runs)
    text += "".join(f"\n- {' '.join(note.split())}" for note in notes) + ("\n" if notes else "")
    commands = dict.fromkeys(" ".join(run.command.split()) for run in runs if run.command)
    return text + ("\nMade by\n\n" + "".join(f"    {command}\n" for command in commands) if commands else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, each row on a line of its own."""
    cells = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(' '.join(c.replace('|', chr(92) + '|').split()) for c in row)} |\n" for row in cells)
