"""Whether a run may be made in a folder, or gone on with."""

import os
from pathlib import Path

from experiments.config.settings import Settings
from experiments.runs.augment_file import AUGMENTED, PREVIEW
from experiments.runs.lock import LOCK, check_free
from kaprune_jax._errors import InputError


def check_out(settings: Settings) -> None:
    """Whether the run folder can be made, or, with --resume, gone on with.

    Raises:
      InputError: it holds something, cannot be written, or there is nothing to resume.
    """
    assert settings.out is not None
    out = Path(settings.out)
    check_free(out)
    if settings.resume:
        single = (out / "config.json").is_file()
        inside = sorted(file.parent.name for file in out.glob("*/env.json"))
        if not single and not inside and not (out / AUGMENTED).is_file() and not is_only_begun(out):
            raise InputError(f"--resume: {out} is no run folder: there is nothing to go on with; leave --resume out")
        if single and len(settings.methods) > 1:
            raise InputError(f"--resume: {out} is a run of one method; --method {settings.method} names several")
        if set(inside) - {"teacher"} and len(settings.methods) == 1:
            raise InputError(f"--resume: {out} holds runs of {', '.join(inside)}; --method {settings.method} names one")
        return
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.exists() and (not out.is_dir() or inside - {AUGMENTED, PREVIEW}):
        raise InputError(f"--out {out}: exists already; give another folder, or --resume to go on with the run in it")
    check_place(out, f"--out {out}")


def is_only_begun(out: Path) -> bool:
    """Whether a folder holds nothing but what a run that was killed at its very start has left: it starts anew."""
    names = {LOCK, "env.json", ".env.json.partial", ".config.json.partial", f".{AUGMENTED}.partial"}
    left = [path for path in out.rglob("*") if not path.is_dir()] if out.is_dir() else None
    return left is not None and all(path.name in names for path in left)


def check_place(place: Path, flag: str) -> None:
    """Whether a file or folder can be made at a place.

    Raises:
      InputError: the folder above it is none, or may not be written in.
    """
    parent = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise InputError(f"{flag}: no permission to write in {parent}")
