"""Settings that a recipe has by method."""

import dataclasses

import pytest

from experiments.config.resolve import own_name, resolve
from experiments.config.settings import BY_METHOD, Settings, parse
from experiments.config.tuned import tuned
from experiments.presets import METHODS, PRESETS
from experiments.runs.method import make_objective
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.folder import load


def settings(*flags: str) -> Settings:
    return resolve(parse(["--task", "stsb", "--data-dir", "glue", *flags]))


def test_each_method_has_what_the_recipe_says_of_it():
    preset, asked = PRESETS["best"]["stsb"], settings("--method", "sparsebert,cofi")
    masks, gates, at_once = (tuned(name, asked) for name in ("sparsebert", "cofi", "prune-then-finetune"))
    assert masks == (preset.learning_rate, 0.0, "sensitivity", "attention=4")
    assert gates[:2] == (preset.other_learning_rate, None)  # None: the dropout of its own configuration
    assert at_once == (preset.other_learning_rate, None, "magnitude", "")  # no gradients have been gathered yet
    assert tuned("logits", asked) == (preset.learning_rate, 0.0, "sensitivity", "")


def test_a_method_that_would_learn_nothing_is_refused(tiny):
    start = load(tiny)
    for method, weights in (("logits", "logits=0"), ("hard-labels", "labels=0")):
        asked = settings("--method", method, "--loss-weights", weights)
        with pytest.raises(InputError, match=f"--loss-weights {weights}: nothing is left for --method {method}"):
            make_objective(method, asked, start, None)


def test_the_papers_recipe_has_its_own():
    for method in ("sparsebert", "hard-labels"):
        assert tuned(method, settings("--recipe", "paper")) == (3e-5, None, "magnitude", "")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dense"])
def test_what_is_given_counts_for_every_method(method):
    flags = ["--learning-rate", "0.1", "--dropout", "0.2", "--scores", "magnitude", "--loss-weights", "labels=2"]
    assert tuned(method, settings(*flags)) == (0.1, 0.2, "magnitude", "labels=2")


def test_what_is_pruned_before_training_is_ranked_by_magnitude_whatever_is_given():
    assert tuned("prune-then-finetune", settings("--scores", "sensitivity")).scores == "magnitude"


def test_only_what_is_given_is_in_the_settings():
    """So that a run's records tell what was asked for from what the recipe had."""
    assert [getattr(settings(), name) for name in BY_METHOD] == [None] * len(BY_METHOD)
    assert set(BY_METHOD) <= {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("trec6/train.tsv", "trec6"),
        ("trec6/Training.csv.gz", "trec6"),
        ("squad/train-v1.1.json.gz", "squad"),
        ("squad_v1.1/train_subset-v1.1.json", "squad_v1.1"),
        ("data/reviews.tsv", "reviews"),
        ("data/train_reviews.tsv", "train_reviews"),
        ("data/trains.tsv", "trains"),
    ],
)
def test_own_files_are_called_by_their_folder_where_their_name_only_says_train(file, name):
    assert own_name(file) == name
