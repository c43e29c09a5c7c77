"""Deaths at chosen operations on files: the program ends there, or nothing can be written any more from there on.

    python tests/experiments/deaths.py PATTERN NUMBER FLAGS...

runs `experiments.glue` with FLAGS and ends as by SIGKILL at the NUMBER-th operation whose line, such as
"os.rename run/model.new run/model", PATTERN (a regular expression) is found in.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path

from safetensors.numpy import load_file

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TIMINGS = ("seconds", "examples_per_second", "peak_memory_bytes", "compilations", "speed")


class Dead(BaseException):
    """The program is no longer there, so nobody handles this."""


def describe(event: str, arguments: tuple) -> str | None:
    """An operation that changes files as a line; None for others."""
    if event == "open":
        place, mode, flags = arguments
        writes = flags & WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")
        return f"open {place}" if writes else None
    if event not in CHANGES:
        return None
    return f"{event} {' '.join(str(place) for place in arguments if isinstance(place, str | os.PathLike))}"


class Killer:
    """Counts operations on files below a folder, and lets none happen from a given one on."""

    def __init__(self):
        self.folder: str | None = None
        self.done: list[str] = []
        self.at: int | None = None
        sys.addaudithook(self._hook)  # for ever, and idle without a folder

    def arm(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.done = str(folder), at, []

    def disarm(self) -> None:
        self.folder = None

    @property
    def is_dead(self) -> bool:
        return self.at is not None and len(self.done) >= self.at

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.folder is None or (line := describe(event, arguments)) is None or self.folder not in line:
            return
        if self.is_dead:
            raise Dead if threading.current_thread() is threading.main_thread() else OSError("dead")
        self.done.append(line)
        if self.is_dead:
            raise Dead if threading.current_thread() is threading.main_thread() else OSError("dead")


def outcome(folder: Path) -> dict:
    """All that a run delivers, timings left out."""
    found: dict = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found[name] = {key: (str(value.dtype), value.tobytes()) for key, value in load_file(file).items()}
        elif file.name == "metrics.jsonl":
            found[name] = [without_timings(line) for line in file.read_text("utf-8").splitlines()]
        elif file.name == "result.json":
            found[name] = without_timings(file.read_text("utf-8"))
        elif file.is_file() and "ckpt" not in name and file.name not in ("env.json", "config.json", "README.md"):
            found[name] = None
    return found


def without_timings(text: str) -> dict:
    return {key: value for key, value in json.loads(text).items() if key not in TIMINGS}


def main() -> None:
    pattern, number, *flags = sys.argv[1:]
    left = [int(number)]

    def hook(event: str, arguments: tuple) -> None:
        line = describe(event, arguments)
        if line is not None and re.search(pattern, line):
            left[0] -= 1
            if not left[0]:
                os._exit(9)

    from experiments import glue

    sys.argv = ["glue"]
    sys.addaudithook(hook)
    sys.exit(glue.main(flags))


if __name__ == "__main__":
    main()
