"""GLUE's metrics, as scikit-learn and scipy compute them, and what a prediction that ignores the text would get."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from sklearn import metrics as sklearn_metrics

from kaprune_jax._errors import InputError
from kaprune_jax.data.rows import METRICS, TaskData
from kaprune_jax.data.spans import first_words

_CORRELATIONS = ("matthews_correlation", "pearson", "spearman")

Values = Int[np.ndarray, "rows"] | Float[np.ndarray, "rows"]


class MajorityScore(NamedTuple):
    """What predictions without a look at the text reach on dev.

    Attributes:
      scores: metric name to score.
      standard_error: standard error of the main metric at that score, from the number of dev rows.
    """

    scores: dict[str, float]
    standard_error: float


def metrics_for(classes: int) -> tuple[str, ...]:
    """The metrics that a task may be scored by, the usual one first.

    Args:
      classes: how many the task has; 0 for a regression. `f1`, that of class 1, is for two.

    Example:
      >>> metrics_for(3)
      ('accuracy', 'macro_f1', 'matthews_correlation')
    """
    if classes == 0:
        return ("pearson", "spearman")
    return ("accuracy", "macro_f1", "matthews_correlation", *(("f1",) if classes == 2 else ()))


def with_metric(data: TaskData, name: str) -> TaskData:
    """The task with that metric as its main one, before those it has.

    Raises:
      InputError: a metric that is none of such a task, or a task whose answers are spans.
    """
    allowed = ("f1",) if data.kind == "span" else metrics_for(len(data.labels))
    if name not in allowed:
        what = f"{len(data.labels)} classes" if data.kind == "classification" else data.kind
        raise InputError(f"metric {name!r}: the task {data.name} ({what}) has: {', '.join(allowed)}")
    return data._replace(metrics=(name, *(other for other in data.metrics if other != name)))


def score(metrics: tuple[str, ...], predictions: Values, labels: Values) -> dict[str, float]:
    """Score predictions by the named metrics.

    `f1` is that of class 1 (GLUE's, for two classes); `macro_f1` is the mean over the classes that occur in labels or
    predictions. A correlation is 0 where it is undefined: for constant predictions or labels.

    Args:
      metrics: names out of `METRICS`.
      predictions: class ids, or scores for "pearson" and "spearman".
      labels: what they should be.

    Returns:
      Metric name to score, in the order given. Fractions, not percentages; correlations are in [-1, 1].

    Raises:
      ValueError: an unknown metric, no rows, predictions and labels of different length, or a prediction that is not
        finite.

    Example:
      >>> score(("accuracy",), np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
      {'accuracy': 0.75}
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is not one of: {', '.join(METRICS)}")
    if len(labels) == 0 or len(predictions) != len(labels):
        raise ValueError(
            f"{len(predictions)} predictions for {len(labels)} labels; equally many, at least one, allowed"
        )
    if not np.isfinite(predictions).all():
        row = int(np.flatnonzero(~np.isfinite(predictions))[0])
        raise ValueError(f"prediction {predictions[row]} at index {row} is not a finite number")
    return {name: _score(name, predictions, labels) for name in metrics}


def score_task(data: TaskData, logits: Float[np.ndarray, "rows outputs"]) -> dict[str, float]:
    """Score a model's outputs on dev by the task's metrics, and by the first of them on each of its `dev_groups`.

    Args:
      data: the task, of any kind but "span" (`spans.score_spans`).
      logits: a row of class logits, or one score, per row of dev.

    Returns:
      Metric name to score, the main one first; a group's is called METRIC_GROUP.
    """
    predictions = logits[:, 0] if data.kind == "regression" else logits.argmax(axis=-1)
    scores = score(data.metrics, predictions, data.dev.labels)
    main = data.metrics[0]
    for name, rows in data.dev_groups.items():
        scores[f"{main}_{name}"] = score((main,), predictions[rows], data.dev.labels[rows])[main]
    return scores


def majority_score(data: TaskData) -> MajorityScore:
    """Score, on dev, the constant prediction that train suggests: a model near it has learned nothing.

    The constant is train's most frequent class (the first of equals) or its mean score. For `f1` it is class 1, since
    any other constant gets 0 while "always class 1" can look good. The standard error is sqrt(p (1 - p) / n) for
    accuracy and, as an approximation, for the F1 scores; and 1 / sqrt(n - 1), that of no correlation, for correlations.
    For spans it is the first words of each passage, as many as answers usually have (`spans.first_words`).

    Args:
      data: the task.

    Returns:
      The score by each of the task's metrics, and the standard error of the first.
    """
    if data.kind == "span":
        return MajorityScore(*first_words(data))
    if data.kind == "classification":
        constant = np.bincount(data.train.labels).argmax().astype(np.int32)
    else:
        constant = data.train.labels.mean(dtype=np.float64)
    rows = len(data.dev.labels)
    scores: dict[str, float] = {}
    for name in data.metrics:
        value = np.int32(1) if name == "f1" else constant
        scores |= score((name,), np.full(rows, value), data.dev.labels)
    main = data.metrics[0]
    share = scores[main]
    variance = 1 / max(rows - 1, 1) if main in _CORRELATIONS else share * (1 - share) / rows
    return MajorityScore(scores, float(np.sqrt(variance)))


def _score(name: str, predictions: Values, labels: Values) -> float:
    if name in _CORRELATIONS and (np.ptp(predictions) == 0 or np.ptp(labels) == 0):
        return 0.0
    if name == "accuracy":
        return float(sklearn_metrics.accuracy_score(labels, predictions))
    if name == "matthews_correlation":
        return float(sklearn_metrics.matthews_corrcoef(labels, predictions))
    if name in ("f1", "macro_f1"):
        average = "binary" if name == "f1" else "macro"
        # scikit-learn's annotation of zero_division knows its default, a string, only.
        return float(
            sklearn_metrics.f1_score(labels, predictions, average=average, zero_division=0.0)  # pyright: ignore[reportArgumentType]
        )
    correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
    with warnings.catch_warnings():  # nearly constant predictions: the value is rounding noise, not an error
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        statistic, _ = np.asarray(correlation(predictions, labels))  # and the p-value
    return float(statistic)
