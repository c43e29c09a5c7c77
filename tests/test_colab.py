"""The notebook: its cells run from top to bottom, as they are written, on short runs."""

import json
import sys
import types
from pathlib import Path

import flax.nnx  # noqa: F401  (its printer looks for the whole of IPython, which is not there once it is stood in for)
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "colab").glob("*.ipynb"))
SHORT = "--steps 8 --teacher-steps 6 --batch-size 8 --evaluations 1 --lengths 1 --allow-weak-teacher"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the cells display, of an IPython that is not needed otherwise."""
    pages: list[str] = []
    stand_in = types.ModuleType("IPython.display")
    stand_in.HTML = lambda data: data  # type: ignore[attr-defined]
    stand_in.display = pages.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", stand_in)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    return pages


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_after_those_before_it(notebook, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    for long, short in (
        ("com/OWNER/", "com/me/"),
        ('MORE = ""', f"MORE = {SHORT!r}"),
        ("ROUNDS = 30", "ROUNDS = 1"),
        ('"8,32"', '"8"'),
    ):
        assert text.count(long) == 1
        text = text.replace(long, short)
    lines = ["" if line.startswith("%pip") else line for line in text.splitlines()]
    exec(compile("\n".join(lines), notebook.name, "exec"), {"__name__": "__main__"})
    assert len(shown) == 3
    assert all("&lt;svg" in page for page in shown)
    out = capsys.readouterr().out
    assert "'encoder': 0.95" in out
    assert (tmp_path / "runs/bench.json").is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_forms_have_the_values_they_offer(notebook):
    """Colab replaces what is between = and # @param by what a person chose; a list names all that may be chosen."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if "# @param [" in line:
                value, offered = line.split("=", 1)[1].split("# @param ")
                assert json.loads(value) in json.loads(offered)
