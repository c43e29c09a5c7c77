import itertools

import numpy as np
import pytest

from kaprune_jax.data.loader import Encoded, TrainBatches, choose_lengths, collate, encode, eval_batches
from kaprune_jax.data.rows import Rows


def rows_of(lengths, pad=0):
    ids = tuple([index + 1] * length for index, length in enumerate(lengths))
    return Encoded(
        ids, tuple([0] * length for length in lengths), np.arange(len(lengths), dtype=np.int32), frozenset(), 512, pad
    )


def cost(lengths, sizes):
    return sum(min(size for size in sizes if size >= length) for length in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_lengths_waste_as_little_as_any_choice(count, rng):
    lengths = rng.integers(3, 60, 200).tolist()
    chosen = choose_lengths(lengths, count, spare=0.0)
    top = chosen[-1]
    grid = range(8, top + 8, 8)
    best = min(cost(lengths, [*lower, top]) for n in range(count) for lower in itertools.combinations(grid, n))
    assert cost(lengths, chosen) == best
    assert len(chosen) <= count
    assert all(size % 8 == 0 for size in chosen)


def test_no_length_passes_the_limit():
    assert choose_lengths([5, 17, 30], 4, spare=0.0, limit=30) == (8, 24, 30)


def test_a_length_that_saves_little_is_left_out(rng):
    lengths = rng.integers(3, 60, 200).tolist()
    best, few = choose_lengths(lengths, 4, spare=0.0), choose_lengths(lengths, 4, spare=0.3)
    assert len(few) < len(best)
    assert cost(lengths, few) <= 1.3 * cost(lengths, best)


def test_an_epoch_gives_each_row_at_most_once_and_drops_less_than_a_batch(rng):
    data = rows_of(rng.integers(3, 60, 203).tolist())
    batches = TrainBatches(data, batch_size=16, seed=0)
    assert batches.steps_per_epoch == 203 // 16
    seen = np.concatenate([batches[step]["labels"] for step in range(batches.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == 192
    shapes = {batches[step]["input_ids"].shape for step in range(3 * batches.steps_per_epoch)}
    assert shapes == {(16, length) for length in batches.lengths}


def test_what_an_epoch_drops_changes(rng):
    data = rows_of(rng.integers(3, 60, 50).tolist())
    batches = TrainBatches(data, batch_size=16, seed=0)
    seen = {int(label) for step in range(20 * batches.steps_per_epoch) for label in batches[step]["labels"]}
    assert seen == set(range(50))


def test_order_follows_seed_and_step_alone(rng):
    data = rows_of(rng.integers(3, 40, 100).tolist())
    one, two = TrainBatches(data, batch_size=8, seed=1), TrainBatches(data, batch_size=8, seed=1)
    forward = [one[step]["labels"].tolist() for step in range(40)]
    backward = [two[step]["labels"].tolist() for step in reversed(range(40))][::-1]
    assert forward == backward
    other = TrainBatches(data, batch_size=8, seed=2)
    assert forward != [other[step]["labels"].tolist() for step in range(40)]
    assert sorted(map(tuple, forward[:12])) != sorted(map(tuple, forward[12:24]))


def test_fewer_rows_than_a_batch_are_one_batch():
    batches = TrainBatches(rows_of([5, 6, 7]), batch_size=32, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (3, 1)
    assert sorted(batches[7]["labels"].tolist()) == [0, 1, 2]


def test_evaluation_sees_every_row_once(rng):
    data = rows_of(rng.integers(3, 60, 77).tolist())
    seen = []
    for rows, batch in eval_batches(data, batch_size=16):
        assert batch["input_ids"].shape[0] == 16
        np.testing.assert_array_equal(batch["labels"][: len(rows)], rows)
        seen += rows.tolist()
    assert sorted(seen) == list(range(77))


@pytest.mark.parametrize(("shapes", "multiple"), [(1, 6), (2, 16), (4, 8)])
def test_evaluation_has_the_lengths_it_is_told(rng, shapes, multiple):
    data = rows_of(rng.integers(13, 19, 77).tolist())
    batches = [batch for _, batch in eval_batches(data, batch_size=16, shapes=shapes, multiple=multiple)]
    lengths = {batch["input_ids"].shape[1] for batch in batches}
    assert lengths == set(choose_lengths([len(row) for row in data.input_ids], shapes, multiple=multiple))
    assert len(lengths) <= shapes


def test_collate_pads_and_masks():
    batch = collate(rows_of([2, 4], pad=9), np.array([1, 0]), 8)
    assert batch["input_ids"].tolist() == [[2] * 4 + [9] * 4, [1] * 2 + [9] * 6]
    assert batch["attention_mask"].sum(axis=1).tolist() == [4, 2]
    assert {array.dtype for array in batch.values()} == {np.dtype("int32")}


def test_long_rows_are_truncated_and_counted():
    import kaprune_jax as kp

    tokenizer = kp.load("mini").tokenizer
    texts = (("a robin is a bird .", "a bird is an animal ."), ("a bird . " * 40, "an animal ."))
    data = encode(Rows(texts, np.array([0, 1], np.int32)), tokenizer, max_length=24)
    assert data.truncated == len(data.cut) == 1
    assert [len(ids) for ids in data.input_ids][1] == 24
    assert data.token_type_ids[0][-1] == data.token_type_ids[1][-1] == 1
    assert tokenizer.decode(data.input_ids[1]).endswith("an animal. [SEP]") or "animal" in tokenizer.decode(
        data.input_ids[1]
    )
