import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from kaprune_jax.transfer.voting import vote


def some_masks(rng, count=3):
    return [
        {
            "heads": jnp.asarray(rng.random((2, 4)) < 0.5),
            "layers": {"ffn": jnp.asarray(rng.random(3) < 0.5)},
            "no": None,
        }
        for _ in range(count)
    ]


def test_vote_follows_the_equation(rng):
    masks, similarity = some_masks(rng), [0.9, 0.2, -0.4]
    result = vote(masks, similarity, temperature=0.5, prior=0.6, rate=0.7)
    weights = softmax(np.array(similarity) / 0.5)
    for path in (("heads",), ("layers", "ffn")):
        votes = [mask[path[0]] if len(path) == 1 else mask["layers"]["ffn"] for mask in masks]
        agreed = sum(weight * np.asarray(one, float) for weight, one in zip(weights, votes, strict=True))
        wanted = np.clip(0.3 * 0.6 + 0.7 * agreed, 0.05, 0.95)
        given = result["heads"] if len(path) == 1 else result["layers"]["ffn"]
        np.testing.assert_allclose(given, wanted, rtol=1e-5)
        assert given.dtype == jnp.float32
    assert jax.tree.structure(result) == jax.tree.structure(masks[0])


def test_the_prior_may_be_a_tree(rng):
    masks = some_masks(rng)
    prior = jax.tree.map(lambda mask: jnp.asarray(rng.random(mask.shape), jnp.float32), masks[0])
    kept = vote(masks, [1.0, 0.0, 0.0], prior=prior, rate=0.0, low=0.0, high=1.0)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), kept, prior)


def test_at_full_rate_one_mask_is_its_own_clipped_vote(rng):
    (mask,) = some_masks(rng, 1)
    result = vote([mask], [-3.0], prior=0.5, rate=1.0)
    np.testing.assert_allclose(result["heads"], np.where(mask["heads"], 0.95, 0.05), rtol=1e-6)


def test_a_low_temperature_follows_the_nearest_and_a_shift_changes_nothing(rng):
    masks = some_masks(rng)
    nearest = vote(masks, [0.1, 0.8, 0.7], temperature=1e-3, prior=0.5, rate=1.0, low=0.0, high=1.0)
    np.testing.assert_allclose(nearest["heads"], masks[1]["heads"], atol=1e-6)
    one = vote(masks, [0.1, 0.8, 0.7], prior=0.5, rate=1.0)
    other = vote(masks, [1e6 + 0.1, 1e6 + 0.8, 1e6 + 0.7], prior=0.5, rate=1.0)
    np.testing.assert_allclose(one["heads"], other["heads"], rtol=1e-5)


def test_order_of_sources_and_type_of_masks_do_not_matter(rng):
    masks = some_masks(rng)
    one = vote(masks, [0.1, 0.8, 0.7], prior=0.5, rate=0.5)
    numbers = [jax.tree.map(lambda mask: np.asarray(mask, np.int32), mask) for mask in masks]
    with jax.numpy_dtype_promotion("strict"):
        other = vote(numbers[::-1], [0.7, 0.8, 0.1], prior=0.5, rate=0.5)
    np.testing.assert_allclose(one["heads"], other["heads"], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": []}, "masks: none given"),
        ({"similarity": [1.0]}, "1 values for 2 masks"),
        ({"similarity": [1.0, float("nan")]}, "finite"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"rate": -0.1}, "rate=-0.1"),
        ({"low": 0.9, "high": 0.1}, "low=0.9"),
        ({"prior": 2.0}, "prior, a: values outside"),
        ({"prior": {"a": np.zeros(3)}}, "prior and masks differ: a"),
        ({"masks": [{"a": np.ones(2)}, {"a": np.full(2, 0.5)}]}, "mask 1, a: values other than 0 and 1"),
        ({"masks": [{"a": np.ones(2), "b": np.ones(1)}, {"a": np.ones(2)}]}, "masks 0 and 1 differ: b"),
        ({"masks": [{"a": np.ones(2)}, {"a": np.ones(2), "c": np.ones(1)}]}, "masks 0 and 1 differ: c"),
        ({"masks": [{"a": np.ones(2)}, {"a": np.ones((2, 1))}]}, r"a has shape \(2,\) and \(2, 1\)"),
    ],
)
def test_bad_input_is_named_in_one_line(change, message):
    given = {"masks": [{"a": np.ones(2)}, {"a": np.zeros(2)}], "similarity": [0.1, 0.2], "prior": 0.5, "rate": 0.5}
    with pytest.raises(ValueError, match=message) as error:
        vote(**(given | change))
    assert "\n" not in str(error.value)
