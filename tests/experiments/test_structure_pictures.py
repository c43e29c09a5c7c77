"""What is left of a run, read back from its masks, and the pictures and words of it."""

import json
import re

import numpy as np
import pytest
from pages import Page

from experiments.pages.data import read_run
from experiments.pages.structure_pictures import average, picture, read_structure
from experiments.pages.write import write_comparison, write_report
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import MASKS, Structure, save_masks

HEADS, WIDTH, UNITS, HIDDEN, LAYERS = 3, 4, 10, 12, 3


def make_run(folder, *, seed=0, method="cofi", config=None, **changes):
    """A run folder of a smaller model, and what is left of it; layer 1 has no heads, layer 2 no units."""
    generator = np.random.default_rng(seed)
    hidden = generator.random(HIDDEN) < 0.7
    heads, units = generator.random((LAYERS, HEADS)) < 0.6, generator.random((LAYERS, UNITS)) < 0.5
    heads[1], units[2], hidden[0], heads[0, 0] = False, False, True, True
    masks = {}
    for layer in range(LAYERS):
        columns = np.repeat(heads[layer], WIDTH)
        masks |= {f"encoder/layers/{layer}/attention/{name}/kernel": np.outer(hidden, columns)
                  for name in ("query", "key", "value")}  # fmt: skip
        masks[f"encoder/layers/{layer}/attention/output/kernel"] = np.outer(columns, hidden)
        masks[f"encoder/layers/{layer}/ffn/up/kernel"] = np.outer(hidden, units[layer])
        masks[f"encoder/layers/{layer}/ffn/down/kernel"] = np.outer(units[layer], hidden)
    (folder / "model").mkdir(parents=True)
    save_masks(folder / "model" / MASKS, masks)
    result = {
        "task": "micro-rte", "method": method, "pattern": "element", "seed": seed, "metric": "accuracy",
        "dense": 0.9, "pruned": 0.88, "last": 0.87, "examples": {"train": 300, "dev": 400},
        "sparsity": {"asked": 0.9, "encoder": 0.9003, "all": 0.84},
        "parameters": {"dense": 1000, "kept": 160}, "bytes": {"dense": 4000, "stored": 640},
        "per_matrix": {path: 1 - float(mask.mean()) for path, mask in masks.items()},
        "removed": {
            "hidden": {"kept": int(hidden.sum()), "of": HIDDEN},
            "heads": {"kept": heads.sum(axis=1).tolist(), "of": HEADS},
            "units": {"kept": units.sum(axis=1).tolist(), "of": UNITS},
        },
        "speed": {
            "batch": 32, "length": 16, "dense_seconds": 0.00543, "smaller_seconds": 0.00194, "ratio": 2.68,
            "ratio_low": 2.13, "ratio_high": 3.81, "device": "cpu",
        },
    } | changes  # fmt: skip
    result = {key: value for key, value in result.items() if value is not None}
    (folder / "config.json").write_text(json.dumps({"command": "go", "seed": seed} | (config or {})), "utf-8")
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    records = [
        {"kind": "eval", "phase": phase, "step": step, "score": 0.8, "metrics": {}, "sparsity": 0.9}
        for phase, step in (("prune", 10), ("prune", 20), ("after", 30))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return folder, Structure(hidden, heads, units)


@pytest.mark.parametrize("seed", range(4))
def test_structure_is_read_back(tmp_path, seed):
    folder, made = make_run(tmp_path / "run", seed=seed)
    found = read_structure(read_run(folder))
    for one, other in zip(found, made, strict=True):
        np.testing.assert_array_equal(one, other)


def test_runs_without_removed_pieces_or_masks_have_no_structure(tmp_path):
    plain, _ = make_run(tmp_path / "plain", removed=None)
    bare, _ = make_run(tmp_path / "bare")
    (bare / "model" / "masks.safetensors").unlink()
    for folder in (plain, bare):
        assert read_structure(read_run(folder)) is None
    assert "What is left" not in re.findall("<h2>(.*?)</h2>", write_report(plain).read_text("utf-8"))
    assert "<h2>What is left</h2>" in write_report(bare).read_text("utf-8")  # its speed


@pytest.mark.parametrize("of", [0, 5, "?", 2.5])
def test_masks_that_do_not_fit_are_said(tmp_path, of):
    folder, _ = make_run(tmp_path / "run", removed={"heads": {"of": of}})
    with pytest.raises(InputError, match="do not fit"):
        read_structure(read_run(folder))


def test_average_and_picture():
    one = Structure(np.array([True, True, False]), np.array([[True, False]]), np.array([[True, True, False, False]]))
    two = Structure(np.array([True, False, False]), np.array([[True, False]]), np.array([[True, False, False, False]]))
    shares = average([one, two])
    assert shares.heads.tolist() == [[1.0, 0.0]]
    assert (shares.units.tolist(), shares.units_of, shares.runs) == ([1.5], 4, 2)
    assert shares.hidden.tolist() == [1.0, 0.5, 0.0]
    drawn = picture(shares, "a <b>")
    assert "a &lt;b&gt;" in drawn
    text = Page(drawn).text
    for words in ("n = 2: 1 of 2 heads, 1.5 of 4 units, 1.5 of 3 hidden dimensions", "mean of 2 runs",
                  "layer 0, head 0: kept in 2 of 2 runs", "layer 0: 1.5 of 4 units"):  # fmt: skip
        assert words in text, words
    assert drawn.count('fill="currentColor" fill-opacity="1.00"') == 2  # a head and a hidden dimension
    assert drawn.count('fill="currentColor" fill-opacity="0.50"') == 1
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="10"', drawn)]  # filled, and whole
    assert widths[0] / widths[1] == pytest.approx(1.5 / 4, abs=0.001)
    assert "kept in" not in picture(average([one]))


def test_run_page_says_what_is_left_and_nothing_of_zeros(tmp_path):
    folder, made = make_run(tmp_path / "run")
    page = write_report(folder).read_text("utf-8")
    text = Page(page).text
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings.index("What is left") == headings.index("What was removed where") - 1
    assert "Speed" not in headings
    for words in (
        f"{made.heads.sum()} of 9 heads, {made.units.sum()} of 30 units, {made.hidden.sum()} of 12 hidden dimensions",
        "Measured on the machine of this run (cpu)", "32 rows of 16 tokens", "5.43 ms", "1.94 ms", "2.68 times",
        "2.13 to 3.81", "What is left takes 640 B instead of 4 kB", "no zeros and no mask",
    ):  # fmt: skip
        assert words in text, words
    for words in ("tored sparse", "bit mask", "not faster", "Zeros alone", "zeros in single places", "never pruned"):
        assert words not in text, words
    rows = re.findall(r'<tr><th scope="row">(\d)</th><td>(\d) of 3</td><td>(.*?)</td><td>(\d+) of 10</td>', page)
    assert rows == [
        (str(i), str(h.sum()), ", ".join(map(str, h.nonzero()[0])) or "none", str(u.sum()))
        for i, (h, u) in enumerate(zip(made.heads, made.units, strict=True))
    ]


def test_evaluations_after_pruning_are_shown(tmp_path):
    folder, _ = make_run(tmp_path / "run")
    assert [record["step"] for record in read_run(folder).select("eval", "prune")] == [10, 20, 30]


def test_couplings_have_names_of_their_own(tmp_path):
    joint = {"coupling": "joint", "auxiliary": "mnli", "share": "both", "when": "before,prune,after", "tie": 0.0}
    surgery = joint | {"coupling": "surgery"}
    alone = joint | {"coupling": "none"}
    cases = [
        ({}, "cofi"),
        (alone, "cofi, alone"),
        (alone | {"share": "weights", "tie": 2.0, "auxiliary": "qqp", "when": "prune"}, "cofi, alone"),
        (joint, "cofi, joint with mnli"),
        (joint | {"surgery": "attittud", "surgery_on": "gates"}, "cofi, joint with mnli"),
        (joint | {"auxiliary": "mnli,own=a/b.tsv"}, "cofi, joint with mnli + own"),
        (joint | {"share": "weights", "when": "prune"}, "cofi, joint with mnli (share weights, when prune)"),
        (joint | {"when": "before,prune"}, "cofi, joint with mnli (when before+prune)"),
        (joint | {"tie": 0.1, "share_depth": 2}, "cofi, joint with mnli (share depth 2, tie 0.1)"),
        (
            surgery | {"surgery": "attittud", "auxiliary_weight": 0.5, "auxiliary_schedule": "fade-in"},
            "cofi, surgery with mnli (auxiliary weight 0.5, auxiliary schedule fade-in, surgery attittud)",
        ),
        (alone | {"init_from": "a,b"}, "cofi, alone (gates voted)"),
        (alone | {"init_from": "a", "vote_rate": 0.25}, "cofi, alone (gates voted, vote rate 0.25)"),
    ]
    runs = [read_run(make_run(tmp_path / str(i), config=config)[0]) for i, (config, _) in enumerate(cases)]
    assert [run.name for run in runs] == [name for _, name in cases]


def test_comparison_of_couplings(tmp_path):
    settings = {"coupling": "none", "auxiliary": "mnli"}
    runs = [
        make_run(tmp_path / f"{coupling}-{seed}", seed=seed, pruned=score, config=settings | more)[0]
        for coupling, score, more in (
            ("none", 0.80, {"auxiliary": "qqp"}),
            ("joint", 0.85, {"coupling": "joint"}),
            ("tied", 0.84, {"coupling": "joint", "tie": 1.0}),
        )
        for seed in range(3)
    ]
    settings = json.loads((runs[0] / "config.json").read_text("utf-8")) | {"auxiliary": "sst2"}
    (runs[0] / "config.json").write_text(json.dumps(settings), "utf-8")  # matters not where nothing is coupled
    page = write_comparison(tmp_path / "all", runs).read_text("utf-8")
    text = Page(page).text
    assert "cofi, alone against cofi, joint with mnli, −5.0 ± 0.0 points of accuracy" in text
    assert "cofi, alone against cofi, joint with mnli (tie 1), −4.0 ± 0.0 points" in text
    assert "differ in more than the seed" not in text
    assert "is cut out" in text
    assert "not faster" not in text
    legend = re.findall(r'<span class="swatch (c\d[ broken]*)"></span>(cofi[^<]*mean)', page)
    assert len({style for style, _ in legend}) == len({name for _, name in legend}) == 3
