"""Imports go one way; what the core packages must not import they do not import; files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kaprune_jax"
BASE = {"_typing", "_tree", "_errors", "_reading"}
ALLOWED = {
    "prune": BASE,
    "distill": BASE,
    "data": BASE - {"_tree"},
    "l0": BASE,
    "models": BASE | {"l0"},
    "train": BASE | {"prune", "distill"},
    "transfer": BASE | {"prune", "l0", "distill", "train"},
    "deploy": BASE | {"models", "data", "l0", "kernels"},
    "kernels": BASE,
}
FOREIGN = {
    "prune": {"flax", "orbax", "transformers", "safetensors"},
    "l0": {"flax", "orbax", "transformers", "safetensors"},
    "kernels": {"flax", "orbax", "transformers", "safetensors"},
    "transfer": {"flax", "orbax", "transformers", "safetensors"},
    "distill": {"flax", "orbax", "transformers", "safetensors"},
    "train": {"flax", "transformers", "safetensors"},
    "data": {"flax", "orbax", "jax"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or file == PACKAGE / "__init__.py", f"{file}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    part = file.relative_to(PACKAGE).parts[0]
    modules = imports(file)
    assert not any(module.split(".")[0] == "experiments" for module in modules)
    if part not in ALLOWED:
        return
    own = {module.split(".")[1] for module in modules if module.startswith("kaprune_jax.")}
    assert own <= ALLOWED[part] | {part}
    assert not {module.split(".")[0] for module in modules} & FOREIGN.get(part, set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_stay_small(file):
    assert len(file.read_text("utf-8").splitlines()) <= 300


EXPERIMENTS = PACKAGE.parent / "experiments"
BELOW = {
    "config": {"presets"},
    "runs": {"presets", "config"},
    "coupling": {"presets", "config", "runs"},
    "pages": {"presets", "config", "runs"},
    "grid": {"presets", "config", "runs", "coupling", "pages"},
    "inference": {"presets", "runs", "pages"},
}
"""What the folders of experiments may use; commands may use every folder, but no other command."""
SCRIPTS = sorted(EXPERIMENTS.rglob("*.py"))


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(EXPERIMENTS)))
def test_imports_of_experiments_go_one_way(file):
    own = {module.split(".")[1] for module in imports(file) if module.startswith("experiments.")}
    where, *inside = file.relative_to(EXPERIMENTS).parts
    assert own <= (BELOW[where] | {where} if inside else {"presets", *BELOW})


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(EXPERIMENTS)))
def test_files_of_experiments_stay_small(file):
    assert len(file.read_text("utf-8").splitlines()) <= 300
