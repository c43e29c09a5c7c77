"""The words, numbers and tables of a report: formats, what a run came to in plain words, and rows for several runs."""

import math
import re
from collections.abc import Sequence

from experiments.pages.data import Run, Setting, Spread, differing_settings, group_runs, spread
from experiments.pages.mask_pictures import Counts

HEADER = (
    "task", "metric", "pattern", "asked", "method", "seeds", "dense", "pruned", "last",
    "encoder sparsity", "overall sparsity", "without zeros", "steps", "time",
)  # fmt: skip
_SPEED = {
    "element": (
        "Zeros in single places make the model no faster: a dense matrix product takes the same time whatever the "
        "weights are. A file is smaller once it leaves them out (python -m experiments.export RUN --to small). Three "
        "things would make it faster: whole blocks of zeros together with a kernel that skips them (pattern "
        "block-RxC), N:M patterns such as 2:4 on hardware that has units for them, and structured removal of heads, "
        "units and layers, which leaves smaller dense matrices."
    ),
    "block": (
        "Blocks of zeros save time only with a kernel that skips them; an ordinary dense matrix product takes as long "
        "as before. N:M patterns on hardware that has units for them, and structured removal of heads, units and "
        "layers, are the other ways to real speed."
    ),
    "N:M": (
        "N:M zeros save time only on hardware that has units for that very pattern, and in a format made for it; "
        "elsewhere a dense matrix product takes as long as before. Blocks with a kernel that skips them, and "
        "structured removal of heads, units and layers, are the other ways to real speed."
    ),
    "structured": (
        "Zeros alone make no model faster. Structured removal does once the removed heads, units and layers are cut "
        "out of the matrices, which leaves smaller dense ones; blocks need a kernel that skips them, N:M patterns "
        "need hardware that has units for them."
    ),
}


def score(value: float) -> str:
    """A score as its fraction, three digits."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def four(value: float) -> str:
    """A score with four digits."""
    return f"{value:.4f}" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """A fraction in percent; close to 100 % with as many digits as it takes to tell it from 100 %."""
    if not math.isfinite(value):
        return "–"
    digits = 2 if 0.999 <= value < 1 else 1
    return f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of scores in points, hundredths of the score, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−") if math.isfinite(value) else "–"


def size(value: float) -> str:
    """Bytes in decimal units."""
    if not math.isfinite(value):
        return "–"
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def mean_and_spread(values: Spread) -> str:
    """Mean ± standard deviation (n)."""
    if not values.n:
        return "–"
    deviation = f" ± {values.deviation:.3f}" if values.n > 1 else ""
    return f"{values.mean:.3f}{deviation} ({values.n})"


def headline(run: Run) -> str:
    """Task, method and sparsity in a line."""
    if run.method == "dense":
        return f"{run.task}, fine-tuned and not pruned"
    sparsity, name = run.figure("sparsity", "encoder"), run.name if "coupling" in run.config else run.method
    return f"{run.task} by {name}" + (f": {percent(sparsity)} removed" if math.isfinite(sparsity) else "")


def summary(run: Run) -> str:
    """What came out, in plain words; leaves out what was not measured."""
    dense, pruned = run.figure("dense"), run.figure("pruned")
    if run.method == "dense":
        text = f"The model was fine-tuned on {run.task} and nothing was removed; {run.metric} is {score(dense)}."
        return text if math.isfinite(dense) else f"The model was fine-tuned on {run.task} and nothing was removed."
    encoder, everything = run.figure("sparsity", "encoder"), run.figure("sparsity", "all")
    parts = [f"Method {run.method} pruned a model for {run.task}"]
    if math.isfinite(encoder):
        parts = [f"Pruning by {run.method} removed {percent(encoder)} of the weights in the encoder's matrices"]
        parts += [f" ({percent(everything)} of all parameters)"] if math.isfinite(everything) else []
    if math.isfinite(dense) and math.isfinite(pruned):
        change = pruned - dense
        word = "stayed at" if abs(change) < 5e-4 else "went from"
        level = score(dense) if word == "stayed at" else f"{score(dense)} to {score(pruned)} ({points(change)} points)"
        parts.append(f"; {run.metric} on the dev set {word} {level}")
    text = "".join(parts) + "."
    stored, whole = run.figure("bytes", "stored"), run.figure("bytes", "dense")
    if stored > 0 and whole > 0:
        how = "What is left" if run.is_smaller else "Without its zeros, the model"
        text += f" {how} takes {size(stored)} instead of {size(whole)}, {whole / stored:.1f} times less."
    return text


def notices(run: Run) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    asked, encoder = run.figure("sparsity", "asked"), run.figure("sparsity", "encoder")
    if run.method != "dense" and asked - encoder > 0.002:
        found.append(f"The asked sparsity of {percent(asked)} was not reached: {percent(encoder)} was delivered.")
    if run.method != "dense" and not math.isfinite(run.figure("pruned")):
        found.append("There is no score of the pruned model.")
    dev, pruned = run.figure("examples", "dev"), run.figure("pruned")
    if run.metric == "accuracy" and dev > 0 and 0 <= pruned <= 1:
        error = math.sqrt(pruned * (1 - pruned) / dev)
        found.append(
            f"The dev set has {count(dev)} rows: the accuracy has a standard error of about {100 * error:.1f} points "
            "from that alone. The best point was chosen on the same rows, which flatters it a little."
        )
    if (added := run.figure("examples", "augmented")) > 0:
        found.append(
            f"Trained on {count(run.figure('examples', 'train'))} rows of the task and {count(added)} augmented ones, "
            "whose labels are the teacher's; the number of steps is that of the task's own rows."
        )
    if any(not math.isfinite(float(r["loss"])) for r in run.select("train") if isinstance(r.get("loss"), int | float)):
        found.append("The loss was not finite at some step; the lines of the plots have a gap there.")
    return found


def about_ranking(run: Run) -> str:
    """By what the removed weights were chosen; empty where none were ranked."""
    if not run.ranked_by:
        return ""
    what = "weights" if run.pattern == "element" else f"pieces of pattern {run.pattern}"
    scores = {"sensitivity": "sensitivity, the running mean of |weight · gradient|", "magnitude": "magnitude, |weight|"}
    where = "over all matrices together" if run.config.get("scope") == "global" else "within each matrix"
    return f"Removed were the {what} with the smallest {scores.get(run.ranked_by, run.ranked_by)}, {where}."


def about_speed(run: Run, counts: Counts | None) -> list[str]:
    """What the zeros do, and do not do, for speed; nothing where there are none."""
    texts = []
    if run.is_smaller:
        return texts
    if run.method != "dense":
        texts.append(_of_pattern(run))
    if counts and counts.blocks:
        share, (rows, columns) = counts.empty_blocks / counts.blocks, counts.block
        texts.append(
            f"Counted in the masks of this model: {percent(share)} of its {counts.blocks:,} blocks of {rows}×{columns} "
            f"hold no weight at all, nor do {percent(counts.empty_rows / counts.rows)} of the matrices' rows (inputs) "
            f"and {percent(counts.empty_columns / counts.columns)} of their columns (outputs)."
        )
    return texts


def measured_speed(run: Run) -> str:
    """How long the whole and the smaller model took; empty where that was not measured."""
    dense, smaller, ratio = (run.figure("speed", name) for name in ("dense_seconds", "smaller_seconds", "ratio"))
    if not (math.isfinite(dense) and math.isfinite(smaller) and math.isfinite(ratio)):
        return ""
    speed = run.result["speed"]
    low, high = run.figure("speed", "ratio_low"), run.figure("speed", "ratio_high")
    between = f" ({low:.2f} to {high:.2f} in single rounds)" if math.isfinite(low) and math.isfinite(high) else ""
    device = f" ({speed['device']})" if speed.get("device") else ""
    return (
        f"Measured on the machine of this run{device}: a forward pass over a batch of "
        f"{count(run.figure('speed', 'batch'))} rows of {count(run.figure('speed', 'length'))} tokens takes "
        f"{1e3 * dense:.3g} ms with the whole model and {1e3 * smaller:.3g} ms with what is left, {ratio:.2f} times as "
        f"fast{between}. Medians of rounds in turn, without compilation; other machines, batches and lengths give "
        "other ratios."
    )


def _of_pattern(run: Run) -> str:
    if run.is_smaller:
        return (
            f"What {run.method} removes is cut out: whole heads, units and hidden dimensions are gone, and the "
            "matrices that are left are dense and smaller. How much faster that is depends on machine, batch and "
            "length; the page of each run says what was measured on its machine."
        )
    kind = "N:M" if re.fullmatch(r"\d+:\d+", run.pattern) else run.pattern.split("-")[0]
    return _SPEED.get(kind, _SPEED["structured"])


def below_table(runs: Sequence[Run]) -> list[str]:
    """How to read the table of several runs, and what the zeros in it do not do."""
    read_as = (
        "Scores are mean ± sample standard deviation (number of runs); seeds are how many, and in brackets which. "
        '"pruned" is the best point with the target sparsity reached, the delivered model; "last" the end of the run. '
        f"Sparsity is counted from {_counted(runs)}: of the encoder's matrices, and of all parameters."
    )
    return [read_as, *dict.fromkeys(_of_pattern(run) for run in runs if run.method != "dense")]


def _counted(runs: Sequence[Run]) -> str:
    kinds = {run.is_smaller for run in runs if run.method != "dense"}
    zeros, gone = "zeros in the delivered weights", "the weights that are gone"
    return f"{zeros}, and for cofi from {gone}" if len(kinds) > 1 else gone if True in kinds else zeros


def name_setting(setting: Setting) -> str:
    """Task, pattern and asked sparsity."""
    asked = f", {percent(setting.sparsity)} asked" if setting.sparsity >= 0 else ""
    return f"{setting.task}, {setting.pattern}{asked}"


def table_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row of text for each setting and method, in the columns of `HEADER`."""
    rows = []
    for setting, methods in group_runs(runs).items():
        for method, members in methods.items():

            def mean(*keys: str, members: list[Run] = members) -> Spread:
                return spread([run.figure(*keys) for run in members])

            seeds = ", ".join(count(run.figure("seed")) for run in members)
            pruned = mean_and_spread(mean("pruned")) if method != "dense" else "–"
            rows.append((
                setting.task, setting.metric, setting.pattern,
                percent(setting.sparsity) if setting.sparsity >= 0 else "–",
                method, f"{len(members)} ({seeds})",
                mean_and_spread(mean("dense")), pruned, mean_and_spread(mean("last")),
                percent(mean("sparsity", "encoder").mean), percent(mean("sparsity", "all").mean),
                size(mean("bytes", "stored").mean), count(mean("steps").mean), duration(mean("seconds").mean),
            ))  # fmt: skip
    return rows


def caveats(runs: Sequence[Run]) -> list[str]:
    """Where a mean is taken over too little, or over runs that differ in more than their seed."""
    found = []
    for setting, methods in group_runs(runs).items():
        for method, members in methods.items():
            if differing := differing_settings(members):
                named = "; ".join(f"{name}: {', '.join(values)}" for name, values in list(differing.items())[:6])
                found.append(
                    f"{name_setting(setting)}, {method}: a mean over runs that differ in more than the seed ({named})."
                )
            seeds = [run.figure("seed") for run in members]
            if len(set(seeds)) < len(seeds):
                found.append(
                    f"{name_setting(setting)}, {method}: a seed occurs more than once, so n overstates the evidence."
                )
        if len(methods) > 1 and min(len(members) for members in methods.values()) < 3:
            found.append(f"{name_setting(setting)}: fewer than three seeds of a method; differences may be chance.")
    return list(dict.fromkeys(found))
