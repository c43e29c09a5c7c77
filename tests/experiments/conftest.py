"""A tiny encoder over the built-in world's words, and small files, so that whole runs take seconds."""

import json

import jax
import pytest
from short_runs import COUPLED, QUICK, make_files

import kaprune_jax as kp
from experiments import glue, transfer
from kaprune_jax.data.world import vocabulary, write_tokenizer
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.models.bert import init_params
from kaprune_jax.models.config import BertConfig


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random encoder of two narrow layers."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokens = tmp_path_factory.mktemp("tokens")
    write_tokenizer(tokens)
    config = BertConfig(len(vocabulary()), 16, 2, 2, 32, 32, pooling="mean")
    kp.save(folder, init_params(config, jax.random.key(0)), config, tokenizer=load_tokenizer(tokens))
    return folder


@pytest.fixture
def files(tmp_path):
    """Own training and dev files of an easy task, as --train-file and --dev-file."""
    return make_files(tmp_path)


@pytest.fixture
def questions(tmp_path):
    """Training and dev questions in SQuAD's layout, as --train-file and --dev-file; some passages need windows."""
    people, animals = "anna ben clara david emma felix julia paul".split(), "owl robin cat wolf shark bee".split()
    paragraphs = []
    for number, animal in enumerate(animals):
        facts = [f"{person} saw the {animals[(number + place) % 6]} ." for place, person in enumerate(people)]
        passage = " ".join(facts[: 3 + number])
        asked = [
            {
                "id": f"{animal}-{person}",
                "question": f"what did {person} see ?",
                "answers": [
                    {"text": fact[len(person) + 5 : -2], "answer_start": passage.index(fact) + len(person) + 5}
                ],
            }
            for person, fact in zip(people[: 3 + number], facts, strict=False)
        ]
        paragraphs.append({"context": passage, "qas": asked})
    for name, part in (("train", paragraphs), ("dev", paragraphs[::2])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": [{"title": "", "paragraphs": part}]}), "utf-8")
    return ["--train-file", str(tmp_path / "train.json"), "--dev-file", str(tmp_path / "dev.json")]


@pytest.fixture
def run(tiny, files, tmp_path):
    """Runs the main job on the tiny encoder; gives the exit code."""
    return lambda *flags: glue.main(["--model", str(tiny), *files, "--out", str(tmp_path / "run"), *QUICK, *flags])


@pytest.fixture
def other(tmp_path):
    """Rows of a related task, in a file of other columns."""
    words = {"yes": ("nice", "fine", "happy"), "no": ("poor", "sad", "ugly")}
    rows = [
        f"a {word} {thing} .\t{label}" for label in words for word in words[label] for thing in ("day", "cat", "hat")
    ]
    file = tmp_path / "other.tsv"
    file.write_text("text\tkind\n" + "\n".join(rows) + "\n", "utf-8")
    return file


@pytest.fixture(scope="session")
def teachers(tiny, tmp_path_factory):
    """Models with a head for the target and for the auxiliary task, as good as untrained."""
    folders = []
    for number in range(2):
        config = kp.load(tiny).config.replace(head="classification", labels=("no", "yes"))
        folders.append(tmp_path_factory.mktemp("teachers") / f"teacher{number}")
        tokenizer = kp.load(tiny).tokenizer
        kp.save(folders[-1], init_params(config, jax.random.key(number)), config, tokenizer=tokenizer)
    return folders


@pytest.fixture
def couple(tiny, files, other, teachers, tmp_path):
    """Runs the command with given teachers; gives the exit code."""
    flags = ["--model", str(tiny), *files, *COUPLED, "--auxiliary", f"other={other}", "--auxiliary-text", "text"]
    flags += ["--auxiliary-label", "kind", "--teacher", str(teachers[0]), "--auxiliary-teacher", str(teachers[1])]
    return lambda *more, out="run": transfer.main([*flags, "--out", str(tmp_path / out), *more])
