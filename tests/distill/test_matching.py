import itertools

import jax
import jax.numpy as jnp
import pytest

from kaprune_jax.distill.matching import match_layers, nearest_layers, quarter_layers


@pytest.mark.parametrize(
    ("student", "teacher", "strategy", "wanted"),
    [
        (6, 6, "uniform", (1, 2, 3, 4, 5, 6)),
        (4, 12, "uniform", (3, 6, 9, 12)),
        (4, 6, "uniform", (2, 3, 5, 6)),
        (1, 5, "uniform", (5,)),
        (3, 12, "first", (1, 2, 3)),
        (3, 12, "last", (10, 11, 12)),
    ],
)
def test_maps(student, teacher, strategy, wanted):
    assert match_layers(student, teacher, strategy=strategy) == wanted


def test_uniform_maps_rise_and_end_at_the_last_layer():
    for teacher in range(1, 25):
        for student in range(1, teacher + 1):
            layers = match_layers(student, teacher)
            assert list(layers) == sorted(set(layers))
            assert layers[0] >= 1
            assert layers[-1] == teacher


def test_a_deeper_student_is_refused():
    with pytest.raises(ValueError, match="student=7 layers, teacher=6"):
        match_layers(7, 6)


@pytest.mark.parametrize(
    ("teacher", "wanted"),
    [(12, (3, 6, 9, 12)), (6, (2, 3, 5, 6)), (4, (1, 2, 3, 4)), (2, (1, 2)), (1, (1,)), (24, (6, 12, 18, 24))],
)
def test_quarters(teacher, wanted):
    assert quarter_layers(teacher) == wanted


def best_map(distances, alive, ordered):
    """Of all maps from teacher to surviving student layers, the cheapest, ties to the lower layers from the last."""
    there = [layer for layer, value in enumerate(alive) if value]
    maps = itertools.product(there, repeat=len(distances))
    allowed = [choice for choice in maps if not ordered or list(choice) == sorted(choice)]
    if not allowed:
        return (0,) * len(distances)
    cost = {choice: sum(row[layer] for row, layer in zip(distances, choice, strict=True)) for choice in allowed}
    least = min(cost.values())
    ties = [choice for choice, value in cost.items() if value == least]
    return min(ties, key=lambda choice: choice[::-1])


NEAREST = jax.jit(nearest_layers, static_argnames="ordered")


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["real", "ties"])
def test_nearest_is_the_best_of_all_maps(ordered, whole, rng):
    differ = 0
    for teacher, student in [(4, 5)] * 60 + [(1, 3), (2, 1)] * 5:
        # small whole numbers: their sums are exact, and many are equal
        distances = rng.integers(0, 3, (teacher, student)) if whole else rng.random((teacher, student))
        alive = rng.random(student) < 0.7
        result = NEAREST(jnp.asarray(distances, jnp.float32), jnp.asarray(alive), ordered=ordered)
        assert tuple(result.tolist()) == best_map(distances.tolist(), alive.tolist(), ordered)
        differ += best_map(distances.tolist(), alive.tolist(), not ordered) != tuple(result.tolist())
    assert differ > 10  # so that the two modes are told apart


@pytest.mark.parametrize("ordered", [False, True])
def test_one_survivor_takes_all_and_none_gives_zeros(ordered, rng):
    distances = jnp.asarray(rng.random((4, 6)), jnp.float32)
    assert NEAREST(distances, jnp.arange(6) == 3, ordered=ordered).tolist() == [3, 3, 3, 3]
    assert NEAREST(distances, jnp.zeros(6, bool), ordered=ordered).tolist() == [0, 0, 0, 0]
    assert NEAREST(jnp.zeros((4, 6)), jnp.arange(6) > 1, ordered=ordered).tolist() == [2, 2, 2, 2]
