"""The shape of a BERT encoder and its head, read from and written to a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from kaprune_jax._errors import InputError

Head = Literal["none", "classification", "regression", "span", "masked-lm"]
Pooling = Literal["cls", "mean"]

HEADS: tuple[Head, ...] = ("none", "classification", "regression", "span", "masked-lm")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_ANY = 2**31 - 1
# Building a model takes time with its layers, quadratic in JAX; the deepest published BERT has 48.
_MOST: dict[str, int] = {
    "vocab_size": _ANY,
    "hidden_size": _ANY,
    "num_hidden_layers": 64,
    "num_attention_heads": 1024,
    "intermediate_size": _ANY,
    "max_position_embeddings": _ANY,
    "type_vocab_size": _ANY,
}
_FLOATS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range")
_ARCHITECTURE: dict[Head, str] = {
    "none": "BertModel",
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "span": "BertForQuestionAnswering",
    "masked-lm": "BertForMaskedLM",
}


class LayerShape(NamedTuple):
    """What is left of one layer.

    Attributes:
      heads: numbers of the attention heads that are there, of those it had; empty where the attention is gone.
      ffn: width of the feed-forward network; 0 where it is gone.
    """

    heads: tuple[int, ...]
    ffn: int


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder (Devlin et al., 2019, arXiv:1810.04805), named as in Hugging Face's configuration.

    Attributes:
      pooling: what a sentence-level head reads: "cls", the [CLS] state through the pooler (linear, tanh), or
        "mean", the mean of the last hidden states over real tokens, as sentence encoders are trained.
      head: what stands on the encoder; "span" gives each token two logits, to be the first and the last of an answer;
        "none" gives no logits.
      labels: class names in the order of the logits; empty without a classification head.
      layers: what is left of each layer; empty where all of it is. `num_attention_heads` and `intermediate_size` say
        what a whole layer has.
      attention_head_size: width of one attention head where it is not hidden_size / num_attention_heads, because
        hidden dimensions are gone.
      pooler_size: width of the [CLS] pooler where it is not hidden_size.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    pooling: Pooling = "cls"
    head: Head = "none"
    labels: tuple[str, ...] = ()
    layers: tuple[LayerShape, ...] = ()
    attention_head_size: int | None = None
    pooler_size: int | None = None

    def __post_init__(self):
        _check_values(vars(self))
        if self.layers and len(self.layers) != self.num_hidden_layers:
            raise InputError(
                f"config: {len(self.layers)} layers are described; num_hidden_layers={self.num_hidden_layers}"
            )
        if self.attention_head_size is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config: hidden_size={self.hidden_size} is no multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.attention_head_size or self.hidden_size // self.num_attention_heads

    @property
    def is_shrunk(self) -> bool:
        """Whether pieces are physically gone, so that stock classes cannot load it."""
        return bool(self.layers)

    def layer(self, index: int) -> LayerShape:
        """What there is of a layer, counted from 0."""
        if self.layers:
            return self.layers[index]
        return LayerShape(tuple(range(self.num_attention_heads)), self.intermediate_size)

    @property
    def num_logits(self) -> int:
        """Width of the task's head: classes, 1 for a regression, 2 for spans, 0 without such a head."""
        return {"classification": len(self.labels), "regression": 1, "span": 2}.get(self.head, 0)

    @property
    def has_pooler(self) -> bool:
        """Whether the head reads the [CLS] pooler, rather than last hidden states or their mean."""
        return self.pooling == "cls" and self.head not in ("masked-lm", "span")

    def replace(self, **changes: Any) -> "BertConfig":
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)


def _check_values(values: Mapping[str, Any]) -> None:
    """Checks values of a configuration one by one, those that are there.

    Raises:
      InputError: one has another type or lies outside what is allowed.
    """

    def need(name: str, good: Callable[[Any], bool], allowed: str) -> None:
        if name in values and not good(values[name]):
            raise InputError(f"config: {name}={values[name]!r}; allowed: {allowed}")

    def is_whole(value: Any, least: int, most: int) -> bool:
        return type(value) is int and least <= value <= most

    for name, most in _MOST.items():
        need(name, lambda value, most=most: is_whole(value, 1, most), f"whole numbers from 1 to {most}")
    for name in ("attention_head_size", "pooler_size"):
        need(name, lambda value: value is None or is_whole(value, 1, _ANY), f"whole numbers from 1 to {_ANY}")
    last = values["vocab_size"] - 1
    need("pad_token_id", lambda value: is_whole(value, 0, last), f"0 to {last}, ids of the vocabulary")
    for name in _FLOATS[:2]:
        need(name, lambda value: type(value) in (int, float) and 0 <= value < 1, "a fraction in [0, 1)")
    for name in _FLOATS[2:]:
        need(name, lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number in [0, 1]")
    for name, allowed in {"hidden_act": ACTIVATIONS, "pooling": ("cls", "mean"), "head": HEADS}.items():
        need(name, lambda value, allowed=allowed: value in allowed, ", ".join(allowed))


FORMAT = 1
"""Of the `kaprune` section; a folder of a later one is refused, since what it says would be misread."""

_OWN = ("pooling", "head", "labels", "layers", "attention_head_size", "pooler_size")
_SIZES = tuple(field.name for field in dataclasses.fields(BertConfig) if field.name not in _OWN)


def from_hugging_face(raw: Mapping[str, Any], where: str) -> BertConfig:
    """Reads a Hugging Face configuration; pooling and head come from its `kaprune` section or the architecture.

    Args:
      raw: the parsed `config.json`.
      where: the file, for messages.

    Raises:
      InputError: another model type, a missing size, or a variant of BERT that is not supported.
    """
    if raw.get("model_type", "bert") != "bert":
        raise InputError(f"{where}: model_type={raw['model_type']!r}; only the BERT layout (bert) can be read")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{where}: position_embedding_type={raw['position_embedding_type']!r}; allowed: absolute")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise InputError(f"{where}: a decoder; only encoders can be read")
    sizes = {name: raw[name] for name in _SIZES if raw.get(name) is not None}
    needed = [field.name for field in dataclasses.fields(BertConfig) if field.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in sizes]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    section, names = raw.get("kaprune", {}), raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(section, dict) or not isinstance(names, dict) or not all(map(_names_class, names.items())):
        raise InputError(
            f"{where}: kaprune and id2label must be JSON objects, the keys of id2label whole numbers, its values texts"
        )
    version = section.get("format", FORMAT)
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise InputError(
            f"{where}: kaprune.format={version!r}; this version reads up to {FORMAT}: install a newer kaprune-jax"
        )
    try:
        architecture = architecture_of(raw)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    labels: tuple[str, ...] = ()
    head: Head = "none"
    if "head" in section:
        head = section["head"]
    elif architecture == "BertForMaskedLM" or architecture == "BertForPreTraining":
        head = "masked-lm"
    elif architecture == "BertForSequenceClassification":
        head = "regression" if len(names) == 1 or raw.get("problem_type") == "regression" else "classification"
    elif architecture == "BertForQuestionAnswering":
        head = "span"
    if head == "classification":
        labels = tuple(str(names[key]) for key in sorted(names, key=int))
    values: dict[str, Any] = {
        **sizes,
        "pooling": section.get("pooling", "cls"),
        "head": head,
        "attention_head_size": section.get("head_size"),
        "pooler_size": section.get("pooler"),
    }
    try:
        _check_values(values)
        values.update({name: float(values[name]) for name in _FLOATS if name in values})
        config = BertConfig(**values, labels=labels)
        return config.replace(layers=_read_layers(section.get("layers"), config)) if "head_size" in section else config
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The first of the `architectures` of a Hugging Face configuration, "BertModel" where it names none.

    Raises:
      InputError: they are no list of names.
    """
    names = raw.get("architectures") or ["BertModel"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"architectures={names!r}; a list of names is needed")
    return names[0]


def _names_class(pair: tuple[str, Any]) -> bool:
    """Whether an entry of id2label is one: a number below a billion, and a text or a number."""
    number, name = pair
    return number.isascii() and number.isdecimal() and len(number) < 10 and isinstance(name, str | int | float)


def _read_layers(rows: Any, config: BertConfig) -> tuple[LayerShape, ...]:
    """The shapes of shrunk layers from the `kaprune` section.

    Raises:
      InputError: something else is there.
    """
    if not isinstance(rows, list) or len(rows) != config.num_hidden_layers:
        raise InputError(f"kaprune.layers: a list of {config.num_hidden_layers} objects is needed")
    layers = []
    for number, row in enumerate(rows):
        heads, width = (row.get("heads"), row.get("ffn")) if isinstance(row, dict) else (None, None)
        if (
            not isinstance(heads, list)
            or not all(type(head) is int and 0 <= head < config.num_attention_heads for head in heads)
            or sorted(set(heads)) != heads
            or type(width) is not int
            or not 0 <= width <= config.intermediate_size
        ):
            raise InputError(
                f"kaprune.layers[{number}]={str(row)[:100]}; heads, ascending numbers below "
                f"{config.num_attention_heads}, and ffn, a width up to {config.intermediate_size}, are needed"
            )
        layers.append(LayerShape(tuple(heads), width))
    return tuple(layers)


def to_hugging_face(config: BertConfig) -> dict[str, Any]:
    """The configuration as stock `transformers` reads it.

    The `kaprune` section lists per layer which heads are there and how wide its FFN is: all of them, as long as
    nothing is removed as a whole. A mean-pooled model is written as `BertModel`: no stock class of the BERT family
    pools that way, and one that loaded it as a classifier would silently give other logits.
    """
    raw: dict[str, Any] = {name: getattr(config, name) for name in _SIZES}
    stock = config.pooling == "cls" or config.head in ("none", "masked-lm", "span")
    raw["architectures"] = [_ARCHITECTURE[config.head] if stock else "BertModel"]
    raw["model_type"] = "bert"
    if config.head == "classification":
        raw["id2label"] = {str(index): label for index, label in enumerate(config.labels)}
        raw["label2id"] = {label: index for index, label in enumerate(config.labels)}
        raw["problem_type"] = "single_label_classification"
    elif config.head == "regression":
        raw["id2label"], raw["label2id"] = {"0": "score"}, {"score": 0}
        raw["problem_type"] = "regression"
    layers = [config.layer(index) for index in range(config.num_hidden_layers)]
    raw["kaprune"] = {
        "format": FORMAT,
        "pooling": config.pooling,
        "head": config.head,
        "hidden": config.hidden_size,
        "layers": [{"heads": list(layer.heads), "ffn": layer.ffn} for layer in layers],
    }
    if config.is_shrunk:
        raw["kaprune"] |= {"head_size": config.head_size, "pooler": config.pooler_size}
    return raw
