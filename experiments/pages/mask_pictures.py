"""What pruning masks look like: density pictures as PNG data, empty rows, columns and blocks, a heat table."""

import base64
import math
import re
import struct
import zlib
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import numpy as np

_MOST_PIXELS = 256
_COLUMNS = ("query", "key", "value", "output", "up", "down")
_LAYER = re.compile(r"(?P<stack>.*?)layers/(?P<layer>[0-9]{1,6})/(?P<part>.+)/kernel")


class Counts(NamedTuple):
    """Sums over all masks: weights, and the rows (inputs), columns (outputs) and blocks in which none is kept."""

    weights: int
    kept: int
    rows: int
    empty_rows: int
    columns: int
    empty_columns: int
    block: tuple[int, int]
    blocks: int
    empty_blocks: int


class MaskStudy(NamedTuple):
    """What the report says of a run's masks.

    Attributes:
      sparsity: path to fraction removed.
      counts: sums over all matrices.
      shown: the masks that get a picture, by path.
    """

    sparsity: dict[str, float]
    counts: Counts
    shown: dict[str, np.ndarray]


def block_sums(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Number of True in each tile of rows × columns; tiles at the edges may be smaller."""
    starts = np.arange(0, mask.shape[0], rows), np.arange(0, mask.shape[1], columns)
    return np.add.reduceat(np.add.reduceat(mask.astype(np.int64), starts[0], axis=0), starts[1], axis=1)


def density(mask: np.ndarray, factor: int) -> np.ndarray:
    """Share of True in each tile of factor × factor."""
    return block_sums(mask, factor, factor) / block_sums(np.ones_like(mask), factor, factor)


def study(masks: Iterable[tuple[str, np.ndarray]], *, block: tuple[int, int] = (32, 128)) -> MaskStudy:
    """Goes over all masks once; keeps the query and up masks of the first, middle and last layer."""
    sparsity: dict[str, float] = {}
    candidates: dict[int, dict[str, tuple[np.ndarray, tuple[int, ...]]]] = {}
    sums = np.zeros(8, np.int64)
    for path, mask in masks:
        if not mask.size:
            continue
        blocks = block_sums(mask, *block)
        sparsity[path] = 1 - float(mask.mean())
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        sums += np.array(
            [
                mask.size,
                mask.sum(),
                rows.size,
                (~rows).sum(),
                columns.size,
                (~columns).sum(),
                blocks.size,
                (blocks == 0).sum(),
            ]
        )
        found = _LAYER.fullmatch(path)
        if found and found["part"].split("/")[-1] in ("query", "up"):
            candidates.setdefault(int(found["layer"]), {})[path] = np.packbits(mask), mask.shape
    layers = sorted(candidates)
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]}) if layers else []
    shown = {
        path: np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool).reshape(shape)
        for layer in chosen
        for path, (bits, shape) in sorted(candidates[layer].items(), key=lambda item: _column(item[0]))
    }
    weights, kept, rows, no_rows, columns, no_columns, blocks, no_blocks = (int(value) for value in sums)
    counts = Counts(weights, kept, rows, no_rows, columns, no_columns, block, blocks, no_blocks)
    return MaskStudy(sparsity, counts, shown)


def png(levels: np.ndarray) -> bytes:
    """A picture of levels 0 to 255 (uint8, rows × columns): one dark blue, clear at 0 and solid at 255."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), levels], axis=1).tobytes()
    body = chunk(b"PLTE", bytes((13, 54, 107)) * 256) + chunk(b"tRNS", bytes(range(256)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + body
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def pictures(shown: dict[str, np.ndarray]) -> str:
    """The masks as density pictures on one scale, with what a pixel stands for; empty without masks."""
    if not shown:
        return ""
    factor = max(1, math.ceil(max(max(mask.shape) for mask in shown.values()) / _MOST_PIXELS))
    shares = {path: density(mask, factor) for path, mask in shown.items()}
    top = max(float(np.quantile(np.concatenate([share.ravel() for share in shares.values()]), 0.995)), 1e-9)
    figures = []
    for path, share in shares.items():
        levels = np.rint(np.clip(share / top, 0, 1) * 255).astype(np.uint8)
        source = base64.b64encode(png(levels)).decode("ascii")
        rows, columns = shown[path].shape
        kept = float(shown[path].mean())
        name, size = escape(_short_name(path)), f"{rows}×{columns}"
        width, height = 2 * levels.shape[1], 2 * levels.shape[0]
        figures.append(
            f'<figure class="mask"><img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
            f'alt="Mask of {name}, {size}: {kept:.1%} of the weights kept">'
            f"<figcaption>{name} <span>{size}, {kept:.1%} kept</span></figcaption></figure>"
        )
    pixel = "one weight, coloured where it is kept"
    if factor > 1:
        pixel = f"a tile of {factor}×{factor} weights, stronger where more of it is kept; all pictures share one scale"
    scale = f'<p class="scale"><span>0 %</span><span class="ramp"></span><span>{top:.0%} of the tile kept</span></p>'
    if factor == 1:
        scale = ""
    return (
        f"<p>Rows are inputs, columns are outputs. One pixel is {pixel}.</p>"
        f'{scale}<div class="masks">{"".join(figures)}</div>'
    )


def heat_table(sparsity: dict[str, float]) -> str:
    """Sparsity per matrix: a row for each layer, a column for each kind; matrices outside of layers in a list below."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    others = []
    for path, value in sparsity.items():
        if found := _LAYER.fullmatch(path):
            cells.setdefault((found["stack"], int(found["layer"])), {})[found["part"]] = value
        else:
            others.append((path, value))
    finite = [value for value in sparsity.values() if math.isfinite(value)]
    if not finite:
        return '<p class="none">No figures for single matrices were recorded.</p>'
    low, high = min(finite), max(finite)
    columns = sorted({part for row in cells.values() for part in row}, key=_column)
    stacks = {stack for stack, _ in cells}
    head = "".join(f'<th scope="col">{escape(part.split("/")[-1])}</th>' for part in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(stack if len(stacks) > 1 else "")}{layer}</th>'
        + "".join(_cell(row.get(part, math.nan), low, high) for part in columns)
        + "</tr>"
        for (stack, layer), row in sorted(cells.items())
    )
    table = f'<div class="scroll"><table class="heat"><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
    rest = "".join(f"<tr><th scope='row'>{escape(path)}</th>{_cell(value, low, high)}</tr>" for path, value in others)
    return (f"{table}<tbody>{body}</tbody></table></div>" if cells else "") + (
        f'<div class="scroll"><table class="heat"><tbody>{rest}</tbody></table></div>' if rest else ""
    )


def _cell(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "<td>–</td>"
    shade = 0.08 + 0.42 * ((value - low) / (high - low) if high - low > 0.005 else 0.5)
    bar = f'<span class="bar" style="width:{100 * min(max(value, 0), 1):.1f}%"></span>'
    return f'<td style="--shade:{shade:.2f}">{100 * value:.1f}{bar}</td>'


def _column(path: str) -> tuple[int, str]:
    part = path.removesuffix("/kernel").split("/")[-1]
    return (_COLUMNS.index(part) if part in _COLUMNS else len(_COLUMNS)), path


def _short_name(path: str) -> str:
    found = _LAYER.fullmatch(path)
    return f"layer {found['layer']}, {found['part'].split('/')[-1]}" if found else path


def kinds(sparsity: dict[str, float]) -> dict[str, list[float]]:
    """Sparsities by kind of matrix ("query" to "down"), in the usual order."""
    found: dict[str, list[float]] = {}
    for path in sorted(sparsity, key=_column):
        if match := _LAYER.fullmatch(path):
            found.setdefault(match["part"].split("/")[-1], []).append(sparsity[path])
    return found
