"""BERT's gates: what each multiplies, what it costs, and which parameters shrink with it.

CoFi (Xia et al., 2022, arXiv:2204.00408): a gate for each attention and feed-forward network, each head and unit, and
each hidden dimension, the same in all layers. Costs count the six matrices of each layer, as sparsity does elsewhere.
"""

from kaprune_jax._errors import InputError
from kaprune_jax.l0.layout import Axis, Cut, Gate, Layout, Product
from kaprune_jax.models.config import BertConfig

GATES = ("attention", "ffn", "heads", "units", "hidden")

_LAYER = r"encoder/layers/(?P<layer>\d+)/"


def bert_layout(config: BertConfig) -> Layout:
    """The gates of a BERT encoder.

    Raises:
      InputError: it has been shrunk already.
    """
    if config.is_shrunk:
        raise InputError("a model that was shrunk before has layers of different shapes; start from the whole one")
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads, units = config.num_attention_heads, config.intermediate_size
    return Layout(
        gates=(
            Gate("attention", (layers,), True),
            Gate("ffn", (layers,), True),
            Gate("heads", (layers, heads), True),
            Gate("units", (layers, units), True),
            Gate("hidden", (hidden,), False),
        ),
        axes=(
            Axis("hidden", ("hidden",)),
            Axis("head", ("attention", "heads")),
            Axis("unit", ("ffn", "units")),
        ),
        products=(Product(("hidden", "head"), 4 * config.head_size), Product(("hidden", "unit"), 2)),
        cuts=(
            Cut("embeddings/norm/(scale|bias)", ("hidden",), fold=("hidden",)),
            Cut("embeddings/.*/embedding", (None, "hidden")),
            Cut(_LAYER + "attention/(query|key|value)/kernel", ("hidden", "head"), needs="head"),
            Cut(_LAYER + "attention/(query|key|value)/bias", ("head",), needs="head"),
            Cut(
                _LAYER + "attention/output/kernel",
                ("head", "hidden"),
                fold=("heads", "attention", "hidden"),
                needs="head",
            ),
            Cut(_LAYER + "attention/output/bias", ("hidden",), fold=("attention", "hidden"), needs="head"),
            Cut(_LAYER + "ffn/up/kernel", ("hidden", "unit"), needs="unit"),
            Cut(_LAYER + "ffn/up/bias", ("unit",), needs="unit"),
            Cut(_LAYER + "ffn/down/kernel", ("unit", "hidden"), fold=("units", "ffn", "hidden"), needs="unit"),
            Cut(_LAYER + "ffn/down/bias", ("hidden",), fold=("ffn", "hidden"), needs="unit"),
            Cut(_LAYER + ".*norm/(scale|bias)", ("hidden",)),
            Cut("pooler/kernel" if config.has_pooler else "(pooler|head)/kernel", ("hidden", None)),
            Cut("projection/kernel", ("hidden", None)),
        ),
    )
