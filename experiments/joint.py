"""Coupled runs without gates, in one part: a dense model of several tasks, or magnitude masks instead of gates."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.coupled import (
    Auxiliary,
    CoupledBatches,
    Phases,
    about,
    coupling_figures,
    coupling_of,
    phases,
    weights_optimizer,
)
from experiments.memory import restart_peak
from experiments.method import Plan, plan
from experiments.prepare import Prepared
from experiments.record import environment, open_run
from experiments.results import read_result
from experiments.run import CountTraces, evaluate, model_details, write_result
from experiments.stage import Stage
from kaprune_jax._typing import Params
from kaprune_jax.deploy.folder import save
from kaprune_jax.deploy.model import Model
from kaprune_jax.distill.objective import init_projection
from kaprune_jax.models.bert import make_apply
from kaprune_jax.prune.magnitude import magnitude_pruning
from kaprune_jax.prune.masks import sparsity
from kaprune_jax.prune.schedules import PruningSchedule
from kaprune_jax.train.loop import Hooks, fit
from kaprune_jax.train.step import PROJECTION, TrainState, get_masks, init_state
from kaprune_jax.transfer.sharing import HEADS, Share, make_store, parts_of, shares_gates
from kaprune_jax.transfer.step import Task, make_coupled_step

PRUNABLE = r"(shared|own/[^/]+)/model/encoder/.*/kernel"


def run_joint(
    method: str,
    prepared: Prepared,
    folder: Path,
    should_stop: Callable[[], bool],
    *,
    teacher: Model | None,
    dense: float | None,
    auxiliaries: Sequence[Auxiliary] = (),
    share: Share = "nothing",
    depth: int | None = None,
    when: Sequence[str] = (),
    first: Params | None = None,
) -> dict[str, Any]:
    """Trains into a run folder and returns its result; a folder that has one is left as it is.

    Args:
      method: "dense" or "sparsebert".
      prepared: data and start of the target.
      folder: the run folder.
      should_stop: asked after every step.
      teacher: fine-tuned on the target; None for "dense".
      dense: its score on dev.
      auxiliaries: tasks that are trained jointly.
      share: what they share; gates are masks here.
      depth: in the first so many layers only.
      when: the phases in which they take part; a dense run is all "before".
      first: {"model": ...} to start from; with "gates" among it, its zeros stay, as the mask.
    """
    settings, began = prepared.settings, time.perf_counter()
    restart_peak()
    planned = plan(method, prepared, teacher)
    where = phases(settings, planned.steps) if method != "dense" else Phases(*[planned.steps] * 4)
    if method != "dense":
        planned = planned._replace(target_step=1 if first and "gates" in first else where.reached)
    open_run(folder, settings, planned.details, environment(prepared) | about(auxiliaries))
    if done := read_result(folder):
        return done
    target = prepared.data.name
    everyone = [(target, prepared.start, teacher), *((each.name, each.start, each.teacher) for each in auxiliaries)]
    parts, tasks = {}, {}
    for number, (name, start, fine_tuned) in enumerate(everyone):
        parts[name] = {"model": start.params}
        distils = planned.objective.needs_teacher and fine_tuned is not None
        if planned.objective.projection and fine_tuned is not None:
            key = jax.random.fold_in(jax.random.key(settings.seed), 1 + 10 * number)
            widths = (start.config.hidden_size, fine_tuned.config.hidden_size)
            parts[name][PROJECTION] = init_projection(*widths, key)
        tasks[name] = Task(
            make_apply(start.config, dtype=settings.dtype),
            planned.objective,
            make_apply(fine_tuned.config, dtype=settings.dtype) if distils and fine_tuned else None,
        )
    if first:  # the head stays the task's own
        encoder = {name: part for name, part in first["model"].items() if name not in HEADS}
        parts[target] |= {"model": {**prepared.start.params, **encoder}}
    store = make_store(parts, share=share, target=target, depth=depth)
    fixed = bool(first and "gates" in first)
    tx = _optimizer(method, settings, planned, where, target, share, depth, fixed=fixed)
    step = CountTraces(make_coupled_step(tasks, target, tx, coupling=coupling_of(settings, where)))
    apply = make_apply(prepared.start.config, dtype=settings.dtype)

    @jax.jit
    def predict(store: Params, batch: Any):
        inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        return apply(parts_of(store, target)["model"], *inputs).logits

    def masks_of(state: TrainState) -> Params | None:
        masks = get_masks(state.opt_state)
        return None if masks is None else _merge_masks(masks["shared"], masks["own"][target])["model"]

    def write(state: TrainState, place: Path) -> None:
        details = model_details(method, prepared, planned, teacher, int(state.step))
        params = parts_of(state.params, target)["model"]
        config, tokenizer = prepared.start.config, prepared.tokenizer
        save(place, params, config, tokenizer=tokenizer, masks=masks_of(state), details=details)

    stage = Stage(
        folder,
        title=f"{target} {method}",
        phase=planned.phase,
        steps=planned.steps,
        target_step=planned.target_step,
        rate=planned.rate,
        evaluate=lambda state: evaluate(predict, state.params, prepared, batch_size=settings.batch_size or 1),
        removed=lambda state: sparsity(masks_of(state) or {}),
        write=write,
    )
    turn = (where.gated + planned.steps) // 2 if getattr(settings, "coupling", "") == "sequential" else 0
    batches = CoupledBatches(
        target,
        prepared.train,
        auxiliaries,
        lambda number: where.name(number) in when and (not turn or number < turn),
        settings.seed,
        alone=lambda number: number < turn,
    )
    try:
        key = jax.random.fold_in(jax.random.key(settings.seed), 2)
        state = stage.begin(init_state(store, tx, key), resume=settings.resume)
        state = fit(
            jax.jit(step, donate_argnums=0),
            state,
            batches,
            steps=planned.steps,
            hooks=Hooks(stage.on_log, stage.on_eval, stage.on_pause, should_stop),
            teacher_params={name: model.params for name, _, model in everyone if model is not None},
            log_every=settings.log_every,
            eval_every=max(1, -(-planned.steps // settings.evaluations)),
        )
        stage.save_model(state, "model-last")
        seconds = stage.seconds + time.perf_counter() - began
        return write_result(
            method,
            prepared,
            planned,
            stage,
            dense=dense,
            seconds=seconds,
            compilations=step.count,
            more=coupling_figures(settings, auxiliaries),
        )
    finally:
        stage.checkpoints.close()


def _optimizer(
    method: str,
    settings: Any,
    planned: Plan,
    where: Phases,
    target: str,
    share: Share,
    depth: int | None,
    *,
    fixed: bool,
) -> optax.GradientTransformationExtraArgs:
    optimizer = weights_optimizer(settings, planned.rate, target)
    if method == "dense":
        return optax.with_extra_args_support(optimizer)
    shape = "one-shot" if fixed else settings.sparsity_schedule
    begin, end = (0, 1) if fixed else (where.before, where.reached)
    layers = "" if depth is None else f"(?=model/encoder/layers/({'|'.join(map(str, range(depth)))})/)"
    pruning = magnitude_pruning(
        PruningSchedule(settings.sparsity, begin, end, shape=shape),  # pyright: ignore[reportArgumentType]
        updates=settings.updates,
        prunable=PRUNABLE,
        pattern=settings.pattern,
        scope=settings.scope,
        alike=f"own/[^/]+/{layers}" if shares_gates(share) else None,
    )
    return optax.with_extra_args_support(optax.chain(optimizer, pruning))


def _merge_masks(first: Any, second: Any) -> Any:
    """Two trees of masks, of different parameters, as one."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return second if first is None else first
    names = {**first, **second}
    return {
        name: _merge_masks(first[name], second[name]) if name in first and name in second else names[name]
        for name in names
    }
