"""The benchmark on tiny models: checks before it times, counts what it says it counts, refuses what it cannot do."""

import json

import numpy as np
import pytest
from pages import Page

from experiments.bench import main
from experiments.inference.cost import Cost, Peaks, dense_costs, linear_cost, packed_costs, total
from experiments.inference.page import write_page
from experiments.inference.timing import Variant, check, measure
from experiments.inference.variants import random_blocks, smaller_config
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.packed import pack_model
from kaprune_jax.models.bert import init_params
from kaprune_jax.models.config import BertConfig

CONFIG = BertConfig(50, 128, 2, 4, 256, 64, head="classification", labels=("a", "b"))


@pytest.fixture
def params():
    import jax

    return init_params(CONFIG, jax.random.key(0))


def test_what_is_wrong_is_not_timed():
    right = np.array([1.0, -2.0])
    assert check(Variant("free", lambda: right)) == 0.0
    assert check(Variant("near", lambda: right + 1e-5, right)) == pytest.approx(5e-6)
    for found, words in (
        (right + 1e-3, r"near: differs by 5.0e-04"),
        (right * np.nan, "nan"),
        (right[:1], r"shape \(1,\)"),
    ):
        with pytest.raises(InputError, match=words):
            check(Variant("near", lambda found=found: found, right))


def test_rounds_are_interleaved_and_stop_when_enough():
    calls = []
    variants = [Variant(name, lambda name=name: calls.append(name)) for name in "abc"]
    timings, others = measure(variants, rounds=25, warmup=2, seconds=0.0)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [calls[6:][start : start + 6] for start in range(0, len(calls) - 6, 6)]
    assert len(rounds) == 10
    assert all(sorted(found) == ["a", "a", "b", "b", "c", "c"] for found in rounds)
    assert len({tuple(found) for found in rounds}) > 1
    assert timings["a"].ratios == [1.0] * 10
    assert len(timings["b"].seconds) == 20
    assert others is None or 0.0 <= others <= 1.0
    summary = timings["c"].summary()
    assert summary["min"] <= summary["p10"] <= summary["median"] <= summary["p90"]


def test_costs_by_hand(params):
    hidden, tokens = 128, 3 * 10
    parts = dense_costs(CONFIG, 3, 10)
    products = 2 * tokens * (4 * hidden * hidden + 2 * hidden * 256)
    scores = 2 * (4 * 3 * 10 * 10) * (32 + 32)
    norms = 2 * 8 * hidden * tokens
    assert total(parts).flops == 2 * (products + scores + norms)
    assert linear_cost(4, 5, 20, 7) == Cost(2 * 20 * 7, 4 * (20 + 9 * 7))
    weights, _ = pack_model(params, CONFIG, backend="reference")
    assert total(packed_costs(weights, 3, 10)).flops == total(parts).flops
    sparse, _ = pack_model(random_blocks(params, density=0.25), CONFIG, backend="xla")
    assert total(packed_costs(sparse, 3, 10)).flops < 0.6 * total(parts).flops
    peaks = Peaks(10.0, 5.0, 20.0)
    assert peaks.seconds([Cost(20.0, 5.0), Cost(1.0, 10.0)]) == 4.0
    assert peaks.seconds([Cost(40.0, 5.0), Cost(1.0, 10.0)], "bfloat16") == 4.0


def test_random_blocks_are_balanced(params):
    for layer in random_blocks(params, density=0.5)["encoder"]["layers"].values():
        for part in (*layer["attention"].values(), *layer["ffn"].values()):
            tiles = (part["kernel"] != 0).reshape(part["kernel"].shape[0] // 32, 32, -1, 128).any(axis=(1, 3))
            assert set(tiles.sum(axis=0)) == {tiles.shape[0] // 2}
    for layer in random_blocks(params, density=0.3)["encoder"]["layers"].values():
        for part in (*layer["attention"].values(), *layer["ffn"].values()):
            tiles = (part["kernel"] != 0).reshape(part["kernel"].shape[0] // 32, 32, -1, 128).any(axis=(1, 3))
            assert tiles.sum() == round(0.3 * tiles.size)
            assert np.ptp(tiles.sum(axis=0)) <= 1


def test_random_blocks_in_some_heads_and_units(params):
    for layer in random_blocks(params, density=0.25, within=(64, 128))["encoder"]["layers"].values():
        kernels = [part["kernel"] for part in (*layer["attention"].values(), *layer["ffn"].values())]
        assert [np.count_nonzero(kernel) / kernel.size for kernel in kernels] == [0.25] * 6
        assert not layer["attention"]["query"]["kernel"][:, 64:].any()
        assert not layer["attention"]["output"]["kernel"][64:].any()
        assert not layer["ffn"]["up"]["kernel"][:, 128:].any()
        assert not layer["ffn"]["down"]["kernel"][128:].any()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_the_smaller_dense_model_has_as_many_weights(share):
    whole = BertConfig(50, 768, 12, 12, 3072, 64)
    full = 12 * (4 * 768**2 + 2 * 768 * 3072)
    small = smaller_config(whole, round(share * full))
    kept = sum(len(layer.heads) * 64 * 4 * 768 + layer.ffn * 2 * 768 for layer in small.layers)
    assert kept == pytest.approx(share * full, rel=0.02)


@pytest.mark.long
def test_a_saved_model_is_measured(tiny, tmp_path, capsys):
    from kaprune_jax.deploy.folder import load, save

    start = load(tiny)
    config = start.config.replace(head="classification", labels=("a", "b"))
    import jax

    save(tmp_path / "model", init_params(config, jax.random.key(1)), config, tokenizer=start.tokenizer)
    out = tmp_path / "bench.json"
    assert main([str(tmp_path / "model"), "--batch", "1,2", "--length", "8", "--rounds", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text("utf-8"))
    assert [(row["variant"], row["batch"]) for row in report["rows"]] == [
        (name, batch)
        for batch in (1, 2)
        for name in (
            *("dense", "dense bfloat16", "dense, compiled", "zeros in place", "compiled", "compiled bfloat16"),
            *("smaller dense", "smaller dense, compiled", "smaller dense, compiled bfloat16"),
        )
    ]
    for row in report["rows"]:
        assert row["n"] == 4
        assert row["median"] > 0
        assert {"flops", "bytes", "ceiling", "of_peak", "compile_seconds", "others"} <= set(row)
    assert all(choice["path"] == "dense" for choice in report["rows"][4]["plan"])
    assert {"versions", "device", "processors", "peaks", "command"} <= set(report)
    assert "| compiled" in capsys.readouterr().out
    assert "zeros in place" in Page((tmp_path / "bench.html").read_text("utf-8")).text


def _report(rows):
    times = dict.fromkeys(("median", "p10", "p90", "speedup_p10", "speedup_p90", "flops", "bytes", "of_peak"), 1.0)
    base = {"batch": 8, "error": 0.0, "contended": False, "ceiling": 9.0, **times}
    machine = {"device": "cpu", "versions": {}, "processors": 2, "command": "bench"}
    return {
        **machine,
        "peaks": {"flops": 1.0, "bytes": 1.0, "bfloat16": 1.0},
        "rows": [{**base, **row} for row in rows],
    }


def test_saved_models_are_drawn_as_score_against_speed(tmp_path):
    score = {"task": "sst2", "metric": "accuracy", "dense": 0.9}
    rows = [
        {"subject": name, "variant": variant, "sparsity": 0.9, "speedup": speedup, "pruned": pruned, **score}
        for name, pruned in (("scattered", 0.87), ("blocks", 0.82))
        for variant, speedup in (("dense", 1.0), ("zeros in place", 1.0), ("compiled", 5.0))
    ]
    write_page(_report(rows), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "Score against speed" in page.text
    assert "Speed against sparsity" not in page.text
    rows[-1]["dense"] = 0.8  # another teacher: their scores do not belong in one picture
    write_page(_report(rows), tmp_path / "page.html")
    assert "Score against speed" not in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_random_weights_are_drawn_as_speed_against_sparsity(tmp_path):
    rows = [
        {"subject": "minilm, random blocks", "variant": variant, "sparsity": sparsity, "speedup": 2.0}
        for sparsity in (0.8, 0.9)
        for variant in ("dense", "compiled")
    ]
    write_page(_report(rows), tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert "Speed against sparsity" in text
    assert "batch 8" in text
    write_page(_report(rows[:2]), tmp_path / "page.html")  # one sparsity is no line
    assert "Speed against sparsity" not in Page((tmp_path / "page.html").read_text("utf-8")).text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "or --shapes NAMES"),
        (["here", "--shapes", "minilm"], "one of the two"),
        (["--shapes", "gpt"], "--shapes gpt: allowed: minilm, bert-base"),
        (["--shapes", "minilm", "--batch", "1,x"], "--batch 1,x: whole numbers >= 1"),
        (["--shapes", "minilm", "--batch", "0"], "--batch 0"),
        (["--shapes", "minilm", "--densities", "0"], "--densities 0: fractions in (0, 1]"),
        (["--shapes", "minilm", "--within", "6"], "--within 6: two whole numbers >= 1"),
        (["--shapes", "minilm", "--within", "6,x"], "--within 6,x: two whole numbers >= 1"),
        (["--shapes", "minilm", "--within", "6,1537"], "--within 6,1537: minilm has 12 heads and 1536 units"),
        (["--shapes", "minilm", "--within", "6,77"], "0.0501 of a matrix of minilm, too little for --densities 0.2"),
        (["here", "--within", "6,640"], "--within 6,640: only with --shapes"),
        (["--shapes", "minilm", "--length", "0"], "--length 0"),
        (["--shapes", "minilm", "--length", "600"], "minilm has 512 positions"),
        (["--shapes", "minilm", "--rivals", "tensorrt"], "--rivals tensorrt: allowed: torch, onnxruntime"),
        (["--shapes", "minilm", "--rounds", "0"], "--rounds 0"),
        (["--shapes", "minilm", "--out", "bench.txt"], "ends in .json"),
        (["--shapes", "minilm", "--out", "nowhere/bench.json"], "in a folder that is there"),
        (["--shapes", "minilm", "--backend", "triton"], "invalid choice: 'triton'"),
        (["--shapes", "minilm", "--backend", "tpu", "--batch", "1", "--length", "8"], "needs a TPU"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
