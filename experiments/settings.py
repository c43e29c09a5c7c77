"""The flags of the main job: what each means, its default and unit, and what is allowed."""

import dataclasses
import math
import os
from pathlib import Path
from typing import ClassVar, TypeVar

from experiments.flags import flag as _flag
from experiments.flags import parse as parse_flags
from experiments.presets import GIVEN_TASKS, MICRO_TASKS, OWN_FILES, PRESETS
from kaprune_jax._errors import InputError
from kaprune_jax.data.squad import is_squad_file
from kaprune_jax.models.layout import GATES
from kaprune_jax.prune.patterns import parse_pattern

S = TypeVar("S", bound="Settings")

LENGTHS = {"lengths": 4, "length_multiple": 8}

METHODS = ("sparsebert", "hard-labels", "logits", "prune-finetuned", "prune-then-finetune", "cofi", "dense")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a run. None where the default depends on others; `resolve` fills those in."""

    MODULE: ClassVar[str] = "experiments.glue"

    task: str = _flag(f"{', '.join(GIVEN_TASKS)}; built in: {', '.join(MICRO_TASKS)}", "micro-rte")
    data_dir: str | None = _flag(
        "folder in GLUE's download layout (RTE/train.tsv, plain or .gz); for squad with train-v1.1.json, dev-v1.1.json",
        None,
    )
    source: str = _flag("where the task comes from without --data-dir", "folder", choices=("folder", "hub", "tfds"))
    train_file: str | None = _flag(
        "own training rows: CSV, TSV or JSONL; or questions: JSON in SQuAD's layout; plain or .gz", None
    )
    dev_file: str | None = _flag("own evaluation rows", None)
    text: str = _flag("text column of own files, or two, separated by a comma", "sentence")
    label: str = _flag("label column of own files", "label")
    model: str = _flag(
        "pre-trained start: a Hugging Face folder, a model folder, a hub name, or mini (bundled)", "mini"
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
    target_at: float = _flag("fraction of the run at which the sparsity is reached, in (0, 1]", 0.5)
    sparsity_schedule: str = _flag(
        "how the sparsity rises until then", "cubic", choices=("cubic", "linear", "one-shot")
    )
    updates: int = _flag("mask updates until then, a number >= 1", 100)
    epochs: float | None = _flag("passes over the training rows while pruning, > 0 [by task]", None)
    steps: int | None = _flag("optimizer steps while pruning, >= 1 [from --epochs]", None)
    teacher_steps: int | None = _flag("optimizer steps while fine-tuning the teacher, >= 1 [from its epochs]", None)
    learning_rate: float | None = _flag("highest learning rate while pruning, > 0 [by task]", None)
    schedule: str = _flag("of the learning rate", "linear", choices=("constant", "linear"))
    warmup: float = _flag("fraction of the steps with a rising learning rate, in [0, 1)", 0.0)
    weight_decay: float = _flag("decoupled weight decay, >= 0", 0.01)
    batch_size: int | None = _flag("rows per step, >= 1 [by task]", None)
    teacher_epochs: float | None = _flag("passes while fine-tuning the teacher, > 0 [by task]", None)
    teacher_learning_rate: float | None = _flag("highest learning rate of the teacher, > 0 [by task]", None)
    loss_weights: str = _flag(
        "changes to the method's loss weights, such as hidden=0.5,labels=1; names: embeddings, hidden, attention, "
        "logits, labels",
        "",
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
        "different lengths of batches, each of which is compiled, >= 1 [4; 2 where coupled]", None
    )
    length_multiple: int | None = _flag("what those lengths are multiples of, >= 1 [8; 16 where coupled]", None)
    limit_train: int | None = _flag("use so many training rows, drawn by the seed [all]", None)
    augment: int | None = _flag(
        "tries per training row at a new one, words replaced by others, labels by the teacher, >= 1 [none]", None
    )
    augment_file: str | None = _flag("where those rows are kept, or taken from [in the run folder]", None)
    seed: int = _flag("of order, dropout, new parameters and drawn rows, >= 0", 0)
    dtype: str = _flag("of activations; parameters stay float32", "float32", choices=("float32", "bfloat16"))
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
    out: str | None = _flag("run folder, must not hold another run [runs/TASK-METHOD-SPARSITY-sSEED]", None)
    resume: bool = _flag("go on with the run in --out where it stopped", False)
    allow_weak_teacher: bool = _flag("go on with a teacher no better than the majority class", False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to run, in order."""
        return tuple((self.method or "").split(","))


def resolve(settings: S) -> S:
    """The settings with every default filled in, checked.

    Raises:
      InputError: a value that is not allowed, naming flag, value and what is.
    """
    own = settings.train_file is not None or settings.dev_file is not None
    if own and (settings.train_file is None or settings.dev_file is None):
        raise InputError("--train-file and --dev-file go together; only one of them is given")
    if not own and settings.task not in PRESETS:
        raise InputError(f"--task {settings.task!r} is unknown; allowed: {', '.join(PRESETS)}")
    micro = settings.task in MICRO_TASKS and not own
    questions = asks_questions(settings)
    if not own and not micro and settings.data_dir is None and settings.source == "folder":
        layout = "train-v1.1.json, dev-v1.1.json" if questions else "GLUE's layout"
        raise InputError(f"--task {settings.task} needs --data-dir FOLDER ({layout}), --source hub or --source tfds")
    if own and settings.task != Settings.task:
        raise InputError(f"--task {settings.task} and --train-file: give one of them")
    if settings.data_dir is not None and (micro or own):
        raise InputError(
            f"--data-dir {settings.data_dir}: only for GLUE tasks and squad, named by --task; this run needs no folder"
        )
    if settings.data_dir is not None and settings.source != "folder":
        raise InputError(f"--data-dir {settings.data_dir} and --source {settings.source}: give one of them")
    preset = PRESETS["squad"] if questions else OWN_FILES if own else PRESETS[settings.task]
    settings = with_lengths(settings, LENGTHS)
    filled = {name: value for name, value in dataclasses.asdict(preset).items() if getattr(settings, name) is None}
    if settings.method is None:
        filled["method"] = "sparsebert,hard-labels" if micro else "sparsebert"
    filled["task"] = own_name(settings.train_file or "") if own else settings.task
    try:
        pattern = parse_pattern(settings.pattern)
    except ValueError as error:
        raise InputError(f"--pattern: {error}") from None
    if settings.sparsity is None:
        filled["sparsity"] = 0.95 if pattern.sparsity is None else pattern.sparsity
    elif pattern.sparsity is not None and abs(settings.sparsity - pattern.sparsity) > 1e-9:
        raise InputError(
            f"--sparsity {settings.sparsity} does not go with --pattern {settings.pattern}, which removes exactly "
            f"{pattern.sparsity}; leave --sparsity out"
        )
    resolved = dataclasses.replace(settings, **filled)
    _check(resolved)
    _check_questions(resolved)
    if (pattern.kind == "n:m" or pattern.balanced) and resolved.scope == "global":
        raise InputError(
            f"--scope global does not go with --pattern {resolved.pattern}, which is per group; use matrix"
        )
    if resolved.out is None:
        name = resolved.method if len(resolved.methods) == 1 else "methods"
        resolved = dataclasses.replace(
            resolved, out=os.path.join("runs", f"{resolved.task}-{name}-{resolved.sparsity:g}-s{resolved.seed}")
        )
    return resolved


_RANGES: dict[str, tuple[float, float, str]] = {
    "sparsity": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "target_at": (math.ulp(0.0), 1.0, "a fraction in (0, 1]"),
    "updates": (1, math.inf, "a whole number >= 1"),
    "epochs": (math.ulp(0.0), 1e9, "a number > 0"),
    "teacher_epochs": (math.ulp(0.0), 1e9, "a number > 0"),
    "learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "teacher_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "warmup": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "weight_decay": (0.0, 1e9, "a number >= 0"),
    "before": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "after": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "gate_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "gate_start": (math.ulp(0.0), math.nextafter(1.0, 0.0), "a probability in (0, 1)"),
    "dual_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "stiffness": (math.ulp(0.0), 1e9, "a number > 0"),
    "temperature": (math.ulp(0.0), 1e9, "a number > 0"),
    "steps": (1, math.inf, "a whole number >= 1"),
    "teacher_steps": (1, math.inf, "a whole number >= 1"),
    "batch_size": (1, math.inf, "a whole number >= 1"),
    "max_length": (8, math.inf, "a whole number >= 8"),
    "lengths": (1, math.inf, "a whole number >= 1"),
    "length_multiple": (1, math.inf, "a whole number >= 1"),
    "limit_train": (1, math.inf, "a whole number >= 1"),
    "stride": (0, math.inf, "a whole number >= 0"),
    "augment": (1, math.inf, "a whole number >= 1"),
    "seed": (0, 2**31 - 1, "a whole number in [0, 2147483647]"),
    "evaluations": (1, math.inf, "a whole number >= 1"),
    "log_every": (1, math.inf, "a whole number >= 1"),
    "accumulate": (1, math.inf, "a whole number >= 1"),
}


def own_name(file: str) -> str:
    """What to call the task of an own file: its name, or, where that is train, its folder's."""
    place = Path(file)
    name = place.name.split(".")[0]
    return place.absolute().parent.name if name.lower() in ("train", "training") else name


def with_lengths(settings: S, default: dict[str, int]) -> S:
    """The settings with lengths of batches where they say nothing of them."""
    return dataclasses.replace(settings, **{k: v for k, v in default.items() if getattr(settings, k) is None})


def _check(settings: Settings) -> None:
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), field.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise InputError(f"--{field.name.replace('_', '-')} {value}: allowed: {', '.join(choices)}")
    for name, (low, high, allowed) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:  # also refuses NaN
            raise InputError(f"--{name.replace('_', '-')} {value}: {allowed} is needed")
    for method in settings.methods:
        if method not in METHODS:
            raise InputError(f"--method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    if len(set(settings.methods)) != len(settings.methods):
        raise InputError(f"--method {settings.method}: a method is named twice")
    if settings.augment_file is not None and settings.augment is None:
        raise InputError(f"--augment-file {settings.augment_file} needs --augment N")
    if settings.augment is not None and settings.methods == ("dense",):
        raise InputError(f"--augment {settings.augment} does not go with --method dense: a teacher labels the new rows")
    loss_weights(settings.loss_weights)
    gate_names(settings.gates)
    if "cofi" in settings.methods:
        _check_cofi(settings)


def asks_questions(settings: Settings) -> bool:
    """Whether the task is to answer questions from passages."""
    return is_squad_file(settings.train_file) if settings.train_file is not None else settings.task == "squad"


def _check_questions(settings: Settings) -> None:
    """What goes with questions, and what with nothing else."""
    if not asks_questions(settings):
        if is_squad_file(settings.dev_file or ""):
            raise InputError(
                f"--train-file {settings.train_file} and --dev-file {settings.dev_file}: both in SQuAD's layout, "
                "or both tables"
            )
        if settings.stride is not None:
            raise InputError(f"--stride {settings.stride}: only for questions, whose passages are cut into windows")
        return
    if settings.dev_file is not None and not is_squad_file(settings.dev_file):
        raise InputError(
            f"--dev-file {settings.dev_file}: JSON in SQuAD's layout, .json or .json.gz, is needed beside --train-file "
            f"{settings.train_file}"
        )
    for name, value in (("text", settings.text), ("label", settings.label)):
        if value != getattr(Settings, name):
            raise InputError(f"--{name} {value}: questions in SQuAD's layout have no columns; leave it out")
    if settings.augment is not None:
        raise InputError(f"--augment {settings.augment}: not for questions, whose answers would be cut to pieces")
    if settings.pooling != "auto":
        raise InputError(f"--pooling {settings.pooling}: answers are found token by token, nothing is pooled; use auto")


def _check_cofi(settings: Settings) -> None:
    if settings.pattern != "element":
        raise InputError(f"--pattern {settings.pattern} does not go with --method cofi, which removes whole structures")
    if settings.before + settings.after >= 1.0:
        raise InputError(f"--before {settings.before} and --after {settings.after}: their sum must be below 1")
    if not settings.before < settings.target_at <= 1.0 - settings.after:
        raise InputError(
            f"--target-at {settings.target_at}: with cofi it lies after --before {settings.before} and not later than "
            f"1 - --after, {1.0 - settings.after:g}"
        )
    if loss_weights(settings.loss_weights).get("attention"):
        raise InputError(
            f"--loss-weights {settings.loss_weights}: cofi removes heads, so attention scores cannot be compared; "
            "attention must be 0"
        )


def gate_names(text: str) -> tuple[str, ...]:
    """Reads "heads,units".

    Raises:
      InputError: none, an unknown one, or one named twice.
    """
    names = tuple(text.split(","))
    if not set(names) <= set(GATES) or len(set(names)) < len(names):
        raise InputError(f"--gates {text!r}: some of {', '.join(GATES)} are needed, each once, comma-separated")
    return names


def teacher_settings(settings: Settings) -> Settings:
    """The settings of a run's teacher: those of pruning at their defaults, so that they may change on --resume."""
    kept = (
        "task data_dir source train_file dev_file text label model batch_size teacher_steps teacher_epochs "
        "teacher_learning_rate schedule warmup weight_decay max_length stride lengths length_multiple limit_train seed "
        "dtype pooling evaluations log_every out resume mesh distributed accumulate remat"
    ).split()
    return dataclasses.replace(Settings(), method="dense", **{name: getattr(settings, name) for name in kept})


def loss_weights(text: str) -> dict[str, float]:
    """Reads "hidden=0.5,labels=1".

    Raises:
      InputError: an unknown name, or a weight that is no number >= 0.
    """
    allowed = ("embeddings", "hidden", "attention", "logits", "labels")
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in allowed or not 0.0 <= value < math.inf:
            raise InputError(f"--loss-weights {part!r}: NAME=NUMBER with a name of {', '.join(allowed)}, a number >= 0")
        weights[name] = value
    return weights


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
