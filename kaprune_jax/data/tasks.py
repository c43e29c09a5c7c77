"""The nine tasks of the GLUE benchmark (Wang et al., 2018, arXiv:1804.07461): where their files are and what they hold.

Label names and their order are those of the Hugging Face hub's and TFDS's copies, which agree; the files themselves
write some of them as numbers.
"""

from dataclasses import dataclass

from kaprune_jax._errors import InputError


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task.

    Attributes:
      name: short name, which is also the configuration's name on the hub and in TFDS.
      folder: folder in GLUE's download layout.
      text: the file's one or two text columns.
      label: the file's label column.
      labels: class names in the order of their ids; empty for regression.
      metrics: GLUE's metrics of the task, the main one first.
      remote_text: the text columns on the hub and in TFDS.
      written: how the file writes `labels`, where it does not use the names.
      header: column names of a file that has no header line.
      dev: file name, without ending, of the evaluation rows.
      remote_dev: split of the evaluation rows on the hub and in TFDS.
    """

    name: str
    folder: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    remote_text: tuple[str, ...]
    written: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    dev: str = "dev"
    remote_dev: str = "validation"


_PAIR = ("sentence1", "sentence2")
_ZERO_ONE = ("0", "1")

GLUE_TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="cola",
            folder="CoLA",
            text=("sentence",),
            label="label",
            labels=("unacceptable", "acceptable"),
            metrics=("matthews_correlation",),
            remote_text=("sentence",),
            written=_ZERO_ONE,
            header=("source", "label", "star", "sentence"),
        ),
        GlueTask(
            name="mnli",
            folder="MNLI",
            text=_PAIR,
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            remote_text=("premise", "hypothesis"),
            dev="dev_matched",
            remote_dev="validation_matched",
        ),
        GlueTask(
            name="mrpc",
            folder="MRPC",
            text=("#1 String", "#2 String"),
            label="Quality",
            labels=("not_equivalent", "equivalent"),
            metrics=("f1", "accuracy"),
            remote_text=_PAIR,
            written=_ZERO_ONE,
        ),
        GlueTask(
            name="qnli",
            folder="QNLI",
            text=("question", "sentence"),
            label="label",
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            remote_text=("question", "sentence"),
        ),
        GlueTask(
            name="qqp",
            folder="QQP",
            text=("question1", "question2"),
            label="is_duplicate",
            labels=("not_duplicate", "duplicate"),
            metrics=("f1", "accuracy"),
            remote_text=("question1", "question2"),
            written=_ZERO_ONE,
        ),
        GlueTask(
            name="rte",
            folder="RTE",
            text=_PAIR,
            label="label",
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            remote_text=_PAIR,
        ),
        GlueTask(
            name="sst2",
            folder="SST-2",
            text=("sentence",),
            label="label",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            remote_text=("sentence",),
            written=_ZERO_ONE,
        ),
        GlueTask(
            name="stsb",
            folder="STS-B",
            text=_PAIR,
            label="score",
            labels=(),
            metrics=("pearson", "spearman"),
            remote_text=_PAIR,
        ),
        GlueTask(
            name="wnli",
            folder="WNLI",
            text=_PAIR,
            label="label",
            labels=("not_entailment", "entailment"),
            metrics=("accuracy",),
            remote_text=_PAIR,
            written=_ZERO_ONE,
        ),
    )
}


def glue_task(name: str) -> GlueTask:
    """The GLUE task of that name.

    Args:
      name: short name, such as "rte".

    Returns:
      The task.

    Raises:
      InputError: no GLUE task is called so.
    """
    if name not in GLUE_TASKS:
        raise InputError(f"task {name!r} is not one of GLUE's: {', '.join(GLUE_TASKS)}")
    return GLUE_TASKS[name]
