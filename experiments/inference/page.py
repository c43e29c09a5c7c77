"""The figures of a benchmark as a table and a page with pictures."""

from html import escape
from pathlib import Path
from typing import Any

from experiments.pages.charts import Line, Mark, line_chart
from experiments.pages.html import page, paragraphs, section, table

HEADER = (
    "variant", "batch", "milliseconds", "p10 to p90", "faster than dense", "by rounds", "GFLOP", "MB", "ceiling",
    "of the peak", "difference",
)  # fmt: skip
_READ_AS = (
    "Median of all calls; faster than dense is the median over rounds of the ratio within a round. GFLOP and MB are "
    "counted from the shapes: products, and every product's and norm's weights and activations once. The ceiling is "
    "the speed-up if every part ran at the peaks that were probed in the same run, of a large product or a large copy, "
    "whichever binds; of the peak is how near to that this variant came. Difference: of the logits from those of "
    "the model, by the largest logit; variants beyond the tolerance are not timed."
)
_MEANING = (
    "dense: the model before pruning. zeros in place: the pruned model as it is saved, in dense products. cut out: a "
    "structured model as it is saved. smaller dense: a dense model of about as many weights as the pruned one keeps, "
    "untrained. compiled: what kp.compile makes of the pruned model, or of the one before the comma."
)


def table_rows(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of text in the columns of `HEADER`."""
    return [
        (
            row["variant"] + (" *" if row["contended"] else ""),
            str(row["batch"]),
            f"{1e3 * row['median']:.2f}",
            f"{1e3 * row['p10']:.2f} to {1e3 * row['p90']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['speedup_p10']:.2f} to {row['speedup_p90']:.2f}",
            f"{row['flops'] / 1e9:.2f}" if "flops" in row else "–",
            f"{row['bytes'] / 1e6:.1f}" if "flops" in row else "–",
            f"{row['ceiling']:.1f}" if "flops" in row else "–",
            f"{row['of_peak']:.0%}" if "flops" in row else "–",
            f"{row['error']:.0e}" if row["error"] else "–",
        )
        for row in rows
    ]


def as_text(report: dict[str, Any]) -> str:
    """The tables, one for each subject and sparsity, in Markdown."""
    lines = [f"{report['device']}, jax {report['versions'].get('jax')}, {len(_list(report['processors']))} processors"]
    for name, rows in _groups(report).items():
        lines += ["", f"### {name}", "", "| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
        lines += ["| " + " | ".join(row) + " |" for row in table_rows(rows)]
    return "\n".join([*lines, "", _MEANING, *_notes(report)])


def write_page(report: dict[str, Any], file: Path) -> None:
    """A page that needs nothing else."""
    peaks = report["peaks"]
    machine = (
        f"{report['device']}, jax {report['versions'].get('jax')}, processors {report['processors']}; probed peaks "
        f"{peaks['flops'] / 1e9:.0f} GFLOP/s in float32, {peaks['bfloat16'] / 1e9:.0f} in bfloat16, "
        f"{peaks['bytes'] / 1e9:.1f} GB/s."
    )
    command = f'<pre class="command">{escape(report["command"])}</pre>'
    parts = [section(name, table(HEADER, table_rows(rows))) for name, rows in _groups(report).items()]
    body = (
        f'<header><p class="over">benchmark</p><h1>Inference</h1>{paragraphs([machine, *_notes(report)])}</header>'
        + _pictures(report)
        + "".join(parts)
        + section("How it was measured", paragraphs([_READ_AS, _MEANING]), command)
    )
    file.write_text(page("Inference benchmark", body, "broad"), "utf-8")


def _pictures(report: dict[str, Any]) -> str:
    """For every batch: of random weights speed against sparsity, of saved models score against speed."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        if "one product" not in row["subject"]:
            family = row["subject"] if "random" in row["subject"] else "saved models"
            found.setdefault((family, row["batch"]), []).append(row)
    drawn = {"Speed against sparsity": "", "Score against speed": ""}
    for (family, batch), rows in found.items():
        title = f"{family}, batch {batch}"
        if family == "saved models":
            drawn["Score against speed"] += _scores(rows, title)
        elif len({round(row["sparsity"], 4) for row in rows}) > 1:
            drawn["Speed against sparsity"] += _speeds(rows, title)
    return "".join(section(name, charts) for name, charts in drawn.items() if charts)


def _speeds(rows: list[dict[str, Any]], title: str) -> str:
    """Speed against sparsity, a line for each variant, and what the roofline allows."""
    names = [name for name in dict.fromkeys(row["variant"] for row in rows) if name != "dense"]
    lines = []
    for name, colour in zip(names, _colours(names), strict=True):
        own = sorted((row for row in rows if row["variant"] == name), key=lambda row: row["sparsity"])
        lines.append(Line(name, [(row["sparsity"], row["speedup"]) for row in own], colour, dots=True))
    roof = sorted((row["sparsity"], row["ceiling"]) for row in rows if row["variant"] == "compiled")
    lines.append(Line("ceiling of compiled", roof, "dashed"))
    chart = line_chart(lines, title=f"speed against sparsity, {title}", x_label="fraction of encoder weights removed",
                       y_label="times as fast as dense", marks=[Mark(None, 1.0, "dense")])  # fmt: skip
    return f"<h3>{escape(title)}</h3>{chart}"


def _scores(rows: list[dict[str, Any]], title: str) -> str:
    """Score against speed, a point for each model at its fastest; nothing without scores of one task."""
    rows = [row for row in rows if row.get("metric") and row["variant"] in ("zeros in place", "cut out", "compiled")]
    if len({(row["task"], row["metric"], row["dense"]) for row in rows}) != 1:
        return ""
    best = {row["subject"]: row for row in sorted(rows, key=lambda row: row["speedup"])}
    names = list(dict.fromkeys(row["subject"] for row in rows))
    lines = [
        Line(name, [(best[name]["speedup"], best[name]["pruned"])], colour, dots=True)
        for name, colour in zip(names, _colours(names), strict=True)
    ]
    metric, dense = rows[0]["metric"], rows[0]["dense"]
    lines.append(Line("dense", [(1.0, dense)], "ink", dots=True))
    chart = line_chart(lines, title=f"score against speed, {title}", x_label="times as fast as dense",
                       y_label=metric, marks=[Mark(None, dense, f"dense {dense:.3f}")])  # fmt: skip
    return f"<h3>{escape(title)}</h3>{chart}"


def _colours(names: list[str]) -> list[str]:
    return [f"c{1 + n % 8}{' broken' * (n > 7)}" for n in range(len(names))]


def _groups(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        found.setdefault(_name(row), []).append(row)
    return found


def _name(row: dict[str, Any]) -> str:
    name = f"{row['subject']}, {row['sparsity']:.1%} removed"
    if row.get("metric"):
        name += f"; {row['metric']} {row['pruned']:.4f}, dense {row['dense']:.4f}"
    if "tokenizer_seconds_per_row" in row:
        name += f"; tokenizer {1e3 * row['tokenizer_seconds_per_row']:.2f} ms a row"
    return name


def _notes(report: dict[str, Any]) -> list[str]:
    if any(row["contended"] for row in report["rows"]):
        return ["* Others used more than a tenth of the processors meanwhile: do not trust these rows."]
    return []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(range(value or 0))
