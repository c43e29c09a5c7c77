"""Which heads, units and hidden dimensions a structured run left, read from its masks and drawn as inline SVG."""

import itertools
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from experiments.pages.data import Run, number
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import Structure, read_masks, structure_of

_WIDTH, _LEFT, _ROW, _TOP = 380, 24, 18, 20


class Shares(NamedTuple):
    """The mean of the structures of some runs.

    Attributes:
      heads: [layers, heads], the fraction of the runs that keep each head.
      units: [layers], mean number kept.
      units_of: how many units a whole layer has.
      hidden: [hidden], the fraction of the runs that keep each dimension.
      runs: how many runs.
    """

    heads: np.ndarray
    units: np.ndarray
    units_of: int
    hidden: np.ndarray
    runs: int


def read_structure(run: Run) -> Structure | None:
    """What is left of a run's model, from its masks; None where nothing was cut out or there are no masks.

    Raises:
      InputError: the masks are damaged, or do not fit the heads and layers that `result.json` has.
    """
    removed = run.result.get("removed")
    if not isinstance(removed, dict):
        return None
    masks = dict(read_masks(run.folder / "model"))
    if not masks:
        return None
    of = number(removed, "heads", "of")
    try:
        return structure_of(masks, int(of) if of >= 1 and of == int(of) else 0)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{run.folder}: the masks do not fit the heads and layers in result.json") from None


def average(structures: Sequence[Structure]) -> Shares:
    """The mean over structures of one shape, at least one."""
    return Shares(
        np.mean([one.heads for one in structures], axis=0),
        np.mean([one.units.sum(axis=1) for one in structures], axis=0),
        structures[0].units.shape[1],
        np.mean([one.hidden for one in structures], axis=0),
        len(structures),
    )


def in_words(shares: Shares) -> str:
    """How many heads, units and hidden dimensions are left."""
    layers = len(shares.units)
    return (
        f"{_count(shares.heads.sum())} of {shares.heads.size:,} heads, {_count(shares.units.sum())} of "
        f"{layers * shares.units_of:,} units, {_count(shares.hidden.sum())} of {shares.hidden.size:,} hidden dimensions"
    )


def picture(shares: Shares, name: str = "") -> str:
    """A figure: for each layer its heads and the width of its feed-forward part, and below the hidden dimensions.

    Args:
      shares: of one run, filled where kept; of several, stronger the more of them keep it.
      name: before the caption; empty for none.
    """
    layers, heads = shares.heads.shape
    cell = max(3, min(_ROW, 190 // heads))
    track = _LEFT + heads * cell + 14
    room, floor = _WIDTH - 46 - track, _TOP + layers * _ROW
    parts = [_text(_LEFT, 12, "heads"), _text(track, 12, f"units, of {shares.units_of:,}")]
    for layer in range(layers):
        y = _TOP + layer * _ROW
        parts.append(_text(_LEFT - 6, y + 12, str(layer), "end"))
        parts += [
            _cell(
                _LEFT + head * cell, y + 1, cell - 2, share, f"layer {layer}, head {head}: {_kept(share, shares.runs)}"
            )
            for head, share in enumerate(shares.heads[layer])
        ]
        units, tip = shares.units[layer], f"layer {layer}: {_count(shares.units[layer])} of {shares.units_of:,} units"
        parts.append(_bar(track, y + 3, room, units / shares.units_of, tip))
        parts.append(_text(_WIDTH, y + 12, _count(units), "end"))
    strip = _strip(shares.hidden, _LEFT, floor + 24, _WIDTH - _LEFT)
    left = f"{_count(shares.hidden.sum())} of {shares.hidden.size:,}"
    parts += [_text(_LEFT, floor + 18, f"hidden dimensions, {left}"), strip]
    words = in_words(shares)
    mean = f", mean of {shares.runs} runs" if shares.runs > 1 else ""
    title = f"What is left{f' of {name}' if name else ''}{mean}: {words}"
    size = f'viewBox="0 0 {_WIDTH} {floor + 40}"'
    caption = f"{escape(name)} <span>n = {shares.runs}: {words}</span>" if name else f"Left: {words}."
    return (
        f'<figure class="mask c1" style="width:{_WIDTH}px"><svg role="img" {size}><title>{escape(title)}</title>'
        f'{"".join(parts)}</svg><figcaption class="ink">{caption}</figcaption></figure>'
    )


def _cell(x: float, y: float, width: float, share: float, tip: str) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{_ROW - 4}"'
    fill = f'<rect {place} fill="currentColor" fill-opacity="{share:.2f}"/>' if share > 0 else ""
    return f'{fill}<rect class="grid" {place} fill="transparent"><title>{escape(tip)}</title></rect>'


def _bar(x: float, y: float, width: float, share: float, tip: str) -> str:
    height = _ROW - 8
    fill = f'<rect x="{x}" y="{y}" width="{share * width:.1f}" height="{height}" fill="currentColor"/>' if share else ""
    whole = f'<rect class="grid" x="{x}" y="{y}" width="{width}" height="{height}" fill="transparent">'
    return f"{fill}{whole}<title>{escape(tip)}</title></rect>"


def _strip(shares: np.ndarray, x: float, y: float, width: float) -> str:
    """Dimensions side by side; equal neighbours are one rectangle."""
    one, place, parts = width / shares.size, 0, []
    for share, group in itertools.groupby(shares.tolist()):
        length = len(list(group))
        if share > 0:
            span = f'x="{x + place * one:.2f}" y="{y}" width="{length * one:.2f}" height="12"'
            parts.append(f'<rect {span} fill="currentColor" fill-opacity="{share:.2f}"/>')
        place += length
    whole = f'<rect class="grid" x="{x}" y="{y}" width="{width}" height="12" fill="none"/>'
    return f'<g shape-rendering="crispEdges">{"".join(parts)}</g>{whole}'


def _kept(share: float, runs: int) -> str:
    if runs > 1:
        return f"kept in {round(share * runs)} of {runs} runs"
    return "kept" if share else "removed"


def _count(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.1f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
