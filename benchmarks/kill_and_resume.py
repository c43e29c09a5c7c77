"""Kills runs at random moments, goes on with them, and compares what comes out with a run that nobody disturbed.

    python benchmarks/kill_and_resume.py --moments 20

Each run is `python -m experiments.glue` on the built-in example, with a fine-tuned teacher, few steps and frequent
checkpoints. It gets SIGKILL at a moment drawn uniformly over the duration of an undisturbed run, start-up included, and
is then resumed to its end. Weights, masks, the records without their timings and the scores must be the same bits.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
FLAGS = "--teacher-steps 12 --steps 24 --evaluations 4 --log-every 3 --allow-weak-teacher".split()
TIMINGS = ("seconds", "examples_per_second", "peak_memory_bytes", "compilations", "speed")


def start(folder: Path, method: str, more: list[str], log: Path, cache: Path) -> subprocess.Popen:
    """Starts a run in a process of its own; programs it compiles are kept for the next."""
    command = [sys.executable, "-m", "experiments.glue", "--method", method, "--out", str(folder), *FLAGS, *more]
    keep = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with log.open("w") as opened:
        return subprocess.Popen(command, cwd=ROOT, stdout=opened, stderr=subprocess.STDOUT, env=os.environ | keep)


def finish(process: subprocess.Popen, log: Path) -> None:
    """Waits for a run that is expected to come to its end."""
    if process.wait():
        sys.exit(f"a run ended with code {process.returncode}:\n{log.read_text()}")


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 by file of all that a run delivers, timings left out."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            with safe_open(file, "numpy") as opened:
                whole = hashlib.sha256(json.dumps(sorted((opened.metadata() or {}).items())).encode())
                for key in sorted(opened.keys()):
                    whole.update(key.encode() + opened.get_tensor(key).tobytes())
            found[name] = whole.hexdigest()
        elif file.name in ("metrics.jsonl", "result.json"):
            lines = file.read_text("utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]
            records = [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]
            found[name] = hashlib.sha256(json.dumps(records).encode()).hexdigest()
    return found


def disturb(method: str, after: float, folder: Path, cache: Path) -> tuple[str, str]:
    """Kills a run after so many seconds and resumes it; the last lines of what the two said."""
    log, resumed = folder.with_suffix(".killed"), folder.with_suffix(".resumed")
    process = start(folder, method, [], log, cache)
    time.sleep(after)
    process.kill()
    process.wait()
    finish(start(folder, method, ["--resume"] if folder.exists() else [], resumed, cache), resumed)
    said = [line for line in log.read_text().splitlines() if line.strip()]
    notes = [line for line in resumed.read_text().splitlines() if line.startswith(("going on", "note: /"))]
    return (said[-1] if said else "start-up"), "; ".join(notes) or "from the beginning"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20, help="runs that are killed, spread over the methods")
    parser.add_argument("--methods", default="sparsebert,cofi", help="of experiments.glue, comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    different, methods = 0, arguments.methods.split(",")
    moments = {method: len(range(index, arguments.moments, len(methods))) for index, method in enumerate(methods)}
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "compiled"
        for method in methods:
            for number in range(2):  # the second finds everything compiled, and is the one that is timed
                whole = Path(place) / f"{method}-whole-{number}"
                began = time.perf_counter()
                finish(start(whole, method, [], whole.with_suffix(".log"), cache), whole.with_suffix(".log"))
            duration, expected = time.perf_counter() - began, fingerprint(whole)
            again = fingerprint(Path(place) / f"{method}-whole-0") == expected
            print(
                f"{method}: {duration:.1f} s undisturbed, the same bits twice: {'yes' if again else 'NO'}", flush=True
            )
            draw = random.Random(f"{method} {arguments.seed}")
            for number, after in enumerate(sorted(draw.uniform(0.0, duration) for _ in range(moments[method]))):
                folder = Path(place) / f"{method}-{number}"
                said, resumed = disturb(method, after, folder, cache)
                found = fingerprint(folder)
                other = [name for name in expected | found if expected.get(name) != found.get(name)]
                different += bool(other)
                shown = f"DIFFERENT: {', '.join(other)}" if other else "same bits"
                resumed = resumed.replace(place, "")
                print(f"  killed after {after:5.1f} s  {shown}  | {said[:64]:64s} | {resumed}", flush=True)
    print(f"{different} of {arguments.moments} runs differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
