"""Pre-trains the small bundled encoder by masked language modelling on text of the small world.

    python -m experiments.pretrain --out FOLDER

After Devlin et al., 2019, arXiv:1810.04805, without next-sentence prediction and with three changes for a model this
small: the world's own words are masked more often than function words; a word that is replaced rather than masked gets
another of its kind (a room for a room), so that noticing it takes knowledge; weights start with a standard deviation of
0.06. AdamW, linear warm-up and decay. The same command on the same machine gives the same bits. `--steps 0` writes the
random start, an encoder that knows nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kaprune_jax._errors import InputError
from kaprune_jax.data.world import SPECIAL, vocabulary, write_tokenizer
from kaprune_jax.data.world_facts import HATED, LIKED, POLARITY
from kaprune_jax.data.world_text import KINDS, LEAVES, PLACES, QUALITIES, ROOMS, TOPS, pretraining_text
from kaprune_jax.deploy.folder import save
from kaprune_jax.deploy.tokenizer import load_tokenizer
from kaprune_jax.models.bert import init_params, make_apply
from kaprune_jax.models.config import BertConfig
from kaprune_jax.train.optimizer import adamw, learning_rate

PAD, _, CLS, SEP, MASK = range(len(SPECIAL))
HELD_BACK_SEED = 1_000_003
_VERBS = tuple(word for forms in (*LIKED, *HATED) for word in forms)
_WORD_KINDS = (LEAVES, KINDS + TOPS, QUALITIES, ROOMS, PLACES, tuple(set(POLARITY) - set(_VERBS)), _VERBS)


class Batch(NamedTuple):
    """Token arrays [batch, length]; `weight` is 1 where `targets` is to be predicted."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray


def batches(seed: int, *, size: int, length: int, fraction: float = 0.3) -> Iterator[Batch]:
    """An endless stream of masked batches, the same for the same seed; texts longer than `length` are left out.

    Args:
      seed: of the text and of the masks.
      size: rows of a batch.
      length: tokens of a row, padding included.
      fraction: of the world's own words to predict; of the others a third of it. Of these 45 % are masked, 40 %
        replaced, 15 % kept; words without a kind are masked where others are replaced.
    """
    words = vocabulary()
    ids = {word: number for number, word in enumerate(words)}
    kind = np.zeros(len(words), int)
    members = np.full((len(_WORD_KINDS) + 1, max(map(len, _WORD_KINDS))), MASK)
    sizes = np.ones(len(_WORD_KINDS) + 1, int)
    for number, group in enumerate(_WORD_KINDS, start=1):
        numbers = [ids[word] for word in sorted(group)]
        kind[numbers], members[number, : len(group)], sizes[number] = number, numbers, len(group)
    rng, stream = np.random.default_rng(seed), pretraining_text(seed)
    while True:
        tokens, segments = np.full((2, size, length), PAD, np.int32)
        row = 0
        while row < size:
            line, parts = [CLS], [0]
            for number, text in enumerate(next(stream)):
                piece = [*(ids[word] for word in text.split()), SEP]
                line += piece
                parts += [number] * len(piece)
            if len(line) <= length:
                tokens[row, : len(line)], segments[row, : len(line)] = line, parts
                row += 1
        share = np.where(kind[tokens] > 0, fraction, np.where(tokens >= len(SPECIAL), fraction / 3, 0.0))
        chosen, action = rng.random(tokens.shape) < share, rng.random(tokens.shape)
        groups = kind[tokens]
        others = members[groups, (rng.random(tokens.shape) * sizes[groups]).astype(int)]
        shown = np.where(chosen & (action < 0.45), MASK, np.where(chosen & (action < 0.85), others, tokens))
        mask = (tokens != PAD).astype(np.int32)
        yield Batch(shown.astype(np.int32), mask, segments, tokens, chosen.astype(np.float32))


def make_step(config: BertConfig, tx: optax.GradientTransformation):
    """The jitted training step and the jitted evaluation, both giving loss and accuracy over predicted words."""
    apply = make_apply(config)

    def loss_of(params, batch: Batch):
        logits = jnp.asarray(apply(params, batch.input_ids, batch.attention_mask, batch.token_type_ids).logits)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        total = batch.weight.sum()
        right = (logits.argmax(-1) == batch.targets) * batch.weight
        return (loss * batch.weight).sum() / total, right.sum() / total

    def step(params, state, batch: Batch):
        (loss, accuracy), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, accuracy

    return jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss_of)


def pretrain(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains, writes the model folder, and returns loss and accuracy on held-back text."""
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        intermediate_size=4 * arguments.hidden,
        max_position_embeddings=64,
        hidden_act="gelu_new",
        initializer_range=0.06,
        head="masked-lm",
        pooling="mean",
    )
    steps = arguments.steps
    rate = learning_rate(arguments.learning_rate, steps=max(steps, 1), warmup=0.05)
    tx = adamw(rate)
    params = init_params(config, jax.random.key(arguments.seed))
    state = tx.init(params)
    step, evaluate = make_step(config, tx)
    stream = batches(arguments.seed, size=arguments.batch_size, length=arguments.length)
    held_back = next(batches(HELD_BACK_SEED, size=1000, length=arguments.length))
    began = time.perf_counter()
    for number in range(1, steps + 1):
        params, state, loss, accuracy = step(params, state, next(stream))
        if number % 100 == 0 or number == steps:
            each = (time.perf_counter() - began) / number
            left = round(each * (steps - number))
            print(
                f"step {number}/{steps}  loss {float(loss):.3f}  accuracy {float(accuracy):.3f}  "
                f"{1 / each:.1f} steps/s  {left // 60}:{left % 60:02d} left",
                flush=True,
            )
    loss, accuracy = map(float, evaluate(params, held_back))
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder)
        tokenizer = load_tokenizer(Path(folder))
    flags = {name: value for name, value in vars(arguments).items() if name != "out"}
    command = " ".join(
        ["python -m experiments.pretrain", *(f"--{name.replace('_', '-')} {value}" for name, value in flags.items())]
    )
    save(arguments.out, params, config, tokenizer=tokenizer, card=_card(command, loss, accuracy), dtype="float16")
    return {"loss": loss, "accuracy": accuracy}


def _card(command: str, loss: float, accuracy: float) -> str:
    return f"""---
license: apache-2.0
---
# mini

A small BERT encoder with its masked-LM head, pre-trained on text generated from a small closed world
(`kaprune_jax.data.world_text`). Made by

    {command}

Of the words it has to predict in 1,000 held-back texts it gets {accuracy:.1%} right (loss {loss:.3f}). Float16.
It knows nothing but that world: it is for examples and tests.
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", required=True, help="model folder to write; must not exist")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps; 0 for the random start")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per step")
    parser.add_argument("--length", type=int, default=24, help="tokens per row")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights, text and masks")
    parser.add_argument("--layers", type=int, default=4, help="encoder layers")
    parser.add_argument("--hidden", type=int, default=128, help="width; the feed-forward part has four times as much")
    parser.add_argument("--heads", type=int, default=4, help="attention heads")
    arguments = parser.parse_args()
    try:
        if Path(arguments.out).exists():
            raise InputError(f"--out {arguments.out}: exists already; a new folder is needed")
        figures = pretrain(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: held-back loss {figures['loss']:.3f}, accuracy {figures['accuracy']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
