"""Checkpoints of a run's state with Orbax, written whole or not at all."""

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax.train.step import TrainState


def _plain(state: TrainState) -> TrainState:
    """The state with its random key as integers, which is what can be stored."""
    return state._replace(key=jax.random.key_data(state.key))


def _form(array: Any) -> str:
    """Type and shape of an array, "float32[4, 2]"."""
    return f"{array.dtype}{list(array.shape)}"


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keeps the threads of a failed write or read from printing hundreds of lines beside the one error that is raised.

    Others of the same checkpoint end after Orbax has closed its event loop, at any time until the process
    ends, hence complaints about that loop stay unsaid from then on; all others are passed on.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook
    disabled = logger.disabled

    def pass_on(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook, logger.disabled = pass_on, True
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.disabled = disabled


class Checkpoints:
    """The newest state of a phase, with what the loop knows beside it, in one folder."""

    def __init__(self, folder: Path, *, keep: int = 1):
        """Args:
        folder: made if missing.
        keep: how many of the newest are kept.
        """
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        handlers = {"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def save(self, state: TrainState, extra: dict[str, Any]) -> None:
        """Writes the state under its step number; a step that is there already is left as it is.

        Raises:
          InputError: it cannot be written; what was there before is still there.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        plain = _plain(state)
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(plain)), shutil.disk_usage(self.folder).free
        if free < needed:
            sizes = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB free"
            raise InputError(f"{self.folder}: step {step} cannot be written ({sizes})")
        args = ocp.args.Composite(state=ocp.args.StandardSave(plain), extra=ocp.args.JsonSave(extra))
        try:
            with _without_chatter():
                self._manager.save(step, args=args)
        except (ValueError, OSError) as error:  # tensorstore says ValueError where the disk is full
            code = re.search(r"os_error_code='(\d+)'", str(error))
            line = os.strerror(int(code[1])) if code else str(error).splitlines()[0][:200]
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
        here = {path_string(path): _form(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        try:
            with _without_chatter():
                stored = jax.tree.leaves(self._manager.item_metadata(step)["state"].tree)
                there = {leaf.name.replace(".", "/"): _form(leaf) for leaf in stored}
                restored = self._manager.restore(step, args=args) if there == here else None
        except (ValueError, KeyError, OSError, AttributeError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"{self.folder}: step {step} cannot be read ({line})") from None
        if restored is None:
            path = next(path for path in here | there if there.get(path) != here.get(path))
            differs = f"{path} is {there.get(path, 'not there')}, this run's {here.get(path, 'nothing')}"
            raise InputError(f"{self.folder}: step {step} does not fit this run: {differs}")
        state = restored["state"]
        return state._replace(key=jax.random.wrap_key_data(state.key)), restored["extra"]

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()
