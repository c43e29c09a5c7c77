"""Where the rows of a run come from."""

from experiments.config.checks import asks_questions
from experiments.config.settings import Settings
from experiments.presets import MICRO_TASKS
from kaprune_jax._errors import InputError
from kaprune_jax.data.glue import load_files, load_glue
from kaprune_jax.data.metrics import with_metric
from kaprune_jax.data.remote import load_hub, load_squad_hub, load_squad_tfds, load_tfds
from kaprune_jax.data.rows import TaskData
from kaprune_jax.data.sampling import hold_out, limit_train
from kaprune_jax.data.squad import load_squad, load_squad_files
from kaprune_jax.data.world import load_world

HELD_OUT = "-held-out"
"""Added to the name of a task that is scored on rows held out from training, whose scores are no dev scores."""


def load_task(settings: Settings) -> TaskData:
    """The task that the settings name, from own files, the built-in world, a folder, the hub or TFDS."""
    if settings.train_file and settings.dev_file and asks_questions(settings):
        data = load_squad_files(settings.train_file, settings.dev_file, name=settings.task)
    elif settings.train_file and settings.dev_file:
        columns = settings.text.split(",")
        if not 1 <= len(columns) <= 2 or not all(columns):
            raise InputError(f"--text {settings.text!r}: one column or two, separated by a comma")
        data = load_files(
            settings.train_file, settings.dev_file, text=columns, label=settings.label, name=settings.task
        )
    elif settings.task in MICRO_TASKS:
        data = load_world(settings.task)
    elif asks_questions(settings):
        from_library = load_squad_hub if settings.source == "hub" else load_squad_tfds
        data = load_squad(settings.data_dir) if settings.data_dir else from_library()
    elif settings.data_dir:
        data = load_glue(settings.task, settings.data_dir)
    else:
        data = load_hub(settings.task) if settings.source == "hub" else load_tfds(settings.task)
    if settings.metric is not None:
        data = _with_metric(data, settings.metric)
    if settings.hold_out is not None:
        data = hold_out(data, settings.hold_out)  # the same rows whatever --seed is
        data = data._replace(name=data.name + HELD_OUT)
    return limit_train(data, settings.limit_train, seed=settings.seed) if settings.limit_train else data


def _with_metric(data: TaskData, name: str) -> TaskData:
    try:
        return with_metric(data, name)
    except InputError as error:
        raise InputError(f"--{error}") from None
