"""Metrics against numpy oracles, the undefined cases, and the score of a constant prediction."""

import numpy as np
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.metrics import METRICS, majority_score, metrics_for, score, with_metric
from kaprune_jax.data.rows import RawRows, TaskData, task_data


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_class_metrics_against_counts(rng):
    labels, predictions = rng.integers(0, 2, (2, 200)).astype(np.int32)
    tp, tn = np.sum(labels & predictions), np.sum((1 - labels) & (1 - predictions))
    fp, fn = np.sum((1 - labels) & predictions), np.sum(labels & (1 - predictions))
    f1, f0 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    mcc = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    expected = {"accuracy": (tp + tn) / 200, "f1": f1, "macro_f1": (f1 + f0) / 2, "matthews_correlation": mcc}
    result = score(tuple(expected), predictions, labels)
    assert list(result) == list(expected)
    assert result == pytest.approx(expected)
    assert all(type(value) is float for value in result.values())


def test_correlations_against_numpy(rng):
    labels = rng.normal(size=100).astype(np.float32)
    predictions = (labels + rng.normal(size=100)).astype(np.float32)
    ranks = [np.argsort(np.argsort(x)) for x in (predictions, labels)]
    expected = {"pearson": np.corrcoef(predictions, labels)[0, 1], "spearman": np.corrcoef(*ranks)[0, 1]}
    assert score(("pearson", "spearman"), predictions, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews_correlation"])
def test_constants_have_no_correlation_and_no_warning(name):
    labels, constant = np.array([0, 1, 1], np.int32), np.ones(3, np.int32)
    assert score((name,), constant, labels) == {name: 0.0}
    assert score((name,), labels, constant) == {name: 0.0}
    assert score((name,), constant, constant) == {name: 0.0}
    assert score((name,), constant[:1], labels[:1]) == {name: 0.0}


@pytest.mark.parametrize("name", METRICS)
def test_degenerate_input_gives_no_warning(name):
    zero, one = np.zeros(3, np.int32), np.ones(3, np.int32)
    for predictions, labels in ((zero, zero), (zero, one), (one, zero), (one, one)):
        assert 0 <= score((name,), predictions, labels)[name] <= 1


def test_nearly_constant_predictions_give_no_warning():
    predictions = 1e6 + np.array([0, 1e-8, 2e-8, 1e-8])
    assert -1 <= score(("pearson",), predictions, np.array([0.0, 1.0, 2.0, 3.0]))["pearson"] <= 1


def test_macro_f1_of_three_classes():
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 2, 2])
    assert score(("macro_f1",), predictions, labels)["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize(
    ("metrics", "predictions", "labels", "message"),
    [
        (("auc",), np.zeros(2), np.zeros(2), "metric 'auc' is not one of: accuracy"),
        (("pearson",), np.zeros(0), np.zeros(0), "0 predictions for 0 labels"),
        (("pearson",), np.array([0.0, np.nan]), np.zeros(2), "prediction nan at index 1"),
    ],
)
def test_bad_arguments(metrics, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        score(metrics, predictions, labels)


def data(train: str, dev: str, *metrics: str, kind="classification") -> TaskData:
    raw = [
        RawRows(name, (("x",),) * len(row), tuple(row), tuple(range(len(row))))
        for name, row in (("train", train), ("dev", dev))
    ]
    return task_data("t", *raw, kind=kind, metrics=metrics)


def test_majority_is_that_of_train():
    result = majority_score(data("0001100", "0111", "accuracy", "macro_f1", "matthews_correlation"))
    assert result.scores == pytest.approx({"accuracy": 0.25, "macro_f1": 0.2, "matthews_correlation": 0.0})
    assert result.standard_error == pytest.approx(np.sqrt(0.25 * 0.75 / 4))


def test_majority_f1_is_that_of_always_class_1():
    result = majority_score(data("00011", "0001", "f1", "accuracy"))
    assert result.scores == pytest.approx({"f1": 0.4, "accuracy": 0.75})
    assert result.standard_error == pytest.approx(np.sqrt(0.4 * 0.6 / 4))


def test_majority_of_correlations():
    result = majority_score(data("0011", "00011", "matthews_correlation"))
    assert result == ({"matthews_correlation": 0.0}, pytest.approx(0.5))
    result = majority_score(data("1234", "12345", "pearson", "spearman", kind="regression"))
    assert result == ({"pearson": 0.0, "spearman": 0.0}, pytest.approx(0.5))


def test_parts_of_dev_have_scores_of_their_own():
    from kaprune_jax.data.metrics import score_task
    from kaprune_jax.data.world import load_world

    data = load_world("micro-nli")
    logits = np.eye(3, dtype=np.float32)[data.dev.labels]
    logits[::2] = logits[::2, [1, 2, 0]]  # every other answer is wrong
    new = data.dev_groups["new_words"]
    logits[~new] = np.eye(3, dtype=np.float32)[data.dev.labels[~new]]
    scores = score_task(data, logits)
    assert list(scores) == ["accuracy", "accuracy_new_words"]
    assert scores["accuracy"] == pytest.approx(0.75)
    assert scores["accuracy_new_words"] == pytest.approx(0.5)
    assert list(score_task(data._replace(dev_groups={}), logits)) == ["accuracy"]


def test_another_metric_of_the_task_comes_first():
    two = data("0101", "0101", "accuracy", "macro_f1")
    assert with_metric(two, "macro_f1").metrics == ("macro_f1", "accuracy")
    assert with_metric(two, "f1").metrics == ("f1", "accuracy", "macro_f1")


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        (data("0011", "01", "accuracy"), "pearson", "the task t (2 classes) has: " + ", ".join(metrics_for(2))),
        (data("001122", "012", "accuracy"), "f1", "the task t (3 classes) has: " + ", ".join(metrics_for(3))),
        (data("12", "12", "pearson", kind="regression"), "accuracy", "the task t (regression) has: pearson, spearman"),
        (data("1122", "12", "f1")._replace(kind="span"), "accuracy", "the task t (span) has: f1"),
    ],
)
def test_a_metric_that_is_none_of_the_task(task, name, said):
    with pytest.raises(InputError) as error:
        with_metric(task, name)
    assert str(error.value) == f"metric {name!r}: {said}"
