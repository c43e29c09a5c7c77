import numpy as np
import pytest

from kaprune_jax.prune.schedules import PruningSchedule, cubic, linear, one_shot


def test_cubic_is_the_papers_equation():
    steps, values = cubic(0.95, begin=0, end=1000).updates(count=100)
    k = np.arange(1, 101)
    np.testing.assert_array_equal(steps, k * 10)
    np.testing.assert_allclose(values, 0.95 * (1 - (1 - k / 100) ** 3), rtol=1e-12)


@pytest.mark.parametrize("shape", ["cubic", "linear", "one-shot"])
@pytest.mark.parametrize("end", [1, 2, 7, 99, 100, 101, 250, 4418])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_last_update_has_the_final_sparsity_inside_the_run(shape, end, count):
    steps, values = PruningSchedule(0.95, 0, end, shape=shape).updates(count=count)
    assert steps[-1] == end
    assert values[-1] == 0.95
    assert np.all(np.diff(steps) > 0)
    assert np.all(np.diff(values) >= 0)
    assert steps[0] >= 1
    assert len(steps) <= min(count, end)
    if shape != "one-shot" and count <= end:
        assert len(steps) == count


@pytest.mark.parametrize(("every", "wanted"), [(3, [3, 6, 9, 10]), (5, [5, 10]), (50, [10])])
def test_every_also_updates_at_the_end(every, wanted):
    steps, _ = linear(0.5, begin=0, end=10).updates(every=every)
    assert steps.tolist() == wanted


def test_values_outside_the_ramp():
    schedule = cubic(0.9, begin=10, end=20, initial=0.5)
    assert schedule(0) == schedule(10) == 0.5
    assert schedule(20) == schedule(1000) == 0.9
    assert linear(0.8, begin=0, end=4)(1) == pytest.approx(0.2)
    assert one_shot(0.9, at=3).updates(every=1)[0].tolist() == [3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(final=1.0, begin=0, end=1), "final=1.0"),
        (dict(final=-0.1, begin=0, end=1), "final=-0.1"),
        (dict(final=float("nan"), begin=0, end=1), "final=nan"),
        (dict(final=0.5, begin=3, end=3), "begin=3, end=3"),
        (dict(final=0.5, begin=0, end=1, initial=0.6), "initial=0.6"),
    ],
)
def test_bad_values_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        PruningSchedule(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"every": 1, "count": 1}, {"every": 0}, {"count": 0}])
def test_updates_needs_one_sound_number(arguments):
    with pytest.raises(ValueError, match="every|updates"):
        cubic(0.5, end=10).updates(**arguments)


def test_whole_numbers_of_numpy_are_numbers():
    steps, _ = cubic(0.5, end=10).updates(every=np.int64(5))
    assert steps.tolist() == [5, 10]
