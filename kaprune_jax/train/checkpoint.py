"""Checkpoints of a run's state with Orbax, written whole or not at all."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kaprune_jax._errors import InputError
from kaprune_jax.train.step import TrainState


def _plain(state: TrainState) -> TrainState:
    """The state with its random key as integers, which is what can be stored."""
    return state._replace(key=jax.random.key_data(state.key))


class Checkpoints:
    """The newest state of a phase, with what the loop knows beside it, in one folder."""

    def __init__(self, folder: Path, *, keep: int = 1):
        """Args:
        folder: made if missing.
        keep: how many of the newest are kept.
        """
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState, extra: dict[str, Any]) -> None:
        """Writes the state under its step number; a step that is there already is left as it is.

        Raises:
          InputError: it cannot be written; what was there before is still there.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(_plain(state)), extra=ocp.args.JsonSave(extra))
        try:
            self._manager.save(step, args=args)
        except (ValueError, OSError) as error:  # tensorstore says ValueError where the disk is full
            line = str(error).splitlines()[0][:200]
            raise InputError(f"{self.folder}: step {step} cannot be written ({line})") from None

    @property
    def latest(self) -> int | None:
        """The newest step there is."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state and what was saved beside it.

        Args:
          like: a state of the same structure and shapes.

        Raises:
          InputError: there is no checkpoint, or it does not fit this run.
        """
        step = self.latest
        if step is None:
            raise InputError(f"{self.folder}: no checkpoint to go on from")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError) as error:
            raise InputError(f"{self.folder}: step {step} does not fit this run ({str(error)[:200]})") from None
        state = restored["state"]
        return state._replace(key=jax.random.wrap_key_data(state.key)), restored["extra"]

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()
