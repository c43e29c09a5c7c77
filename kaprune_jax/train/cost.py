"""What a compiled step costs each device: bytes it holds, and bytes it sends others by collectives."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}  # others carry theirs in the name: f32, bf16, s8, f8e4m3
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}|(?:true|false)_computation=%?([\w.-]+)")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class StepCost(NamedTuple):
    """Bytes on one device.

    Attributes:
      arguments: of what goes in: state, teacher, batch.
      outputs: of what comes out; `aliased` of them lie where the arguments were, their memory given away.
      temporaries: the most that is needed in between.
      aliased: of outputs.
      collectives: by kind, of what each puts out, per step; loops are counted once.
      branches: likewise, of what only some steps do, such as updates of masks.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    collectives: dict[str, int]
    branches: dict[str, int]

    @property
    def peak(self) -> int:
        """Of all that is there at once, at most."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    def figures(self) -> dict[str, Any]:
        """For a record: JSON values."""
        return self._asdict() | {"peak": self.peak}

    def __str__(self) -> str:
        sent = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in self.collectives.items()) or "none"
        return (
            f"{self.arguments / 1e6:.1f} MB of arguments and {self.temporaries / 1e6:.1f} MB of temporaries per "
            f"device; collectives per step: {sent}"
        )


def step_cost(compiled: Any, *, devices: int) -> StepCost:
    """Reads the cost of a `jax.stages.Compiled`, such as `jax.jit(step).lower(...).compile()`.

    Args:
      compiled: the program.
      devices: how many it runs on; one alone sends nothing, so that its text need not be written and read.
    """
    memory = compiled.memory_analysis()
    always, branches = collective_bytes(compiled.as_text()) if devices > 1 else ({}, {})
    return StepCost(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        always,
        branches,
    )


def cost_of_parts(parts: Sequence[StepCost], arguments: int) -> StepCost:
    """The cost of a step whose programs follow each other.

    Args:
      parts: of each; what one puts out is there until the last has run, and that gives the step's result.
      arguments: bytes of what goes into the step.
    """
    *before, last = parts
    if not before:
        return last
    kept = list(itertools.accumulate(part.outputs for part in before))
    peaks = [part.temporaries + there for part, there in zip(parts, [*kept, kept[-1]], strict=True)]
    sent = ({}, {})
    for part in parts:
        for totals, more in zip(sent, (part.collectives, part.branches), strict=True):
            totals |= {kind: totals.get(kind, 0) + size for kind, size in more.items()}
    return StepCost(arguments, last.outputs, max(peaks), last.aliased, *sent)


def collective_bytes(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that the collectives of a program put out on one device, by kind.

    Args:
      text: a module in HLO's text form, partitioned.

    Returns:
      those of every run, loops counted once, and those in branches of conditionals.
    """
    entry, computations = _computations(text)
    always: dict[str, int] = {}
    branches: dict[str, int] = {}

    def visit(name: str, totals: dict[str, int]) -> None:
        for line in computations.get(name, ()):
            if found := _COLLECTIVE.search(line):
                totals[found[2]] = totals.get(found[2], 0) + _size(found[1], started=bool(found[3]))
            for called in _CALLED.findall(line):
                visit(called, totals)
            for several, one in _BRANCHES.findall(line):
                for called in (several or one).split(","):
                    visit(called.strip().lstrip("%"), branches)

    visit(entry, always)
    return always, branches


def _computations(text: str) -> tuple[str, Mapping[str, list[str]]]:
    """The name of the entry, and the lines of every computation."""
    entry, name, lines = "", "", {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    return entry, lines


def _size(shapes: str, *, started: bool) -> int:
    """Bytes of a result as HLO writes its shape; one that is started lists its operands before its results."""
    sizes = []
    for kind, dimensions in _SHAPE.findall(shapes):
        bits = _BITS.get(kind) or int(re.sub(r"^\D+", "", kind).split("e")[0])
        sizes.append(math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8)
    return sum(sizes[len(sizes) // 2 :] if started and len(sizes) > 1 else sizes)
