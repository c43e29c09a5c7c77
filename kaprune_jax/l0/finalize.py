"""From log α to gates that are closed for good, with an exact budget of parameters."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kaprune_jax.l0.hard_concrete import LEFT, RIGHT
from kaprune_jax.l0.layout import Gates, Layout

Values = dict[str, np.ndarray]

_EDGE = float(np.log(-LEFT / RIGHT))  # a gate with a lower log α is closed without noise


def finalize(gates: Gates, layout: Layout, sparsity: float) -> Values:
    """Closes gates until the sparsity is at least the asked one, and less than the smallest piece above it.

    First those that are closed without noise. Where that is not enough, the fine pieces (units of the feed-forward
    networks, for BERT) with the lowest log α: a head that has stayed open against the constraint's pull, which is
    stronger by the number of its weights, is worth more than units of the same log α. Only where no fine pieces are
    left, all gates by their log α. What the budget leaves is filled with the pieces, by their log α, that still fit, of
    what is open first, then of what is closed as a whole; a gate that is opened so gets the value at the edge.

    Args:
      gates: log α by family; families left out are open.
      layout: the model's gates.
      sparsity: fraction of the layout's matrices to be gone at least, in [0, 1).

    Returns:
      gates in [0, 1]: 0 where closed, also where a piece has no other piece left to work with; else the value without
      noise, to be folded into the weights.

    Raises:
      ValueError: the sparsity cannot be reached with these gates, or nothing would be left.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r}; a fraction in [0, 1) is needed")
    layout.check(gates)
    if not gates:
        raise ValueError("gates={}; at least one family is needed")
    budget = int(np.floor(layout.full_size * (1.0 - sparsity) + 1e-6))
    names = [gate.name for gate in layout.gates if gate.name in gates]
    flat = np.concatenate([np.asarray(gates[name], np.float64).reshape(-1) for name in names])
    ends = np.cumsum([layout.gate(name).size for name in names])
    order = np.argsort(-flat, kind="stable")

    def open_gates(chosen: np.ndarray) -> Values:
        parts = np.split(chosen, ends[:-1])
        return {name: part.reshape(layout.gate(name).shape) for name, part in zip(names, parts, strict=True)}

    def first(count: int) -> np.ndarray:
        chosen = np.zeros(len(flat), bool)
        chosen[order[:count]] = True
        return chosen

    if count_size(open_gates(first(0)), layout) > budget:
        reach = 1.0 - count_size(open_gates(first(0)), layout) / layout.full_size
        raise ValueError(f"sparsity={sparsity}: gates {', '.join(names)} reach at most {reach:.4f}")
    chosen = flat > _EDGE  # what is open without noise
    natural = int(chosen.sum())
    finest = max(names, key=lambda name: layout.gate(name).size)
    family = np.repeat(names, np.diff(ends, prepend=0))

    def size() -> int:
        return count_size(open_gates(chosen), layout)

    _close_lowest(chosen, order[family[order] == finest], budget, size)
    low, high = 0, len(flat)  # of the highest log α, `low` fit the budget, `high` + 1 do not or do not exist
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_size(open_gates(first(middle)), layout) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    if size() > budget or low >= natural:  # no fine pieces are left, or all that is open fits
        chosen[:] = first(low)
    alone, rows = [[place] for place in range(len(flat))], _rows(layout, names)
    _fill(chosen, order, alone, rows, budget, size)
    _trade(chosen, order, family, finest, budget, size)
    if size() == 0 or budget - size() >= _finest_piece(open_gates(chosen), layout, finest):
        _fill(chosen, order, _with_coarser(layout, names, ends), rows, budget, size)
    values = _without_idle(open_gates(chosen), layout)
    if count_size(values, layout) == 0:
        raise ValueError(f"sparsity={sparsity}: nothing would be left; a smaller one is needed")
    still = {name: _still(np.asarray(gates[name], np.float64)) for name in names}
    return {name: np.where(values[name], still[name], 0.0).astype(np.float32) for name in names}


def count_size(values: Mapping[str, np.ndarray], layout: Layout) -> int:
    """How many parameters of the layout's matrices are there, exactly."""
    total = 0
    for product in layout.products:
        there = np.int64(1)
        for axis in product.axes:
            there = there * alive(values, layout, axis).sum(axis=-1, dtype=np.int64)
        total += product.cost * int(np.sum(there))
    return total


def alive(values: Mapping[str, np.ndarray], layout: Layout, axis: str) -> np.ndarray:
    """Which indices of an axis are there, [layers, indices] or [indices]."""
    families = [layout.gate(name) for name in layout.axis(axis).gates]
    there = np.ones(families[-1].shape, bool)
    for family in families:
        if family.name in values:
            value = np.asarray(values[family.name]) > 0
            there &= value.reshape(value.shape + (1,) * (there.ndim - value.ndim))
    return there


def _close_lowest(chosen: np.ndarray, fine: np.ndarray, budget: int, size: Callable[[], int]) -> None:
    """Closes as many of the open fine pieces, given from the highest log α down, as the budget asks for."""
    fine = fine[chosen[fine]][::-1]
    low, high = 0, len(fine)
    while low < high:
        middle = (low + high) // 2
        chosen[fine] = np.arange(len(fine)) >= middle
        low, high = (middle + 1, high) if size() > budget else (low, middle)
    chosen[fine] = np.arange(len(fine)) >= low


def _fill(
    chosen: np.ndarray,
    rest: np.ndarray,
    together: Sequence[Sequence[int]],
    rows: np.ndarray,
    budget: int,
    size: Callable[[], int],
) -> None:
    """Opens those of the other gates, in their order, that make the model larger and still fit, until none does.

    `together` has for each gate those that are opened with it, `rows` what is alike: a row that one gate was tried of
    in vain is not tried again before something else was opened.
    """
    before, now = -1, size()
    while before != now < budget:  # an opened layer gives its heads and units another chance
        before, vain = now, set()
        for place in rest[~chosen[rest]]:
            if rows[place] in vain:
                continue
            opened = [each for each in together[place] if not chosen[each]]
            chosen[opened] = True
            larger = size()
            if now < larger <= budget:
                now, vain = larger, set()
            else:
                chosen[opened] = False
                vain.add(rows[place])


def _rows(layout: Layout, names: Sequence[str]) -> np.ndarray:
    """For each gate a number, which those have in common that the size grows alike with: the fine ones of a layer."""
    numbers, last = [], 0
    for gate in map(layout.gate, names):
        fine = all(axis.gates[-1] == gate.name for axis in layout.axes if gate.name in axis.gates)
        numbers.append(last + np.arange(gate.size) // (gate.shape[-1] if fine else 1))
        last = numbers[-1][-1] + 1
    return np.concatenate(numbers)


def _with_coarser(layout: Layout, names: Sequence[str], ends: np.ndarray) -> list[list[int]]:
    """For each gate itself and the coarser ones that its piece is closed by: for a unit its layer's network."""
    starts = dict(zip(names, (ends - [layout.gate(name).size for name in names]).tolist(), strict=True))
    together = [[place] for place in range(int(ends[-1]))]
    for axis in layout.axes:
        families = [layout.gate(name) for name in axis.gates if name in starts]
        for coarse, fine in itertools.combinations(families, 2):
            for index in range(fine.size):
                place = starts[coarse.name] + index // (fine.size // coarse.size)
                together[starts[fine.name] + index].append(place)
    return together


def _finest_piece(values: Values, layout: Layout, finest: str) -> int:
    """What one more piece of the finest family costs, of the narrowest model that it can be part of."""
    axis = next(axis.name for axis in layout.axes if finest in axis.gates)
    costs = []
    for product in layout.products:
        if axis in product.axes:
            others = [alive(values, layout, other) for other in product.axes if other != axis]
            costs.append(product.cost * int(np.prod([each.sum(axis=-1).min() for each in others])))
    return min(costs)


def _trade(
    chosen: np.ndarray, order: np.ndarray, family: np.ndarray, finest: str, budget: int, size: Callable[[], int]
) -> None:
    """Where no piece fits any more, opens a coarse one for some fine ones, if that comes nearer to the budget.

    Of each family the closed gate with the highest log α is tried, in the order of these; two rounds at most.
    """
    for _ in range(2):
        left, before = budget - size(), chosen.copy()
        closed = order[~chosen[order] & (family[order] != finest)]
        firsts = closed[np.sort(np.unique(family[closed], return_index=True)[1])]
        for place in firsts:
            chosen[place] = True
            _close_lowest(chosen, order[family[order] == finest], budget, size)
            if 0 <= budget - size() < left:
                break
            chosen[:] = before
        else:
            return


def _without_idle(values: Values, layout: Layout) -> Values:
    """Closes gates whose axis has nothing left in their layer: an attention without heads, heads without attention."""
    result = dict(values)
    for axis in layout.axes:
        there = alive(values, layout, axis.name)
        for name in axis.gates:
            if name in result:
                result[name] = result[name] & (there if result[name].ndim == there.ndim else there.any(axis=-1))
    return result


def _still(log_alpha: np.ndarray) -> np.ndarray:
    """The gates without noise, those that would be closed at the edge of being open."""
    at_least = np.maximum(log_alpha, _EDGE + 0.1)
    return np.clip((RIGHT - LEFT) / (1.0 + np.exp(-at_least)) + LEFT, 0.0, 1.0)
