"""Folders that take another's place, so that a whole one is there after whatever interrupts it."""

import shutil
from pathlib import Path


def replace_folder(place: Path, fresh: Path) -> None:
    """Puts a whole folder in the place of another, which is only removed once the new one is there."""
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def finish_replacing(place: Path) -> None:
    """Ends what was interrupted: the new folder takes the place of one that had made way; the rest is removed."""
    fresh, old = place.with_name(f"{place.name}.new"), place.with_name(f"{place.name}.old")
    if not place.exists() and old.is_dir():
        (fresh if fresh.is_dir() else old).rename(place)
    for left in (fresh, old, *place.parent.glob(f".{fresh.name}-*")):  # the last being a new one half written
        shutil.rmtree(left, ignore_errors=True)
