"""What the shape of the zeros costs in score: one task, one teacher, the same steps and settings for every pattern.

    python benchmarks/patterns.py --out RUNS --patterns element,block-32x128,cofi --sparsities 0.9,0.95 \
        -- --task sst2 --data-dir GLUE --model MINILM --steps 1000

What follows `--` goes to `experiments.glue` as it is. The pattern `cofi` stands for `--method cofi`. Each cell is a run
folder; one that is finished is not run again, one that was interrupted goes on, so the same command makes a table of
what is there. `python -m experiments.bench RUNS/*-0.95` says how fast each is.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--patterns", default="element,block-32x32,block-32x128,block-32x128-balanced,cofi")
    parser.add_argument("--sparsities", default="0.95,0.9")
    parser.add_argument("flags", nargs="*", help="of experiments.glue")
    settings = parser.parse_args()
    teacher, rows = settings.out / "dense", []
    code = run(teacher, ["--method", "dense", *settings.flags])
    for sparsity, pattern in itertools.product(settings.sparsities.split(","), settings.patterns.split(",")):
        how = ["--method", "cofi"] if pattern == "cofi" else ["--pattern", pattern]
        folder = settings.out / f"{pattern}-{sparsity}"
        code = code or run(folder, [*how, "--sparsity", sparsity, "--teacher", str(teacher), *settings.flags])
        if code:
            break
        rows.append((pattern, folder))
    print("| pattern | removed | dense | best | last | steps |\n| --- | --- | --- | --- | --- | --- |")
    for pattern, folder in rows:
        result = json.loads((folder / "result.json").read_text("utf-8"))
        removed, scores = result["sparsity"]["encoder"], [result[name] for name in ("dense", "pruned", "last")]
        figures = " | ".join(f"{score:.4f}" for score in scores)
        print(f"| {pattern} | {removed:.4f} | {figures} | {result['steps']} |")
    return code


def run(folder: Path, flags: list[str]) -> int:
    """A run in a process of its own, so that its memory ends with it; its exit code."""
    if (folder / "result.json").is_file():
        return 0
    resume = ["--resume"] * (folder / "config.json").is_file()
    return subprocess.run([sys.executable, "-m", "experiments.glue", *flags, "--out", str(folder), *resume]).returncode


if __name__ == "__main__":
    sys.exit(main())
