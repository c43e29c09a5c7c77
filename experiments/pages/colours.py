"""The colours of what is compared."""

import itertools
import re
from collections.abc import Iterable

from experiments.presets import rank_of


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """CSS classes of a chart's lines by the name of each, in the order of methods and lengths.

    Each method has its own colour, broken with augmented rows, or for the second of its lengths; what is coupled, and
    all others, what is free.
    """
    names = sorted(names, key=_rank)
    found: dict[str, str] = {}
    for name in names:
        method, colour = name.split(",")[0], f"c{min(_rank(name)[0], 7) + 1}"
        kind, steps = _split(name)
        again = f"{colour} broken"
        if "," not in name or name.endswith(", alone"):
            found[name] = colour
        elif re.fullmatch(rf"{re.escape(method)}, augment \d+", name):
            found[name] = again
        elif steps and kind == method:  # its lengths, from the shortest
            left = [style for style in (colour, again) if style not in found.values()]
            found |= dict(zip([name], left, strict=False))
    styles = [f"c{number}{kind}" for kind in ("", " broken") for number in range(1, 9)]
    free = itertools.cycle([style for style in styles if style not in found.values()] or styles)
    return {name: found.get(name) or next(free) for name in names}


def _rank(name: str) -> tuple[int, str, int]:
    """The place of its method, the rest of the name, and its number of steps."""
    return rank_of(name.split(",")[0]), *_split(name)


def _split(name: str) -> tuple[str, int]:
    """A name without its length, and that in steps; 0 where it has none."""
    found = re.fullmatch(r"(.*), ([0-9,]+)(?: to [0-9,]+)? steps", name)
    return (found[1], int(found[2].replace(",", ""))) if found else (name, 0)
