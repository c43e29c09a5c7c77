"""Runs of several real processes: what one process gives, whoever of them dies or is asked to stop."""

import json
import socket
import sys
from pathlib import Path

import pytest
from short_runs import SHORT, free_port, same, together

from experiments import glue, transfer
from kaprune_jax._errors import InputError
from kaprune_jax.train.processes import join, parse_distributed

DRIVER = str(Path(__file__).with_name("short_runs.py"))
TALK = """
import sys
from kaprune_jax._errors import InputError
from kaprune_jax.train.processes import Agreed, agree, by_first, check_same, gather, is_first, join, on_all, on_first
join(f"{sys.argv[2]},2,{sys.argv[1]}")
first = sys.argv[1] == "0"
said = []
def attempt(work):
    try:
        said.append(work())
    except Agreed as error:
        said.append(f"refused: {error}")
def refuse(who):
    if first == who:
        raise InputError("no")
    return "yes"
attempt(lambda: on_first(lambda: refuse(True)))
attempt(lambda: on_first(lambda: refuse(False)))
attempt(lambda: on_first(lambda: "x" * 10_000)[9_990:])
attempt(lambda: on_first(lambda: on_first(lambda: [1, {"two": None}])))
attempt(lambda: on_first(lambda: open("/nowhere/at all").read()))
attempt(lambda: on_all(lambda: refuse(False)))
attempt(lambda: on_all(lambda: "all"))
attempt(lambda: gather("" if first else "second" * 1000)[1][-6:])
attempt(lambda: check_same({"--seed": 1, "--steps": 5 if first else 6}))
attempt(lambda: [agree(False), agree(not first)])
attempt(lambda: is_first() == first)
print(said)
"""


def processes(count: int, module: str, *flags: str, signals: dict[int, tuple[str, int]] | None = None, **options):
    """Runs a command in so many processes; some of them get a signal after a step."""
    programs = []
    for index in range(count):
        name, step = (signals or {}).get(index, ("none", 0))
        programs.append([DRIVER, name, str(step), module, "--distributed", f"ADDRESS,{count},{index}", *flags])
    return together(programs, environment={"PYTHONPATH": str(Path(glue.__file__).parents[1])}, **options)


def test_what_one_process_finds_is_known_to_all(tmp_path):
    file = tmp_path / "talk.py"
    file.write_text(TALK, "utf-8")
    ended = together([[str(file), str(index), "ADDRESS"] for index in range(2)], seconds=120)
    assert [each.code for each in ended] == [0, 0], ended
    expected = [
        "refused: no",
        "yes",
        "x" * 10,
        [1, {"two": None}],
        "refused: /nowhere/at all: No such file or directory",
        "refused: process 1 of 2: no",
        "all",
        "second",
        "refused: process 1 of 2 has --steps 6, process 0 5",
        [False, True],
        True,
    ]
    for each in ended:
        assert each.out.splitlines()[-1] == str(expected)


@pytest.mark.long
def test_whoever_stops_or_dies_the_run_goes_on_to_what_one_process_gives(tiny, files, tmp_path):
    flags = ["--model", str(tiny), *files, *SHORT, "--method", "sparsebert", "--sparsity", "0.5"]
    assert glue.main([*flags, "--out", str(tmp_path / "one")]) == 0
    many = [*flags, "--teacher", str(tmp_path / "one"), "--out", str(tmp_path / "many")]

    asked = processes(2, "glue", *many, signals={1: ("SIGTERM", 3)})
    assert [each.code for each in asked] == [130, 143], asked
    assert "stopped at step 10 of 12; to go on: python -m experiments.glue --distributed" in asked[0].error
    assert "to go on" not in asked[1].error
    assert "on data=2: " in asked[0].out
    assert not [line for line in asked[1].out.splitlines() if not line.startswith("[Gloo]")]

    killed = processes(4, "glue", *many, "--resume", "--mesh", "data=2,model=2", signals={3: ("SIGKILL", 1)})
    assert killed[3].code == -9
    assert all(each.code not in (0, -9) and each.later < 90 for each in killed[:3]), killed
    assert all("another process has gone" in each.error or "another task died" in each.error for each in killed[:3])

    done = processes(2, "glue", *many, "--resume", "--mesh", "fsdp=2")
    assert [each.code for each in done] == [0, 0], done
    assert "going on at step 10 of 12" in done[0].out
    assert "going on" not in done[1].out
    same(tmp_path / "one", tmp_path / "many")
    one, several = (json.loads((tmp_path / name / "result.json").read_text("utf-8")) for name in ("one", "many"))
    assert (one["last_metrics"], one["sparsity"]) == (several["last_metrics"], several["sparsity"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "many" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_coupled_gates_in_two_processes_give_what_one_process_gives(tiny, tmp_path):
    flags = ["--model", str(tiny), "--task", "micro-rte", *SHORT, "--coupling", "surgery", "--sparsity", "0.5"]
    flags += ["--limit-train", "64", "--auxiliary-rows", "64", "--auxiliary-teacher-steps", "4"]
    assert transfer.main([*flags, "--out", str(tmp_path / "one")]) == 0
    ended = processes(2, "transfer", *flags, "--out", str(tmp_path / "many"), "--mesh", "model=2", seconds=1200.0)
    assert [each.code for each in ended] == [0, 0], ended
    same(tmp_path / "one", tmp_path / "many")
    one, many = (json.loads((tmp_path / name / "result.json").read_text("utf-8")) for name in ("one", "many"))
    assert (one["last_metrics"], one["removed"]) == (many["last_metrics"], many["removed"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "INDEX"], "process 1 of 2 has --seed 1, process 0 0"),
        (["--mesh", "data=1"], "--mesh: mesh 'data=1' has 1 devices; of 2 processes all 2 are needed"),
        (["--batch-size", "7"], "--batch-size 7: not a multiple of the 2 devices that --mesh data=2 divides rows over"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused_before_anything_is_written(
    flags, message, tiny, files, tmp_path
):
    given = ["--model", str(tiny), *files, *SHORT, "--out", str(tmp_path / "run")]
    programs = [
        [DRIVER, "none", "0", "glue", "--distributed", f"ADDRESS,2,{index}", *given]
        + [part.replace("INDEX", str(index)) for part in flags]
        for index in range(2)
    ]
    ended = together(programs, environment={"PYTHONPATH": str(Path(glue.__file__).parents[1])})
    assert [each.code for each in ended] == [2, 2], ended
    assert message in ended[0].error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["x", "host:80", "host:80,2", "host:80,2,2", "host:0,2,0", "host:80000,2,0", "host,2,0"]
)
def test_a_place_among_the_processes_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match="auto .* or HOST:PORT,COUNT,INDEX"):
        parse_distributed(text)


def test_a_process_that_finds_no_other_says_so(monkeypatch):
    monkeypatch.setattr("kaprune_jax.train.processes.MEET_SECONDS", 1)
    with pytest.raises(InputError, match=r"process 1 of 2 found nobody at 127.0.0.1:\d+ in 1 s \(.*refused\)"):
        join(f"127.0.0.1:{free_port()},2,1")


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of this machine, process 0: Address already in use"):
            join(f"127.0.0.1:{port},2,0")


def test_without_a_launcher_auto_says_what_to_give():
    command = ["-m", "experiments.glue", "--distributed", "auto"]
    (ended,) = together([command], seconds=60, environment={"PYTHONPATH": str(Path(glue.__file__).parents[1])})
    assert ended.code == 2
    assert "error: --distributed 'auto': no launcher is recognised" in ended.error
    assert ended.error.count("\n") == 1, sys.platform
