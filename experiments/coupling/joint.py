"""Coupled runs without gates, in one part: a dense model of several tasks, or magnitude masks instead of gates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.config.transfer_settings import takes_turns
from experiments.config.tuned import tuned
from experiments.coupling.common import (
    Auxiliary,
    about,
    coupling_figures,
    coupling_of,
    make_batches,
    make_predict,
    make_team,
)
from experiments.coupling.optimizers import weights_optimizer
from experiments.coupling.phases import Phases, phases, with_turn
from experiments.runs.memory import restart_peak
from experiments.runs.method import Plan, plan
from experiments.runs.prepare import Prepared
from experiments.runs.record import environment, open_run, say
from experiments.runs.results import read_result
from experiments.runs.run import deliver, evaluate, model_details, write_result
from experiments.runs.stage import Stage
from kaprune_jax._typing import Params
from kaprune_jax.deploy.model import Model
from kaprune_jax.prune.magnitude import magnitude_pruning
from kaprune_jax.prune.masks import sparsity
from kaprune_jax.prune.schedules import PruningSchedule
from kaprune_jax.train.sharding import fetch
from kaprune_jax.train.step import TrainState, get_masks, init_state
from kaprune_jax.transfer.sharing import Share, parts_of, shares_gates
from kaprune_jax.transfer.step import make_coupled_step

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
    settings = prepared.settings
    restart_peak()
    planned = plan(method, prepared, teacher)
    where = phases(settings, planned.steps) if method != "dense" else Phases(*[planned.steps] * 4)
    if method != "dense":
        planned = planned._replace(target_step=1 if first and "gates" in first else where.reached)
        if auxiliaries and takes_turns(settings):
            planned, where = with_turn(planned, where)
    open_run(folder, settings, planned.details, environment(prepared) | about(auxiliaries))
    if done := read_result(folder):
        return done
    for note in planned.notes:
        say(f"note: {note}")
    target = prepared.data.name
    dropout = None if method == "dense" else tuned(method, settings).dropout
    shared: dict[str, Any] = dict(share=share, depth=depth, first=first)
    team = make_team(prepared, teacher, auxiliaries, planned.objective, dropout=dropout, **shared)
    fixed = bool(first and "gates" in first)
    tx = _optimizer(method, settings, planned, where, target, share, depth, fixed=fixed)
    coupling = coupling_of(settings, where)
    step = make_coupled_step(team.tasks, target, tx, coupling=coupling, accumulate=settings.accumulate)
    predict = make_predict(team.tasks[target].apply, target, mesh=prepared.mesh)

    def masks_of(state: TrainState) -> Params | None:
        masks = get_masks(state.opt_state)
        return None if masks is None else _merge_masks(masks["shared"], masks["own"][target])["model"]

    def write(state: TrainState, place: Path) -> None:
        details = model_details(method, prepared, planned, teacher, int(state.step))
        params, masks = fetch(parts_of(state.params, target)["model"]), masks_of(state)
        config, tokenizer = prepared.start.config, prepared.tokenizer
        deliver(place, params, config, tokenizer=tokenizer, masks=masks and fetch(masks), details=details)

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
        mesh=prepared.mesh,
    )
    state = stage.train(
        step,
        init_state(team.store, tx, jax.random.fold_in(jax.random.key(settings.seed), 2)),
        make_batches(prepared, auxiliaries, where, when),
        settings=settings,
        should_stop=should_stop,
        teachers=team.teachers,
    )
    stage.save_model(state, "model-last")
    figures = coupling_figures(settings, auxiliaries)
    return write_result(method, prepared, planned, stage, dense=dense, more=figures)


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
        scores="magnitude" if fixed else tuned(method, settings).scores,
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
