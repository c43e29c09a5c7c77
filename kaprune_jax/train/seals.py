"""Seals of checkpoints: which of the folders that are named after a step are whole, and still as they were written."""

import hashlib
import os
from pathlib import Path

_UNSEALED = "its writing was interrupted"


def place(folder: Path, step: int) -> Path:
    """The seal of a step, the file `STEP.sha256`, whether it is there or not."""
    return folder / f"{step}.sha256"


def digest(checkpoint: Path) -> str:
    """SHA-256 (hex) over the names and bytes of all files of a checkpoint."""
    whole = hashlib.sha256()
    for file in sorted(file for file in checkpoint.rglob("*") if file.is_file()):
        whole.update(f"{file.relative_to(checkpoint)} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def write(folder: Path, step: int) -> None:
    """Seals a checkpoint that is whole; the seal is whole too, or not there."""
    partial = folder / f".{step}.sha256"
    partial.write_text(digest(folder / str(step)), "utf-8")
    os.replace(partial, place(folder, step))


def steps(folder: Path) -> list[int]:
    """The steps that have a folder, oldest first."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def sealed_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that were written to their end, oldest first."""
    return [step for step in steps(folder) if place(folder, step).is_file()]


def altered(folder: Path, step: int) -> str | None:
    """What is wrong with the files of a checkpoint, if anything is."""
    if not place(folder, step).is_file():
        return _UNSEALED
    try:
        whole = place(folder, step).read_bytes() == digest(folder / str(step)).encode()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if whole else "a file in it was altered or lost"
