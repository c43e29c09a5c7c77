import pytest

from kaprune_jax.distill.matching import match_layers


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
