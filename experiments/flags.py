"""Command lines from dataclasses: each field is a flag, with its default, its unit and what is allowed."""

import argparse
import dataclasses
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from experiments.presets import OWN_FILES, PRESETS, Preset
from kaprune_jax._errors import InputError

T = TypeVar("T")


def flag(help: str, default: Any, *, choices: tuple[str, ...] | None = None) -> Any:
    """A field that is a flag."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def parse(kind: type[T], arguments: list[str] | None, *, prog: str, description: str) -> T:
    """Reads the flags into a dataclass whose fields are made by `flag`.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=_by_task(),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        name = "--" + field.name.replace("_", "-")
        help = field.metadata["help"].replace("%", "%%")
        if hints[field.name] is bool:
            parser.add_argument(name, action="store_true", help=f"{help} [off]")
            continue
        kinds = get_args(hints[field.name])
        read = str if field.metadata["choices"] else next(iter(kinds), hints[field.name])
        shown = help if field.default is None or field.default == "" else f"{help} [{field.default}]"
        parser.add_argument(
            name, type=read, default=field.default, help=shown, choices=field.metadata["choices"], metavar=None
        )
    return kind(**vars(parser.parse_args(arguments)))


def _by_task() -> str:
    """The table of defaults that depend on the task."""
    names = [field.name for field in dataclasses.fields(Preset)]
    rows = [("by task", *("--" + name.replace("_", "-") for name in names))]
    for task, preset in {**PRESETS, "own files": OWN_FILES}.items():
        rows.append((task, *(f"{getattr(preset, name):g}" for name in names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


class _Help(argparse.HelpFormatter):
    """Leaves the table under the flags as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, by an exception."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the flags")
