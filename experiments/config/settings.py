"""The flags of the main job: what each means, its default and unit, and what is allowed."""

import dataclasses
from typing import ClassVar, TypeVar, get_args

from experiments.config.flags import flag as _flag
from experiments.config.flags import parse as parse_flags
from experiments.presets import GIVEN_TASKS, METHODS, MICRO_TASKS, RECIPES, Recipe, Schedule
from kaprune_jax.data.rows import METRICS
from kaprune_jax.models.layout import GATES
from kaprune_jax.models.products import DTYPES
from kaprune_jax.prune.magnitude import SCORES, Scores
from kaprune_jax.prune.schedules import Rise

S = TypeVar("S", bound="Settings")

TEACHER = (
    "task data_dir source train_file dev_file text label metric model batch_size teacher_steps teacher_epochs "
    "teacher_learning_rate teacher_schedule warmup weight_decay max_length stride lengths length_multiple hold_out "
    "limit_train seed dtype pooling evaluations accumulate"
).split()
"""The settings that a run's teacher follows from."""
BY_METHOD = ("learning_rate", "dropout", "scores", "loss_weights")
"""The settings that a recipe has by method; None unless they are given. See `experiments.config.tuned`."""
AROUND = "log_every checkpoint_minutes out resume mesh distributed remat".split()
"""The settings that say where and how a run is made, not what comes of it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a run. None where the default depends on others; `resolve` fills those in."""

    MODULE: ClassVar[str] = "experiments.glue"
    SPARSITY: ClassVar[float] = 0.95  # unless a flag or the pattern says another

    task: str = _flag(f"{', '.join(GIVEN_TASKS)}; built in: {', '.join(MICRO_TASKS)}", "micro-rte")
    data_dir: str | None = _flag(
        "folder in GLUE's download layout (RTE/train.tsv, plain or .gz); for squad with train-v1.1.json, dev-v1.1.json",
        None,
    )
    source: str = _flag("where the task comes from without --data-dir", "folder", choices=("folder", "hub", "tfds"))
    train_file: str | None = _flag(
        "own training rows: CSV, TSV or JSONL; or questions: JSON in SQuAD's layout; plain or .gz", None
    )
    dev_file: str | None = _flag("own evaluation rows; not needed with --hold-out", None)
    text: str = _flag("text column of own files, or two, separated by a comma", "sentence")
    label: str = _flag("label column of own files", "label")
    metric: str | None = _flag(
        "the score that counts; f1 is that of the second of two classes [the task's; accuracy or pearson for own "
        "files]",
        None,
        choices=METRICS,
    )
    model: str = _flag(
        "pre-trained start: a Hugging Face folder, a model folder, a hub name, or mini (bundled)", "mini"
    )
    recipe: Recipe = _flag(
        "defaults of the flags that say so: best (ours) or paper (SparseBERT's code)", "best", choices=RECIPES
    )
    teacher: str | None = _flag("run or model folder to distil from [fine-tuned first]", None)
    method: str | None = _flag(
        f"one of {', '.join(METHODS)}; or several, comma-separated [sparsebert,hard-labels for built-in tasks, "
        "else sparsebert]",
        None,
    )
    sparsity: float | None = _flag(
        "fraction of encoder-matrix weights removed, in [0, 1) [0.95; 1 - N/M for N:M]", None
    )
    pattern: str = _flag("element, block-RxC (R inputs by C outputs), block-RxC-balanced or N:M", "element")
    scope: str = _flag("rank weights within each matrix, or over all", "matrix", choices=("matrix", "global"))
    scores: Scores | None = _flag(
        "the smallest of which are removed: magnitude (of weights) or sensitivity (of the loss) [by task and recipe]",
        None,
        choices=SCORES,
    )
    student: str = _flag(
        "what is pruned while distilling: the pre-trained encoder or the teacher",
        "pretrained",
        choices=("pretrained", "teacher"),
    )
    target_at: float | None = _flag("fraction of the run at which the sparsity is reached, in (0, 1] [by recipe]", None)
    sparsity_schedule: Rise = _flag("how the sparsity rises until then", "cubic", choices=get_args(Rise))
    updates: int = _flag("mask updates until then, a number >= 1", 100)
    epochs: float | None = _flag("passes over the training rows while pruning, > 0 [by task and recipe]", None)
    epochs_over: str | None = _flag(
        "the rows of an epoch: the task's own, or all, with augmented ones [by recipe]", None, choices=("own", "all")
    )
    steps: int | None = _flag("optimizer steps while pruning, >= 1 [from --epochs]", None)
    teacher_steps: int | None = _flag("optimizer steps while fine-tuning the teacher, >= 1 [from its epochs]", None)
    learning_rate: float | None = _flag("highest learning rate while pruning, > 0 [by task, recipe and method]", None)
    schedule: Schedule | None = _flag(
        "of the learning rate while pruning, after the warm-up [by recipe]", None, choices=get_args(Schedule)
    )
    warmup: float = _flag("fraction of the steps with a rising learning rate, in [0, 1)", 0.0)
    dropout: float | None = _flag(
        "of the student while pruning, in [0, 1) [by task, recipe and method; mostly the model's own]", None
    )
    weight_decay: float = _flag("decoupled weight decay, >= 0", 0.01)
    batch_size: int | None = _flag("rows per step, >= 1 [by task]", None)
    teacher_epochs: float | None = _flag("passes while fine-tuning the teacher, > 0 [by task]", None)
    teacher_learning_rate: float | None = _flag("highest learning rate of the teacher, > 0 [by task]", None)
    teacher_schedule: Schedule = _flag("of the teacher's learning rate", "linear", choices=get_args(Schedule))
    loss_weights: str | None = _flag(
        "changes to the method's loss weights, such as hidden=0.5,labels=1; names: embeddings, hidden, attention, "
        "logits, labels [for sparsebert by task and recipe]",
        None,
    )
    temperature: float | None = _flag("divides the logits of student and teacher, > 0 [1; 2 for cofi]", None)
    layer_map: str | None = _flag(
        "teacher layers learned from, where it has more; with cofi which student layer learns from each quarter of the "
        "teacher: fixed, nearest or nearest-ordered [uniform; nearest-ordered for cofi]",
        None,
        choices=("uniform", "first", "last", "fixed", "nearest", "nearest-ordered"),
    )
    projection: bool = _flag("learn a linear map from student to teacher states (always, where widths differ)", False)
    gates: str = _flag(f"cofi: what may be removed, of {', '.join(GATES)}", ",".join(GATES))
    before: float = _flag("cofi: fraction of the run with all gates open, in [0, 1)", 0.05)
    after: float = _flag("cofi: fraction of the run in which the smaller model is fine-tuned, in [0, 1)", 0.3)
    gate_learning_rate: float | None = _flag(
        "cofi: of log alpha, > 0 [60 / steps with gates, within 0.01 and 0.3]", None
    )
    gate_start: float = _flag("cofi: probability that a gate is open at the start, in (0, 1)", 0.998)
    dual_learning_rate: float | None = _flag(
        "cofi: of the multipliers of the sparsity constraint, > 0 [300 / steps with gates; 0.01 for signed]", None
    )
    penalty: str = _flag(
        "cofi: of the sparsity constraint: signed (CoFi's) or augmented (acts at once)",
        "augmented",
        choices=("signed", "augmented"),
    )
    stiffness: float = _flag("cofi: of the augmented penalty, > 0", 500.0)
    prune_vocabulary: bool = _flag("cofi: deliver only the tokens that training or dev rows use", False)
    train_embeddings: bool = _flag("cofi: train the embeddings too", False)
    regression_target: str | None = _flag(
        "what a regression student learns: the task's scores or the teacher's [gold; teacher for logits and cofi]",
        None,
        choices=("gold", "teacher"),
    )
    max_length: int | None = _flag(
        "tokens of a row, longer ones are truncated and counted, long passages cut into windows; >= 8 [by task]", None
    )
    stride: int | None = _flag(
        "questions: tokens that two windows of a long passage share, >= 0 [128, or max-length / 3 where that is less]",
        None,
    )
    lengths: int | None = _flag(
        "different lengths of batches, also of dev rows; each is compiled, >= 1 [4; 2 where coupled]", None
    )
    length_multiple: int | None = _flag("what those lengths are multiples of, >= 1 [8; 16 where coupled]", None)
    limit_train: int | None = _flag("use so many training rows, drawn by the seed [all]", None)
    hold_out: int | None = _flag(
        "evaluate on so many training rows, held back, instead of the dev rows, for choosing settings, >= 1 [none]",
        None,
    )
    augment: int | None = _flag(
        "tries per training row at a new one, words replaced by others, labels by the teacher, >= 1 [by task and "
        "recipe, mostly none]",
        None,
    )
    no_augment: bool = _flag("train on the task's own rows alone, whatever the recipe says", False)
    augment_file: str | None = _flag("where those rows are kept, or taken from [in the run folder]", None)
    seed: int = _flag("of order, dropout, new parameters and drawn rows, >= 0", 0)
    dtype: str = _flag(
        "of activations and products; mixed: float32 activations, products of bfloat16; parameters stay float32",
        "float32",
        choices=DTYPES,
    )
    mesh: str | None = _flag(
        "devices, AXIS=N comma-separated: data (rows), fsdp (rows and parameters), model (matrices) [all accelerators "
        "on data]",
        None,
    )
    distributed: str | None = _flag(
        "one of several processes: auto (TPU pods, Slurm, Open MPI, Kubernetes), or HOST:PORT,COUNT,INDEX with process "
        "0's address [one process]",
        None,
    )
    accumulate: int = _flag("parts of a batch worked on one after the other, for less memory, >= 1", 1)
    remat: bool = _flag("compute each layer again in the backward pass, for less memory", False)
    pooling: str = _flag("auto: what the checkpoint was made for", "auto", choices=("auto", "cls", "mean"))
    evaluations: int = _flag("evaluations during each phase, >= 1", 10)
    log_every: int = _flag("steps between lines of progress, >= 1", 50)
    checkpoint_minutes: float = _flag(
        "after which a checkpoint is written with the next line of progress though no evaluation is due, > 0", 10.0
    )
    out: str | None = _flag("run folder, must not hold another run [runs/TASK-METHOD-SPARSITY-sSEED]", None)
    resume: bool = _flag("go on with the run in --out where it stopped", False)
    study: str | None = _flag("run a grid from a JSON file", None)
    cell: str | None = _flag("only slice I/N of the grid, I from 1", None)
    allow_weak_teacher: bool = _flag("go on with a teacher no better than the majority class", False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to run, in order."""
        return tuple((self.method or "").split(","))


def teacher_settings(settings: Settings) -> Settings:
    """The settings of a run's teacher: those of pruning at their defaults, so that they may change on --resume."""
    return dataclasses.replace(
        Settings(), method="dense", **{name: getattr(settings, name) for name in (*TEACHER, *AROUND)}
    )


def parse(arguments: list[str] | None = None) -> Settings:
    """Reads the flags of the main job.

    Raises:
      InputError: an unknown flag, or a value that is not allowed.
    """
    return parse_flags(
        Settings,
        arguments,
        prog="python -m experiments.glue",
        description="Prune a pre-trained text encoder while distilling from its fine-tuned teacher. Without flags: the "
        "built-in offline example.",
    )
