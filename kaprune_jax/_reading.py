"""Reading files that somebody else made, and that may be hostile.

What is read costs memory and time in proportion to the file: JSON has bounded depth and numbers, gzip a bounded ratio,
and devices and pipes, which have no end, are no files. Nothing outside a folder is read through its links.
"""

import gzip
import io
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from kaprune_jax._errors import InputError

_DEEPEST = 100
_DIGITS = 300  # more would not fit into a float either
# Text shrinks to a third, rows that repeat each other to a twentieth; deflate can reach 1/1032.
_RATIO, _RATIO_FROM, _MOST = 100, 16 << 20, 4 << 30


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder, after a check that no symbolic link leads out of the folder.

    The Hugging Face hub's cache is made of links out of the folder: `models--ORG--NAME/snapshots/REVISION/FILE` leads
    to `models--ORG--NAME/blobs/HASH`. So in a folder at or below such a revision a link may also lead to a file that
    lies directly in the `blobs` of the same `models--ORG--NAME`. Whether one may is judged where a link ends, after all
    links on the way: `blobs` cannot itself be a link to elsewhere. Links to other models' blobs are refused.

    Args:
      folder: the folder that a person gave; it may be reached through links.
      name: a relative path below it; it need not exist.

    Raises:
      InputError: the path leads out of the folder.
    """
    place, home = folder / name, Path(os.path.realpath(folder))
    target = Path(os.path.realpath(place))
    blobs = [
        parent.parent / "blobs"
        for parent in home.parents
        if parent.name == "snapshots" and parent.parent.name.startswith("models--")
    ]
    if not target.is_relative_to(home) and target.parent not in blobs:
        raise InputError(
            f"{place}: leads to {target}; files must lie in the folder itself, or be links of the hub's cache "
            "to its blobs: put a copy there"
        )
    return place


def open_data(file: Path, *, packed: bool | None = None) -> io.BufferedReader:
    """A file for reading.

    Args:
      file: its path.
      packed: whether it is gzip-compressed; by default if its name ends in .gz. An empty one is empty.

    Raises:
      InputError: there is no such file, it is none (a device, a pipe), or it cannot be read; when reading, it inflates
        to more than a hundred times its size (from 16 MiB on), or to more than 4 GiB.
    """
    try:
        if stat.S_IFMT(os.stat(file).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{file}: cannot be read (a device or a pipe; a file is needed)")
        opened = file.open("rb")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{str(file)!r}: no name of a file") from None
    packed = file.suffix == ".gz" if packed is None else packed
    return io.BufferedReader(_Inflated(file, opened), 1 << 16) if packed else opened


class _Inflated(io.RawIOBase):
    """What a gzip file holds, as far as that is in proportion to the file."""

    def __init__(self, file: Path, opened: io.BufferedReader):
        self._file, self._opened, self._read = file, opened, 0
        self._stored = os.fstat(opened.fileno()).st_size
        self._gzip = gzip.GzipFile(fileobj=opened)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._opened.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        if self._stored == 0:
            return 0
        try:
            piece = self._gzip.read(len(buffer))
        except EOFError:
            raise InputError(f"{self._file}: the gzip data is cut short; fetch or compress the file again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._file}: not a sound gzip file ({error})") from None
        buffer[: len(piece)] = piece
        self._read += len(piece)
        if self._read > _MOST or (self._read > _RATIO_FROM and self._read > _RATIO * self._stored):
            raise InputError(
                f"{self._file}: {self._stored} bytes that inflate to more than {self._read - len(piece)}; up to "
                f"{_RATIO} times the size, and {_MOST >> 30} GiB in all, are allowed: inflate the file yourself if it "
                "is what you want"
            )
        return len(piece)


def parse_json(text: str) -> Any:
    """The value of a JSON text; NaN and Infinity are taken as Python takes them.

    Raises:
      ValueError: it is none (`json.JSONDecodeError`), is nested more than 100 deep, or has a whole number of more than
        300 digits or half of a surrogate pair; one short clause that says which.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} deep") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair cannot be text") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; up to {_DIGITS} are allowed")
    return int(digits)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing, not UTF-8, or holds no JSON object.
    """
    return as_object(read_text(file), file)


def read_text(file: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
      InputError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        with open_data(file) as opened:
            return opened.read().decode("utf-8")
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}: not UTF-8 (byte 0x{error.object[error.start]:02x} in line {row})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def as_object(text: str, file: Path, *, line: int | None = None) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
      text: JSON.
      file: where it is from, for messages.
      line: which line of the file the text is; None for all of them.

    Raises:
      InputError: it is no JSON object.
    """
    where = str(file) if line is None else f"{file}: line {line}"
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: line {line or error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed, not {type(value).__name__}")
    return value
