"""What is allowed in the flags of the main job, flag by flag and together."""

import dataclasses
import math

from experiments.config.settings import Settings
from experiments.presets import METHODS
from kaprune_jax._errors import InputError
from kaprune_jax.data.squad import is_squad_file
from kaprune_jax.models.layout import GATES

MOST_STEPS = 2**31 - 1
"""They are counted in 32 bits."""
_RANGES: dict[str, tuple[float, float, str]] = {
    "sparsity": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "target_at": (math.ulp(0.0), 1.0, "a fraction in (0, 1]"),
    "updates": (1, math.inf, "a whole number >= 1"),
    "epochs": (math.ulp(0.0), 1e9, "a number > 0"),
    "teacher_epochs": (math.ulp(0.0), 1e9, "a number > 0"),
    "learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "teacher_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "warmup": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "dropout": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "weight_decay": (0.0, 1e9, "a number >= 0"),
    "before": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "after": (0.0, math.nextafter(1.0, 0.0), "a fraction in [0, 1)"),
    "gate_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "gate_start": (math.ulp(0.0), math.nextafter(1.0, 0.0), "a probability in (0, 1)"),
    "dual_learning_rate": (math.ulp(0.0), 1e9, "a number > 0"),
    "stiffness": (math.ulp(0.0), 1e9, "a number > 0"),
    "temperature": (math.ulp(0.0), 1e9, "a number > 0"),
    "steps": (1, MOST_STEPS, f"a whole number in [1, {MOST_STEPS}]"),
    "teacher_steps": (1, MOST_STEPS, f"a whole number in [1, {MOST_STEPS}]"),
    "batch_size": (1, math.inf, "a whole number >= 1"),
    "max_length": (8, math.inf, "a whole number >= 8"),
    "lengths": (1, math.inf, "a whole number >= 1"),
    "length_multiple": (1, math.inf, "a whole number >= 1"),
    "stride": (0, math.inf, "a whole number >= 0"),
    "limit_train": (1, math.inf, "a whole number >= 1"),
    "hold_out": (1, math.inf, "a whole number >= 1"),
    "augment": (1, math.inf, "a whole number >= 1"),
    "seed": (0, 2**31 - 1, "a whole number in [0, 2147483647]"),
    "evaluations": (1, math.inf, "a whole number >= 1"),
    "log_every": (1, math.inf, "a whole number >= 1"),
    "checkpoint_minutes": (math.ulp(0.0), 1e9, "a number > 0"),
    "accumulate": (1, math.inf, "a whole number >= 1"),
}


def check(settings: Settings) -> None:
    """Checks resolved settings.

    Raises:
      InputError: a value that is not allowed, naming flag, value and what is.
    """
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
    own = settings.train_file is not None
    for name, value, default in (("text", settings.text, "sentence"), ("label", settings.label, "label")):
        if value != default and not own:
            raise InputError(f"--{name} {value}: only for own rows (--train-file); --task {settings.task} has its own")
    if settings.augment_file is not None and settings.augment is None:
        raise InputError(f"--augment-file {settings.augment_file} needs --augment N")
    if settings.augment is not None and settings.methods == ("dense",):
        raise InputError(f"--augment {settings.augment} does not go with --method dense: a teacher labels the new rows")
    loss_weights(settings.loss_weights or "")
    gate_names(settings.gates)
    if "cofi" in settings.methods:
        if settings.recipe == "paper":
            raise InputError("--recipe paper is SparseBERT's, and --method cofi is not; leave one of them out")
        _check_cofi(settings)


def check_questions(settings: Settings) -> None:
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
    for name, value, default in (("text", settings.text, "sentence"), ("label", settings.label, "label")):
        if value != default:
            raise InputError(f"--{name} {value}: questions in SQuAD's layout have no columns; leave it out")
    if settings.augment is not None:
        raise InputError(f"--augment {settings.augment}: not for questions, whose answers would be cut to pieces")
    if settings.pooling != "auto":
        raise InputError(f"--pooling {settings.pooling}: answers are found token by token, nothing is pooled; use auto")


def idle_with_gates(settings: Settings) -> tuple[str, ...]:
    """Flags of pruning with masks that were given to gates alone, a line for each."""
    names = ("student", "scope", "scores", "sparsity_schedule", "updates") if settings.methods == ("cofi",) else ()
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(Settings, name)}
    return tuple(
        f"--{name.replace('_', '-')} {value} is of pruning with masks; cofi has no use for it"
        for name, value in given.items()
    )


def _check_cofi(settings: Settings) -> None:
    if settings.pattern != "element":
        raise InputError(f"--pattern {settings.pattern} does not go with --method cofi, which removes whole structures")
    check_phases(settings)
    if loss_weights(settings.loss_weights or "").get("attention"):
        raise InputError(
            f"--loss-weights {settings.loss_weights}: cofi removes heads, so attention scores cannot be compared; "
            "attention must be 0"
        )


def check_phases(settings: Settings) -> None:
    """Whether the parts of a run follow one another.

    Raises:
      InputError: they do not.
    """
    if settings.before + settings.after >= 1.0:
        raise InputError(f"--before {settings.before} and --after {settings.after}: their sum must be below 1")
    assert settings.target_at is not None
    if not settings.before < settings.target_at <= 1.0 - settings.after:
        raise InputError(
            f"--target-at {settings.target_at}: here it lies after --before {settings.before} and not later than "
            f"1 - --after, {1.0 - settings.after:g}"
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


def asks_questions(settings: Settings) -> bool:
    """Whether the task is to answer questions from passages."""
    return is_squad_file(settings.train_file) if settings.train_file is not None else settings.task == "squad"
