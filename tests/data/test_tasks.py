"""The specifications of the nine GLUE tasks."""

import dataclasses

import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.data.metrics import METRICS
from kaprune_jax.data.tasks import GLUE_TASKS, glue_task

ORDER = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qnli": ("entailment", "not_entailment"),
    "qqp": ("not_duplicate", "duplicate"),
    "rte": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
    "stsb": (),
    "wnli": ("not_entailment", "entailment"),
}


def test_label_order_is_glues():
    assert {name: task.labels for name, task in GLUE_TASKS.items()} == ORDER


@pytest.mark.parametrize("name", ORDER)
def test_specifications_are_consistent(name):
    task = glue_task(name)
    assert task.name == name
    assert set(task.metrics) <= set(METRICS)
    assert len(task.text) == len(task.remote_text)
    assert len(task.written) in (0, len(task.labels))
    assert task.header is None or {*task.text, task.label} <= set(task.header)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_task():
    with pytest.raises(InputError, match=r"task 'RTE' is not one of GLUE's: cola, mnli, .*wnli"):
        glue_task("RTE")
