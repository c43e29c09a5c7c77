"""What a run says of itself is text in a report, and an error one short line on a terminal."""

import json

import numpy as np
import pytest
import readers
from safetensors.numpy import save_file

from experiments.pages.write import write_report
from kaprune_jax._errors import InputError

BAD = '<script>alert("x")</script><img src=x onerror=alert(1)>&\x00'


@pytest.mark.parametrize("name", ["result.json", "config.json", "env.json", "metrics.jsonl"])
def test_what_a_run_says_of_itself_is_text_in_the_report(tmp_path, name):
    """Every name and every value of a file replaced by markup, one after the other."""

    def spoil(value):
        if isinstance(value, dict):
            yield dict.fromkeys([BAD], next(iter(value.values()), BAD))
            for key, inner in value.items():
                yield from (value | {key: each} for each in spoil(inner))
        yield BAD

    file = readers.run(tmp_path) / name
    for line in file.read_text().splitlines():
        for changed in spoil(json.loads(line)):
            if isinstance(changed, dict):
                file.write_text(json.dumps(changed) + "\n")
                try:
                    page = write_report(tmp_path).read_text()
                except InputError as error:
                    page = str(error)
                assert "<script" not in page
                assert "<img src=x" not in page


def test_paths_of_masks_are_text_in_the_report(tmp_path):
    run = readers.run(tmp_path)
    paths = (f"{BAD[:-1]}layers/0/{BAD[:-1]}/query/kernel", "encoder/layers/" + "9" * 5000 + "/attention/query/kernel")
    save_file({path: np.zeros(8, np.uint8) for path in paths}, run / "model" / "masks.safetensors",
              metadata=dict.fromkeys(paths, "8x8"))  # fmt: skip
    readers.change_json(run / "result.json", removed=None, per_matrix=None)
    assert "<script" not in write_report(run).read_text()


def test_messages_stay_one_short_printable_line():
    said = str(InputError("a\nb\x1b[31m\ud800 " + "long " * 10**6))
    assert said.startswith("a b\\x1b[31m\\ud800 long long")
    assert said.isprintable()
    assert len(said) < 2100
