"""Spoiled files, drawn at random: each is read or refused in one line, within bounds, and nothing else happens.

Sound files of every kind are changed: bytes and slices, JSON values, names, shapes and lengths in safetensors headers,
rows under gzip. A few cases run by default, the same in every run; minutes of them with

    KAPRUNE_FUZZ_EXAMPLES=20000 python -m pytest tests/security/test_fuzz.py

What was found is kept in `corpus/READER/CASE/`, files that take the place of the sound ones, and is tried first.
"""

import contextlib
import functools
import gzip
import json
import math
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaprune_jax._errors import InputError

EXAMPLES = int(os.environ.get("KAPRUNE_FUZZ_EXAMPLES", "0"))
OURS = [f"{Path(__file__).parents[2] / part}/" for part in ("kaprune_jax", "experiments", "tests")]
CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(CORPUS.glob("*/*"))
MEBIBYTES, SECONDS = 256, 30
# A model is traced anew for every configuration, and a tokenizer is slow to build.
FEWER = {"start": 12, "model": 2, "shrunk": 2, "sharded": 2, "tokenizer": 3, "run": 2}
ODD = [
    0, 1, -1, 2**31, 2**32, 2**63, 10**30, -(10**300), 10**400, 0.5, -0.0, 1e-320, 1e300, float("nan"), float("inf"),
    True, None, [], {}, "", "\x00", "²", "../x", "/etc/hostname", "a\nb", "\x1b[2J", "\ud800", "<script>", "x" * 10_000,
    "60000x60000", "0x0", "bert", "F32", "U8", "mean", "nan", "1/0",
]  # fmt: skip
SIZES = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "I64": 64, "I8": 8, "U8": 8, "BOOL": 8}
"""Bits of the types of safetensors files."""
ODD_BYTES = [b"", b"\0", b"\xff", b"[" * 2000, b"\n" * 2000, b"9" * 5000]
JSON = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Files(dict[str, bytes]):
    """Contents by path; not shown, being long."""

    def __repr__(self) -> str:
        return f"Files of {', '.join(self)}"


@functools.cache
def sound(reader: str) -> dict[str, bytes]:
    """The files of a kind, by their path below the folder that they are made in."""
    with tempfile.TemporaryDirectory() as place:
        readers.READERS[reader][0](Path(place))
        return {str(file.relative_to(place)): file.read_bytes() for file in Path(place).rglob("*") if file.is_file()}


@st.composite
def spoiled(draw: st.DrawFn, reader: str) -> Files:
    """One file, or two, of a kind with other contents."""
    files = sound(reader)
    names = draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True))
    return Files({name: draw(other_content(name, files[name])) for name in names})


def other_content(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """What a file could hold instead."""
    anyhow = other_bytes(content)
    if name.endswith(".gz"):
        inner = other_content(name.removesuffix(".gz"), gzip.decompress(content))
        return anyhow | inner.map(lambda data: gzip.compress(data, 1, mtime=0))
    if name.endswith(".safetensors"):
        return st.one_of(anyhow, other_header(content), *[other_tensors(content)] * 3)
    if name.endswith(".json"):
        value = other_json(json.loads(content)).map(lambda value: json.dumps(value).encode())
        return st.one_of(anyhow, value, value, value)
    if name.endswith(".jsonl"):
        return st.one_of(anyhow, *[other_lines(content)] * 3)
    return anyhow


@st.composite
def other_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, cut out, put in, doubled or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.sampled_from([1, 2, 8, 100, len(content)])))
        new = draw(
            st.binary(max_size=8) | st.sampled_from([b"", b"\0", b"\xff", b"[" * 2000, b"\n" * 2000, b"9" * 5000])
        )
        kept = content[at:end] if draw(st.booleans()) else b""
        content = content[:at] + kept + new + kept + content[end:]
    return content


@st.composite
def other_json(draw: st.DrawFn, value: Any) -> Any:
    """A value, a name or an entry changed somewhere in a JSON value, once or twice."""
    for _ in range(draw(st.integers(1, 2))):
        value = _changed(draw, value, draw(st.sampled_from(list(_paths(value)))))
    return value


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where values are in a JSON value; of long lists and objects the first few entries."""
    yield path
    if isinstance(value, dict | list):
        for key in list(value if isinstance(value, dict) else range(len(value)))[:30]:
            yield from _paths(value[key], (*path, key))


def _changed(draw: st.DrawFn, value: Any, path: tuple) -> Any:
    if len(path) > 1:
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[path[0]] = _changed(draw, value[path[0]], path[1:])
        return copy
    if not path:
        return draw(JSON)
    change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "nest"]))
    copy = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    old = copy.pop(path[0])
    if type(old) in (int, float) and draw(st.booleans()):  # near what it was
        copy[path[0]] = old + draw(st.sampled_from([-1, 1, 2, old, 1000]))
        return copy if isinstance(value, dict) else list(copy.values())
    if change == "rename":
        copy[draw(st.sampled_from([str(each) for each in ODD]) | st.text(max_size=5))] = old
    elif change != "remove":
        copy[path[0]] = draw(JSON) if change == "replace" else [old]
    return copy if isinstance(value, dict) else list(copy.values())


@st.composite
def other_header(draw: st.DrawFn, content: bytes) -> bytes:
    """Another header, length of the header, or data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    text = json.dumps(draw(other_json(header))).encode()
    claimed = draw(st.sampled_from([len(text)] * 6 + [0, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1]))
    return struct.pack("<Q", claimed) + text + data[: draw(st.sampled_from([len(data)] * 4 + [0, 4, len(data) - 1]))]


@st.composite
def other_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A sound safetensors file with other names, types, shapes, values or metadata."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {name: (about["dtype"], about["shape"], slice(*about["data_offsets"])) for name, about in header.items()}
    if draw(st.booleans()):
        changed = draw(other_json(metadata))
        metadata = {str(name): str(value) for name, value in changed.items()} if isinstance(changed, dict) else {}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(tensors)))
        kind, shape, place = tensors[name]
        change = draw(st.sampled_from(["remove", "rename", "copy", "type", "shape", "shape"]))
        if change in ("remove", "rename") and len(tensors) > 1:
            del tensors[name]
        if change in ("rename", "copy"):
            name = draw(st.text(max_size=5) | st.sampled_from(sorted(tensors)) | st.just(f"{name}x"))
            name = name.replace("layer.0", draw(st.sampled_from(["layer.1", "layer.00", "layer.9", "layer.-1"])))
        if change == "type":
            kind = draw(st.sampled_from(sorted(SIZES)))
        if change == "shape":
            shape = draw(st.permutations(shape) | st.lists(st.sampled_from([0, 1, 2, 16, 32]), max_size=3))
        if change != "remove":
            tensors[name] = kind, shape, place
    header, parts, at = {"__metadata__": metadata} if metadata else {}, [], 0
    for name, (kind, shape, place) in tensors.items():
        size = math.prod(shape) * SIZES[kind] // 8
        parts.append((data[place] or b"\x7f").ljust(size, b"\x7f")[:size])
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


@st.composite
def other_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """A line of a JSONL file changed, doubled or left out."""
    lines = content.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    new = json.dumps(draw(other_json(json.loads(lines[at])))).encode()
    return b"\n".join([*lines[:at], *draw(st.sampled_from([[], [new], [new, new]])), *lines[at + 1 :]])


class Watch:
    """Notes what Python opens, makes, removes or runs outside a folder; an audit hook cannot be taken away again."""

    READABLE = (sys.prefix, sys.base_prefix, *OURS, "/proc/", "/sys/", "/dev/")
    CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link")
    NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[tuple] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None or event not in ("open", *self.CHANGES, *self.NEVER):
            return
        # What is compiled once for all tests lies elsewhere.
        path, ours = str(arguments[0]), (self.folder, str(jax.config.jax_compilation_cache_dir))
        if event not in self.NEVER and (path.startswith(ours) or isinstance(arguments[0], int)):
            return
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if reads and os.path.abspath(path).startswith(self.READABLE):
            return
        self.seen.append((event, *arguments))

    @contextlib.contextmanager
    def inside(self, folder: Path) -> Iterator[None]:
        self.folder, self.seen = str(folder), []
        try:
            yield
        finally:
            self.folder = None
        assert not self.seen


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@functools.cache
def warm_up(reader: str) -> None:
    """Reads a sound one: what is imported on first use is not what a spoiled file does or costs."""
    sound(reader)
    with tempfile.TemporaryDirectory() as place:
        readers.READERS[reader][1](readers.READERS[reader][0](Path(place)))


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def check(reader: str, files: dict[str, bytes], bounds, watch) -> None:
    """The property: the files are read, or refused in one line that can be shown."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "given")
        folder.mkdir()
        place = readers.READERS[reader][0](folder)
        write(folder, files)
        said = ""
        with bounds(MEBIBYTES, SECONDS), watch.inside(folder):
            try:
                readers.READERS[reader][1](place)
            except InputError as error:
                said = str(error)
        assert said.isprintable() or not said
        assert len(said) < 2100
        assert outer in said or not said
        assert os.listdir(outer) == ["given"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_what_was_found(case, bounds, watch):
    files = {str(file.relative_to(case)): file.read_bytes() for file in case.rglob("*") if file.is_file()}
    warm_up(case.parent.name)
    check(case.parent.name, files, bounds, watch)


@pytest.mark.parametrize("reader", readers.READERS)
def test_spoiled_files(reader, bounds, watch, tmp_path):
    """The smallest case that fails is left in the test's folder, ready for the corpus."""
    count = (EXAMPLES or 24) // FEWER.get(reader, 1)
    warm_up(reader)

    @settings(
        max_examples=count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoiled(reader))
    def spoil(files: Files) -> None:
        try:
            check(reader, files, bounds, watch)
        except BaseException:
            shutil.rmtree(tmp_path / "failed", ignore_errors=True)
            write(tmp_path / "failed", files)
            raise

    spoil()
    if reader in ("model", "start", "shrunk", "sharded"):
        jax.clear_caches()  # of one trace for every configuration
