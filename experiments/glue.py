"""The main job: `python -m experiments.glue`. Fine-tune or load a teacher, prune while distilling, evaluate, report.

Without flags it runs the built-in offline example. Exit codes: 0 done; 2 bad input; 3 the loss was not finite;
130 or 143 interrupted, with a checkpoint to go on from.
"""

import dataclasses
import shlex
import signal
import sys
from pathlib import Path

from experiments.settings import Settings, parse, resolve
from kaprune_jax._errors import InputError


class Stop:
    """Remembers that a signal asked to stop; a second one ends the program at once."""

    def __init__(self):
        self.signal: int | None = None
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def __call__(self) -> bool:
        return self.signal is not None


def run(settings: Settings, should_stop: Stop) -> None:
    """Runs every method of the settings, one after the other, from one teacher."""
    from experiments.augment import add_rows
    from experiments.coupled import plan_cofi
    from experiments.method import plan
    from experiments.prepare import prepare
    from experiments.record import say
    from experiments.report import write_comparison, write_report
    from experiments.results import read_result
    from experiments.run import get_teacher, run_method
    from experiments.structured import run_structured

    prepared = prepare(settings)
    for method in (name for name in settings.methods if prepared.teacher and name != "cofi"):
        plan(method, prepared, prepared.teacher)  # says what does not fit before anything is written
    if "cofi" in settings.methods:
        plan_cofi(prepared, prepared.teacher)
    data = prepared.data
    say(f"{data.name}: {len(data.train.texts)} training rows, {len(data.dev.texts)} dev rows, {data.kind}")
    for note in prepared.notes:
        say(f"note: {note}")
    assert settings.out is not None
    out, methods = Path(settings.out), settings.methods
    folders = {method: out if len(methods) == 1 else out / method for method in methods}
    teacher = dense = None
    if methods != ("dense",):
        fine_tuned = folders.get("dense", out / "teacher")  # the dense model asked for beside others is their teacher
        teacher, dense = get_teacher(prepared, fine_tuned, should_stop)
        if settings.teacher is None:
            folders = {"dense": fine_tuned} | folders
    unfinished = [method for method in methods if method != "dense" and not read_result(folders[method])]
    training = add_rows(prepared, teacher, out, should_stop) if teacher and unfinished else prepared
    results = {}
    for method, folder in folders.items():
        given = prepared if method == "dense" else training
        own = given._replace(settings=dataclasses.replace(given.settings, method=method))
        if method == "cofi":
            assert teacher is not None
            results[method] = run_structured(own, folder, should_stop, teacher=teacher, dense=dense)
        else:
            results[method] = run_method(method, own, folder, should_stop, teacher=teacher, dense=dense)
        write_report(folder)
    if len(methods) > 1:
        write_comparison(out, list(folders.values()))
    say("")
    for method in methods:
        say(summary(method, results[method]))
    say(f"report: {out / 'report.html'}")


def summary(method: str, result: dict) -> str:
    """One line of figures for the terminal."""
    sizes, bytes = result["sparsity"], result["bytes"]
    if "removed" in result:
        return _smaller_summary(method, result)
    dense = "" if result["dense"] is None or method == "dense" else f"dense {result['dense']:.4f} -> "
    return (
        f"{method}: {result['metric']} {dense}{result['pruned']:.4f} (last step {result['last']:.4f}); "
        f"zeros: {sizes['encoder']:.4%} of the encoder matrices, {sizes['all']:.2%} of all parameters; "
        f"{bytes['dense'] / 1e6:.1f} MB dense, {bytes['stored'] / 1e6:.1f} MB stored sparse"
    )


def _smaller_summary(method: str, result: dict) -> str:
    """What was removed, how much smaller and how much faster the model is."""
    removed, speed, bytes, sparsity = (result[name] for name in ("removed", "speed", "bytes", "sparsity"))
    heads, units, hidden = (removed[name] for name in ("heads", "units", "hidden"))
    layers = sum(bool(head or unit) for head, unit in zip(heads["kept"], units["kept"], strict=True))
    depth = len(heads["kept"])
    wide, broad = sum(heads["kept"]), sum(units["kept"])
    return (
        f"{method}: {result['metric']} dense {result['dense']:.4f} -> {result['pruned']:.4f} (last step "
        f"{result['last']:.4f})\n"
        f"  removed: {sparsity['encoder']:.4%} of the encoder matrices, {sparsity['all']:.2%} of all parameters; "
        f"{bytes['dense'] / 1e6:.1f} MB -> {bytes['stored'] / 1e6:.1f} MB\n"
        f"  left: {layers} of {depth} layers, {wide} of {depth * heads['of']} heads, {broad} of "
        f"{depth * units['of']} units, {hidden['kept']} of {hidden['of']} hidden dimensions\n"
        f"  {speed['batch']} rows of {speed['length']} tokens take {speed['dense_seconds'] * 1e3:.1f} ms dense, "
        f"{speed['smaller_seconds'] * 1e3:.1f} ms now: {speed['ratio']:.1f} times as fast on this machine"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    settings = None
    try:
        settings = resolve(parse(arguments))
        stop = Stop()
        from kaprune_jax.train.loop import Diverged, Interrupted

        try:
            run(settings, stop)
        except Diverged as error:
            print(f"error: {error}; {_checkpoint(settings)}", file=sys.stderr)
            return 3
        except Interrupted as error:
            given = [flag for flag in (arguments if arguments is not None else sys.argv[1:]) if flag != "--resume"]
            if "--out" not in " ".join(given):
                given += ["--out", str(settings.out)]
            print(f"{error}; to go on: python -m experiments.glue {shlex.join(given)} --resume", file=sys.stderr)
            return 128 + (stop.signal or signal.SIGINT)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _checkpoint(settings: Settings) -> str:
    """Names the newest checkpoint under the run folder."""
    folders = [path for path in Path(settings.out or ".").rglob("ckpt*/*") if path.name.isdigit()]
    if not folders:
        return "there is no checkpoint yet"
    newest = max(folders, key=lambda path: path.stat().st_mtime)
    return f"the last good checkpoint is {newest} (step {newest.name}); a lower --learning-rate may help"


if __name__ == "__main__":
    sys.exit(main())
