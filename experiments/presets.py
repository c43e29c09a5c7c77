"""What a run of each task starts from when no flag says otherwise, by recipe.

"best" is ours. "paper" is that of SparseBERT's code (Xu et al., 2021, arXiv:2104.08682): a low, constant learning rate
over augmented rows, the sparsity reached with the last step. What neither paper nor code says of a task is filled in
from its like: small sets as MRPC, large ones as QNLI. Teachers are the same in both.
"""

import dataclasses
from typing import Literal, get_args

from kaprune_jax.prune.magnitude import Scores

Recipe = Literal["best", "paper"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
Schedule = Literal["constant", "linear"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of a task; each has a flag of the same name.

    Attributes:
      epochs: passes over the training rows while pruning, part of one allowed; of squad, over the windows of them.
      learning_rate: highest rate while pruning by masks and distilling.
      other_learning_rate: the same without a teacher, and with gates.
      teacher_epochs: passes while the teacher is fine-tuned.
      teacher_learning_rate: highest rate of the teacher.
      batch_size: rows per step.
      max_length: tokens of a row, special tokens included.
      schedule: of the learning rate while pruning.
      target_at: fraction of the run at which the sparsity is reached.
      scores: what the smallest of are removed.
      dropout: of a student that is distilled into by masks; None for what its configuration says.
      augment: tries per training row at a new one; None for none.
      epochs_over: the rows of an epoch: the task's "own", or "all", with the augmented ones.
      loss_weights: changes to those of sparsebert.
    """

    epochs: float
    learning_rate: float
    teacher_epochs: float
    teacher_learning_rate: float
    other_learning_rate: float = 5e-4
    batch_size: int = 32
    max_length: int = 128
    schedule: Schedule = "linear"
    target_at: float = 0.5
    scores: Scores = "sensitivity"
    dropout: float | None = None
    augment: int | None = None
    epochs_over: Literal["own", "all"] = "own"
    loss_weights: str = ""


def _paper(preset: Preset, epochs: float, augment: int | None) -> Preset:
    """A task as in SparseBERT's code, with TinyBERT's number of augmented rows (arXiv:1909.10351, section 4.2)."""
    return dataclasses.replace(
        preset,
        epochs=epochs,
        learning_rate=3e-5,
        other_learning_rate=3e-5,
        schedule="constant",
        target_at=1.0,
        scores="magnitude",
        dropout=None,
        loss_weights="",
        augment=augment,
        epochs_over="all",
    )


_BEST = {
    "micro-rte": Preset(100.0, 1e-3, 30.0, 5e-4, 1e-3, max_length=64, scores="magnitude"),
    "micro-nli": Preset(15.0, 1e-3, 12.0, 5e-4, 1e-3, max_length=64, scores="magnitude"),
    "micro-sst": Preset(60.0, 1e-3, 10.0, 5e-4, 1e-3, max_length=64, scores="magnitude"),
    "cola": Preset(10.0, 1e-3, 4.0, 1e-4),
    "mnli": Preset(4.0, 1e-3, 1.0, 1e-4),
    "mrpc": Preset(15.0, 1e-3, 5.0, 1e-4),
    "qnli": Preset(20.0, 1e-3, 4.0, 1e-4),
    "qqp": Preset(8.0, 1e-3, 3.0, 1e-4),
    "rte": Preset(20.0, 1e-3, 5.0, 1e-4),
    "sst2": Preset(2.1, 1e-3, 0.6, 1e-4),
    "stsb": Preset(10.0, 1e-3, 4.0, 2e-4, target_at=0.4, dropout=0.0, loss_weights="attention=4"),
    "wnli": Preset(20.0, 1e-3, 5.0, 1e-4),
    "squad": Preset(3.0, 1e-3, 2.0, 1e-4, batch_size=16, max_length=384),
}
_OWN_FILES = Preset(10.0, 1e-3, 4.0, 1e-4)
_FEW_COPIES = {"squad": None, "sst2": 20, "qnli": 20, "mnli": 10, "qqp": 10}

PRESETS: dict[Recipe, dict[str, Preset]] = {
    "best": _BEST,
    "paper": {
        name: _paper(preset, 5.0 if name in _FEW_COPIES else 12.0, _FEW_COPIES.get(name, 30))
        for name, preset in _BEST.items()
    },
}
OWN_FILES: dict[Recipe, Preset] = {"best": _OWN_FILES, "paper": _paper(_OWN_FILES, 12.0, 30)}

METHODS = ("sparsebert", "hard-labels", "logits", "prune-finetuned", "prune-then-finetune", "cofi", "dense")
MICRO_TASKS = tuple(name for name in _BEST if name.startswith("micro-"))
GIVEN_TASKS = tuple(name for name in _BEST if not name.startswith("micro-"))


def rank_of(method: str) -> int:
    """The place of a method among `METHODS`; what is none of them comes last."""
    return METHODS.index(method) if method in METHODS else len(METHODS)
