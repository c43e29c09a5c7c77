"""Which student layer learns from which teacher layer where their numbers differ."""

from typing import Literal

LayerMap = Literal["uniform", "first", "last"]


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
    raise ValueError(f"strategy={strategy!r}; allowed: uniform, first, last")
