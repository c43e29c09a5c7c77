"""Several processes of one run: what one of them does for all, and what all of them have to agree on.

Each process runs the same program on its own machine, or its own devices of one, and all take part in every step.
What reads or changes the run folder is done by process 0, and its outcome, good or bad, is everyone's; the others wait
for it, so that no two processes ever decide differently. In a run of one process all of this is the work itself.
"""

import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from kaprune_jax._errors import InputError, one_line

P = ParamSpec("P")
T = TypeVar("T")

MEET_SECONDS = 300
"""How long processes wait for each other at the start."""
HEARTBEAT_SECONDS = 60
"""After how long a process that says nothing any more counts as dead."""
_BLOCK = 4096
_alone = False  # process 0 is at work that the others only wait for


class Agreed(InputError):
    """Bad input that every process knows of, so that each of them ends by itself."""


def parse_distributed(text: str) -> tuple[str, int, int] | None:
    """Reads "HOST:PORT,COUNT,INDEX" into address, number of processes and this one's; "auto" into None.

    Raises:
      InputError: it is neither.

    Example:
      >>> parse_distributed("10.0.0.5:8476,4,0")
      ('10.0.0.5:8476', 4, 0)
    """
    if text == "auto":
        return None
    found = re.fullmatch(r"(\S+:(\d{1,5})),(\d{1,6}),(\d{1,6})", text, re.ASCII)
    if not found or int(found[4]) >= int(found[3]) or not 0 < int(found[2]) < 65536:
        raise InputError(
            f"distributed {text!r}: auto (the cluster's launcher knows), or HOST:PORT,COUNT,INDEX with process 0's "
            "address, the number of processes and this one's, from 0"
        )
    return found[1], int(found[3]), int(found[4])


def join(text: str) -> None:
    """Meets the other processes of a run; nothing may have been computed with JAX before. Of CPUs each is one device.

    Args:
      text: as `parse_distributed` reads it.

    Raises:
      InputError: it is malformed, no launcher is recognised, or the others do not come.
    """
    given = parse_distributed(text)
    address, count, index = given or (None, None, None)
    if given:
        _look_for(*given)
    jax.config.update("jax_enable_preemption_service", False)  # signals are the command's own
    # On CPUs collectives block a thread each: those of several devices in a process, or of programs that it has queued,
    # may take turns in another order than in other processes, and wait for ever.
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=MEET_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        if given is None and isinstance(error, ValueError):
            reason = f"no launcher is recognised ({reason}); HOST:PORT,COUNT,INDEX says it all"
        raise InputError(f"distributed {text!r}: {reason}") from None


def _look_for(address: str, count: int, index: int) -> None:
    """Waits until process 0 answers, or, in process 0, looks whether it can: JAX itself ends a process without a word.

    Raises:
      InputError: nobody answers, or the port is taken.
    """
    host, _, port = address.rpartition(":")
    if index == 0:
        try:
            with socket.socket() as opened:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                opened.bind(("", int(port)))
        except OSError as error:
            raise InputError(f"distributed: port {port} of this machine, process 0: {error.strerror}") from None
        return
    until = time.monotonic() + MEET_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"distributed: process {index} of {count} found nobody at {address} in {MEET_SECONDS} s ({error}); "
                    "process 0 has to run there, and the port to be open"
                ) from None
        time.sleep(0.5)


def several() -> bool:
    """Whether this run has more processes than one, and they are not waiting for process 0 just now."""
    return jax.distributed.is_initialized() and jax.process_count() > 1 and not _alone


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, where alone it is done; all processes have to call this.

    Args:
      work: gives a JSON value or a path; tuples come to the others as lists, paths as strings.

    Raises:
      Agreed: its `InputError` or `OSError`, in every process.
    """
    global _alone
    if not several():
        return work()
    outcome: dict[str, Any] = {}
    value: Any = None
    if is_first():
        _alone = True
        try:
            value = work()
            outcome = {"value": value}
        except (InputError, OSError) as error:
            outcome = {"error": one_line(error)}
        finally:
            _alone = False
    outcome = json.loads(_gather_bytes(json.dumps(outcome, default=os.fspath).encode(), first_only=True)[0])
    if "error" in outcome:
        raise Agreed(outcome["error"])
    return value if is_first() else outcome["value"]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """A function that is called in all processes and does its work in process 0 alone; see `on_first`."""

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> T:
        return on_first(lambda: function(*args, **options))

    return called


def on_all(work: Callable[[], T]) -> T:
    """What `work` gives here, if it succeeds in every process; it must not itself wait for others.

    Raises:
      Agreed: the first process's `InputError` or `OSError`, in every process.
    """
    if not several():
        return work()
    value: Any = None
    try:
        value, line = work(), ""
    except (InputError, OSError) as error:
        line = one_line(error)
    lines = gather(line)
    if failed := [(index, line) for index, line in enumerate(lines) if line]:
        index, line = failed[0]
        raise Agreed(line if len(failed) == len(lines) else f"process {index} of {len(lines)}: {line}")
    return value


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    return [text] if not several() else [found.decode() for found in _gather_bytes(text.encode())]


def check_same(values: Mapping[str, Any]) -> None:
    """Whether values, JSON's, are the same in every process.

    Args:
      values: by name; every process has the same names.

    Raises:
      Agreed: one is not, naming it and the first process where it differs from process 0's.
    """
    first, *others = map(json.loads, gather(json.dumps(values)))
    for index, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise Agreed(f"process {index} of {1 + len(others)} has {name} {other[name]}, process 0 {value}")


def agree(wish: bool) -> bool:
    """Whether any process wishes it."""
    return any(gather("x" if wish else ""))


def _gather_bytes(own: bytes, *, first_only: bool = False) -> list[bytes]:
    """The bytes of every process, or of process 0 only, which then alone say how many there are."""
    from jax.experimental import multihost_utils

    def exchange(array: np.ndarray) -> np.ndarray:
        if first_only:
            return np.asarray(multihost_utils.broadcast_one_to_all(array))[None]
        return np.asarray(multihost_utils.process_allgather(array)).reshape(jax.process_count(), -1)

    sizes = exchange(np.array([len(own)], np.int32))[:, 0]
    if not sizes.any():
        return [b""] * len(sizes)
    block = np.zeros(-(-int(sizes.max()) // _BLOCK) * _BLOCK, np.uint8)  # few shapes: each is a compilation
    mine = own[: len(block)]
    block[: len(mine)] = np.frombuffer(mine, np.uint8)
    return [bytes(row[:size]) for row, size in zip(exchange(block), sizes, strict=True)]
