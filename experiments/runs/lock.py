"""One process at a time writes in a run folder: whoever comes second is refused in one line.

The lock is the kernel's, on a file in the folder, so that it ends with the process, however that ends. On a file system
without such locks the process that the file names is looked for.
"""

import fcntl
import os
import socket
from pathlib import Path

from kaprune_jax._errors import InputError

LOCK = "lock"
_HALF = (".*.partial", ".report.html-*", ".table.md-*")
_held: dict[Path, tuple[int, list[Path]]] = {}  # by run folder the open file, and the folders that were made for it


class Busy(InputError):
    """Another process is at work in a folder."""


def hold(folder: Path) -> None:
    """Takes the lock of a run folder, made if missing, until `release` or the end of the process; twice is once.

    What a process that was killed has left half written there is removed.

    Raises:
      InputError: another process has it, or the folder cannot be written in.
    """
    if folder.absolute() in _held:
        return
    _lock(folder)
    for pattern in _HALF:
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


def _lock(folder: Path) -> None:
    place = folder.absolute()
    made = [path for path in (place, *place.parents) if not path.exists()]
    try:
        while True:
            place.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the folder was removed by the one that had made it
                continue
            if not _take(file):
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise Busy(f"{folder}: a run is going on in it ({holder})")
            if _is_there(file, place / LOCK):
                break
            os.close(file)  # removed by the one that had it before
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    _held[place] = file, made


def take(folder: Path) -> None:
    """Takes a run folder for all processes of a run: process 0 holds it, and all others have to see it.

    Raises:
      InputError: it is held by another run, cannot be written in, or is not the same folder everywhere.
    """
    from kaprune_jax.train.processes import on_all, on_first

    def look() -> None:
        if not (folder / LOCK).is_file():
            raise InputError(f"--out {folder}: it is not there; it has to be on a file system that all processes share")

    on_first(lambda: hold(folder))
    on_all(look)


def release(folder: Path | None = None) -> None:
    """Gives back the locks of a run folder and those below it, of all folders without one.

    A folder that was made for its lock and has nothing else in it is removed.
    """
    for place in [place for place in reversed(_held) if folder is None or place.is_relative_to(folder.absolute())]:
        file, made = _held.pop(place)
        try:
            if _is_there(file, place / LOCK):
                (place / LOCK).unlink()
            for path in made:
                path.rmdir()
        except OSError:
            pass  # there is something in it; or it can no longer be written in, and keeps a file that nobody holds
        finally:
            os.close(file)


def check_free(folder: Path) -> None:
    """Whether nobody else is at work in a folder.

    Raises:
      InputError: another process is.
    """
    if (folder / LOCK).is_file() and folder.absolute() not in _held:
        _lock(folder)
        release(folder)


def _take(file: int) -> bool:
    """Whether the lock of an open file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return not _is_running(os.pread(file, 200, 0).decode(errors="replace").split())


def _is_running(holder: list[str]) -> bool:
    """Whether the process that "pid 7 on host" names may still be there; of another host that cannot be told."""
    match holder:
        case ["pid", number, "on", host] if number.isdecimal():
            return host != socket.gethostname() or _has_process(int(number))
    return False


def _has_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return number != os.getpid()


def _is_there(file: int, place: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), place.stat())
    except FileNotFoundError:
        return False
