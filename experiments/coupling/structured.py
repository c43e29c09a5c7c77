"""Runs the two parts of pruning with gates: the gated model, then the smaller one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
from experiments.coupling.optimizers import frozen_of, smaller_optimizer
from experiments.coupling.phases import Phases, plan_cofi, with_turn
from experiments.runs.memory import restart_peak
from experiments.runs.method import Plan
from experiments.runs.parts import read_parts, write_parts
from experiments.runs.prepare import Prepared, make_forward
from experiments.runs.record import environment, open_run, say
from experiments.runs.results import read_result
from experiments.runs.run import deliver, evaluate, model_details, write_result
from experiments.runs.speed import measure_speed
from experiments.runs.stage import Stage
from kaprune_jax._tree import select
from kaprune_jax._typing import Params
from kaprune_jax.deploy.model import Model
from kaprune_jax.deploy.shrink import materialize, matrix_masks
from kaprune_jax.deploy.vocabulary import prune_vocabulary, used_ids
from kaprune_jax.l0.finalize import finalize
from kaprune_jax.l0.gates import sparsity_of, still_gates
from kaprune_jax.l0.materialize import shrink
from kaprune_jax.models.bert import PRUNABLE
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.processes import on_first
from kaprune_jax.train.seals import sealed_steps
from kaprune_jax.train.sharding import fetch
from kaprune_jax.train.step import PROJECTION, TrainState, init_state
from kaprune_jax.transfer.coupling import Constraint, Task
from kaprune_jax.transfer.sharing import Share, make_store, parts_of, shares_weights
from kaprune_jax.transfer.step import make_coupled_step

ShouldStop = Callable[[], bool]


def run_structured(
    prepared: Prepared,
    folder: Path,
    should_stop: ShouldStop,
    *,
    teacher: Model,
    dense: float | None,
    auxiliaries: Sequence[Auxiliary] = (),
    share: Share = "nothing",
    depth: int | None = None,
    when: Sequence[str] = (),
    first: Params | None = None,
    gates_only: bool = False,
) -> dict[str, Any]:
    """Prunes with gates into a run folder and returns its result; a folder that has one is left as it is.

    Args:
      prepared: data and start of the target.
      folder: the run folder.
      should_stop: asked after every step.
      teacher: fine-tuned on the target.
      dense: its score on dev.
      auxiliaries: tasks that are trained jointly.
      share: what they share with the target.
      depth: in the first so many layers only.
      when: the phases in which they take part.
      first: parts to start from ("model", "gates"), instead of the start's.
      gates_only: stop before the model is made smaller, and return its parts ("model", "gates") on the host instead.
    """
    settings = prepared.settings
    restart_peak()
    planned, where, constraint = plan_cofi(prepared, teacher)
    if auxiliaries and takes_turns(settings):
        planned, where = with_turn(planned, where)
    open_run(folder, settings, planned.details, environment(prepared) | about(auxiliaries))
    if (done := read_result(folder)) and not gates_only:
        return done
    target = prepared.data.name
    team = make_team(
        prepared,
        teacher,
        auxiliaries,
        planned.objective,
        share=share,
        depth=depth,
        first=first,
        constraint=constraint,
        dropout=tuned("cofi", settings).dropout,
    )
    if gates_only and (parts := read_parts(folder, like=parts_of(team.store, target))) is not None:
        return parts
    options: dict[str, Any] = dict(
        coupling=coupling_of(settings, where), frozen=frozen_of(settings), accumulate=settings.accumulate
    )
    training: dict[str, Any] = dict(
        settings=settings, should_stop=should_stop, teachers=team.teachers, run_steps=planned.steps
    )
    step = make_coupled_step(team.tasks, target, planned.tx, constraint=constraint, **options)
    for note in planned.notes:
        say(f"note: {note}")
    gated = _gated_stage(prepared, planned, where, constraint, folder, team.tasks[target])
    state = gated.train(
        step,
        init_state(team.store, planned.tx, jax.random.fold_in(jax.random.key(settings.seed), 2)),
        make_batches(prepared, auxiliaries, where, when),
        is_over=on_first(lambda: bool(sealed_steps(folder / "ckpt-after"))),
        **training,
    )
    if gates_only:
        write_parts(folder, parts := fetch(parts_of(state.params, target)))
        return parts
    assert settings.sparsity is not None
    values = finalize(fetch(parts_of(state.params, target)["gates"]), constraint.layout, settings.sparsity)
    smaller = _Smaller(prepared, planned, where, constraint, folder, state.params, values, teacher, gated)
    say(f"{target} cofi  made smaller: {smaller.describe()}")
    coupled = auxiliaries if "after" in when and shares_weights(share) and depth is None else ()
    configs = {target: prepared.start.config} | {each.name: each.start.config for each in coupled}
    tasks = {
        name: team.tasks[name]._replace(apply=smaller.apply_of(config), alive=smaller.alive)
        for name, config in configs.items()
    }
    tx = optax.with_extra_args_support(smaller_optimizer(settings, planned.rate, target, done=where.gated))
    step_after = make_coupled_step(tasks, target, tx, **options)
    state = smaller.stage.train(
        step_after,
        init_state(smaller.store(state.params, tuple(configs)), tx, state.key)._replace(step=jnp.int32(where.gated)),
        make_batches(prepared, coupled, where, when),
        evaluate_first=True,
        **training,
    )
    smaller.stage.save_model(state, "model-last")
    params = fetch(parts_of(state.params, target)["model"])
    models = (prepared.start.config, prepared.start.params), (smaller.shrunk.config, params)
    speed = on_first(lambda: measure_speed(*models, prepared))
    return write_result(
        "cofi",
        prepared,
        planned,
        smaller.stage,
        dense=dense,
        more={"removed": smaller.removed, "speed": speed} | coupling_figures(settings, auxiliaries),
    )


def _gated_stage(
    prepared: Prepared, planned: Plan, where: Phases, constraint: Constraint, folder: Path, task: Task
) -> Stage:
    """The part of the run in which gates are learned; nothing of it is delivered."""
    target, size = prepared.data.name, prepared.settings.batch_size or 1
    gated, whole = (make_predict(task.apply, target, gated=gated, mesh=prepared.mesh) for gated in (True, False))

    def score(state: TrainState) -> dict[str, float]:
        predict = whole if int(state.step) <= where.before else gated  # until then all gates are held open
        return evaluate(predict, state.params, prepared, batch_size=size)

    return Stage(
        folder,
        title=f"{target} cofi",
        phase="prune",
        steps=where.gated,
        target_step=planned.steps + 1,
        rate=planned.rate,
        evaluate=score,
        removed=lambda state: float(
            sparsity_of(still_gates(parts_of(state.params, target)["gates"]), constraint.layout)
        ),
        write=lambda state, place: None,
        mesh=prepared.mesh,
    )


class _Smaller:
    """The part of the run in which what is left is fine-tuned, and delivered."""

    def __init__(
        self,
        prepared: Prepared,
        planned: Plan,
        where: Phases,
        constraint: Constraint,
        folder: Path,
        gated: Params,
        values: dict[str, np.ndarray],
        teacher: Model,
        before: Stage,
    ):
        self.target, self.values, self.layout = prepared.data.name, values, constraint.layout
        config, self.prepared = prepared.start.config, prepared
        self.shrunk = materialize(parts_of(fetch(gated), self.target)["model"], values, config)
        self.alive = tuple(bool(layer.heads or layer.ffn) for layer in self.shrunk.config.layers)
        whole = {
            "encoder": sum(leaf.size for _, leaf in select(prepared.start.params, PRUNABLE)),
            "all": sum(leaf.size for leaf in jax.tree.leaves(prepared.start.params)),
        }
        predict = make_predict(self.apply_of(config), self.target, mesh=prepared.mesh)

        def write(state: TrainState, place: Path) -> None:
            details = model_details("cofi", prepared, planned, teacher, int(state.step))
            params, smaller, tokenizer = fetch(parts_of(state.params, self.target)["model"]), self.shrunk.config, None
            if prepared.settings.prune_vocabulary:
                rows = (*prepared.train.data.input_ids, *prepared.dev.input_ids)
                params, smaller, tokenizer = prune_vocabulary(params, smaller, prepared.tokenizer, used_ids(rows))
            deliver(
                place,
                params,
                smaller,
                tokenizer=tokenizer or prepared.tokenizer,
                masks=matrix_masks(self.shrunk.kept, config),
                details=details | {"whole": whole, "kept_hidden": np.flatnonzero(self.shrunk.kept["hidden"]).tolist()},
            )

        size = prepared.settings.batch_size or 1
        removed = 1.0 - sum(leaf.size for _, leaf in select(self.shrunk.params, PRUNABLE)) / whole["encoder"]
        self.stage = Stage(
            folder,
            title=f"{prepared.data.name} cofi",
            phase="after",
            steps=planned.steps,
            target_step=where.gated,
            rate=planned.rate,
            evaluate=lambda state: evaluate(predict, state.params, prepared, batch_size=size),
            removed=lambda state: removed,
            write=write,
            checkpoints="ckpt-after",
            after=before,
            sparsity=(prepared.settings.sparsity or 0.0, removed),
            mesh=prepared.mesh,
        )

    def describe(self) -> str:
        """What is left, for a person."""
        layers = ", ".join(f"{len(layer.heads)}+{layer.ffn}" for layer in self.shrunk.config.layers)
        return f"{self.shrunk.config.hidden_size} hidden dimensions; heads+units by layer: {layers}"

    @property
    def removed(self) -> dict[str, Any]:
        """What is left, as figures: hidden dimensions, heads and units of each layer."""
        config = self.shrunk.config
        return {
            "hidden": {"kept": config.hidden_size, "of": len(self.shrunk.kept["hidden"])},
            "heads": {"kept": [len(layer.heads) for layer in config.layers], "of": config.num_attention_heads},
            "units": {"kept": [layer.ffn for layer in config.layers], "of": config.intermediate_size},
        }

    def apply_of(self, config: BertConfig) -> Callable[..., Any]:
        """The smaller encoder with the head of a task's configuration."""
        smaller = self.shrunk.config.replace(head=config.head, labels=config.labels)
        return make_forward(self.prepared, smaller, dropout=tuned("cofi", self.prepared.settings).dropout)

    def store(self, gated: Params, names: Sequence[str]) -> Params:
        """The parameters of the smaller model, with the heads of the tasks that go on with it."""
        gated, parts = fetch(gated), {}
        for name in names:
            whole = parts_of(gated, name)
            projection = {part: whole[part] for part in (PROJECTION,) if part in whole}
            smaller = shrink({**whole["model"], **projection}, self.values, self.layout)
            parts[name] = {"model": {part: value for part, value in smaller.items() if part not in projection}}
            parts[name] |= {part: smaller[part] for part in projection}
        return make_store(parts, share="weights" if len(names) > 1 else "nothing", target=self.target)
