"""Command lines from dataclasses: each field is a flag, with its default, its unit and what is allowed."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from experiments.presets import OWN_FILES, PRESETS, RECIPES, Preset, Recipe
from kaprune_jax._errors import InputError, one_line

T = TypeVar("T")


def flag(help: str, default: Any, *, choices: tuple[str, ...] | None = None) -> Any:
    """A field that is a flag; one without help is not listed."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def parse(
    kind: type[T], arguments: list[str] | None, *, prog: str, description: str, recipes: Sequence[Recipe] = RECIPES
) -> T:
    """Reads the flags into a dataclass whose fields are made by `flag`; help has the tables of these recipes.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    parser = Parser(
        prog=prog,
        description=description,
        epilog=_by_task(recipes),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        name = "--" + field.name.replace("_", "-")
        help = field.metadata["help"].replace("%", "%%")
        if hints[field.name] is bool:
            shown = f"{help} [off]" if help else argparse.SUPPRESS
            parser.add_argument(name, action="store_true", help=shown)
            continue
        kinds = get_args(hints[field.name])
        read = str if field.metadata["choices"] else next(iter(kinds), hints[field.name])
        shown = help if field.default is None or field.default == "" else f"{help} [{field.default}]"
        shown = shown if help else argparse.SUPPRESS
        parser.add_argument(
            name, type=read, default=field.default, help=shown, choices=field.metadata["choices"], metavar=None
        )
    return kind(**vars(parser.parse_args(arguments)))


def _by_task(recipes: Sequence[Recipe]) -> str:
    """The defaults that depend on task and recipe: those that differ between tasks as a table."""
    names = [field.name for field in dataclasses.fields(Preset)]
    parts = []
    for recipe in recipes:
        presets = {**PRESETS[recipe], "own files": OWN_FILES[recipe]}
        values = {name: [_shown(getattr(preset, name)) for preset in presets.values()] for name in names}
        alike = [f"{_heading(name)} {cells[0]}" for name, cells in values.items() if len(set(cells)) == 1]
        table = {_heading(name): cells for name, cells in values.items() if len(set(cells)) > 1}
        columns = [(head, *cells) for head, cells in {"by task": list(presets), **table}.items()]
        widths = [max(map(len, column)) for column in columns]
        rows = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            for row in zip(*columns, strict=True)
        ]
        parts.append("\n".join([f"--recipe {recipe}: {', '.join(alike)}", *rows]))
    parts.append(
        "--learning-rate and --dropout are those of sparsebert and logits; all other methods have the others' rate "
        "and the model's own dropout"
    )
    return "\n\n".join(parts)


def _heading(name: str) -> str:
    """A flag as it is typed, or, of what has none, words."""
    return "others' rate" if name == "other_learning_rate" else f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value or "none")


class _Help(argparse.HelpFormatter):
    """Leaves the table under the flags as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, by an exception."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the flags")


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command that trains nothing, and says what went wrong in one line.

    Returns:
      0 when it is done; 2 for bad input, a file that cannot be read or written, or what cannot run here; 130 when
      interrupted.
    """
    try:
        command()
    except (InputError, OSError, NotImplementedError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
