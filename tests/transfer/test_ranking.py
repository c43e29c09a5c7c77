import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import pearsonr
from sklearn.neighbors import NearestNeighbors

from kaprune_jax.transfer import ranking
from kaprune_jax.transfer.ranking import knn_score, leep, mask_overlap


def test_leep_is_the_mean_log_of_the_expected_empirical_predictor(rng):
    theta, labels = softmax(rng.normal(size=(40, 5)), axis=1), rng.choice([2, 5, -1], size=40)
    total = 0.0
    for row in range(40):
        chance = 0.0
        for z in range(5):
            same = sum(theta[i, z] for i in range(40) if labels[i] == labels[row])
            chance += same / theta[:, z].sum() * theta[row, z]
        total += np.log(chance)
    assert leep(theta, labels) == pytest.approx(total / 40, rel=1e-10)


def test_leep_of_a_source_that_says_nothing_is_minus_the_entropy(rng):
    labels = np.array([0, 0, 0, 1])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    constant = np.tile(np.array([[0.2, 0.8, 0.0]], np.float32), (4, 1))  # a class that never occurs does no harm
    assert leep(constant, labels) == pytest.approx(-entropy, rel=1e-6)


def test_leep_prefers_the_source_that_knows_and_ignores_names_of_classes(rng):
    labels = rng.integers(0, 3, size=200)
    logits = rng.normal(size=(200, 4))
    informed = softmax(logits + 3.0 * np.eye(4)[labels], axis=1)
    assert leep(softmax(logits, axis=1), labels) < leep(informed, labels) <= 0.0
    assert leep(informed[:, [2, 0, 3, 1]], 10 - labels) == pytest.approx(leep(informed, labels), rel=1e-10)


@pytest.mark.parametrize(
    ("theta", "labels", "message"),
    [
        (np.ones((0, 2)), np.ones(0, int), "empty"),
        (np.full((3, 2), 0.5), np.ones(2, int), r"target_labels: shape \(2,\) for 3 rows"),
        (np.full((3, 2), 0.5), np.ones(3), "dtype float64"),
        (np.array([[0.5, 0.5], [0.9, 0.9]]), np.ones(2, int), "row 1 is negative somewhere or does not sum to 1"),
        (np.array([[1.5, -0.5]]), np.ones(1, int), "row 0"),
        (np.array([[np.nan, 0.5]]), np.ones(1, int), "not finite"),
    ],
)
def test_leep_refuses_bad_input(theta, labels, message):
    with pytest.raises(ValueError, match=message):
        leep(theta, labels)


def nearest(features, neighbours):
    """Other rows by cosine distance, as scikit-learn finds them."""
    model = NearestNeighbors(n_neighbors=neighbours, metric="cosine", algorithm="brute").fit(features)
    return model.kneighbors(return_distance=False)


@pytest.mark.parametrize("chunk", [1, 700, 10**7])
@pytest.mark.parametrize("neighbours", [1, 4, 59])
def test_knn_accuracy_agrees_with_scikit_learn(chunk, neighbours, rng, monkeypatch):
    monkeypatch.setattr(ranking, "_CHUNK_VALUES", chunk)
    labels = rng.choice([1, 4, 9], size=60)
    features = rng.normal(size=(60, 8)) + labels[:, None] / 4
    found = labels[nearest(features, neighbours)]
    wanted = np.mean([np.bincount(row).argmax() == label for row, label in zip(found, labels, strict=True)])
    assert knn_score(features, labels, neighbours=neighbours) == pytest.approx(wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_knn_correlation_agrees_with_scikit_learn(dtype, rng):
    features = rng.normal(size=(60, 8))
    labels = (features[:, 0] + 0.1 * rng.normal(size=60)).astype(dtype)
    wanted = pearsonr(labels[nearest(features, 5)].mean(axis=1), labels)[0]
    assert knn_score(features, labels) == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.3


def test_the_length_of_a_row_does_not_matter(rng):
    features, labels = rng.normal(size=(50, 6)), rng.integers(0, 2, size=50)
    lengths = 10.0 ** rng.uniform(-200, 200, size=(50, 1))
    assert knn_score(lengths * features, labels) == knn_score(features, labels)


def test_ties_go_to_the_first_rows_and_the_smallest_class():
    # Of four copies row 0 sees rows 1 and 2, row 1 sees 0 and 2, the others 0 and 1.
    copies = np.array([[1.0, 2.0, 3.0]] * 4)
    assert knn_score(copies, np.array([7, 7, 3, 3]), neighbours=2) == 0.0  # 3, 3, 7, 7 predicted
    assert knn_score(copies, np.array([3, 3, 7, 7]), neighbours=2) == 0.5
    assert knn_score(np.zeros((3, 2)), np.array([0, 1, 0]), neighbours=1) == 1 / 3  # zero rows are like to none


def test_constant_scores_and_constant_predictions_give_zero(rng):
    features = rng.normal(size=(20, 3))
    assert knn_score(features, np.full(20, 0.1)) == 0.0
    assert knn_score(np.eye(3), np.array([1.0, 1.0, 1.0]), neighbours=2) == 0.0
    pairs = np.repeat(np.eye(2), 2, axis=0)
    assert knn_score(pairs, np.array([1.0, 1.0, 2.0, 2.0]), neighbours=1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("features", "labels", "neighbours", "message"),
    [
        (np.ones((0, 2)), np.ones(0), 1, "empty"),
        (np.ones((3, 0)), np.ones(3), 1, "empty"),
        (np.ones((3, 2)), np.ones(4), 1, r"labels: shape \(4,\) for 3 rows"),
        (np.ones((3, 2)), np.ones(3), 3, "neighbours=3 of 3 rows"),
        (np.ones((3, 2)), np.ones(3), 0, "neighbours=0"),
        (np.ones((3, 2)), np.array(["a", "b", "c"]), 1, "dtype <U1"),
        (np.ones((3, 2)), np.ones(3, bool), 1, "dtype bool"),
        (np.ones((3, 2)), np.array([1.0, np.nan, 2.0]), 1, "labels: not finite"),
        (np.array([[np.inf], [1.0], [1.0]]), np.ones(3), 1, "features: not finite"),
    ],
)
def test_knn_refuses_bad_input(features, labels, neighbours, message):
    with pytest.raises(ValueError, match=message):
        knn_score(features, labels, neighbours=neighbours)


def test_overlap_is_kept_in_both_over_kept_in_either():
    first = {"heads": np.array([[True, True], [False, True]]), "ffn": {"up": np.array([True, False]), "down": None}}
    second = {"heads": np.array([[True, False], [True, True]]), "ffn": {"up": np.array([False, True]), "down": None}}
    assert mask_overlap(first, second) == {"ffn/up": 0.0, "heads": 0.5, "mean": 0.25}
    assert mask_overlap(first, second) == mask_overlap(second, first)
    assert set(mask_overlap(first, first).values()) == {1.0}


def test_nothing_kept_in_either_overlaps_fully():
    nothing, something = {"a": np.zeros(3, bool)}, {"a": np.array([True, False, False])}
    assert mask_overlap(nothing, nothing)["a"] == 1.0
    assert mask_overlap(nothing, something)["a"] == 0.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {}, "no masks"),
        ({"a": np.ones(2, bool)}, {"b": np.ones(2, bool)}, r"a has shape \(2,\) and none"),
        ({"a": np.ones(2, bool)}, {"a": np.ones(3, bool)}, r"a has shape \(2,\) and \(3,\)"),
        ({"a": np.ones(2)}, {"a": np.ones(2, bool)}, "a: dtypes float64 and bool"),
        ({"mean": np.ones(2, bool)}, {"mean": np.ones(2, bool)}, "named 'mean'"),
    ],
)
def test_overlap_refuses_bad_input(first, second, message):
    with pytest.raises(ValueError, match=message):
        mask_overlap(first, second)
