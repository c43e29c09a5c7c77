"""The page of one run: headline, curves, what was removed where, pictures of masks, size, settings."""

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

from experiments.pages import text as words
from experiments.pages.charts import Line, Mark, line_chart, read_style
from experiments.pages.data import Run, number
from experiments.pages.mask_pictures import MaskStudy, heat_table, pictures
from experiments.pages.structure_pictures import average, picture
from kaprune_jax.deploy.masks import Structure

TERMS = ("embeddings", "hidden", "attention", "logits", "labels")


def page(title: str, body: str, style_class: str = "") -> str:
    """A whole HTML document around a body; the browser is told to load nothing."""
    style = read_style("charts.css") + read_style("report.css")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f'<body><main class="{style_class}">\n{body}\n</main></body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page; nothing if all parts are empty."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>\n" if any(parts) else ""


def details(title: str, *parts: str) -> str:
    """A part that is folded away; nothing if all parts are empty."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>\n" if any(parts) else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]], style: str = "") -> str:
    """A table of text; the first cell of a row is its header; nothing without rows."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="{style}">{head}<tbody>{body}</tbody></table></div>' if body else ""


def bullets(texts: Iterable[str]) -> str:
    """Each text as an item of a list; nothing without texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def paragraphs(texts: Iterable[str], style: str = "") -> str:
    """Each text as a paragraph."""
    return "".join(f'<p class="{style}">{escape(text)}</p>' for text in texts)


def run_page(run: Run, masks: MaskStudy, structure: Structure | None = None) -> str:
    """The page of a run.

    Args:
      run: what `read_run` gives.
      masks: what `study` says of its masks.
      structure: what `read_structure` gives.
    """
    counts = masks.counts if masks.sparsity else None
    per_matrix = run.result.get("per_matrix")
    per_matrix = {path: number(value) for path, value in per_matrix.items()} if isinstance(per_matrix, dict) else {}
    body = (
        f'<header><p class="over">{escape(run.folder.resolve().name)}</p><h1>{escape(words.headline(run))}</h1>'
        f"{_tiles(run)}{paragraphs([words.summary(run)], 'lead')}{paragraphs(words.notices(run), 'notice')}</header>\n"
        + section("Score" if run.method == "dense" else "Score and sparsity", _score_chart(run), _evaluations(run))
        + section("Loss terms", _loss_chart(run, run.phase))
        + section("What is left", _left(run, structure))
        + section("What was removed where", _where(run, per_matrix or masks.sparsity))
        + section("Masks", pictures(masks.shown))
        + section("Size", _sizes(run) if run.method != "dense" else "")
        + section("Speed", paragraphs(words.about_speed(run, counts)))
        + section("How it was made", _made(run))
    )
    return page(words.headline(run), body)


def _tiles(run: Run) -> str:
    dense, pruned = words.score(run.figure("dense")), words.score(run.figure("pruned"))
    stored, whole = words.size(run.figure("bytes", "stored")), words.size(run.figure("bytes", "dense"))
    tiles = [(run.metric, dense, "dense model")]
    if run.method != "dense":
        tiles = [
            (run.metric, f"{dense} → {pruned}", f"dense → pruned; last {words.score(run.figure('last'))}"),
            (
                "encoder sparsity",
                words.percent(run.figure("sparsity", "encoder")),
                f"asked {words.percent(run.figure('sparsity', 'asked'))}",
            ),
        ]
    pruned_size = ("size without zeros", stored, f"{whole} with them")
    if run.is_smaller:
        pruned_size = ("size of what is left", stored, f"{whole} the whole model")
    tiles.append(("size", whole, "float32") if run.method == "dense" else pruned_size)
    rate = run.figure("examples_per_second")
    speed = f"{rate:,.0f} examples/s" if math.isfinite(rate) else f"{words.count(run.figure('steps'))} steps"
    tiles.append(("time", words.duration(run.figure("seconds")), f"{speed}, seed {words.count(run.figure('seed'))}"))
    items = "".join(
        f"<li><span>{escape(name)}</span><strong>{escape(value)}</strong><span>{escape(note)}</span></li>"
        for name, value, note in tiles
    )
    return f'<ul class="tiles">{items}</ul>'


def _score_chart(run: Run, phase: str = "") -> str:
    phase = phase or run.phase
    evaluations, training = run.select("eval", phase), run.select("train", phase)
    lines = []
    if phase == run.phase and run.method != "dense":
        delivered = [(number(r, "step"), number(r, "sparsity", "delivered")) for r in training]
        delivered = delivered or [(number(r, "step"), number(r, "sparsity")) for r in evaluations]
        asked = [(number(r, "step"), number(r, "sparsity", "asked")) for r in training]
        lines += [Line("sparsity delivered (right)", delivered, "soft", right=True, area=True)]
        lines += [Line("sparsity asked (right)", asked, "dashed", right=True)]
        expected = [(number(r, "step"), number(r, "sparsity", "expected")) for r in training]
        if any(math.isfinite(value) for _, value in expected):
            lines += [Line("sparsity expected of the gates (right)", expected, "dotted", right=True)]
    scores = [(number(r, "step"), number(r, "score")) for r in evaluations]
    lines.append(Line(f"{run.metric} on dev", scores, "c1", dots=True))
    marks = []
    if phase == run.phase and run.method != "dense":
        dense, target, best = run.figure("dense"), run.figure("target_step"), run.figure("best_step")
        marks += [Mark(None, dense, f"teacher {words.score(dense)}")] if math.isfinite(dense) else []
        marks += [Mark(target, None, f"target reached, step {target:,.0f}")] if math.isfinite(target) else []
        # Before and after structures are cut out there are two scores at one step.
        pruned = run.figure("pruned")
        level = min((y for x, y in scores if x == best), key=lambda y: abs(y - pruned), default=pruned)
        marks += [Mark(best, level, f"best {words.score(level)}")] if math.isfinite(best) else []
    return line_chart(
        lines,
        title=f"{run.metric} against step",
        y_label=run.metric,
        right_label="sparsity" if lines[0].right else "",
        marks=marks,
        ceiling=1.0,
    )


def _evaluations(run: Run) -> str:
    records = run.select("eval", run.phase)
    names = sorted({name for r in records if isinstance(r.get("metrics"), dict) for name in r["metrics"]})
    rows = [
        [
            words.count(number(r, "step")),
            *(words.score(number(r, "metrics", name)) for name in names),
            words.score(number(r, "score")),
            words.percent(number(r, "sparsity")),
        ]
        for r in records
    ]
    teacher = _score_chart(run, "teacher") + _loss_chart(run, "teacher")
    teacher = (
        teacher if run.phase != "teacher" and run.select("train", "teacher") + run.select("eval", "teacher") else ""
    )
    return details("Evaluations as a table", table(["step", *names, "score", "sparsity"], rows)) + details(
        "The teacher's training", teacher
    )


def _loss_chart(run: Run, phase: str) -> str:
    training = run.select("train", phase)
    used = {name for r in training if isinstance(r.get("terms"), dict) for name in r["terms"]}
    names = [name for name in TERMS if name in used] + sorted(used - set(TERMS))
    lines = [Line("all terms", [(number(r, "step"), number(r, "loss")) for r in training], "ink")]
    lines = [] if len(names) == 1 else lines  # one term is all terms
    lines += [
        Line(name, [(number(r, "step"), number(r, "terms", name)) for r in training], f"c{1 + i % 8}")
        for i, name in enumerate(names)
    ]
    return line_chart(lines, title="Loss terms against step", y_label="loss, log scale", log=True)


def _left(run: Run, structure: Structure | None) -> str:
    if "removed" not in run.result:
        return ""
    drawn, rows = "", []
    if structure is not None:
        drawn = "<p>Filled is kept; every layer has its heads on the left and the width of its feed-forward part "
        drawn += f"on the right.</p>{picture(average([structure]))}"
        rows = [
            (str(layer), f"{heads.sum()} of {heads.size}", ", ".join(map(str, heads.nonzero()[0])) or "none",
             f"{units.sum():,} of {units.size:,}")
            for layer, (heads, units) in enumerate(zip(structure.heads, structure.units, strict=True))
        ]  # fmt: skip
    numbers = details("As a table", table(("layer", "heads kept", "which", "units kept"), rows))
    speed = words.measured_speed(run)
    return drawn + numbers + paragraphs([speed] if speed else [])


def _where(run: Run, sparsity: dict[str, float]) -> str:
    if not sparsity or run.method == "dense":
        return ""
    ranking = paragraphs(text for text in [words.about_ranking(run)] if text)
    finite = [value for value in sparsity.values() if math.isfinite(value)] or [math.nan]
    if max(finite) - min(finite) < 5e-4:
        text = f"<p>Percent of the weights removed: {words.percent(max(finite))} in every matrix.</p>"
        return ranking + text + heat_table(sparsity)
    return (
        f"{ranking}<p>Percent of the weights removed in each matrix, from {words.percent(min(finite))} (faintest) to "
        f"{words.percent(max(finite))} (strongest colour); the bars run from 0 to 100 %.</p>{heat_table(sparsity)}"
    )


def _sizes(run: Run) -> str:
    whole, stored = run.figure("bytes", "dense"), run.figure("bytes", "stored")
    bars, smaller = "", run.is_smaller
    labels = ("whole model", "what is left") if smaller else ("with its zeros", "without")
    if whole > 0 and stored >= 0:
        bars = "".join(
            f'<li><span>{name}</span><span class="track">'
            f'<span class="fill {style}" style="width:{100 * share:.1f}%"></span></span>'
            f"<strong>{escape(words.size(value))}</strong></li>"
            for name, value, style in ((labels[0], whole, "soft"), (labels[1], stored, "c1"))
            for share in [min(value / max(whole, stored), 1)]
        )
        note = (
            "Without zeros: a bit for each weight and the kept values in float32, as python -m experiments.export RUN "
            "--to small --dtype float32 writes it. The folder of the run has its zeros in place."
        )
        if smaller:
            note = "What was removed is gone: smaller dense matrices, no zeros and no mask to apply."
        bars = f'<ul class="bars">{bars}</ul><p class="note">{note}</p>'
    never = "embeddings, norms, biases and head are never pruned"
    if smaller:
        never = "of embeddings, norms, biases and head, only what goes with removed dimensions, heads and units"
        never += " and with words left out" if run.config.get("prune_vocabulary") else ""
    rows = [
        ("of the encoder's matrices", "encoder"),
        (f"of all parameters ({never})", "all"),
        ("asked for", "asked"),
    ]
    figures = [(name, words.percent(run.figure("sparsity", key))) for name, key in rows]
    figures = [row for row in figures if row[1] != "–"]
    kept, dense = run.figure("parameters", "kept"), run.figure("parameters", "dense")
    if math.isfinite(kept) and math.isfinite(dense):
        figures.append(("parameters kept", f"{words.count(kept)} of {words.count(dense)}"))
    return bars + table(("sparsity", "removed"), figures, "pairs")


def _made(run: Run) -> str:
    command = f'<pre class="command">{escape(run.command)}</pre>' if run.command else ""
    shown = {"per_matrix", "task", "method"}
    rest = {key: value for key, value in run.result.items() if key not in shown}
    config = {key: value for key, value in run.config.items() if key != "command"}
    parts = [("Settings", config), ("Environment", run.environment), ("Figures", rest)]
    return command + "".join(details(name, table((), flatten(value), "pairs")) for name, value in parts)


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested objects as pairs of a dotted name and a text."""
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in flatten(inner, f"{name}.{key}" if name else str(key))]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(name, text)] if name else []
