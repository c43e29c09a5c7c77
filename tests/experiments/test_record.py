"""The records of a run that is gone on with."""

import json

import pytest

from experiments.runs.record import Recorder

RECORDS = [("prune", 5), ("prune", 10), ("after", 10), ("after", 15)]


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps({"phase": phase, "step": step}) + "\n" for phase, step in RECORDS]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"phase": "af', "utf-8")  # the last was half written
    return tmp_path


@pytest.mark.parametrize(
    ("phase", "step", "kept"),
    [("prune", 5, 1), ("prune", 10, 2), ("prune", None, 0), ("after", None, 2), ("after", 10, 3), ("after", 15, 4)],
)
def test_what_comes_after_the_step_gone_on_from_is_dropped(folder, phase, step, kept):
    """Records of a later part of the run are among it: that part begins anew."""
    Recorder(folder, phase, "", 20).rewind(step)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(record["phase"], record["step"]) for record in records] == RECORDS[:kept]


def test_the_records_of_a_part_that_is_over_stay(folder):
    recorder = Recorder(folder, "prune", "", 20)
    recorder.closed = True
    before = (folder / "metrics.jsonl").read_bytes()
    recorder.rewind(5)
    recorder.evaluation(10, {"accuracy": 0.5}, 0.0)
    assert (folder / "metrics.jsonl").read_bytes() == before
