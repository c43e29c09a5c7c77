"""Sizes of encoders by name, for random weights."""

SHAPES = {"minilm": (384, 6, 12, 1536), "bert-base": (768, 12, 12, 3072)}
"""Hidden dimensions, layers, heads and units."""
