"""Checkpoints of a run's state with Orbax: written beside the training, sealed once they are whole.

A checkpoint is a folder named after its step, and its seal, `STEP.sha256`, a file beside it with the digest of all that
is in it. One without a seal is one whose writing was interrupted, and is never gone on from. Of several processes each
writes the parts of arrays that lie on its devices, and process 0 does all else.
"""

import contextlib
import copy
import errno
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax.train import seals
from kaprune_jax.train.processes import gather, is_first, on_first
from kaprune_jax.train.step import TrainState

_UNREADABLE = (ValueError, KeyError, OSError, AttributeError, TypeError)


def _plain(state: TrainState) -> TrainState:
    """The state with its random key as integers, which is what can be stored."""
    return state._replace(key=jax.random.key_data(state.key))


def _detached(leaf: jax.Array) -> jax.Array:
    """An array that the next step, which gives its input's memory away, neither changes nor waits for.

    From an accelerator Orbax copies before `save` returns; on a CPU it reads the very memory, while it writes.
    """
    return leaf.copy() if all(device.platform == "cpu" for device in leaf.devices()) else leaf


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


def _line(error: Exception) -> str:
    """The first line of an error; of tensorstore's, which are long, what the system said; of Orbax's, what it means."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "structures do not match" in str(error):  # though arrays and shapes are the same ones
        return "another version of this program nested its arrays differently: go on with that one, or in a new folder"
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else (str(error).splitlines() or [type(error).__name__])[0][:200]


@functools.cache
def _drop_late_answers() -> None:
    """Silences, once, files that report to an event loop which Orbax closed when another of them could not be written.

    Nobody waits for them, and Python would print a traceback beside the one line that says what is wrong.
    """
    usual = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook


class Checkpoints:
    """The newest states of a phase, with what the loop knows beside them, in one folder."""

    def __init__(self, folder: Path, *, keep: int = 2):
        """Args:
        folder: made if missing; what an interrupted writing left in it is removed.
        keep: how many of the newest are kept.
        """
        self.folder, self.keep = folder, keep
        on_first(self._tidy)
        self._good: set[int] = set()  # sealed or read by this object
        self._pending: tuple[int, Future] | None = None
        self._thread = ThreadPoolExecutor(1, "seal")
        handlers = {"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        _drop_late_answers()
        self._silent = lambda record: False  # Orbax prints hundreds of lines beside the one error that is raised
        logging.getLogger("absl").addFilter(self._silent)

    def _tidy(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob("[0-9]*.orbax-checkpoint-tmp*"), *self.folder.glob(".[0-9]*.sha256")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def save(self, state: TrainState, extra: dict[str, Any]) -> None:
        """Begins to write the state under its step number; a step that this object has written or read is left.

        The state may be given away as soon as this returns. What cannot be written is said here, or by the next call of
        any method.

        Raises:
          InputError: it, or the one before, cannot be written; what was sealed before is still there.
        """
        self.wait()
        step = int(state.step)
        if step in self._good:
            return
        plain = _plain(state)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(plain))
        on_first(lambda: self._make_room(step, needed))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(_detached, plain)), extra=ocp.args.JsonSave(copy.deepcopy(extra))
        )
        try:
            self._orbax.save(self._place(step), args=items, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.folder}: step {step} cannot be written ({_line(error)})") from None
        self._pending = step, self._thread.submit(self._finish, step)

    def _make_room(self, step: int, needed: int) -> None:
        """Looks whether there is room for a checkpoint, and takes the seal from a damaged one in its place."""
        try:
            _reserve(self.folder, needed)
            seals.place(self.folder, step).unlink(missing_ok=True)
        except OSError as error:
            reason = f"{needed / 1e6:.1f} MB: {_line(error)}"
            raise InputError(f"{self.folder}: step {step} cannot be written ({reason})") from None

    def wait(self) -> None:
        """Waits until what was saved is sealed.

        Raises:
          InputError: it cannot be written.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        try:
            written.result()
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore's, where the disk fills up in spite of all
            raise InputError(f"{self.folder}: step {step} cannot be written ({_line(error)})") from None
        self._good.add(step)

    def _finish(self, step: int) -> None:
        """Waits for the files of a checkpoint, seals it, and removes those that are no longer needed."""
        self._orbax.wait_until_finished()
        if not is_first():
            return
        seals.write(self.folder, step)
        kept = [old for old in seals.sealed_steps(self.folder) if old <= step][-self.keep :]  # later ones were damaged
        for seal in self.folder.glob("[0-9]*.sha256"):
            if seal.stem not in map(str, kept):
                seal.unlink(missing_ok=True)
        for old in set(seals.steps(self.folder)) - set(kept):
            shutil.rmtree(self._place(old))

    def _place(self, step: int) -> Path:
        return self.folder.absolute() / str(step)

    @property
    def latest(self) -> int | None:
        """The newest step whose checkpoint is sealed."""
        self.wait()
        return on_first(lambda: max(seals.sealed_steps(self.folder), default=None))

    @property
    def newest(self) -> Path | None:
        """The folder of that checkpoint."""
        latest = self.latest
        return None if latest is None else self.folder / str(latest)

    @property
    def interrupted(self) -> list[int]:
        """The steps whose writing was interrupted, oldest first."""
        self.wait()
        return on_first(lambda: sorted(set(seals.steps(self.folder)) - set(seals.sealed_steps(self.folder))))

    def restore(
        self, like: TrainState, *, say: Callable[[str], None] = lambda line: None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest state that is as it was written, and what was saved beside it.

        Args:
          like: a state of the same structure and shapes.
          say: takes a line for each newer checkpoint that is damaged and so passed over.

        Raises:
          InputError: there is no checkpoint, or none that can be read, or it does not fit this run.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in reversed(on_first(lambda: seals.steps(self.folder))):
            read = self._read(step, like)
            if isinstance(read, str):
                damaged[step] = read
                continue
            for old, reason in damaged.items():
                say(f"note: {self.folder}: step {old} is damaged ({reason}); going on from step {step}")
            self._good.add(step)
            return read
        if not damaged:
            raise InputError(f"{self.folder}: no checkpoint to go on from")
        named = ", ".join(f"step {step} cannot be read ({reason})" for step, reason in damaged.items())
        raise InputError(f"{self.folder}: {named}")

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]] | str:
        """What a checkpoint holds, or what is wrong with it.

        Raises:
          InputError: it is whole, but of another run.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        here = {path_string(path): _form(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        if altered := on_first(lambda: seals.altered(self.folder, step)):
            return altered
        here_wrong, restored = "", None
        try:
            metadata: Any = self._orbax.metadata(self._place(step))
            stored = jax.tree.leaves(metadata.item_metadata["state"].tree)
            there = {leaf.name.replace(".", "/"): _form(leaf) for leaf in stored}
            restored = self._orbax.restore(self._place(step), args=args) if there == here else None
        except _UNREADABLE as error:
            here_wrong, there = _line(error), {}
        if wrong := [line for line in gather(here_wrong) if line]:
            return wrong[0]
        if restored is None:
            path = next(path for path in here | there if there.get(path) != here.get(path))
            differs = f"{path} is {there.get(path, 'not there')}, this run's {here.get(path, 'nothing')}"
            raise InputError(f"{self.folder}: step {step} does not fit this run: {differs}")
        state = restored["state"]
        return state._replace(key=jax.random.wrap_key_data(state.key)), restored["extra"]

    def close(self) -> None:
        """Waits until what was saved is sealed, and ends the threads.

        Raises:
          InputError: it cannot be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # all is sealed, or said to be not
                self._orbax.close()
            logging.getLogger("absl").removeFilter(self._silent)
