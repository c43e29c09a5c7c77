"""Scores that papers report at high sparsity, to be drawn beside one's own. All are of BERT-base on GLUE's dev sets."""

from typing import NamedTuple


class Published(NamedTuple):
    """A score from a paper.

    Attributes:
      paper: short name.
      task: short name.
      metric: as in `result.json`.
      sparsity: fraction of the encoder's matrices removed.
      score: as a fraction.
      dense: that of the whole model in the same paper; None where it is not given here.
    """

    paper: str
    task: str
    metric: str
    sparsity: float
    score: float
    dense: float | None = None


PUBLISHED = (
    # Xu et al., 2021, arXiv:2104.08682: 5 % of the weights, scattered.
    Published("SparseBERT", "qnli", "accuracy", 0.95, 0.906, 0.918),
    Published("SparseBERT", "mrpc", "f1", 0.95, 0.885, 0.886),
    Published("SparseBERT", "rte", "accuracy", 0.95, 0.691, 0.693),
    Published("SparseBERT", "cola", "matthews_correlation", 0.95, 0.521, 0.563),
    # Xia et al., 2022, arXiv:2204.00408: whole structures.
    Published("CoFi", "mnli", "accuracy", 0.602, 0.853),
    Published("CoFi", "mnli", "accuracy", 0.943, 0.806),
    Published("CoFi", "qnli", "accuracy", 0.945, 0.861),
    Published("CoFi", "sst2", "accuracy", 0.945, 0.904),
    Published("CoFi", "rte", "accuracy", 0.962, 0.661),
    Published("CoFi", "cola", "matthews_correlation", 0.951, 0.389),
    Published("CoFi", "squad", "f1", 0.924, 0.826),
)


def published(task: str, metric: str) -> list[Published]:
    """What papers report of a task, by that metric."""
    return [each for each in PUBLISHED if (each.task, each.metric) == (task, metric)]
