"""The report of a study, against figures computed here from the same made-up cells."""

import json
import math
import re

import numpy as np
import pytest
from pages import Page

from experiments.pages.data import read_run
from experiments.pages.study import HEADER, write_study
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import MASKS, save_masks

HEADS, WIDTH, UNITS, HIDDEN = 4, 2, 6, 10


def make_cell(
    folder, *, coupling="none", task="rte", rows=100, sparsity=0.8, seed=0, last=0.7, share="both", **changes
):
    """A finished cell; gives the scores it has and what is left of its model."""
    generator = np.random.default_rng([seed, rows, int(100 * sparsity), len(task), len(coupling), len(share)])
    hidden, heads = generator.random(HIDDEN) < 0.8, generator.random((2, HEADS)) < 0.6
    units = generator.random((2, UNITS)) < 0.6
    hidden[0], heads[0, 0] = True, True
    masks = {}
    for layer in (0, 1):
        masks[f"encoder/layers/{layer}/attention/query/kernel"] = np.outer(hidden, np.repeat(heads[layer], WIDTH))
        masks[f"encoder/layers/{layer}/ffn/up/kernel"] = np.outer(hidden, units[layer])
    (folder / "model").mkdir(parents=True)
    save_masks(folder / "model" / MASKS, masks)
    result = {
        "task": task, "method": "cofi", "pattern": "element", "seed": seed, "metric": "accuracy",
        "dense": 0.8 + 0.01 * seed, "pruned": last + 0.02, "last": last, "examples": {"train": rows, "dev": 400},
        "sparsity": {"asked": sparsity, "encoder": sparsity, "all": sparsity},
        "removed": {"hidden": {"of": HIDDEN}, "heads": {"of": HEADS}, "units": {"of": UNITS}},
    } | changes  # fmt: skip
    config = {
        "command": f"python -m experiments.transfer --study grid.json --cell {seed + 1}/3", "seed": seed,
        "coupling": coupling, "auxiliary": "mnli", "share": share, "limit_train": rows,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "metrics.jsonl").write_text("\n", "utf-8")
    return hidden, heads, units


def write_cells(out, folders):
    """The report of a study's cells, those whose folders are there being finished."""
    done = [folder for folder in folders if folder.is_dir()]
    return write_study(out, [read_run(folder) for folder in done], [each for each in folders if each not in done])


def tables(markdown):
    """The cells of each table, by heading."""
    found = {}
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        rows = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        found[part.splitlines()[0]] = [rows[0], *rows[2:]]
    return found


def make_study(place):
    """Three seeds alone and joint with 100 and 1000 rows; one surgery; level once, behind once; two cells missing."""
    scores = {
        ("none", 100): (0.60, 0.62, 0.64), ("joint", 100): (0.65, 0.62, 0.63),
        ("none", 1000): (0.70, 0.71, 0.75), ("joint", 1000): (0.73, 0.72, 0.79), ("surgery", 100): (0.66,),
    }  # fmt: skip
    folders, left = [], {}
    for (coupling, rows), values in scores.items():
        for seed, last in enumerate(values):
            folders.append(place / "cells" / f"{coupling}-{rows}-{seed}")
            left[coupling, rows, seed] = make_cell(folders[-1], coupling=coupling, rows=rows, seed=seed, last=last)
    return scores, left, [*folders, place / "cells" / "absent-1", place / "cells" / "absent-2"]


def test_means_errors_and_paired_differences(tmp_path):
    scores, _, folders = make_study(tmp_path)
    path = write_cells(tmp_path / "out", folders)
    assert path == tmp_path / "out" / "study.html"
    text = (tmp_path / "out" / "study.md").read_text("utf-8")
    header, *rows = tables(text)["rte, element, 80.0 % asked"]
    assert tuple(header) == HEADER
    assert len(rows) == len(scores)
    names = {"none": "cofi, alone", "joint": "cofi, joint with mnli", "surgery": "cofi, surgery with mnli"}
    for (coupling, count), values in scores.items():
        (row,) = [row for row in rows if row[0] == names[coupling] and row[1] == f"{count:,}"]
        n, mean = len(values), np.mean(values)
        assert row[2].startswith(f"{n} (")
        assert float(row[3]) == pytest.approx(mean, abs=5e-5)
        assert float(row[5]) == pytest.approx(np.mean([0.8 + 0.01 * seed for seed in range(n)]), abs=5e-5)
        if n == 1:
            assert row[4] == "n = 1: no error bar"
        else:
            assert float(row[4][2:]) == pytest.approx(np.std(values, ddof=1) / math.sqrt(n), abs=5e-5)
        if coupling == "none":
            assert row[6:] == ["–", "–"]
            continue
        gaps = 100 * (np.array(values) - np.array(scores["none", count])[:n])
        numbers = [float(x) for x in re.findall(r"[+-]?\d+\.\d+", row[6].replace("−", "-"))]
        assert numbers[0] == pytest.approx(gaps.mean(), abs=0.051)
        assert f"(n = {n})" in row[6]
        if n > 1:
            assert numbers[1] == pytest.approx(gaps.std(ddof=1) / math.sqrt(n), abs=0.051)
        assert row[7] == f"{(gaps > 1e-6).sum()} / {(abs(gaps) < 1e-6).sum()} / {(gaps < -1e-6).sum()}"
    assert [row[7] for row in rows if row[1] == "100"] == ["–", "1 / 1 / 1", "1 / 0 / 0"]


def test_page(tmp_path):
    _, left, folders = make_study(tmp_path)
    (folders[0] / "report.html").write_text("here", "utf-8")
    html = write_cells(tmp_path, folders).read_text("utf-8")
    page, table = Page(html), (tmp_path / "study.md").read_text("utf-8")
    for text in (page.text, table):
        assert "without a result yet: 2 of 15 cells." in text
        assert "1 of 5 rows of the tables have fewer than three seeds" in text
        assert text.count("--study grid.json") == 1
        assert "--cell" not in text
        assert "differ in more than the seed" not in text
    for words in ("absent-1", "absent-2", "log scale", "n = 1: no error bar: cofi, surgery with mnli with 100 rows.",
                  "What is left, mean over seeds", "dense teacher of the runs alone"):  # fmt: skip
        assert words in page.text, words
    assert 'href="cells/none-100-0/report.html"' in html
    bars = re.findall(r'<path class="line" d="M[\d.]+ [\d.]+V', html)
    assert len(bars) == 2 * 4  # wide and narrow; alone and joint, with 100 and 1000 rows
    heads, units, hidden = (np.mean([left["joint", 1000, seed][part].sum() for seed in range(3)]) for part in (1, 2, 0))
    shown = re.search(r"cofi, joint with mnli, mean of 3 runs: ([\d.]+) of 8 heads, ([\d.]+) of 12 units, "
                      r"([\d.]+) of 10 hidden", html[html.index("1,000 rows</summary>"):])  # fmt: skip
    assert [float(value) for value in shown.groups()] == pytest.approx([heads, units, hidden], abs=0.051)


def test_overlaps(tmp_path):
    _, left, folders = make_study(tmp_path)
    more = {}
    for seed in range(2):
        folders.append(tmp_path / "cells" / f"mrpc-{seed}")
        more[seed] = make_cell(folders[-1], task="mrpc", seed=seed)
    write_cells(tmp_path, folders)
    found = tables((tmp_path / "study.md").read_text("utf-8"))["How alike what is left is, 80.0 % asked"]

    def jaccard(one, two, part):
        return (one[part] & two[part]).sum() / (one[part] | two[part]).sum()

    pairs = {
        ("rte: cofi, alone", "rte: cofi, joint with mnli"): [
            (left["none", rows, seed], left["joint", rows, seed]) for rows in (100, 1000) for seed in range(3)
        ],
        ("rte: cofi, alone", "itself, other seed"): [
            (left["none", rows, a], left["none", rows, b]) for rows in (100, 1000) for a in range(3) for b in range(a)
        ],
        ("mrpc: cofi, alone", "rte: cofi, alone"): [(more[seed], left["none", 100, seed]) for seed in range(2)],
    }
    for key, both in pairs.items():
        (row,) = [row for row in found if tuple(row[:2]) == key]
        assert int(row[2]) == len(both)
        for cell, part in zip(row[3:], (1, 2, 0), strict=True):  # heads, units, hidden
            assert float(cell) == pytest.approx(np.mean([jaccard(a, b, part) for a, b in both]), abs=0.0051)
    assert not any(row[0].startswith("mrpc") and "joint" in row[1] for row in found)


def test_one_number_of_rows_is_a_chart_of_dots(tmp_path):
    folders = []
    for coupling in ("none", "joint"):
        for seed in range(2):
            folders.append(tmp_path / f"{coupling}-{seed}")
            make_cell(folders[-1], coupling=coupling, seed=seed, last=0.7 + 0.02 * seed)
    text = Page(write_cells(tmp_path, folders).read_text("utf-8")).text
    assert all(part in text for part in ("cofi, joint with mnli", "0.7100, n = 2"))
    assert "against target rows" not in text


def test_the_picture_of_gains_is_to_scale(tmp_path):
    scores, _, folders = make_study(tmp_path)
    html = write_cells(tmp_path / "out", folders).read_text("utf-8")
    names = ["gains-rte-accuracy-element-80.svg", "scores-rte-accuracy-element-80.svg", "study.html", "study.md"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    svg = (tmp_path / "out" / names[0]).read_text("utf-8")
    texts = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)</text>', svg)
    ticks = [(float(x), float(text)) for x, _, anchor, text in texts if re.fullmatch(r"-?[\d.]+", text)]
    scale = np.polyfit(*zip(*ticks, strict=True), 1)
    drawn = re.findall(
        r'<g class="[^"]*">(?:<path class="line" d="M([\d.]+) \d+H([\d.]+)"/>)?<circle class="dot" cx="([\d.]+)"', svg
    )
    beside = [text for *_, anchor, text in texts if anchor != "middle"]
    found = {}
    for name, says, ends in zip(beside[::2], beside[1::2], drawn, strict=True):
        found[name] = says, *(float(np.polyval(scale, float(x))) if x else None for x in ends)
    assert list(found) == ["100 rows: joint with mnli", "100 rows: surgery with mnli", "1,000 rows: joint with mnli"]
    for (coupling, rows), values in scores.items():
        if coupling != "none":
            gaps = 100 * (np.array(values) - np.array(scores["none", rows])[: len(values)])
            says, low, high, middle = found[f"{rows:,} rows: {coupling} with mnli"]
            assert middle == pytest.approx(gaps.mean(), abs=0.05)
            assert says.endswith(f"(n = {len(values)})")
            if len(values) > 1:
                assert (high - low) / 2 == pytest.approx(gaps.std(ddof=1) / math.sqrt(len(values)), abs=0.05)
            else:
                assert low is high is None
    assert "surgery" not in (tmp_path / "out" / names[1]).read_text("utf-8")  # which has one number of rows
    assert html.count('<svg class="wide"') == 2


@pytest.mark.parametrize("most", [300, 1000])
def test_lines_that_stand_side_by_side_stay_between_the_axes(tmp_path, most):
    folders = []
    for coupling, share in [
        ("none", "both"),
        *((c, s) for c in ("joint", "surgery") for s in ("both", "gates", "weights")),
    ]:
        for rows, last in ((100, 0.7), (most, 0.9)):
            for seed in range(2):
                folders.append(tmp_path / "cells" / f"{coupling}-{share}-{rows}-{seed}")
                make_cell(folders[-1], coupling=coupling, share=share, rows=rows, seed=seed, last=last + 0.02 * seed)
    html = write_cells(tmp_path / "out", folders).read_text("utf-8")
    for form in ("wide", "narrow"):
        svg = next(each for each in re.findall(f'<svg class="{form}".*?</svg>', html) if "translate" in each)
        left, right = map(float, re.findall(r'class="axis" d="M([\d.]+) [\d.]+H([\d.]+)"', svg)[0])
        groups = re.findall(r'<g class="[^"]*"(?: transform="translate\(([-\d.]+) 0\)")?>(.*?)</g>', svg)
        bars = [(float(shift or 0), x) for shift, parts in groups for x in re.findall(r'd="M([\d.]+) [\d.]+h8"', parts)]
        ends = [shift + float(x) for shift, x in bars]
        assert len(ends) == 7 * 2 * 2  # of bars, which are 8 wide
        assert min(ends) >= left
        assert max(ends) + 8 <= right


def test_sparsities_together(tmp_path):
    """Of each seed the mean over sparsities; a seed that one sparsity lacks is left out, and what has one sparsity."""
    scores = {
        ("none", 0.6): (0.60, 0.62, 0.64), ("joint", 0.6): (0.65, 0.62, 0.63),
        ("none", 0.9): (0.50, 0.55, 0.51), ("joint", 0.9): (0.53, 0.50), ("surgery", 0.9): (0.66, 0.68, 0.61),
    }  # fmt: skip
    folders = []
    for (coupling, sparsity), values in scores.items():
        for seed, last in enumerate(values):
            folders.append(tmp_path / "cells" / f"{coupling}-{sparsity}-{seed}")
            make_cell(folders[-1], coupling=coupling, sparsity=sparsity, seed=seed, last=last)
    page = Page(write_cells(tmp_path / "out", folders).read_text("utf-8"))
    (row,) = tables((tmp_path / "out" / "study.md").read_text("utf-8"))["rte, element, sparsities together"][1:]
    gaps = np.array([np.subtract(scores["joint", s][:2], scores["none", s][:2]) for s in (0.6, 0.9)])
    means = 100 * gaps.mean(axis=0)
    says = f"{means.mean():+.1f} ± {means.std(ddof=1) / math.sqrt(2):.1f} (n = 2)"
    counts = f"{(gaps > 1e-6).sum()} / {(abs(gaps) < 1e-6).sum()} / {(gaps < -1e-6).sum()}"
    assert row == ["cofi, joint with mnli", "100", "60.0 %, 90.0 %", says.replace("-", "−"), counts]
    assert "rte, element, sparsities together" in page.text
    svg = (tmp_path / "out" / "gains-rte-accuracy-element-all.svg").read_text("utf-8")
    assert says.replace("-", "−") in svg
    assert "surgery" not in svg


def test_methods_and_long_names_can_be_told_apart(tmp_path):
    many = " + ".join(["a task with a long name"] * 3)
    for number, (method, coupling) in enumerate((a, b) for a in ("cofi", "sparsebert") for b in ("none", "joint")):
        folder = tmp_path / "cells" / str(number)
        make_cell(folder, coupling=coupling, method=method, last=0.7 + 0.01 * number)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["auxiliary"] = ",".join(["a task with a long name"] * 3)
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_cells(tmp_path / "out", sorted((tmp_path / "cells").iterdir()))
    svg = (tmp_path / "out" / "gains-rte-accuracy-element-80.svg").read_text("utf-8")
    assert [f">{method}, joint with {many}<" in svg for method in ("cofi", "sparsebert")] == [True, True]
    places = [(float(x), float(y)) for x, y in re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(set(places)) == len(places)
    assert len({y for x, y in places if x == 10.0}) == 4  # name and value of each, one below the other


def test_tasks_whose_names_have_no_letters_of_ours_have_files_of_their_own(tmp_path):
    folders = [tmp_path / "cells" / name for name in ("one", "two")]
    for folder, task in zip(folders, ("日本", "中文"), strict=True):
        make_cell(folder, task=task)
    write_cells(tmp_path / "out", folders)
    names = {file.name for file in (tmp_path / "out").glob("*.svg")}
    assert names == {"scores-accuracy-element-80.svg", "scores-accuracy-element-80-2.svg"}


def test_runs_alone_keep_their_names(tmp_path):
    """Voted gates of runs alone are not what coupled runs have in common."""
    folders = [tmp_path / name for name in ("plain", "alone", "joint", "sequential")]
    for folder, coupling in zip(folders, ("none", "none", "joint", "sequential"), strict=True):
        make_cell(folder, coupling=coupling, last=0.6 if folder.name == "plain" else 0.7)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        voted = {"init_from": "runs/a"} if folder.name != "plain" else {}
        (folder / "config.json").write_text(json.dumps(config | voted), "utf-8")
    write_cells(tmp_path, folders)
    rows = tables((tmp_path / "study.md").read_text("utf-8"))["rte, element, 80.0 % asked"][1:]
    assert [row[0] for row in rows] == [
        "cofi, alone", "cofi, alone (gates voted)", "cofi, joint with mnli", "cofi, sequential with mnli",
    ]  # fmt: skip


def test_what_all_coupled_runs_have_is_said_once(tmp_path):
    folders = [tmp_path / name for name in ("alone", "joint", "weights", "other")]
    for folder, share, rows in zip(folders, ("both", "both", "weights", "both"), (None, 500, 500, 900), strict=True):
        make_cell(folder, coupling="joint" if rows else "none", share=share, last=0.7)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"auxiliary_rows": rows}), "utf-8")
    write_cells(tmp_path, folders[:3])
    text = (tmp_path / "study.md").read_text("utf-8")
    assert text.startswith("- All coupled runs have auxiliary rows 500.\n")
    names = ["cofi, alone", "cofi, joint with mnli", "cofi, joint with mnli (share weights)"]
    assert [row[0] for row in tables(text)["rte, element, 80.0 % asked"][1:]] == names
    write_cells(tmp_path, folders)
    text = (tmp_path / "study.md").read_text("utf-8")
    assert "All coupled runs" not in text
    assert "cofi, joint with mnli (share weights, auxiliary rows 500)" in text


def test_settings_of_the_coupling_are_not_averaged_together(tmp_path):
    folders = [tmp_path / name for name in ("both", "weights", "alone", "other")]
    for folder, coupling, share in zip(
        folders, ("joint", "joint", "none", "none"), ("both", "weights") * 2, strict=True
    ):
        make_cell(folder, coupling=coupling, share=share, last=0.6 if folder.name == "other" else 0.7)
    write_cells(tmp_path, folders[:3])
    rows = tables((tmp_path / "study.md").read_text("utf-8"))["rte, element, 80.0 % asked"][1:]
    assert {row[0] for row in rows} == {
        "cofi, alone", "cofi, joint with mnli", "cofi, joint with mnli (share weights)",
    }  # fmt: skip
    write_cells(tmp_path, folders)  # twice the same seed: n does not grow
    rows = tables((tmp_path / "study.md").read_text("utf-8"))["rte, element, 80.0 % asked"][1:]
    (alone,) = [row for row in rows if row[0] == "cofi, alone"]
    assert alone[2:4] == ["1 (0)", "0.6500"]
    assert "2 runs of 1 seed; those of one are averaged" in (tmp_path / "study.md").read_text("utf-8")


def test_sparse_runs_and_nothing_at_all(tmp_path):
    folder = tmp_path / "cells" / "one"
    make_cell(folder, removed=None, method="sparsebert", coupling="joint")
    page = Page(write_cells(tmp_path, [folder]).read_text("utf-8"))
    assert "sparsebert, joint with mnli" in page.text
    assert "What is left" not in page.text
    page = Page(write_cells(tmp_path / "none", [tmp_path / "absent"]).read_text("utf-8"))
    assert "without a result yet: 1 of 1 cell." in page.text
    assert "nan" not in page.text


def test_a_broken_cell_is_said_and_nothing_is_written(tmp_path):
    _, _, folders = make_study(tmp_path)
    (folders[1] / "result.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="none-100-1"):
        write_cells(tmp_path / "out", folders)
    assert not (tmp_path / "out").exists()
