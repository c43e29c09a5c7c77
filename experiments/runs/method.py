"""The methods, told apart by four things: the start, the objective, the pruning schedule, and the learning rate.

All pruning methods take the same number of steps over the same batches.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from experiments.config.checks import MOST_STEPS, loss_weights
from experiments.config.settings import Settings
from experiments.config.tuned import tuned
from experiments.runs.prepare import Prepared
from kaprune_jax._errors import InputError
from kaprune_jax._typing import Params
from kaprune_jax.deploy.model import Model
from kaprune_jax.distill.matching import STATIC
from kaprune_jax.distill.objective import (
    DistillConfig,
    cofi_loss,
    hard_labels_loss,
    init_projection,
    logits_loss,
    sparsebert_loss,
)
from kaprune_jax.models.bert import PRUNABLE, param_shapes
from kaprune_jax.prune.magnitude import magnitude_pruning
from kaprune_jax.prune.schedules import PruningSchedule
from kaprune_jax.train.optimizer import adamw, learning_rate
from kaprune_jax.train.step import PROJECTION

_LOSSES = {"sparsebert": sparsebert_loss, "logits": logits_loss, "cofi": cofi_loss}


class Plan(NamedTuple):
    """How one method trains.

    Attributes:
      phase: "teacher" for plain fine-tuning, else "prune".
      params: where the student starts.
      objective: its loss.
      tx: the optimizer, with pruning last.
      rate: learning rate by step.
      steps: optimizer steps in all.
      target_step: the step from which the asked sparsity holds; 0 without pruning.
      notes: lines for a person.
    """

    phase: str
    params: Params
    objective: DistillConfig
    tx: optax.GradientTransformationExtraArgs
    rate: optax.Schedule
    steps: int
    target_step: int
    notes: tuple[str, ...]

    @property
    def details(self) -> dict[str, Any]:
        """What was decided here, for the run's records."""
        objective = dataclasses.asdict(self.objective)
        return {"objective": objective, "steps": self.steps, "target_step": self.target_step}


def recipe(method: str, prepared: Prepared, planned: Plan, teacher: Model | None) -> dict[str, Any]:
    """How a model was made, for its folder: the settings that a person would need to make it again."""
    settings = prepared.settings
    names = "batch_size warmup weight_decay max_length limit_train hold_out dtype seed evaluations".split()
    if planned.target_step:
        names += "recipe schedule epochs epochs_over steps learning_rate augment".split()
        names += "dropout target_at".split()
        names += () if method == "cofi" else "scope scores student sparsity_schedule updates".split()
    if method == "cofi":
        names += "gates before after gate_learning_rate gate_start dual_learning_rate penalty stiffness".split()
        names += "train_embeddings prune_vocabulary".split()
    if getattr(settings, "coupling", "none") != "none":
        names += "coupling auxiliary auxiliary_seed auxiliary_rows share share_depth when surgery surgery_on".split()
        names += "surgery_parts auxiliary_weight auxiliary_schedule auxiliary_mixing tie".split()
    if prepared.data.kind == "span":
        names.append("stride")
    if settings.teacher is None:  # fine-tuned by the run itself
        names += "teacher_steps teacher_epochs teacher_learning_rate teacher_schedule".split()
    made = {name: getattr(settings, name) for name in names} | planned.details
    if planned.target_step:
        made |= {name: value for name, value in tuned(method, settings)._asdict().items() if name in made}
    made |= {"data": prepared.data.fingerprint}
    if planned.objective.needs_teacher or method == "prune-finetuned" or (settings.augment and planned.target_step):
        assert teacher is not None
        made["teacher"] = {"name": short_name(settings.teacher or "fine-tuned"), "sha256": teacher.fingerprint}
    return made


def short_name(model: str) -> str:
    """A model's name without the machine's folders: a hub name whole, of a path the end."""
    if not Path(model).exists():
        return model
    place = Path(model).absolute()
    return f"{place.parent.name}/{place.name}" if place.name in ("model", "model-last", "teacher") else place.name


def plan(method: str, prepared: Prepared, teacher: Model | None) -> Plan:
    """Sets up a method.

    Args:
      method: "sparsebert": the pre-trained encoder, all distillation terms; "logits": only the logits;
        "hard-labels": no teacher, but for the labels of augmented rows; "prune-finetuned": starts as the teacher,
        task labels; "prune-then-finetune": the pre-trained encoder pruned at once, then fine-tuned; "dense":
        fine-tuning without pruning.
      prepared: data and start.
      teacher: the fine-tuned model; None for "dense".

    Raises:
      InputError: teacher and start do not fit what the method does with them.
    """
    settings = prepared.settings
    dense = method == "dense"
    chosen = tuned(method, settings)
    peak = settings.teacher_learning_rate if dense else chosen.learning_rate
    assert peak is not None
    steps = count_steps(prepared, dense=dense)
    schedule = None if dense else _schedule(method, settings, steps)
    shape = settings.teacher_schedule if dense else settings.schedule
    assert shape is not None
    rate = learning_rate(peak, steps=steps, schedule=shape, warmup=settings.warmup)
    optimizer = adamw(rate, weight_decay=settings.weight_decay)
    params = prepared.start.params
    if schedule is None:
        return Plan("teacher", params, hard_labels_loss(), _extra(optimizer), rate, steps, 0, ())
    objective, notes = make_objective(method, settings, prepared.start, teacher)
    student = "teacher" if method == "prune-finetuned" else settings.student
    if student != "pretrained" and teacher is not None:
        if param_shapes(teacher.config) != param_shapes(prepared.start.config):
            what = "--method prune-finetuned" if method == "prune-finetuned" else f"--student {student}"
            raise InputError(
                f"--teacher {settings.teacher}: {what} prunes the teacher, which must have the shape of "
                f"--model {settings.model}; give that one's fine-tuned model, or leave {what} out"
            )
        params = teacher.params
    if objective.projection and teacher is not None:
        widths = (prepared.start.config.hidden_size, teacher.config.hidden_size)
        key = jax.random.fold_in(jax.random.key(settings.seed), 1)
        params = {**params, PROJECTION: init_projection(*widths, key)}
    tx = optax.chain(
        optimizer,
        magnitude_pruning(
            schedule,
            updates=settings.updates,
            prunable=PRUNABLE,
            pattern=settings.pattern,
            scope=settings.scope,  # pyright: ignore[reportArgumentType]
            scores=chosen.scores,
        ),
    )
    return Plan("prune", params, objective, _extra(tx), rate, steps, schedule.end, notes)


def count_steps(prepared: Prepared, *, dense: bool) -> int:
    """Optimizer steps of a run: those asked for, or so many epochs of the rows that --epochs-over says.

    Of questions the rows are windows of their passages.
    """
    settings = prepared.settings
    given, epochs = (settings.teacher_steps, settings.teacher_epochs) if dense else (settings.steps, settings.epochs)
    assert epochs is not None
    assert settings.batch_size is not None
    everything = (settings.epochs_over == "all" and not dense) or prepared.data.kind == "span"
    rows = len(prepared.train.data.input_ids if everything else prepared.data.train.texts)
    steps = given or max(1, round(epochs * (rows // settings.batch_size)))
    if steps > MOST_STEPS:
        flag = "--teacher-epochs" if dense else "--epochs"
        raise InputError(f"{flag} {epochs:g}: {steps:.3g} steps; up to {MOST_STEPS} are allowed")
    return steps


def _extra(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(tx)


def _schedule(method: str, settings: Settings, steps: int) -> PruningSchedule:
    """When what fraction is gone; steps count from 1."""
    assert settings.sparsity is not None
    assert settings.target_at is not None
    if method == "prune-then-finetune":
        return PruningSchedule(settings.sparsity, 0, 1, shape="one-shot")
    end = min(steps, max(1, round(settings.target_at * steps)))
    return PruningSchedule(settings.sparsity, 0, end, shape=settings.sparsity_schedule)


def _head_counts(model: Model) -> set[int]:
    """How many heads its layers have."""
    return {len(model.config.layer(number).heads) for number in range(model.config.num_hidden_layers)}


def make_objective(
    method: str, settings: Settings, start: Model, teacher: Model | None
) -> tuple[DistillConfig, tuple[str, ...]]:
    """The method's loss with what the flags change, fitted to the shapes of student and teacher."""
    names = ("temperature", "layer_map", "regression_target")
    changes: dict = {name: value for name in names if (value := getattr(settings, name)) is not None}
    changes |= loss_weights(tuned(method, settings).loss_weights)
    if settings.projection:
        changes["projection"] = True
    config = _LOSSES.get(method, hard_labels_loss)()
    if (changes.get("layer_map", config.layer_map) in STATIC) != (config.layer_map in STATIC):
        raise InputError(f"--layer-map {settings.layer_map} does not go with --method {method}")
    config = dataclasses.replace(config, **changes)
    if not (config.embeddings or config.hidden or config.attention or config.logits or config.labels):
        raise InputError(f"--loss-weights {settings.loss_weights}: nothing is left for --method {method} to learn from")
    notes: list[str] = []
    layers = [0 if model is None else model.config.num_hidden_layers for model in (teacher, start)]
    per_layer = config.layer_map in STATIC and (config.hidden or config.attention)
    if teacher is not None and per_layer and layers[0] < layers[1]:
        raise InputError(
            f"--teacher {settings.teacher}: {layers[0]} layers, fewer than the student's {layers[1]}, and --method "
            f"{method} learns from each; --method logits does not"
        )
    if teacher is not None and (config.embeddings or config.hidden or config.attention):
        if config.attention and len(_head_counts(teacher) | _head_counts(start)) > 1:
            config = dataclasses.replace(config, attention=0.0)
            notes.append("attention scores are not distilled: teacher and student have different numbers of heads")
        if teacher.config.hidden_size != start.config.hidden_size and not config.projection:
            config = dataclasses.replace(config, projection=True)
            notes.append("a projection is learned: teacher and student have different widths")
    if not (config.embeddings or config.hidden):
        config = dataclasses.replace(config, projection=False)
    return config, tuple(notes)
