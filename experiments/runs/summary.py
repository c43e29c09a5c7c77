"""What came out of a run, in a few lines for the terminal."""

from typing import Any


def summary(method: str, result: dict[str, Any]) -> str:
    """One line of figures for the terminal."""
    sizes, bytes = result["sparsity"], result["bytes"]
    if "removed" in result:
        return _smaller_summary(method, result)
    dense = "" if result["dense"] is None or method == "dense" else f"dense {result['dense']:.4f} -> "
    return (
        f"{method}: {result['metric']} {dense}{result['pruned']:.4f} (last step {result['last']:.4f}){_exact(result)}; "
        f"zeros: {sizes['encoder']:.4%} of the encoder matrices, {sizes['all']:.2%} of all parameters; "
        f"{bytes['dense'] / 1e6:.1f} MB with them, {bytes['stored'] / 1e6:.1f} MB without "
        "(experiments.export --to small)"
    )


def _exact(result: dict[str, Any]) -> str:
    """The second figure of answers to questions, which are always told with both."""
    found, last = (result[name].get("exact_match") for name in ("metrics", "last_metrics"))
    return "" if found is None else f", exact match {found:.4f} ({last:.4f})"


def _smaller_summary(method: str, result: dict[str, Any]) -> str:
    """What was removed, how much smaller and how much faster the model is."""
    removed, speed, bytes, sparsity = (result[name] for name in ("removed", "speed", "bytes", "sparsity"))
    heads, units, hidden = (removed[name] for name in ("heads", "units", "hidden"))
    layers = sum(bool(head or unit) for head, unit in zip(heads["kept"], units["kept"], strict=True))
    depth = len(heads["kept"])
    wide, broad = sum(heads["kept"]), sum(units["kept"])
    return (
        f"{method}: {result['metric']} dense {result['dense']:.4f} -> {result['pruned']:.4f} (last step "
        f"{result['last']:.4f}){_exact(result)}\n"
        f"  removed: {sparsity['encoder']:.4%} of the encoder matrices, {sparsity['all']:.2%} of all parameters; "
        f"{bytes['dense'] / 1e6:.1f} MB -> {bytes['stored'] / 1e6:.1f} MB\n"
        f"  left: {layers} of {depth} layers, {wide} of {depth * heads['of']} heads, {broad} of "
        f"{depth * units['of']} units, {hidden['kept']} of {hidden['of']} hidden dimensions\n"
        f"  {speed['batch']} rows of {speed['length']} tokens take {speed['dense_seconds'] * 1e3:.1f} ms dense, "
        f"{speed['smaller_seconds'] * 1e3:.1f} ms now: {speed['ratio']:.1f} times as fast on this machine"
    )
