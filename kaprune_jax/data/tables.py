"""Reading text and label columns from TSV, CSV and JSONL files, plain or gzip-compressed.

TSV is split on tabs without any quoting, as GLUE's files need it (fields hold bare quotation marks); CSV follows
RFC 4180 quoting; JSONL holds one JSON object a line. Text is UTF-8, with or without a byte order mark; lines end in
LF or CRLF; empty lines at the end are ignored. A row is named by the line it begins on, the first line being row 1.
"""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short

from kaprune_jax._errors import InputError
from kaprune_jax._reading import open_data, parse_json
from kaprune_jax.data.rows import RawRows

_ENDINGS = (".tsv", ".csv", ".jsonl")


def read_rows(
    path: Path, *, text: tuple[str, ...], label: str | None, header: tuple[str, ...] | None = None
) -> RawRows:
    """Read one or two text columns and the label column of a file.

    Args:
      path: a `.tsv`, `.csv` or `.jsonl` file, each also with `.gz` after it.
      text: names of the text columns.
      label: name of the label column; None where labels are not wanted, which are then empty.
      header: column names, for a TSV or CSV file whose first line is already a row.

    Returns:
      The rows as written, numbers of JSON as text.

    Raises:
      InputError: the file is missing, unreadable, empty, cut short, not UTF-8 or of another format; a column is
        missing; a row has too few or too many fields, a NUL character, is malformed, or (JSONL) holds neither a string
        nor a finite number; a gzip file inflates out of proportion (`open_data`).
    """
    wanted = text if label is None else (*text, label)
    content = read_content(_checked(path))
    if _ending(path) == ".jsonl":
        rows = list(_objects(path, content, wanted))
    else:
        rows = list(_columns(path, _records(path, content), wanted, header))
    if not rows:
        raise InputError(f"{path}: a header but no rows; at least one row is needed")
    return RawRows(
        source=str(path),
        texts=tuple(fields[: len(text)] for _, fields in rows),
        labels=tuple("" if label is None else fields[-1] for _, fields in rows),
        numbers=tuple(number for number, _ in rows),
    )


def column_names(path: Path) -> tuple[str, ...]:
    """The names of a file's columns, or its first row where it has no header; of JSONL the fields that any row has.

    Raises:
      InputError: as of `read_rows`.
    """
    content = read_content(_checked(path))
    if _ending(path) != ".jsonl":
        return tuple(name.strip() for name in next(_records(path, content))[1])
    return tuple(dict.fromkeys(name for number, line in _lines(content) for name in _object(path, number, line)))


def _checked(path: Path) -> Path:
    if _ending(path) not in _ENDINGS:
        raise InputError(f"{path}: name ends in {path.suffix!r}; allowed are {', '.join(_ENDINGS)}, plain or with .gz")
    return path


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _records(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    return _tab_records(content) if _ending(path) == ".tsv" else _comma_records(path, content)


def read_content(path: Path) -> str:
    """The text of a file, plain or gzipped (`.gz`), without the line ends at its end.

    Raises:
      InputError: it cannot be read, is empty, is not UTF-8 or has a NUL character; the message has the row.
    """
    try:
        with open_data(path) as opened:
            data = opened.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Count in error.object: the codec has taken a byte order mark off it.
        row = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, row {row}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
    if (place := content.find("\0")) >= 0:
        raise InputError(f"{path}, row {content.count(chr(10), 0, place) + 1}: a NUL character; text is needed")
    content = content.rstrip("\r\n")
    if not content:
        raise InputError(f"{path}: the file is empty")
    return content


def _lines(content: str) -> Iterator[tuple[int, str]]:
    # Not str.splitlines, which also splits at form feeds and other signs that stand inside texts.
    for number, line in enumerate(content.split("\n"), 1):
        yield number, line.removesuffix("\r")


def _tab_records(content: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(content):
        yield number, line.split("\t")


def _comma_records(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    number = 1
    try:
        for record in reader:
            yield number, record
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, row {number}: malformed CSV ({error})") from None


def _columns(
    path: Path, records: Iterator[tuple[int, list[str]]], wanted: tuple[str, ...], header: tuple[str, ...] | None
) -> Iterator[tuple[int, tuple[str, ...]]]:
    if header is None:
        header = tuple(name.strip() for name in next(records)[1])
    listing = ", ".join(map(repr, header))
    for name in wanted:
        if header.count(name) != 1:
            found = "no column" if name not in header else "more than one column"
            one = len(header) == 1 and any(sign in header[0] for sign in ";,|\t")
            hint = f"; {'tabs' if _ending(path) == '.tsv' else 'commas'} part the columns of such a file" if one else ""
            raise InputError(f"{path}: {found} {name!r}; the columns are: {listing}{hint}")
    places = [header.index(name) for name in wanted]
    for number, record in records:
        if len(record) != len(header):
            wrong = "too few" if len(record) < len(header) else "too many"
            raise InputError(
                f"{path}, row {number}: {wrong} fields, {len(record)} instead of {len(header)} (columns: {listing})"
            )
        yield number, tuple(record[place] for place in places)


def _objects(path: Path, content: str, wanted: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, line in _lines(content):
        where, record = f"{path}, row {number}", _object(path, number, line)
        missing = [name for name in wanted if name not in record]
        if missing:
            raise InputError(f"{where}: no field {missing[0]!r}; the fields are: {', '.join(map(repr, record))}")
        yield number, tuple(_string(f"{where}, field {name!r}", record[name]) for name in wanted)


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    where = f"{path}, row {number}"
    try:
        record = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where}: malformed JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: {short(record)} is not a JSON object with named fields")
    return record


def _string(where: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {short(value)} is neither a string nor a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value} is no finite number")
    if "\0" in (string := str(value)):
        raise InputError(f"{where}: {short(value)} has a NUL character; text is needed")
    return string
