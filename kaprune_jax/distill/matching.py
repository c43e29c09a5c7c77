"""Which student layer learns from which teacher layer where their numbers differ."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LayerMap = Literal["uniform", "first", "last", "fixed", "nearest", "nearest-ordered"]
STATIC: tuple[LayerMap, ...] = ("uniform", "first", "last")


def match_layers(student: int, teacher: int, *, strategy: LayerMap = "uniform") -> tuple[int, ...]:
    """For each student layer, the teacher layer (from 1) it learns from.

    Args:
      student: number of student layers, >= 1 and at most the teacher's.
      teacher: number of teacher layers.
      strategy: "uniform": layer i learns from round(i·teacher/student) (TinyBERT's uniform map, Jiao et al., 2020,
        arXiv:1909.10351); "first": from the teacher's first layers; "last": from its last ones.

    Example:
      >>> match_layers(3, 12)
      (4, 8, 12)
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"student={student} layers, teacher={teacher}; 1 <= student <= teacher is needed")
    if strategy == "uniform":
        return tuple((2 * i * teacher + student) // (2 * student) for i in range(1, student + 1))
    if strategy == "first":
        return tuple(range(1, student + 1))
    if strategy == "last":
        return tuple(range(teacher - student + 1, teacher + 1))
    raise ValueError(f"strategy={strategy!r}; allowed: {', '.join(STATIC)}")


def quarter_layers(teacher: int) -> tuple[int, ...]:
    """The teacher layers (from 1) at each quarter of its depth, which CoFi distils: 3, 6, 9, 12 of 12.

    Example:
      >>> quarter_layers(6)
      (2, 3, 5, 6)
    """
    return tuple(sorted({(quarter * teacher + 2) // 4 for quarter in range(1, 5)} - {0}))


def nearest_layers(
    distances: Float[Array, "teacher student"], alive: Bool[Array, " student"], *, ordered: bool
) -> Int[Array, " teacher"]:
    """For each teacher layer, the surviving student layer that is nearest (CoFi, arXiv:2204.00408, section 3.3).

    Args:
      distances: from each distilled teacher layer to each student layer, finite, >= 0.
      alive: which student layers survive. If none does, the result is 0 throughout.
      ordered: the student layers must not fall as the teacher's rise; of those maps, that with the smallest sum, found
        exactly by dynamic programming.

    Returns:
      numbers of student layers, from 0; ties go to the lower one.

    Example:
      >>> import jax.numpy as jnp
      >>> far = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> nearest_layers(far, jnp.array([True, True]), ordered=False).tolist()
      [1, 0]
      >>> nearest_layers(far, jnp.array([True, True]), ordered=True).tolist()
      [0, 0]
    """
    costs = jnp.where(alive[None], distances, jnp.inf)
    if not ordered:
        return jnp.argmin(costs, axis=1)
    total, before = jnp.zeros_like(costs[0]), []
    for row in costs:  # total[i]: the smallest sum of the rows so far that ends at layer i or below
        ending = row + total
        before.append(ending)
        total = jax.lax.cummin(ending)
    place = jnp.argmin(before[-1])
    places = [place]
    for ending in before[-2::-1]:
        place = jnp.argmin(jnp.where(jnp.arange(len(ending)) <= place, ending, jnp.inf))
        places.append(place)
    return jnp.stack(places[::-1])
