"""What happens around the steps of a training: records, evaluations, checkpoints, and the models that are kept."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh

from experiments.config.settings import Settings
from experiments.runs.record import Recorder, say
from experiments.runs.replace import finish_replacing, replace_folder
from kaprune_jax._typing import Params
from kaprune_jax.train.checkpoint import Checkpoints
from kaprune_jax.train.cost import StepCost
from kaprune_jax.train.loop import Batches, Diverged, Hooks, LogRecord, fit
from kaprune_jax.train.processes import on_first
from kaprune_jax.train.program import CompiledStep
from kaprune_jax.train.sharding import MeshBatches, make_mesh, mesh_text, place
from kaprune_jax.train.step import StepMetrics, TrainState


class Stage:
    """One training, or one part of it; a later part takes over what the earlier one has counted.

    Attributes:
      best: score, metrics and step of the best evaluation from `target_step` on.
      last: metrics of the last evaluation.
      rates: rows per second, by log.
      seconds: before this process began with it.
      costs: of a step with each shape of batch, those of earlier processes on the same mesh counted.
      compilations: how many programs this process has compiled for them.
      trained: seconds until training was over, those of earlier parts and processes counted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        title: str,
        phase: str,
        steps: int,
        target_step: int,
        rate: optax.Schedule,
        evaluate: Callable[[TrainState], dict[str, float]],
        removed: Callable[[TrainState], float],
        write: Callable[[TrainState, Path], None],
        checkpoints: str = "ckpt",
        after: "Stage | None" = None,
        sparsity: tuple[float, float] | None = None,
        mesh: Mesh | None = None,
    ):
        """Args:
        folder: the run folder.
        title: what to call the run on the terminal.
        phase: "teacher", "prune" or "after", for the records.
        steps: at which it ends, those of earlier parts counted.
        target_step: the step from which the asked sparsity holds: models before it are not kept.
        rate: learning rate by step.
        evaluate: scores on dev, the main one first.
        removed: the sparsity of a state.
        write: writes a model folder.
        checkpoints: name of their folder.
        after: the part before.
        sparsity: asked and delivered, where the steps do not know.
        mesh: the devices; None for the first alone.
        """
        self.folder, self.steps, self.target_step, self.rate = folder, steps, target_step, rate
        self.evaluate, self.removed, self.write, self.sparsity = evaluate, removed, write, sparsity
        self.mesh = mesh or make_mesh("data=1")
        self.costs: list[StepCost] = after.costs if after else []
        self.compilations = after.compilations if after else 0
        self.recorder = Recorder(folder, phase, title, steps)
        self.checkpoints = Checkpoints(folder / checkpoints)
        self.best: dict[str, Any] = {}
        self.last: dict[str, float] = {}
        self.rates: list[float] = after.rates if after else []
        self.seconds = after.total_seconds() if after else 0.0
        self.trained = 0.0
        self._kept_at = time.monotonic()
        self._began = time.perf_counter()

    def total_seconds(self) -> float:
        """Seconds of training up to now, interruptions left out."""
        return self.seconds + time.perf_counter() - self._began

    def begin(
        self, state: TrainState, *, resume: bool, evaluate_first: bool = False, is_over: bool = False
    ) -> TrainState:
        """The state to start from: a checkpoint when resuming, else the given one, which becomes the first.

        Args:
          state: the first of all.
          resume: whether to look for a checkpoint.
          evaluate_first: begin with an evaluation, since the model differs from the one before.
          is_over: a later part has begun, whose records are to be left alone.
        """
        self.recorder.closed = is_over
        on_first(lambda: [finish_replacing(self.folder / name) for name in ("model", "model-last")])
        if resume and self.checkpoints.latest is not None:
            state, extra = self.checkpoints.restore(state, say=say)
            self.best, self.last, self.rates = extra["best"], extra["last"], extra["rates"]
            self.seconds = max(self.seconds, extra["seconds"])
            if extra.get("mesh") == mesh_text(self.mesh.shape):
                self._add_costs(StepCost(**figures) for figures in extra["costs"])
            self.recorder.rewind(int(state.step))
            if not is_over:
                say(f"going on at step {int(state.step)} of {self.steps}")
            return state
        for step in self.checkpoints.interrupted:
            reason = "its writing was interrupted"
            say(f"note: {self.checkpoints.folder}: step {step} is damaged ({reason}); starting from the beginning")
        self.recorder.rewind(None)
        if evaluate_first:
            self.on_eval(state)
        else:
            self.keep(state)
        return state

    def train(
        self,
        step: Callable[..., tuple[TrainState, StepMetrics]],
        state: TrainState,
        batches: Batches,
        *,
        settings: Settings,
        should_stop: Callable[[], bool],
        teachers: Params | None,
        run_steps: int | None = None,
        evaluate_first: bool = False,
        is_over: bool = False,
    ) -> TrainState:
        """Trains from the given state, or the checkpoint to go on from, to the end of this part.

        Args:
          step: not yet jitted.
          state: where to start.
          batches: by step number.
          settings: evaluations, log_every, checkpoint_minutes, resume.
          should_stop: asked after every step.
          teachers: handed to the step.
          run_steps: of the whole run, over which evaluations are spread; by default of this part.
          evaluate_first: as for `begin`.
          is_over: as for `begin`.
        """

        def is_due() -> bool:
            return on_first(lambda: time.monotonic() - self._kept_at >= 60 * settings.checkpoint_minutes)

        try:
            program = CompiledStep(step, self.mesh, on_compile=self._note_cost)
            state, teachers = place(state, self.mesh), place(teachers, self.mesh)
            state = self.begin(state, resume=settings.resume, evaluate_first=evaluate_first, is_over=is_over)
            state = fit(
                program,
                state,
                MeshBatches(batches, self.mesh),
                steps=self.steps,
                hooks=Hooks(self.on_log, self.on_eval, self.keep, is_due, should_stop, aside=lambda: program.seconds),
                teacher_params=teachers,
                log_every=settings.log_every,
                eval_every=max(1, -(-(run_steps or self.steps) // settings.evaluations)),
            )
            self.trained = self.total_seconds()
            return state
        except Diverged as error:
            error.checkpoint = self.checkpoints.newest
            raise
        finally:
            self.checkpoints.close()

    def _note_cost(self, cost: StepCost, programs: int) -> None:
        if not self.compilations:
            say(f"{self.recorder.title}  on {mesh_text(self.mesh.shape)}: {cost}")
        self._add_costs([cost])
        self.compilations += programs

    def _add_costs(self, costs: Iterable[StepCost]) -> None:
        self.costs += [cost for cost in costs if cost not in self.costs]

    def on_log(self, record: LogRecord) -> None:
        self.rates.append(record.examples_per_second)
        if self.sparsity is not None:
            record = record._replace(asked=self.sparsity[0], delivered=self.sparsity[1])
        self.recorder.train(record, float(np.asarray(self.rate(record.step - 1))))

    def on_eval(self, state: TrainState) -> None:
        metrics, step = self.evaluate(state), int(state.step)
        self.recorder.evaluation(step, metrics, self.removed(state))
        self.last = metrics
        score = next(iter(metrics.values()))
        if step >= self.target_step and score > self.best.get("score", -2.0):
            self.best = {"score": score, "metrics": metrics, "step": step}
            self.save_model(state, "model")
        self.keep(state)

    def keep(self, state: TrainState) -> None:
        """Writes a checkpoint."""
        costs = {"mesh": mesh_text(self.mesh.shape), "costs": [cost._asdict() for cost in self.costs]}
        extra = {"best": self.best, "last": self.last, "seconds": self.total_seconds(), "rates": self.rates}
        self.checkpoints.save(state, extra | costs)
        self._kept_at = time.monotonic()

    def save_model(self, state: TrainState, name: str) -> None:
        """Writes a model folder beside the old one, then puts it in its place."""
        fresh = self.folder / f"{name}.new"
        on_first(lambda: finish_replacing(self.folder / name))
        self.write(state, fresh)
        on_first(lambda: replace_folder(self.folder / name, fresh))
