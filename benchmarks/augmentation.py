"""How many new training rows a minute augmentation makes, candidates by the masked LM and by the input embeddings.

    python benchmarks/augmentation.py --shape bert-base

The encoder has random weights and the built-in world's words: what it proposes is nonsense, the time is not. Each word
that may be replaced is one masked text of up to 32 tokens; compilation is counted.
"""

import argparse
import dataclasses
import time

import jax

import kaprune_jax as kp
from kaprune_jax.data.augment import augment
from kaprune_jax.data.world import load_world
from kaprune_jax.deploy.candidates import candidates
from kaprune_jax.models.bert import init_params
from kaprune_jax.models.config import BertConfig
from shapes import SHAPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="minilm", help="size of the encoder [minilm]")
    parser.add_argument("--rows", type=int, default=500, help="training rows of micro-nli [500]")
    parser.add_argument("--copies", type=int, default=20, help="new rows tried for each [20]")
    arguments = parser.parse_args()
    sizes = SHAPES[arguments.shape]
    config = BertConfig(sizes.vocab, sizes.hidden, sizes.layers, sizes.heads, sizes.ffn, head="masked-lm")
    model = dataclasses.replace(kp.load("mini"), config=config, params=init_params(config, jax.random.key(0)))
    rows = load_world("micro-nli").train.texts[: arguments.rows]
    for name, head in (("masked LM", "masked-lm"), ("embeddings", "none")):
        start = time.perf_counter()
        propose = candidates(dataclasses.replace(model, config=config.replace(head=head)))
        made = augment(rows, propose, copies=arguments.copies)
        seconds = time.perf_counter() - start
        print(
            f"{arguments.shape}, {name}: {len(rows)} rows, {len(made.texts)} new rows in "
            f"{seconds:.1f} s: {60 * len(rows) / seconds:,.0f} rows a minute, {60 * len(made.texts) / seconds:,.0f} new"
        )


if __name__ == "__main__":
    main()
