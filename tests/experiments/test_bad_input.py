"""Bad input to the main job: one line, exit code 2, nothing written."""

import errno
import gzip
import json
import math
import os
import shutil

import pytest

import kaprune_jax as kp
from experiments import glue
from experiments.config.resolve import resolve
from experiments.config.settings import Settings, parse
from experiments.runs.prepare import prepare
from kaprune_jax._errors import InputError


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs flags that must be refused; gives the line that was said."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert glue.main(list(flags)) == 2
        out, said = capsys.readouterr()
        assert out == ""
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return run


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--task", "glue"], ["--task 'glue'", "cola, mnli", "micro-rte"]),
        (["--method", ""], ["--method ''", "sparsebert, hard-labels"]),
        (["--method", "magic"], ["--method 'magic'", "sparsebert, hard-labels"]),
        (["--method", "sparsebert,sparsebert"], ["named twice"]),
        (["--pattern", "blocks"], ["--pattern", "'blocks'", "element, block-RxC"]),
        (["--pattern", "4:2"], ["--pattern", "'4:2'", "less than M"]),
        (["--pattern", "2:4", "--sparsity", "0.9"], ["--sparsity 0.9", "2:4", "0.5"]),
        (["--pattern", "2:4", "--scope", "global"], ["--scope global"]),
        (["--sparsity", "1"], ["--sparsity 1.0", "[0, 1)"]),
        (["--sparsity", "-0.1"], ["--sparsity -0.1", "[0, 1)"]),
        (["--sparsity", "nan"], ["--sparsity nan", "[0, 1)"]),
        (["--sparsity", "most"], ["--sparsity", "'most'"]),
        (["--epochs", "0"], ["--epochs 0.0", "> 0"]),
        (["--learning-rate", "inf"], ["--learning-rate inf"]),
        (["--batch-size", "0"], ["--batch-size 0", ">= 1"]),
        (["--checkpoint-minutes", "0"], ["--checkpoint-minutes 0.0", "> 0"]),
        (["--dropout", "1"], ["--dropout 1.0", "[0, 1)"]),
        (["--target-at", "0"], ["--target-at 0.0", "(0, 1]"]),
        (["--temperature", "0"], ["--temperature 0.0"]),
        (["--schedule", "cosine"], ["--schedule", "'cosine'", "constant"]),
        (["--loss-weights", "hiden=1"], ["--loss-weights 'hiden=1'", "embeddings, hidden"]),
        (["--loss-weights", "hidden=-1"], ["--loss-weights 'hidden=-1'"]),
        (["--steps", str(2**31)], [f"--steps {2**31}", f"[1, {2**31 - 1}]"]),
        (["--epochs", "1e9"], ["--epochs 1e+09", "steps; up to"]),
        (["--text", "a,b"], ["--text a,b", "own rows (--train-file)"]),
        (["--label", "y"], ["--label y", "--task micro-rte has its own"]),
        (["--augment", "0"], ["--augment 0", ">= 1"]),
        (["--augment", "-3"], ["--augment -3", ">= 1"]),
        (["--augment-file", "x"], ["--augment-file x needs --augment"]),
        (["--augment", "2", "--method", "dense"], ["--augment 2", "--method dense"]),
        (["--nonsense", "1"], ["--nonsense", "--help"]),
        (["--task", "rte"], ["--task rte", "--data-dir"]),
        (["--task", "rte", "--data-dir", "nowhere"], ["nowhere"]),
        (["--train-file", "a.tsv"], ["--train-file a.tsv", "--dev-file FILE", "--hold-out N"]),
        (["--dev-file", "a.tsv"], ["--dev-file a.tsv", "--train-file FILE"]),
        (["--train-file", "a.tsv", "--dev-file", "b.tsv"], ["a.tsv"]),
        (["--model", "./nowhere"], ["'./nowhere'", "no such folder"]),
        (["--teacher", "./nowhere"], ["--teacher ./nowhere", "no such folder"]),
        (["--accumulate", "5"], ["--accumulate 5", "--batch-size"]),
        (["--augment", "2", "--augment-file", "."], ["--augment-file .", "a folder"]),
        (["--metric", "best"], ["--metric", "'best'", "macro_f1"]),
        (["--metric", "pearson"], ["--metric 'pearson'", "micro-rte (2 classes)", "accuracy, macro_f1"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--limit-train", "0"], ["--limit-train 0"]),
        (["--resume", "--out", "nowhere"], ["--resume", "nowhere"]),
    ],
)
def test_flags(refused, flags, parts):
    said = refused(*flags)
    for part in parts:
        assert part in said


def test_rows_held_out_stand_in_for_a_dev_file():
    assert resolve(Settings(train_file="a.tsv", hold_out=5)).dev_file == "a.tsv"


def test_a_model_without_the_words_of_the_rows_is_said(tmp_path):
    rows = ["sentence,label", *(f"{word} terrible plot,{label}" for label in "ab" for word in ("Sweden", "however"))]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n", "utf-8")
    own = str(tmp_path / "own.csv")
    settings = resolve(Settings(train_file=own, dev_file=own, out=str(tmp_path / "run")))
    (note,) = (note for note in prepare(settings).notes if "unknown" in note)
    assert "unknown to mini: mini knows its built-in tasks only, give another --model" in note
    assert not any("unknown" in note for note in prepare(resolve(Settings(out=str(tmp_path / "run")))).notes)


def spoiled(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("dev.tsv", "", ["dev.tsv"]),
        ("dev.tsv", "sentence\tlabel\n", ["dev.tsv"]),
        ("dev.tsv", b"sentence\tlabel\n\xff\xfe\tyes\n", ["dev.tsv", "UTF-8"]),
        ("dev.tsv", "sentence\tlabel\ngood .\tyes\nbad .\n", ["dev.tsv", "row 3"]),
        ("dev.tsv", "sentence\tlabel\ngood .\tyes\nbad .\tperhaps\n", ["dev.tsv", "row 3", "perhaps"]),
        ("dev.tsv", "text\tlabel\ngood .\tyes\n", ["dev.tsv", "sentence", "text"]),
        ("train.tsv", "sentence\tlabel\na .\tyes\nb .\tno\nc .\tyes\n", ["train.tsv", "row 3", "'no'", "once"]),
        ("train.tsv", "sentence\tlabel\na .\tyes\nb .\tyes\n", ["train.tsv", "only one class"]),
    ],
)
def test_files(refused, tiny, files, tmp_path, name, content, parts):
    spoiled(tmp_path / name, content)
    said = refused("--model", str(tiny), *files)
    for part in parts:
        assert part in said


def test_a_truncated_gzip_file(refused, tiny, files, tmp_path):
    whole = gzip.compress((tmp_path / "dev.tsv").read_bytes() * 50)
    spoiled(tmp_path / "dev.tsv.gz", whole[: len(whole) // 2])
    said = refused("--model", str(tiny), *files[:3], str(tmp_path / "dev.tsv.gz"))
    assert "dev.tsv.gz" in said


def test_models(refused, tiny, files, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    raw = json.loads((folder / "config.json").read_text())

    def say():
        return refused("--model", str(folder), *files)

    (folder / "config.json").write_text(json.dumps(raw | {"intermediate_size": 64}))
    assert "asks for [16, 64]" in say()
    (folder / "config.json").write_text(json.dumps(raw))
    spoiled(weights, whole[:2000])
    assert "model.safetensors" in say()
    weights.rename(folder / "pytorch_model.bin")
    assert "only as pytorch_model.bin" in say()
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in say()
    spoiled(weights, whole)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in say()


def test_a_block_that_does_not_divide(refused, tiny, files):
    said = refused("--model", str(tiny), *files, "--pattern", "block-5x4")
    assert "block-5x4 does not divide encoder/layers/0" in said


def test_output_folders(refused, tiny, files, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert "exists already" in refused("--model", str(tiny), *files, "--out", "old")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "no permission" in refused("--model", str(tiny), *files, "--out", "new")


def test_no_space_left_is_said_in_one_line(tiny, files, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "run/config.json")

    monkeypatch.setattr("experiments.runs.record.write_json", full)
    assert glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("checkpoint", [0, 1, 2])
def test_a_disk_that_fills_up_during_the_run_is_said_in_one_line(
    checkpoint, tiny, files, tmp_path, capsys, monkeypatch
):
    reserve, calls = os.posix_fallocate, []

    def fills_up(*arguments):
        calls.append(arguments)
        if len(calls) > checkpoint:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(*arguments)

    monkeypatch.setattr("os.posix_fallocate", fills_up)
    run = tmp_path / "run"
    flags = ["--model", str(tiny), *files, "--method", "dense", "--teacher-epochs", "4", "--evaluations", "2"]
    assert glue.main([*flags, "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run}/ckpt: step {2 * checkpoint} cannot be written (")
    assert said.endswith("MB: No space left on device)\n")
    assert said.count("\n") == 1
    assert not (run / "result.json").exists()
    assert (run / "model").exists() == (checkpoint > 0)
    for model in run.glob("model*"):
        assert kp.load(model).params


def test_defaults_are_filled_in_by_task():
    settings = resolve(Settings())
    assert settings.methods == ("sparsebert", "hard-labels")
    assert settings.sparsity == 0.95
    assert settings.out == "runs/micro-rte-methods-0.95-s0"
    settings = resolve(Settings(task="sst2", data_dir="x", pattern="2:4", seed=3))
    assert settings.methods == ("sparsebert",)
    assert settings.sparsity == 0.5
    assert settings.out == "runs/sst2-sparsebert-0.5-s3"


def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for flag in ("--task", "--data-dir", "--sparsity", "--pattern", "--target-at", "--out", "--resume"):
        assert flag in shown
    assert "[0.95; 1 - N/M for N:M]" in shown
    assert math.isclose(parse(["--target-at", "0.4"]).target_at, 0.4)


def test_a_flag_is_not_abbreviated():
    with pytest.raises(InputError, match="unrecognized arguments: --spars"):
        parse(["--spars", "0.5"])
