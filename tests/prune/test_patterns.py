import jax.numpy as jnp
import numpy as np
import pytest

from kaprune_jax.prune.patterns import Pattern, keep_count, parse_pattern


@pytest.mark.parametrize("text", ["element", "block-32x128", "block-1x4", "block-32x128-balanced", "2:4", "1:8"])
def test_a_pattern_reads_back_as_written(text):
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize(
    "text", ["", "elements", "block-", "block-0x4", "block-4", "block-4x4-", "4:2", "4:4", "0:4", "2:0", "-1:4"]
)
def test_unknown_patterns_are_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="allowed: element, block-RxC .*, N:M"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"), [(1000, 0.9, 100), (1000, 0.95, 50), (10, 0.7, 3), (7, 0.5, 3), (147456, 0.95, 7372)]
)
def test_counts_take_the_sparsity_as_the_decimal_it_is_written_as(n, sparsity, kept):
    assert keep_count(n, sparsity) == kept


@pytest.mark.parametrize("text", ["element", "block-4x3", "block-4x3-balanced", "2:4"])
def test_split_undoes_spread(text, rng):
    form, shape = parse_pattern(text), (8, 6)
    groups, pieces = form.pieces(shape)
    values = jnp.asarray(rng.normal(size=(groups, pieces)))
    full = form.spread(values, shape)
    assert full.shape == shape
    np.testing.assert_array_equal(form.split(full).reshape(groups, pieces), values)


def test_scores_are_summed_over_each_piece(rng):
    scores = rng.normal(size=(8, 6)).astype(np.float32)
    blocks = parse_pattern("block-4x3").sums(jnp.asarray(scores))
    wanted = [[scores[i : i + 4, j : j + 3].sum() for i in (0, 4) for j in (0, 3)]]
    np.testing.assert_allclose(blocks.reshape(1, 4), wanted, atol=1e-6)
    groups = parse_pattern("2:4").sums(jnp.asarray(scores))
    np.testing.assert_allclose(groups[1], scores[4:8, 0], rtol=1e-6)


@pytest.mark.parametrize(("text", "shape"), [("block-32x128", (64, 100)), ("2:4", (6, 4)), ("block-2x2", (4,))])
def test_a_pattern_that_does_not_divide_names_the_matrix(text, shape):
    with pytest.raises(ValueError, match="encoder/w"):
        parse_pattern(text).check(shape, "encoder/w")


def test_n_of_m_has_its_own_sparsity():
    assert parse_pattern("2:4").sparsity == 0.5
    assert Pattern("element").sparsity is None
