"""Packing against the dense matrix, and what packing refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

import kaprune_jax as kp
from kaprune_jax.kernels.block_sparse.format import ell


def blocky(rng, inputs, outputs, block, density):
    """A random matrix whose blocks are kept with a probability, and its mask."""
    grid = rng.random((-(-inputs // block[0]), -(-outputs // block[1]))) < density
    mask = np.repeat(np.repeat(grid, block[0], 0), block[1], 1)[:inputs, :outputs]
    return rng.normal(size=(inputs, outputs)).astype(np.float32) * mask, mask


@pytest.mark.parametrize("block", [(16, 32), (32, 128), (64, 128), (128, 32), (7, 5)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(128, 256), (100, 200), (1, 1), (33, 129)])
def test_unpack_gives_the_matrix_back(rng, block, density, shape):
    weight, mask = blocky(rng, *shape, block, density)
    panels = kp.pack(weight, mask, block=block)
    np.testing.assert_array_equal(kp.unpack(panels), weight)
    kept = [(p, r) for p in range(len(panels.counts)) for r in range(panels.input_blocks)
            if mask[r * block[0]:(r + 1) * block[0], p * block[1]:(p + 1) * block[1]].any()]  # fmt: skip
    assert [panels.counts[p] for p in range(len(panels.counts))] == [
        sum(place == p for place, _ in kept) for p in range(len(panels.counts))
    ]
    np.testing.assert_array_equal(panels.rows, [r for _, r in kept])
    assert panels.density == len(kept) / (panels.input_blocks * len(panels.counts))
    assert list(np.diff(panels.starts)) == list(panels.counts)
    falling = [panels.counts[p] for p in panels.order]
    assert falling == sorted(falling, reverse=True)


def test_a_kept_zero_keeps_its_block(rng):
    mask = np.zeros((64, 256), bool)
    mask[40, 200] = True
    panels = kp.pack(np.zeros((64, 256), np.float32), mask)
    assert panels.counts == (0, 1)
    np.testing.assert_array_equal(panels.rows, [1])


def test_wide_floats_are_stored_as_jax_stores_them(rng):
    weight = rng.normal(size=(40, 130))
    assert kp.pack(weight).blocks.dtype == jnp.float32
    np.testing.assert_array_equal(kp.unpack(kp.pack(weight)), weight.astype(np.float32))


def test_padded_view_has_zeros_where_a_panel_has_fewer(rng):
    weight, mask = blocky(rng, 160, 384, (32, 128), 0.5)
    mask[:, 128:256] = False
    panels = kp.pack(weight * mask, mask)
    blocks, rows = ell(panels)
    dense = np.zeros((160, 384), np.float32)
    for p, count in enumerate(panels.counts):
        for slot in range(panels.most):
            tile = np.asarray(blocks[p, :, slot * 32 : (slot + 1) * 32]).T
            if slot >= count:
                assert not tile.any()
            dense[rows[p, slot] * 32 : (rows[p, slot] + 1) * 32, p * 128 : (p + 1) * 128] += tile
    np.testing.assert_array_equal(dense, weight * mask)


def test_matrices_over_the_same_inputs_are_joined(rng):
    parts = [blocky(rng, 96, outputs, (32, 128), 0.4)[0] for outputs in (128, 256, 100)]
    joined = kp.concat_panels(*(kp.pack(part, dtype=jnp.bfloat16) for part in parts))
    assert joined.shape == (96, 484)
    expected = jnp.asarray(np.concatenate(parts, axis=1), jnp.bfloat16)
    np.testing.assert_array_equal(kp.unpack(joined), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kp.pack(np.ones(4)), r"shape \(4,\).*matrix"),
        (lambda: kp.pack(np.ones((0, 4))), r"shape \(0, 4\)"),
        (lambda: kp.pack(np.ones((4, 4)), block=(0, 2)), r"block=\(0, 2\)"),
        (lambda: kp.pack(np.ones((4, 4)), np.ones((4, 5), bool)), r"bool\(4, 5\).*\(4, 4\)"),
        (lambda: kp.pack(np.ones((4, 4)), np.ones((4, 4), np.float32)), "float32.*booleans"),
        (lambda: kp.pack(np.eye(4), np.zeros((4, 4), bool)), r"4 places: weight\[0, 0\] = 1.0"),
        (lambda: kp.concat_panels(), "at least one"),
        (lambda: kp.concat_panels(kp.pack(np.ones((4, 128))), kp.pack(np.ones((8, 128)))), "8 inputs.*and of 4"),
        (lambda: kp.concat_panels(kp.pack(np.ones((4, 100))), kp.pack(np.ones((4, 128)))), "100 outputs do not fill"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
