"""Charts, mask pictures and number formats of the report."""

import math
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments.pages.axes import log_ticks, thin, ticks
from experiments.pages.charts import Line, Mark, line_chart
from experiments.pages.compare import mean_curve
from experiments.pages.data import spread
from experiments.pages.mask_pictures import density, png, study
from experiments.pages.text import duration, mean_and_spread, percent, size


def test_png_and_density():
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = png(levels)
    start = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[start - 4 : start])
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + length]), np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(lines[:, 1:], levels)
    mask = np.zeros((5, 4), bool)
    mask[:2, :2] = True
    mask[4, 0] = True
    np.testing.assert_array_equal(density(mask, 2), [[1, 0], [0, 0], [0.5, 0]])
    counts = study([("encoder/layers/0/ffn/up/kernel", mask)], block=(2, 2)).counts
    assert (counts.empty_rows, counts.empty_columns, counts.blocks, counts.empty_blocks) == (2, 2, 6, 4)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points", [[(0, 1.0)], [(0, 0.0), (1, -1.0)], [(0, 1.0), (1, math.nan), (2, 1.0)], [(5, 1e-30), (5, 1e30)], []]
)
def test_charts_draw_anything(points, log):
    text = line_chart([Line("a<b", points, "c1", dots=True)], title="t", log=log, marks=[Mark(0, -1, "m")])
    parser = HTMLParser()
    parser.feed(text)
    parser.close()
    assert "nan" not in text
    assert "a<b" not in text
    assert text.count("<svg") in (0, 2)


def test_ticks_and_thinning():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0.71, 0.79)[:2] == [0.72, 0.74]
    assert log_ticks(1e-3, 1) == [1e-3, 1e-2, 1e-1, 1]
    assert len(log_ticks(0.61, 0.69)) >= 3
    many = thin([(x, float(x)) for x in range(1000)], most=100)
    assert len(many) == 100
    assert many[0] == (4.5, 4.5)
    assert mean_curve([[(1, 0.0), (2, 1.0)], [(2, 3.0), (3, 1.0)]]) == [(2, 2.0)]


def test_formats():
    assert percent(0.99951) == "99.95 %"
    assert size(2_500_000) == "2.5 MB"
    assert duration(3700) == "1 h 1 min"
    assert mean_and_spread(spread([0.5])) == "0.500 (1)"
    assert mean_and_spread(spread([math.nan])) == "–"
