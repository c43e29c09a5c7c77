"""Settings of coupling over the steps of a run."""

import jax.numpy as jnp
import numpy as np
import pytest
from steps import LAYOUT

from kaprune_jax.transfer.coupling import Constraint, Coupling


@pytest.mark.parametrize(
    ("fade", "wanted"), [("constant", (3, 3, 3, 3)), ("fade-in", (0, 1.5, 3, 3)), ("fade-out", (3, 1.5, 0, 0))]
)
def test_strength(fade, wanted):
    coupling = Coupling(weight=3.0, fade=fade, steps=101)
    strengths = [float(coupling.strength(jnp.int32(step))) for step in (0, 50, 100, 500)]
    np.testing.assert_allclose(strengths, wanted, rtol=1e-6)
    once = Coupling(weight=3.0, fade=fade, steps=1)
    assert float(once.strength(jnp.int32(0))) == wanted[0]


def test_the_asked_sparsity_rises_in_a_line():
    constraint = Constraint(LAYOUT, 0.9, 5, 8)
    asked = [float(constraint.asked(jnp.int32(step))) for step in range(40)]
    assert asked[:5] == [0.0] * 5
    np.testing.assert_allclose(asked[5:13], 0.9 * np.arange(1, 9) / 8, rtol=1e-6)
    assert set(asked[12:]) == {float(jnp.float32(0.9))}
    at_once = Constraint(LAYOUT, 0.9, 2, 0)
    assert [float(at_once.asked(jnp.int32(step))) for step in range(4)] == [0, 0, *[float(jnp.float32(0.9))] * 2]
