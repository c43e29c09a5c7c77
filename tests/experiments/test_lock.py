"""One process at a time in a run folder."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import glue
from experiments.runs.lock import LOCK, check_free, hold, release
from kaprune_jax._errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from experiments.runs.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def nothing_is_held():
    yield
    release()


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder `run`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_of_the_first(other, tmp_path):
    for ask in (hold, check_free):
        with pytest.raises(InputError) as caught:
            ask(tmp_path / "run")
        assert str(caught.value) == (
            f"{tmp_path / 'run'}: a run is going on in it (pid {other.pid} on {socket.gethostname()})"
        )


def test_who_was_killed_holds_nothing(other, tmp_path):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK).is_file()
    check_free(tmp_path / "run")
    hold(tmp_path / "run")
    assert (tmp_path / "run" / LOCK).read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_taken_twice_by_one_process_and_given_back_without_a_trace(tmp_path):
    (tmp_path / "mine").mkdir()
    for _ in range(2):
        for place in ("runs/run", "runs/run/inside", "mine"):
            hold(tmp_path / place)
    release(tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "mine" / LOCK).is_file()
    release()
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_what_is_half_written_is_removed_and_what_is_written_stays(tmp_path):
    for name in (".metrics.jsonl.partial", ".report.html-a1", ".table.md-a1", "result.json", ".mine"):
        (tmp_path / name).touch()
    hold(tmp_path)
    (tmp_path / "new").touch()
    release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "new", "result.json"]


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ("", True),
        ("pid", True),
        (f"pid 1 on {socket.gethostname()}", False),
        (f"pid 999999999 on {socket.gethostname()}", True),
        ("pid 1 on elsewhere", False),
        (f"pid {os.getpid()} on {socket.gethostname()}", True),
    ],
    ids=["empty", "half", "alive", "dead", "elsewhere", "own"],  # the same in every process that runs tests
)
def test_without_the_kernels_locks_the_process_is_looked_for(tmp_path, monkeypatch, holder, free):
    def cannot(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", cannot)
    (tmp_path / LOCK).write_text(holder)
    if free:
        hold(tmp_path)
    else:
        with pytest.raises(InputError, match=holder):
            hold(tmp_path)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_run_is_refused_while_another_goes_on_in_its_folder(other, tmp_path, tiny, files, capsys, more):
    before = sorted(tmp_path.rglob("*"))
    assert glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), *more]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'run'}: a run is going on in it (pid {other.pid} on {socket.gethostname()})\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_refused_while_another_goes_on_in_a_folder_inside(tmp_path, tiny, files, capsys):
    place = tmp_path / "run" / "teacher"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), "--resume"]) == 2
        process.kill()
    assert capsys.readouterr().err == (
        f"error: {place}: a run is going on in it (pid {process.pid} on {socket.gethostname()})\n"
    )
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_folder_that_goes_while_its_lock_is_taken_is_made_again(tmp_path, monkeypatch):
    """By the one that had made it and gives it back."""
    opened, calls = os.open, []

    def gone_once(path, *arguments):
        calls.append(path)
        if len(calls) == 1:
            Path(path).parent.rmdir()
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", gone_once)
    hold(tmp_path / "run")
    assert len(calls) == 2
    release()
