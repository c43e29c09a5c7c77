"""What a run leaves that ends before its model is made smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runs.parts import PARTS, read_parts, write_parts
from kaprune_jax._errors import InputError


def make_parts():
    random = np.random.default_rng(0)

    def draw(*shape):
        return np.asarray(random.normal(size=shape), np.float32)

    return {
        "model": {"layers": {"0": {"kernel": draw(3, 4).T}, "1": {"kernel": draw(2, 2)}}},
        "gates": {"ffn": draw(2)},
        "duals": draw(),
    }


def test_parts_come_back_to_the_bit(tmp_path):
    parts = make_parts()
    assert read_parts(tmp_path, parts) is None
    write_parts(tmp_path, parts)
    assert [file.name for file in tmp_path.iterdir()] == [PARTS]
    like = jax.tree.map(jnp.zeros_like, parts)
    found = read_parts(tmp_path, like)
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found, parts)


def test_parts_of_another_model_and_damaged_ones_are_refused(tmp_path):
    parts = make_parts()
    write_parts(tmp_path, parts)
    with pytest.raises(InputError, match=r"parts\.safetensors: is not of this model"):
        read_parts(tmp_path, {"model": parts["model"]})
    (tmp_path / PARTS).write_bytes((tmp_path / PARTS).read_bytes()[:50])
    with pytest.raises(InputError, match=r"parts\.safetensors: cannot be read"):
        read_parts(tmp_path, parts)
