"""What a run of each task starts from when no flag says otherwise."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of a task; each has a flag of the same name.

    Attributes:
      epochs: passes over the training rows while pruning, part of one allowed; of squad, over the windows of them.
      learning_rate: highest rate while pruning.
      teacher_epochs: passes while the teacher is fine-tuned.
      teacher_learning_rate: highest rate of the teacher.
      batch_size: rows per step.
      max_length: tokens of a row, special tokens included.
    """

    epochs: float
    learning_rate: float
    teacher_epochs: float
    teacher_learning_rate: float
    batch_size: int = 32
    max_length: int = 128


PRESETS = {
    "micro-rte": Preset(100.0, 1e-3, 30.0, 5e-4, max_length=64),
    "micro-nli": Preset(15.0, 1e-3, 12.0, 5e-4, max_length=64),
    "micro-sst": Preset(60.0, 1e-3, 10.0, 5e-4, max_length=64),
    "cola": Preset(10.0, 5e-4, 4.0, 1e-4),
    "mnli": Preset(4.0, 5e-4, 1.0, 1e-4),
    "mrpc": Preset(15.0, 5e-4, 5.0, 1e-4),
    "qnli": Preset(20.0, 5e-4, 4.0, 1e-4),
    "qqp": Preset(8.0, 5e-4, 3.0, 1e-4),
    "rte": Preset(20.0, 5e-4, 5.0, 1e-4),
    "sst2": Preset(2.1, 5e-4, 0.6, 1e-4),
    "stsb": Preset(10.0, 5e-4, 4.0, 2e-4),
    "wnli": Preset(20.0, 5e-4, 5.0, 1e-4),
    "squad": Preset(3.0, 5e-4, 2.0, 1e-4, batch_size=16, max_length=384),
}
OWN_FILES = Preset(10.0, 5e-4, 4.0, 1e-4)

MICRO_TASKS = tuple(name for name in PRESETS if name.startswith("micro-"))
GIVEN_TASKS = tuple(name for name in PRESETS if not name.startswith("micro-"))
