"""The settings of a method that the recipe has by method: those given, or the recipe's."""

from typing import NamedTuple

from experiments.config.resolve import preset_of
from experiments.config.settings import BY_METHOD, Settings
from experiments.presets import Preset
from kaprune_jax.prune.magnitude import Scores


class Tuned(NamedTuple):
    """What a method prunes with.

    Attributes:
      learning_rate: the highest.
      dropout: of the student; None for its model's own.
      scores: what the smallest of are removed.
      loss_weights: changes to the method's own, as in the flag.
    """

    learning_rate: float
    dropout: float | None
    scores: Scores
    loss_weights: str


def by_recipe(method: str, preset: Preset) -> Tuned:
    """What a recipe says of a method.

    Weights that are pruned at once, before any training, are ranked by magnitude: no gradients have been gathered.
    """
    distils = method in ("sparsebert", "logits")
    return Tuned(
        preset.learning_rate if distils else preset.other_learning_rate,
        preset.dropout if distils else None,
        "magnitude" if method == "prune-then-finetune" else preset.scores,
        preset.loss_weights if method == "sparsebert" else "",
    )


def tuned(method: str, settings: Settings) -> Tuned:
    """What `method` prunes with, given resolved settings."""
    usual = by_recipe(method, preset_of(settings))
    given = {name: value for name in BY_METHOD if (value := getattr(settings, name)) is not None}
    if method == "prune-then-finetune":
        given.pop("scores", None)
    return usual._replace(**given)
