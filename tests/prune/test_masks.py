import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import kaprune_jax as kp
from kaprune_jax.prune.patterns import keep_count
from kaprune_jax.train.cost import collective_bytes


def oracle(scores: np.ndarray, kept: int) -> np.ndarray:
    """The `kept` largest by a stable sort: ties go to the lower index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("digits", [0, 1, 8])
def test_topk_is_exact_with_ties(sparsity, digits, rng):
    scores = rng.normal(size=(37, 23)).astype(np.float32).round(digits)
    mask = kp.topk_mask(jnp.asarray(scores), sparsity)
    np.testing.assert_array_equal(mask, oracle(scores, keep_count(scores.size, sparsity)))


@pytest.mark.parametrize("values", [np.zeros(9), -np.arange(9.0), np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38])])
def test_topk_orders_every_float(values):
    values = values.astype(np.float32)
    mask = kp.topk_mask(jnp.asarray(values), 0.5)
    np.testing.assert_array_equal(mask, oracle(values, keep_count(values.size, 0.5)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_topk_takes_any_float_type_under_strict_promotion(dtype, getkey):
    scores = jax.random.normal(getkey(), (16, 16)).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        mask = kp.topk_mask(scores, 0.75)
    assert int(mask.sum()) == 64


def test_blocks_go_as_a_whole(rng):
    scores = rng.normal(size=(64, 32)).astype(np.float32)
    mask = np.asarray(kp.topk_mask(jnp.asarray(scores), 0.75, pattern="block-8x4"))
    blocks = mask.reshape(8, 8, 8, 4).transpose(0, 2, 1, 3).reshape(64, 32)
    assert set(blocks.sum(axis=1).tolist()) == {0, 32}
    sums = scores.reshape(8, 8, 8, 4).sum(axis=(1, 3))
    np.testing.assert_array_equal(blocks[:, 0].reshape(8, 8), oracle(sums, 16))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("digits", [0, 8])
def test_balanced_blocks_are_the_best_of_each_stripe(sparsity, digits, rng):
    scores = np.abs(rng.normal(size=(80, 28))).astype(np.float32).round(digits)  # 10 blocks in each of 7 stripes
    mask = np.asarray(kp.topk_mask(jnp.asarray(scores), sparsity, pattern="block-8x4-balanced"))
    blocks = mask.reshape(10, 8, 7, 4).any(axis=(1, 3))
    np.testing.assert_array_equal(mask, np.repeat(np.repeat(blocks, 8, 0), 4, 1))
    sums = scores.reshape(10, 8, 7, 4).sum(axis=(1, 3), dtype=np.float32)
    each, more = divmod(keep_count(70, sparsity), 7)
    order = [np.argsort(-column, kind="stable") for column in sums.T]
    following = [column[best[each]] if each < 10 else -1.0 for column, best in zip(sums.T, order, strict=True)]
    lucky = set(np.argsort(-np.array(following), kind="stable")[:more].tolist())
    for number, best in enumerate(order):
        wanted = set(best[: each + (number in lucky)].tolist())
        assert set(np.flatnonzero(blocks[:, number]).tolist()) == wanted


def test_two_of_four_keeps_the_two_largest_inputs_of_each_output(rng):
    scores = rng.normal(size=(16, 5)).astype(np.float32)
    mask = np.asarray(kp.topk_mask(jnp.asarray(scores), 0.5, pattern="2:4"))
    for column in range(5):
        for row in range(0, 16, 4):
            np.testing.assert_array_equal(mask[row : row + 4, column], oracle(scores[row : row + 4, column], 2))


def test_topk_on_a_sharded_array_is_the_same_and_keeps_the_sharding(getkey):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    scores = jax.random.normal(getkey(), (64, 32))
    sharding = NamedSharding(mesh, PartitionSpec("model", None))
    function = jax.jit(lambda x: kp.topk_mask(x, 0.9), out_shardings=sharding)
    mask = function(jax.device_put(scores, sharding))
    assert mask.sharding == sharding
    np.testing.assert_array_equal(mask, kp.topk_mask(scores, 0.9))


@pytest.mark.parametrize(("sparsity", "pattern"), [(1.0, "element"), (float("nan"), "element"), (0.9, "2:4")])
def test_bad_sparsity_is_named(sparsity, pattern):
    with pytest.raises(ValueError, match="sparsity="):
        kp.topk_mask(jnp.ones((4, 4)), sparsity, pattern=pattern)


def test_apply_masks_and_sparsity_skip_what_is_never_pruned():
    params = {"w": jnp.arange(4.0), "b": jnp.ones(3)}
    masks = {"w": jnp.array([True, False, True, False]), "b": None}
    masked = kp.apply_masks(params, masks)
    assert masked["w"].tolist() == [0.0, 0.0, 2.0, 0.0]
    assert masked["b"] is params["b"]
    assert kp.sparsity(masks) == 0.5


def test_mask_moments_touches_moments_only():
    params = {"w": jnp.ones(4), "b": jnp.ones(3)}
    masks = {"w": jnp.array([True, False, True, False]), "b": None}
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    state = jax.tree.map(lambda leaf: leaf + 1, state)
    masked = kp.mask_moments(state, masks)
    adam = masked[1][0]
    assert adam.mu["w"].tolist() == adam.nu["w"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert adam.mu["b"].tolist() == [1.0, 1.0, 1.0]
    assert int(adam.count) == 1


@pytest.mark.parametrize("pattern", ["element", "block-32x128", "block-32x128-balanced"])
@pytest.mark.parametrize("digits", [0, 8])
def test_of_a_divided_matrix_only_counts_travel(pattern, digits, rng):
    mesh = jax.make_mesh((4, 2), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2)
    scores = rng.normal(size=(256, 512)).astype(np.float32).round(digits)  # many ties, or none
    divided = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("fsdp", "model")))
    choose = jax.jit(lambda scores: kp.topk_mask(scores, 0.9, pattern=pattern))
    sent = collective_bytes(choose.lower(divided).compile().as_text())
    assert sum(size for kinds in sent for size in kinds.values()) < 200
    np.testing.assert_array_equal(choose(divided), kp.topk_mask(jnp.asarray(scores), 0.9, pattern=pattern))
