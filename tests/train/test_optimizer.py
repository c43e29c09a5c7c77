import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaprune_jax.models.bert import init_params
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.optimizer import adamw, decays, learning_rate


def test_rates_rise_and_fall_where_they_should():
    rate = learning_rate(1.0, steps=100, schedule="linear", warmup=0.1)
    assert [float(rate(step)) for step in (0, 5, 10, 55, 100)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    constant = learning_rate(1.0, steps=100, schedule="constant")
    assert [float(constant(step)) for step in (0, 50, 100)] == [1.0, 1.0, 1.0]


def test_decay_spares_biases_and_layer_norms(getkey):
    params = init_params(BertConfig(50, 16, 1, 2, 32, 16), getkey())
    marked = decays(params)
    assert marked["encoder"]["layers"][0]["ffn"]["up"] == {"kernel": True, "bias": False}
    assert marked["embeddings"]["norm"] == {"scale": False, "bias": False}
    assert marked["embeddings"]["word"]["embedding"]


def test_the_gradient_is_bounded():
    params = {"kernel": jnp.ones(4)}
    big, small = {"kernel": jnp.full(4, 1e6)}, {"kernel": jnp.full(4, 0.5)}
    tx = adamw(1e-2, weight_decay=0.0)
    state = tx.init(params)
    _, one = tx.update(big, state, params)
    _, two = tx.update(small, state, params)
    moments = [next(leaf for leaf in jax.tree.leaves(s) if leaf.shape == (4,)) for s in (one, two)]
    np.testing.assert_allclose(moments[0], moments[1], rtol=1e-5)
