"""Scores that rank source tasks and models before anything is trained.

LEEP (Nguyen et al., 2020, arXiv:2002.12462) asks how well a source model's own classes predict the target's labels;
nearest neighbours on frozen features (arXiv:2009.13239) ask whether rows with like labels lie together. A candidate
"no source" belongs in every ranking.
"""

import numpy as np
from jaxtyping import Float, Shaped

from kaprune_jax._typing import Masks
from kaprune_jax.transfer.voting import first_difference, named_leaves, named_shapes

_CHUNK_VALUES = 4_000_000
"""Similarities held at once: 32 MB in float64."""


def leep(source_probabilities: Float[np.ndarray, "rows classes"], target_labels: Shaped[np.ndarray, "..."]) -> float:
    """Mean over rows of log Σ_z P(y | z) θ(x)_z, with P(y | z) from the mean θ over the rows of each label.

    Args:
      source_probabilities: θ, the source model's class probabilities on the target's rows; rows sum to 1.
      target_labels: the target's class ids, any integers.

    Returns:
      the score, at most 0; nearer 0 is better. A source that is the same for all rows gives minus the entropy of the
      labels.

    Raises:
      ValueError: no rows, another number of labels, labels that are not integers, or rows that are not probabilities.

    References:
      Nguyen, Hassner, Seeger, Archambeau, 2020, arXiv:2002.12462.

    Example:
      >>> leep(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([3, 7]))
      0.0
    """
    _check_rows("source_probabilities", source_probabilities, "target_labels", target_labels)
    if not np.issubdtype(target_labels.dtype, np.integer):
        raise ValueError(f"target_labels: dtype {target_labels.dtype}; integer class ids are needed")
    theta = source_probabilities.astype(np.float64)
    # Wide enough for rows that were rounded to 16 bits.
    wrong = (theta < 0).any(axis=1) | (np.abs(theta.sum(axis=1) - 1.0) > 0.01)
    if wrong.any():
        raise ValueError(f"source_probabilities: row {wrong.argmax()} is negative somewhere or does not sum to 1")
    classes, labels = np.unique(target_labels, return_inverse=True)
    joint = np.stack([theta[labels == index].sum(axis=0) for index in range(len(classes))])
    seen = joint.sum(axis=0, keepdims=True)
    given = joint / np.where(seen > 0.0, seen, 1.0)
    return float(np.log((given[labels] * theta).sum(axis=1)).mean())


def knn_score(
    features: Float[np.ndarray, "rows dim"], labels: Shaped[np.ndarray, "..."], *, neighbours: int = 5
) -> float:
    """How well each row's nearest other rows, by cosine similarity, predict its label.

    Cosine rather than Euclidean distance: it needs no standardising and ignores the length of a row; a zero row has
    similarity 0 to all. Rows at equal similarity are taken in order (similarities are rounded to 1e-9, so that
    copies of a row do tie), and of classes with equally many votes the smallest id wins. Memory: a few blocks of
    rows, never rows x rows.

    Args:
      features: frozen features, a row for each example.
      labels: class ids (integers) or scores (floats).
      neighbours: rows that vote, in [1, rows - 1].

    Returns:
      for class ids the leave-one-out accuracy, in [0, 1]; for scores the Pearson correlation of labels and
      leave-one-out means, in [-1, 1], and 0 where either is constant.

    Raises:
      ValueError: no rows, another number of labels, a number of neighbours out of range, values that are not finite,
        or labels that are neither integers nor floats.

    References:
      Puigcerver et al., 2020, arXiv:2009.13239.

    Example:
      >>> features = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
      >>> knn_score(features, np.array([0, 0, 1, 1]), neighbours=1)
      1.0
    """
    _check_rows("features", features, "labels", labels)
    rows = len(features)
    if not 1 <= neighbours < rows:
        raise ValueError(f"neighbours={neighbours} of {rows} rows; at least 1 and fewer than the rows are needed")
    if np.issubdtype(labels.dtype, np.integer):
        classes, ids = np.unique(labels, return_inverse=True)
        votes = np.eye(len(classes))[ids]
        return float((_sums_of_nearest(features, votes, neighbours).argmax(axis=1) == ids).mean())
    if not np.issubdtype(labels.dtype, np.floating):
        raise ValueError(f"labels: dtype {labels.dtype}; integer class ids or floating-point scores are needed")
    if not np.isfinite(labels).all():
        raise ValueError("labels: not finite somewhere; finite numbers are needed")
    scores = labels.astype(np.float64)
    means = _sums_of_nearest(features, scores[:, None], neighbours)[:, 0] / neighbours
    spread = 1e-12 * np.abs(scores).max()  # the means of one repeated value differ by rounding
    if np.ptp(scores) <= spread or np.ptp(means) <= spread:
        return 0.0
    return float(np.corrcoef(means, scores)[0, 1])


def mask_overlap(first: Masks, second: Masks) -> dict[str, float]:
    """Jaccard index of what two masks keep: kept in both / kept in either.

    Args:
      first: a tree {name: boolean array}, True where kept.
      second: another of the same names and shapes.

    Returns:
      name (the path in a nested tree) to index in [0, 1], 1 where neither keeps anything, and under "mean" the mean
      over the names.

    Raises:
      ValueError: no masks, names or shapes that differ, values that are not boolean, or a mask named "mean".

    Example:
      >>> mask_overlap({"head": np.array([True, True, False])}, {"head": np.array([True, False, False])})
      {'head': 0.5, 'mean': 0.5}
    """
    ones, others = named_leaves(first), named_leaves(second)
    if difference := first_difference(named_shapes(first), named_shapes(second)):
        raise ValueError(f"first and second differ: {difference}")
    if not ones:
        raise ValueError("first: no masks; at least one is needed")
    if "mean" in ones:
        raise ValueError("first: a mask is named 'mean', which is the name of the mean in the result")
    overlap = {}
    for name in ones:
        one, other = np.asarray(ones[name]), np.asarray(others[name])
        if one.dtype != bool or other.dtype != bool:
            raise ValueError(f"{name}: dtypes {one.dtype} and {other.dtype}; masks must be boolean")
        either = int(np.count_nonzero(one | other))
        overlap[name] = int(np.count_nonzero(one & other)) / either if either else 1.0
    return overlap | {"mean": sum(overlap.values()) / len(overlap)}


def _check_rows(name: str, values: np.ndarray, labels_name: str, labels: np.ndarray) -> None:
    if values.size == 0:
        raise ValueError(f"{name}: shape {values.shape} is empty; at least one row and one column are needed")
    if labels.shape != values.shape[:1]:
        raise ValueError(
            f"{labels_name}: shape {labels.shape} for {len(values)} rows of {name}; one for each is needed"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: not finite somewhere; finite numbers are needed")


def _sums_of_nearest(
    features: Float[np.ndarray, "rows dim"], values: Float[np.ndarray, "rows columns"], neighbours: int
) -> Float[np.ndarray, "rows columns"]:
    """For each row the sum of `values` over its nearest other rows."""
    rows = len(features)
    # By the largest value first, so that no square vanishes or overflows.
    largest = np.abs(features).max(axis=1, keepdims=True).astype(np.float64)
    unit = features / np.where(largest > 0.0, largest, 1.0)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / np.where(length > 0.0, length, 1.0)
    sums = np.empty(values.shape)
    step = max(1, _CHUNK_VALUES // rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        near = np.round(unit[start:stop] @ unit.T, 9)
        near[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        bound = np.partition(near, rows - neighbours, axis=1)[:, rows - neighbours, None]
        above, equal = near > bound, near == bound
        room = neighbours - above.sum(axis=1, keepdims=True)
        chosen = above | (equal & (np.cumsum(equal, axis=1) <= room))
        sums[start:stop] = chosen.astype(np.float64) @ values
    return sums
