"""Checkpoints of a run's state with Orbax, written whole or not at all."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
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


def _reserve(folder: Path, size: int) -> None:
    """Takes and gives back room for a file of that many bytes, since Orbax and its threads fail badly half way.

    Raises:
      OSError: there is no such room: a full disk, a quota, a limit on the size of files.
    """
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # file systems that cannot
                    raise


def _digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from printing hundreds of lines beside the one error that is raised."""
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
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
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(plain))
        args = ocp.args.Composite(state=ocp.args.StandardSave(plain), extra=ocp.args.JsonSave(extra))
        try:
            _reserve(self.folder, needed)
            with _quiet():
                self._manager.save(step, args=args)
            self._seal(step)
        except OSError as error:
            reason = f"{needed / 1e6:.1f} MB: {error.strerror or error}"
            raise InputError(f"{self.folder}: step {step} cannot be written ({reason})") from None
        except ValueError as error:  # tensorstore's, where the disk fills up in spite of that
            code = re.search(r"os_error_code='(\d+)'", str(error))
            line = os.strerror(int(code[1])) if code else str(error).splitlines()[0][:200]
            raise InputError(f"{self.folder}: step {step} cannot be written ({line})") from None

    def _seal(self, step: int) -> None:
        """Writes the digest of a checkpoint beside it, whole or not at all, and drops those of others."""
        kept = {str(step) for step in self._manager.all_steps()}
        for old in self.folder.glob("[0-9]*.sha256"):
            if old.stem not in kept:
                old.unlink(missing_ok=True)
        partial = self.folder / f".{step}.sha256"
        partial.write_text(_digest(self.folder / str(step)), "utf-8")
        os.replace(partial, self.folder / f"{step}.sha256")

    def _sealed(self, step: int) -> bool:
        """Whether a checkpoint is as it was written; one whose run was killed before the digest counts as such."""
        seal = self.folder / f"{step}.sha256"
        return not seal.is_file() or seal.read_bytes() == _digest(self.folder / str(step)).encode()

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
        if not self._sealed(step):
            raise InputError(f"{self.folder}: step {step} cannot be read (a file in it was altered or lost)")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        here = {path_string(path): _form(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        try:
            with _quiet():
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
