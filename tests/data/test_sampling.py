"""Rows held out from training, against counts made here."""

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import RawRows, task_data
from kaprune_jax.data.sampling import hold_out


def make(texts, labels, kind="classification", metrics=("accuracy",)):
    raw = RawRows("train", tuple((text,) for text in texts), tuple(labels), tuple(range(len(labels))))
    dev = RawRows("dev", (("of dev",), ("also of dev",)), tuple(labels[:2]), (1, 2))
    return task_data("made", raw, dev, kind=kind, metrics=metrics)


@pytest.fixture
def data():
    return make([f"row {number}" for number in range(60)], ["a", "b", "c"] * 2 + ["a"] * 54)


def test_train_and_held_out_rows_are_the_training_rows_and_dev_is_gone(data):
    held = hold_out(data, 10)
    assert len(held.dev.texts) == 10
    both = sorted([*zip(held.train.texts, held.train.labels.tolist(), strict=True),
                   *zip(held.dev.texts, held.dev.labels.tolist(), strict=True)])  # fmt: skip
    assert both == sorted(zip(data.train.texts, data.train.labels.tolist(), strict=True))
    assert held.fingerprint != data.fingerprint
    assert not held.dev_groups


def test_the_draw_follows_from_the_seed(data):
    assert hold_out(data, 10).dev.texts == hold_out(data, 10).dev.texts
    assert hold_out(data, 10, seed=1).dev.texts != hold_out(data, 10).dev.texts


def test_every_class_keeps_two_rows_to_train_on(data):
    for seed in range(20):
        labels = hold_out(data, 50, seed=seed).train.labels
        assert (np.bincount(labels, minlength=3) >= 2).all()


def test_texts_that_occur_again_stay_together():
    data = make(["The  same", "the same", *(f"row {number}" for number in range(20))], ["a", "b"] * 11)
    for seed in range(40):
        held = hold_out(data, 8, seed=seed)
        plain = {" ".join(row[0].lower().split()) for row in held.train.texts}
        assert plain.isdisjoint({" ".join(row[0].lower().split()) for row in held.dev.texts})
        assert 8 <= len(held.dev.texts) <= 9


def test_scores_can_be_held_out_too():
    data = make([f"row {number}" for number in range(9)], [f"{number}.5" for number in range(9)], "regression",
                ("pearson",))  # fmt: skip
    held = hold_out(data, 4)
    assert held.dev.labels.dtype == np.float32
    assert len(held.train.texts) == 5


@pytest.mark.parametrize(("count", "words"), [(0, "at least 1"), (55, "at most 54"), (60, "at most 54")])
def test_too_many_or_none(data, count, words):
    with pytest.raises(InputError, match=words):
        hold_out(data, count)
