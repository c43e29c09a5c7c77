"""From raw rows to a task: label ids, the checks, and drawing fewer training rows."""

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import RawRows, TaskData, label_kind, task_data
from kaprune_jax.data.sampling import limit_train


def raw(source: str, *labels: str, texts: tuple[tuple[str, ...], ...] | None = None) -> RawRows:
    texts = tuple((f"{source} text {i}",) for i in range(len(labels))) if texts is None else texts
    return RawRows(source, texts, labels, tuple(range(2, len(labels) + 2)))


def classes(train: RawRows, dev: RawRows, **kwargs) -> TaskData:
    return task_data("mine", train, dev, kind="classification", metrics=("accuracy",), **kwargs)


def scores(train: RawRows, dev: RawRows) -> TaskData:
    return task_data("mine", train, dev, kind="regression", metrics=("pearson",))


def test_labels_are_read_from_the_data_and_sorted():
    data = classes(raw("train", "pos", "neg", "pos", "neg"), raw("dev", "neg"))
    assert data.labels == ("neg", "pos")
    assert data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.labels, [1, 0, 1, 0])
    np.testing.assert_array_equal(data.dev.labels, [0])


def test_numeric_labels_sort_as_numbers():
    data = classes(raw("train", *(["10", "9", "-1"] * 2)), raw("dev", "10"))
    assert data.labels == ("-1", "9", "10")


@pytest.mark.parametrize(
    ("train", "dev", "names"),
    [
        (("1", "0", "1.0", "0"), ("0.0", "1"), ("0", "1")),
        (("1.0", "0.0"), ("1.0", "0.0"), ("0.0", "1.0")),  # written in one way: as they are
        (("1", "1.0", "x"), ("x", "1"), ("1", "1.0", "x")),  # not numbers
    ],
)
def test_a_whole_number_is_one_class_however_it_is_written(train, dev, names):
    assert classes(raw("train", *train * 2), raw("dev", *dev)).labels == names


def test_given_labels_keep_their_order_and_both_spellings():
    dev = raw("dev", "bad", "good")
    data = classes(raw("train", "0", "1", "1", "0"), dev, labels=("good", "bad"), written=("0", "1"))
    assert data.labels == ("good", "bad")
    np.testing.assert_array_equal(data.train.labels, [0, 1, 1, 0])
    np.testing.assert_array_equal(data.dev.labels, [1, 0])


def test_scores_are_float32():
    data = scores(raw("train", "0.5", "3", "1e-1"), raw("dev", "2.75"))
    assert (data.labels, data.train.labels.dtype) == ((), np.float32)
    np.testing.assert_array_equal(data.train.labels, np.float32([0.5, 3, 0.1]))


def test_white_space_around_texts_and_labels_is_dropped():
    data = classes(raw("t", " a", "a ", "b", "b", texts=((" x ",), ("y",), ("z",), ("w\r",))), raw("d", "b "))
    assert data.labels == ("a", "b")
    assert data.train.texts == (("x",), ("y",), ("z",), ("w",))


def test_one_empty_text_of_two_is_allowed():
    texts = (("a", ""), ("b", "c"), ("", "d"), ("e", "f"))
    assert classes(raw("t", "0", "0", "1", "1", texts=texts), raw("d", "1")).train.texts == texts


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (raw("t.csv"), raw("d.csv", "a"), "t.csv: no rows"),
        (raw("t.csv", "a", "b"), raw("d.csv"), "d.csv: no rows"),
        (raw("t.csv", "a", "a"), raw("d.csv", "a"), "t.csv: only one class, 'a', in all 2 rows; at least two"),
        (raw("t.csv", "a", "b", "a"), raw("d.csv", "a"), "t.csv, row 3: label 'b' occurs only once"),
        (raw("t.csv", *"aabb"), raw("d.csv", "a", "c"), "d.csv, row 3: label 'c' is never seen in t.csv.*: a, b$"),
        (raw("t.csv", "a", " ", "b"), raw("d.csv", "a"), "t.csv, row 3: the label is empty"),
        (raw("t.csv", "a", "b", texts=(("x",), (" ",))), raw("d.csv", "a"), "t.csv, row 3: the text is empty"),
    ],
)
def test_bad_classes(train, dev, message):
    with pytest.raises(InputError, match=message):
        classes(train, dev)


def test_label_outside_the_given_ones_lists_them():
    with pytest.raises(InputError, match=r"dev, row 2: label '-' is not one of: 0 \(good\), 1 \(bad\)"):
        classes(raw("t", *"0011"), raw("dev", "-"), labels=("good", "bad"), written=("0", "1"))
    with pytest.raises(InputError, match=r"dev, row 2: label 'x' is not one of: a, b$"):
        classes(raw("t", *"aabb"), raw("dev", "x"), labels=("a", "b"))


def test_given_label_that_dev_has_and_train_lacks():
    with pytest.raises(InputError, match="dev, row 2: label 'c' is never seen in t, which has: a, b"):
        classes(raw("t", *"aabb"), raw("dev", "c"), labels=("a", "b", "c"))


@pytest.mark.parametrize("bad", ["nan", "NaN", "inf", "-Infinity", "1e39", "high", "1,5"])
def test_bad_scores(bad):
    with pytest.raises(InputError, match=f"t.tsv, row 3: score '{bad}' is not a finite number"):
        scores(raw("t.tsv", "0.5", bad), raw("dev", "1"))
    with pytest.raises(InputError, match=f"dev, row 2: score '{bad}'"):
        scores(raw("t.tsv", "0.5", "1"), raw("dev", bad))


def test_equal_scores():
    with pytest.raises(InputError, match=r"t: every score is 1.5; at least two different"):
        scores(raw("t", "1.5", "1.5"), raw("dev", "1"))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (("0", "1", "2.0"), "classification"),
        (tuple(map(str, range(20))), "classification"),
        (tuple(map(str, range(21))), "regression"),
        (("0", "1", "0.5"), "regression"),
        (("a", "0.5", "1"), "classification"),
        (("1", "2", "nan"), "regression"),
        ((*["0.25", "0.5", "3"] * 4, "oops"), "regression"),
        ((*["1", "2", "3"] * 4, "other"), "classification"),
    ],
)
def test_label_kind(labels, kind):
    assert label_kind(labels) == kind


def test_fingerprint_follows_the_rows():
    def data(text="x", label="a", order=("a", "b"), source="t"):
        train = raw(source, label, *"aabb", texts=((text,), *((letter,) for letter in "vwyz")))
        return classes(train, raw("d", "b"), labels=order)

    same = data().fingerprint
    assert len(same) == 64
    assert data(source="elsewhere").fingerprint == same
    assert (
        len({same, data(text="xx").fingerprint, data(label="b").fingerprint, data(order=("b", "a")).fingerprint}) == 4
    )


def test_fingerprint_keeps_fields_apart():
    one = classes(raw("t", *"aabb", texts=(("ab", "c"), *(("x", "y"),) * 3)), raw("d", "a"))
    two = classes(raw("t", *"aabb", texts=(("a", "bc"), *(("x", "y"),) * 3)), raw("d", "a"))
    assert one.fingerprint != two.fingerprint


@pytest.fixture
def skewed() -> TaskData:
    return classes(raw("t", *(["common"] * 97 + ["rare"] * 2 + ["odd"] * 2)), raw("d", "odd"))


def test_limit_train_is_deterministic_and_nested(skewed):
    small, again, large = (limit_train(skewed, count, seed=3) for count in (10, 10, 30))
    assert small.train.texts == again.train.texts
    assert small.fingerprint == again.fingerprint != skewed.fingerprint
    assert (len(small.train.texts), len(small.train.labels)) == (10, 10)
    assert set(small.train.texts) < set(large.train.texts) < set(skewed.train.texts)
    assert limit_train(skewed, 10, seed=4).train.texts != small.train.texts


def test_limit_train_keeps_classes_rows_order_and_dev(skewed):
    for seed in range(5):
        small = limit_train(skewed, 3, seed=seed)
        assert set(small.train.labels.tolist()) == {0, 1, 2}
        assert small.dev is skewed.dev
    labels = dict(zip(skewed.train.texts, skewed.train.labels.tolist(), strict=True))
    small = limit_train(skewed, 20)
    assert [labels[text] for text in small.train.texts] == small.train.labels.tolist()
    positions = [skewed.train.texts.index(text) for text in small.train.texts]
    assert positions == sorted(positions)


def test_limit_train_at_or_above_the_rows_changes_nothing(skewed):
    assert limit_train(skewed, 101) is skewed
    assert limit_train(skewed, 1000) is skewed


def test_limit_train_of_scores():
    data = scores(raw("t", *(f"{i / 7}" for i in range(50))), raw("d", "1"))
    assert len(limit_train(data, 1).train.texts) == 1


@pytest.mark.parametrize("count", [-1, 0, 2])
def test_limit_train_too_small(skewed, count):
    with pytest.raises(InputError, match=f"limit_train {count} for mine: at least 3 are needed, one of each class"):
        limit_train(skewed, count)
