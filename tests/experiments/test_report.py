"""The report on made-up run folders: numbers, pictures, escaping, odd input."""

import base64
import json
import math
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pages import Page

from experiments.pages.data import read_run
from experiments.pages.write import write_comparison, write_report
from experiments.report import main
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.masks import MASKS, save_masks

KINDS = ("attention/query", "attention/key", "attention/value", "attention/output", "ffn/up", "ffn/down")


def make_run(folder: Path, *, method="sparsebert", seed=0, pruned=0.795, hidden=64, layers=4, steps=400, **changes):
    """A run folder with plausible figures; `changes` replaces entries of its `result.json`, None removes them."""
    generator = np.random.default_rng(seed)
    masks = {}
    for layer in range(layers):
        for kind in KINDS:
            shape = (hidden * 4 if kind == "ffn/down" else hidden, hidden * 4 if kind == "ffn/up" else hidden)
            share = 0.03 + 0.01 * layer
            masks[f"encoder/layers/{layer}/{kind}/kernel"] = generator.random(shape) < share
    (folder / "model").mkdir(parents=True)
    if method != "dense":
        save_masks(folder / "model" / MASKS, masks)
    sparsities = {path: 1 - float(mask.mean()) for path, mask in masks.items()}
    records = []
    for step in range(10, steps + 1, 10):
        share = 0.95 * (1 - (1 - min(step / (0.6 * steps), 1)) ** 3)
        terms = {"embeddings": 0.02, "hidden": 3 * math.exp(-step / 150), "attention": 0.6, "logits": 5 / step}
        records.append({
            "kind": "train", "phase": "prune", "step": step, "loss": sum(terms.values()), "terms": terms,
            "sparsity": {"asked": share, "delivered": share}, "learning_rate": 1e-4, "examples_per_second": 900.0,
        })  # fmt: skip
        if step % 50 == 0:
            value = pruned - 0.3 * math.exp(-step / 100) + generator.normal() * 0.004
            records.append({
                "kind": "eval", "phase": "prune", "step": step, "metrics": {"accuracy": value}, "score": value,
                "sparsity": share,
            })  # fmt: skip
            records.append({"kind": "eval", "phase": "teacher", "step": step, "metrics": {}, "score": 0.8})
    result = {
        "task": "micro-rte", "method": method, "pattern": "element", "seed": seed, "metric": "accuracy",
        "dense": 0.8125, "pruned": pruned, "last": pruned - 0.01, "metrics": {"accuracy": pruned},
        "best_step": steps, "target_step": 0.6 * steps, "examples": {"train": 2000, "dev": 400},
        "sparsity": {"asked": 0.95, "encoder": 0.9501, "all": 0.6123},
        "parameters": {"dense": 1_234_567, "kept": 456_789}, "bytes": {"dense": 4_938_268, "stored": 2_012_345},
        "per_matrix": sparsities, "steps": steps, "seconds": 123.4, "examples_per_second": 900.0,
        "versions": {"jax": "0.10.2"},
    } | changes  # fmt: skip
    result = {key: value for key, value in result.items() if value is not None}
    files = {
        "config.json": {"command": f"python -m experiments.glue --method {method}", "seed": seed, "epochs": 3},
        "env.json": {"versions": {"jax": "0.10.2"}, "devices": ["cpu:0"]},
        "result.json": result,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return folder


def read_png(data: bytes) -> np.ndarray:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        length, name = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert zlib.crc32(name + body) == check
        chunks[name] = body
        place += 12 + length
    columns, rows = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def loads_nothing(page: Page) -> bool:
    links = [value for _, name, value in page.attributes if name in ("src", "srcset", "data", "xlink:href")]
    outside = [value for tag, name, value in page.attributes if name == "href" and (tag == "link" or ":" in value)]
    return not outside and all(value.startswith("data:image/png") for value in links) and "script" not in page.tags


def test_run_page_says_the_numbers(tmp_path):
    path = write_report(make_run(tmp_path / "run", hidden=128))
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text("utf-8")
    page = Page(text)
    assert loads_nothing(page)
    assert not re.search(r"url\(|@import|https?://", text)
    for words in (
        "0.812 → 0.795", "95.0 %", "61.2 %", "4.94 MB", "2.01 MB", "2 min 3 s", "target reached, step 240",
        "teacher 0.812", "456,789 of 1,234,567", "standard error of about 2.0 points", "tile of", "no faster",
        "python -m experiments.glue --method sparsebert", "hidden", "blocks of 32×128",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("svg") == page.tags.count("title") - 1 - page.text.count("accuracy on dev, ")
    rows = re.findall(r'<tr><th scope="row">(\d)</th>(.*?)</tr>', text)
    assert [row for row, _ in rows] == ["0", "1", "2", "3"]
    assert all(cells.count("<td") == 6 for _, cells in rows)
    sparsity = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["per_matrix"]
    assert f"{100 * sparsity['encoder/layers/2/ffn/up/kernel']:.1f}<" in rows[2][1]


def test_the_best_point_is_that_of_the_delivered_model(tmp_path):
    run = make_run(tmp_path / "run", pruned=0.77, best_step=300)
    with (run / "metrics.jsonl").open("a") as records:  # closed at that step and scored anew
        records.write(json.dumps({"kind": "eval", "phase": "after", "step": 300, "score": 0.77}) + "\n")
    assert "best 0.770" in Page(write_report(run).read_text("utf-8")).text


def test_pictures_show_first_middle_and_last_layer(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", hidden=128)).read_text("utf-8"))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    shapes = [read_png(base64.b64decode(value.split(",")[1])).shape for value in sources]
    assert shapes == [(64, 64), (64, 256)] * 3
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert [label.split(",")[0] for label in labels[::2]] == [f"Mask of layer {i}" for i in (0, 2, 3)]
    assert "tile of 2×2 weights" in page.text


def test_the_teacher_inside_a_run_is_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    own = [line for line in lines if '"teacher"' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(own), "utf-8")
    assert "The teacher's training" not in Page(write_report(folder).read_text("utf-8")).text
    (folder / "teacher").mkdir()
    (folder / "teacher" / "metrics.jsonl").write_text("\n".join(sorted(set(lines) - set(own))), "utf-8")
    assert "The teacher's training" in Page(write_report(folder).read_text("utf-8")).text


def test_one_loss_term_is_drawn_once(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "all terms" in Page(write_report(folder).read_text("utf-8")).text
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    for record in records:
        record |= {"terms": {"labels": record["loss"]}} if "terms" in record else {}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    assert "all terms" not in Page(write_report(folder).read_text("utf-8")).text


@pytest.mark.parametrize("method", ["dense", "cofi"])
def test_sparse_records_and_missing_keys_do_not_break_the_page(tmp_path, method):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n", "utf-8")
    (folder / "result.json").write_text(json.dumps({"method": method}), "utf-8")
    assert "nothing was recorded" in Page(write_report(folder).read_text("utf-8")).text
    assert "nan" not in (folder / "table.md").read_text("utf-8")


def test_not_a_number_and_one_point(tmp_path):
    folder = make_run(tmp_path / "run", pruned=0.7, dense=math.nan, bytes={"dense": "?"}, best_step=None)
    records = [
        {"kind": "train", "phase": "prune", "step": 1, "loss": math.nan, "terms": {"logits": 0.0, "odd": None}},
        {"kind": "train", "phase": "prune", "step": 2, "loss": 1.0},
        {"kind": "eval", "phase": "prune", "step": 2, "score": 0.5, "metrics": None},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    text = write_report(folder).read_text("utf-8")
    assert "The loss was not finite" in Page(text).text
    assert not re.search(
        r"\b(nan|inf)\b", re.sub(r"<details>.*?</details>|<style>.*?</style>", "", text, flags=re.DOTALL)
    )


def test_everything_is_escaped(tmp_path):
    bad = '<script>alert("x")</script>&'
    folder = make_run(tmp_path / "run", task=bad, metric=bad, pattern=bad, per_matrix={bad: 0.5})
    (folder / "config.json").write_text(json.dumps({"command": bad, bad: {bad: [bad]}}), "utf-8")
    second = make_run(tmp_path / "run2", task=bad, method=bad, seed=1)
    for path in (write_report(folder), write_comparison(tmp_path / "both", [folder, second])):
        page = Page(path.read_text("utf-8"))
        assert loads_nothing(page)
        assert bad in page.text


def test_comparison(tmp_path):
    runs = [
        make_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, pruned=base + 0.01 * seed)
        for method, base in (("hard-labels", 0.70), ("sparsebert", 0.78))
        for seed in range(3)
    ]
    runs.append(make_run(tmp_path / "dense", method="dense", sparsity={"asked": 0, "encoder": 0, "all": 0}))
    write_report(runs[0])
    page = Page(write_comparison(tmp_path / "all", runs).read_text("utf-8"))
    assert loads_nothing(page)
    assert ("a", "href", "../hard-labels-0/report.html") in page.attributes
    table = (tmp_path / "all" / "table.md").read_text("utf-8")
    for text in (page.text, table):
        assert "0.790 ± 0.010 (3)" in text
        assert "sparsebert against hard-labels, +8.0 ± 0.0 points of accuracy (3 shared seeds, ahead in 3)" in text
        assert "Zeros in single places make the model no faster" in text
        assert text.index("0.790 ± 0.010 (3)") < text.index("0.710 ± 0.010 (3)")
    lines = table.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "python -m experiments.glue --method dense" in table
    assert "fewer than three seeds" not in page.text


def test_scores_by_sparsity_have_the_dense_model_and_the_papers_beside_them(tmp_path):
    shares = ((0.8, 0.6), (0.95, 0.5))
    runs = [
        make_run(tmp_path / f"{share}", task="cola", metric="matthews_correlation", pruned=score,
                 sparsity={"asked": share, "encoder": share, "all": share / 2})
        for share, score in shares
    ]  # fmt: skip
    page = Page(write_comparison(tmp_path / "all", runs).read_text("utf-8"))
    assert "SparseBERT, BERT-base" in page.text
    assert "CoFi, BERT-base" in page.text
    text = (tmp_path / "all" / "report.html").read_text("utf-8")
    chart = text[text.index("Score against sparsity") : text.index("What each method removed where")]
    assert chart.count('class="dot"') == 2 * 2  # two sparsities, in two widths
    assert chart.count('class="level"') == 2  # the dense model
    assert chart.count(">dense 0.812<") == 2
    assert chart.count('class="ring"') == 2 * 2
    drawn = ElementTree.parse(tmp_path / "all" / "sparsity-cola-matthews-correlation-element.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    words = [text for part in drawn.iter("{http://www.w3.org/2000/svg}text") for text in part.itertext()]
    assert {"SparseBERT, BERT-base", "sparsebert", "sparsity of the encoder's matrices"} <= set(words)
    other = [make_run(tmp_path / f"other-{share}", sparsity={"asked": share, "encoder": share, "all": share / 2})
             for share, _ in shares]  # fmt: skip
    assert "BERT-base" not in Page(write_comparison(tmp_path / "others", other).read_text("utf-8")).text


def test_lengths_are_told_apart_and_drawn(tmp_path):
    """A mean is over seeds, not over lengths; steps that differ by a little, as by augmented rows, are one length."""
    runs = [
        make_run(
            tmp_path / f"{steps}-{seed}", seed=seed, steps=steps + 2 * seed, pruned=0.6 + steps / 1e4 + 0.01 * seed
        )
        for steps in (500, 2000)
        for seed in range(2)
    ]
    runs += [
        make_run(tmp_path / "labels", method="hard-labels", steps=500, pruned=0.6),
        make_run(tmp_path / "less", steps=500, pruned=0.7, sparsity={"asked": 0.8, "encoder": 0.8, "all": 0.4}),
    ]
    page = Page(write_comparison(tmp_path / "all", runs).read_text("utf-8"))
    rows = [line.split(" | ") for line in (tmp_path / "all" / "table.md").read_text("utf-8").splitlines()]
    assert [(row[3], row[4], row[7]) for row in rows if row[0] == "| micro-rte"] == [
        ("80.0 %", "sparsebert, 500 to 502 steps", "0.700 (1)"),
        ("95.0 %", "sparsebert, 500 to 502 steps", "0.655 ± 0.007 (2)"),
        ("95.0 %", "sparsebert, 2,000 to 2,002 steps", "0.805 ± 0.007 (2)"),
        ("95.0 %", "hard-labels, 500 to 502 steps", "0.600 (1)"),
    ]
    assert "occurs more than once" not in page.text
    assert "Score against length of training" in page.text
    said = [line for line in (tmp_path / "all" / "table.md").read_text("utf-8").splitlines() if " against " in line]
    assert [re.sub(r".* asked: |, [+−].*", "", line) for line in said] == [
        "sparsebert, 500 to 502 steps against sparsebert, 2,000 to 2,002 steps",
        "sparsebert, 500 to 502 steps against hard-labels, 500 to 502 steps",
    ]
    (drawn,) = (tmp_path / "all").glob("steps-*.svg")
    assert drawn.name == "steps-micro-rte-accuracy-element-95.svg"
    assert drawn.read_text("utf-8").count('class="dot" cx="60"') == 2  # in the legend: the method, hard labels
    tips = re.findall(r"<title>(sparsebert[^<]*)</title>", drawn.read_text("utf-8"))
    assert tips == ["sparsebert, 501: 0.655", "sparsebert, 2,001: 0.805"]
    by_share = (tmp_path / "all" / "sparsity-micro-rte-accuracy-element.svg").read_text("utf-8")
    assert re.findall(r'<g class="(c1[^"]*)">', by_share) == ["c1", "c1 broken"] * 2  # lines, legend


def test_one_length_is_not_named(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, steps=500 + 50 * seed) for seed in range(3)]
    page = Page(write_comparison(tmp_path / "all", runs).read_text("utf-8"))
    assert "500 to" not in page.text
    assert "length of training" not in page.text
    assert not [*(tmp_path / "all").glob("steps-*")]


def test_tasks_in_another_script_have_charts_of_their_own(tmp_path):
    runs = [
        make_run(tmp_path / f"{task}-{share}", task=task, sparsity={"asked": share, "encoder": share, "all": share / 2})
        for task in ("日本", "中文")
        for share in (0.8, 0.95)
    ]
    write_comparison(tmp_path / "all", runs)
    assert len([*(tmp_path / "all").glob("sparsity-*.svg")]) == 2


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"recipe": "best", "target_at": 0.5}, "sparsebert"),
        ({"recipe": "paper", "target_at": 1.0, "learning_rate": 3e-5, "schedule": "constant"},
         "sparsebert, paper's recipe, augment none"),
        ({"scores": "sensitivity", "student": "teacher", "temperature": 2.0},
         "sparsebert, student teacher, scores sensitivity, temperature 2"),
        ({"loss_weights": ""}, "sparsebert"),
        ({"loss_weights": "labels=1"}, "sparsebert, loss weights labels=1"),
        ({"loss_weights": None}, "sparsebert"),
    ],
)  # fmt: skip
def test_runs_are_called_by_what_they_do_otherwise_than_the_recipe(tmp_path, config, name):
    folder = make_run(tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    assert read_run(folder).name == name


def test_pages_say_how_weights_were_ranked_and_show_shares_only_where_they_differ(tmp_path):
    runs = [make_run(tmp_path / name, method=name, task="rte") for name in ("sparsebert", "prune-then-finetune")]
    page = Page(write_comparison(tmp_path / "both", runs).read_text("utf-8")).text
    assert "sparsebert: Removed were the weights with the smallest sensitivity" in page
    assert "prune-then-finetune: Removed were the weights with the smallest magnitude, |weight|, within each" in page
    assert "by kind of matrix" in page
    assert "smallest sensitivity" in Page(write_report(runs[0]).read_text("utf-8")).text
    result = json.loads((runs[0] / "result.json").read_text("utf-8"))
    result["per_matrix"] = dict.fromkeys(result["per_matrix"], 0.95)
    (runs[0] / "result.json").write_text(json.dumps(result), "utf-8")
    page = Page(write_comparison(tmp_path / "one", [runs[0], runs[0]]).read_text("utf-8")).text
    assert "rte, element, 95.0 % asked: 95.0 % of every matrix." in page
    assert "by kind of matrix" not in page


def test_runs_with_augmented_rows_are_compared_with_those_without(tmp_path):
    plain = make_run(tmp_path / "plain", pruned=0.75)
    more = make_run(tmp_path / "more", pruned=0.8, examples={"train": 2000, "dev": 400, "augmented": 9000})
    settings = json.loads((more / "config.json").read_text("utf-8")) | {"augment": 10}
    (more / "config.json").write_text(json.dumps(settings), "utf-8")
    text = Page(write_comparison(tmp_path, [plain, more]).read_text("utf-8")).text
    assert "sparsebert against sparsebert, augment 10, −5.0 points of accuracy (one shared seed)" in text
    assert "2,000 rows of the task and 9,000 augmented ones" in Page(write_report(more).read_text("utf-8")).text


def test_comparison_warns_of_unlike_runs(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, pruned=0.7) for seed in (0, 1)]
    (runs[1] / "config.json").write_text(json.dumps({"epochs": 5, "seed": 1}), "utf-8")
    text = Page(write_comparison(tmp_path, runs).read_text("utf-8")).text
    assert "differ in more than the seed (epochs: 3, 5)" in text


def test_command_line(tmp_path, capsys):
    first, second = make_run(tmp_path / "a" / "one"), make_run(tmp_path / "a" / "two", seed=1)
    assert main([str(first)]) == 0
    assert (first / "report.html").is_file()
    assert (first / "table.md").is_file()
    assert main([str(first), str(second)]) == 0
    assert (tmp_path / "a" / "report.html").is_file()
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "b" / "c")]) == 0
    assert "2 runs" in (tmp_path / "b" / "c" / "report.html").read_text("utf-8")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", ["no folder", "result.json", "metrics.jsonl", "line", "list", "masks", "result"])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, fault):
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    if fault == "no folder":
        bad = tmp_path / "none"
    elif fault in ("result.json", "metrics.jsonl"):
        (bad / fault).unlink()
    elif fault in ("line", "list"):
        with (bad / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "st\n' if fault == "line" else "[1]\n")
    elif fault == "masks":
        (bad / "model" / "masks.safetensors").write_bytes(b"\0" * 40)
    else:
        (bad / "result.json").write_text("{", "utf-8")
    for places in ([bad], [good, bad]):
        if fault == "masks" and len(places) == 2:
            continue  # a comparison does not read masks
        out = tmp_path / "out"
        assert main([*map(str, places), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "Traceback" not in said
        assert (bad.name if fault != "line" else "metrics.jsonl: line") in said
        assert not out.exists()


def test_nothing_to_compare(tmp_path):
    with pytest.raises(InputError, match="at least one"):
        write_comparison(tmp_path / "out", [])


def test_bad_flags_are_one_line(capsys):
    assert main(["--nope"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--help lists the flags" in said
