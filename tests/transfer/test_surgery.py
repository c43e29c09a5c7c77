import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaprune_jax.transfer.surgery import attittud, pcgrad

SHAPES = {"scale": (), "bias": (5,), "kernel": (4, 3), "heads": (2, 3, 2)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def tree(vector, dtype=jnp.float32):
    """The numbers of a vector, or of every row of a matrix, as a nested tree with leaves of several ranks."""
    parts, start = {}, 0
    for name, shape in SHAPES.items():
        stop = start + int(np.prod(shape))
        parts[name] = jnp.asarray(vector[..., start:stop].reshape(vector.shape[:-1] + shape), dtype)
        start = stop
    return {"gates": {"scale": parts.pop("scale")}, "layers": [parts, None]}


def flat(grads):
    leaves = grads["layers"][0]
    parts = [grads["gates"]["scale"], *(leaves[name] for name in SHAPES if name != "scale")]
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])


def expected_attittud(basis, target, auxiliary, agreeing=1.0, opposing=0.0, outside=1.0, signs=None):
    """Parts along the right singular vectors, one after the other."""
    _, lengths, directions = np.linalg.svd(basis, full_matrices=False)
    result, rest = np.zeros_like(auxiliary), auxiliary.copy()
    for index, (length, direction) in enumerate(zip(lengths, directions, strict=True)):
        if length <= 3e-3 * lengths[0]:
            continue
        direction = direction if signs is None else direction * signs[index]
        part = (direction @ auxiliary) * direction
        rest = rest - part
        opposes = (direction @ auxiliary) * (direction @ target) < 0
        result = result + (opposing if opposes else agreeing) * part
    return result + outside * rest


def gradients(rng, k=6):
    """k gradients with a common part, their mean, and an auxiliary gradient partly against them."""
    basis = rng.normal(size=SIZE) + rng.normal(size=(k, SIZE))
    return basis, basis.mean(0), rng.normal(size=SIZE) - 0.3 * basis.mean(0)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pcgrad_removes_what_opposes(jit, sign, rng):
    target, auxiliary = rng.normal(size=(2, SIZE))
    auxiliary = auxiliary + sign * target
    along = auxiliary @ target / (target @ target)
    wanted = auxiliary - min(0.0, along) * target
    assert (along < 0) == (sign < 0)
    result = (jax.jit(pcgrad) if jit else pcgrad)(tree(target), tree(auxiliary))
    assert jax.tree.structure(result) == jax.tree.structure(tree(auxiliary))
    np.testing.assert_allclose(flat(result), wanted, rtol=1e-5, atol=1e-6)


def test_pcgrad_has_one_inner_product_over_the_tree():
    target = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
    auxiliary = {"a": jnp.array([-1.0]), "b": jnp.array([1.0])}
    assert pcgrad(target, auxiliary)["a"] == -1.0  # opposes in one leaf, agrees over all


def test_after_pcgrad_nothing_opposes_and_a_second_time_changes_nothing(rng):
    for _ in range(20):
        target, auxiliary = rng.normal(size=(2, SIZE))
        once = pcgrad(tree(target), tree(auxiliary))
        assert flat(once) @ target >= -1e-5
        np.testing.assert_allclose(flat(pcgrad(tree(target), once)), flat(once), rtol=1e-5, atol=1e-6)


def test_the_length_of_the_target_does_not_matter_even_where_squares_vanish_or_overflow(rng):
    target, auxiliary = rng.normal(size=(2, SIZE))
    wanted = flat(pcgrad(tree(target), tree(auxiliary)))
    for length in (1e-25, 1e25):
        np.testing.assert_allclose(flat(pcgrad(tree(length * target), tree(auxiliary))), wanted, rtol=1e-5, atol=1e-6)


def test_a_zero_target_changes_nothing(rng):
    basis, target, auxiliary = gradients(rng)
    nothing, aux = tree(np.zeros(SIZE)), tree(auxiliary)
    np.testing.assert_array_equal(flat(pcgrad(nothing, aux)), flat(aux))
    np.testing.assert_array_equal(flat(attittud(tree(basis), nothing, aux)), flat(aux))  # 0 agrees
    np.testing.assert_array_equal(flat(attittud(tree(0 * basis), tree(target), aux)), flat(aux))  # V is empty
    assert not flat(attittud(tree(0 * basis), tree(target), aux, outside=0.0)).any()


def test_nan_is_not_hidden(rng):
    basis, target, auxiliary = gradients(rng)
    bad = target.copy()
    bad[3] = np.nan
    assert np.isnan(flat(pcgrad(tree(bad), tree(auxiliary)))).any()
    basis[1, 2] = np.nan
    assert np.isnan(flat(attittud(tree(basis), tree(target), tree(auxiliary)))).any()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("factors", [(1.0, 0.0, 1.0), (1.0, -1.0, 0.0), (0.5, 0.25, 2.0)])
def test_attittud_scales_three_parts(jit, k, factors, rng):
    basis, target, auxiliary = gradients(rng, k)
    names = dict(zip(("agreeing", "opposing", "outside"), factors, strict=True))
    function = jax.jit(attittud) if jit else attittud
    result = function(tree(basis), tree(target), tree(auxiliary), **names)
    assert jax.tree.structure(result) == jax.tree.structure(tree(auxiliary))
    np.testing.assert_allclose(flat(result), expected_attittud(basis, target, auxiliary, *factors), atol=2e-5)


def test_all_factors_one_give_the_auxiliary_gradient(rng):
    basis, target, auxiliary = gradients(rng)
    result = attittud(tree(basis), tree(target), tree(auxiliary), opposing=1.0)
    np.testing.assert_array_equal(flat(result), flat(tree(auxiliary)))


def test_the_inside_part_never_opposes(rng):
    for k in (1, 3, 6):
        basis, target, auxiliary = gradients(rng, k)
        inside = attittud(tree(basis), tree(target), tree(auxiliary), outside=0.0)
        against = attittud(tree(basis), tree(target), tree(auxiliary), agreeing=0.0, opposing=1.0, outside=0.0)
        assert flat(inside) @ target >= -1e-5
        assert flat(against) @ target <= 1e-5


def test_inside_and_outside_are_the_projections(rng):
    basis, target, auxiliary = gradients(rng)
    q, _ = np.linalg.qr(basis.T)
    inside = attittud(tree(basis), tree(target), tree(auxiliary), opposing=1.0, outside=0.0)
    outside = attittud(tree(basis), tree(target), tree(auxiliary), agreeing=0.0)
    np.testing.assert_allclose(flat(inside), q @ (q.T @ auxiliary), atol=2e-5)
    np.testing.assert_allclose(flat(outside), auxiliary - q @ (q.T @ auxiliary), atol=2e-5)


def test_signs_order_and_rotation_of_the_basis_do_not_matter(rng):
    basis, target, auxiliary = gradients(rng)
    wanted = expected_attittud(basis, target, auxiliary)
    signs = rng.choice([-1.0, 1.0], size=(6, 1))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    for other in (signs * basis, basis[rng.permutation(6)], rotation @ basis, 1e-22 * basis, 1e22 * basis):
        np.testing.assert_allclose(flat(attittud(tree(other), tree(target), tree(auxiliary))), wanted, atol=2e-5)
    # nor do the signs that a solver gives the principal directions
    np.testing.assert_allclose(expected_attittud(basis, target, auxiliary, signs=-signs[:, 0]), wanted, atol=1e-12)


def test_the_split_is_along_principal_directions_not_rows():
    basis = {"w": jnp.array([[2.0, 1.0], [2.0, -1.0]])}  # principal directions are the axes
    result = attittud(basis, {"w": jnp.array([1.0, 0.1])}, {"w": jnp.array([1.0, -3.0])})
    np.testing.assert_allclose(result["w"], [1.0, 0.0], atol=1e-6)


def test_dependent_and_zero_rows_add_nothing(rng):
    basis, target, auxiliary = gradients(rng, 3)
    # Twice every row, and zeros: longer by sqrt(2), the same directions.
    repeated = np.concatenate([basis, np.zeros((2, SIZE)), basis])
    mixed = np.concatenate([basis, rng.normal(size=(4, 3)) @ basis])
    for other in (repeated, mixed):
        wanted = expected_attittud(other, target, auxiliary)
        result = attittud(tree(other), tree(target), tree(auxiliary))
        np.testing.assert_allclose(flat(result), wanted, atol=2e-5)
    same = attittud(tree(repeated), tree(target), tree(auxiliary))
    np.testing.assert_allclose(flat(same), expected_attittud(basis, target, auxiliary), atol=2e-5)
    copies = attittud(tree(np.stack([target] * 4)), tree(target), tree(auxiliary))
    np.testing.assert_allclose(flat(copies), flat(pcgrad(tree(target), tree(auxiliary))), atol=2e-5)


def test_more_rows_than_dimensions(rng):
    basis, target, auxiliary = rng.normal(size=(7, 3)), rng.normal(size=3), rng.normal(size=3)
    result = attittud(*({"w": jnp.asarray(x, jnp.float32)} for x in (basis, target, auxiliary)), outside=0.0)
    np.testing.assert_allclose(result["w"], expected_attittud(basis, target, auxiliary, outside=0.0), atol=2e-5)


def test_one_row_that_is_the_target_gives_pcgrad(rng):
    for sign in (1.0, -1.0):
        target, auxiliary = rng.normal(size=(2, SIZE))
        auxiliary = auxiliary + sign * target
        one = attittud(tree(target[None]), tree(target), tree(auxiliary))
        np.testing.assert_allclose(flat(one), flat(pcgrad(tree(target), tree(auxiliary))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_are_kept_under_strict_promotion(dtype, rng):
    basis, target, auxiliary = gradients(rng)
    with jax.numpy_dtype_promotion("strict"):
        first = pcgrad(tree(target, dtype), tree(auxiliary, dtype))
        second = attittud(tree(basis, dtype), tree(target, dtype), tree(auxiliary, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves((first, second))} == {jnp.dtype(dtype)}


def test_factors_may_be_traced(rng):
    basis, target, auxiliary = gradients(rng)
    result = jax.jit(lambda factor: attittud(tree(basis), tree(target), tree(auxiliary), outside=factor))(0.25)
    np.testing.assert_allclose(flat(result), expected_attittud(basis, target, auxiliary, outside=0.25), atol=2e-5)


def test_trees_that_do_not_fit_are_refused():
    one, two = {"w": jnp.ones((2, 3))}, {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"target and auxiliary differ: w has shape \(2, 3\) and \(3,\)"):
        pcgrad(one, two)
    with pytest.raises(ValueError, match="b has shape none"):
        pcgrad(two, {"w": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="no leaves"):
        pcgrad({}, {})
    with pytest.raises(ValueError, match=r"basis and auxiliary differ: w has shape \(4,\) and \(3,\)"):
        attittud({"w": jnp.ones((2, 4))}, two, two)
    for basis in ({"w": jnp.ones((0, 3))}, {"w": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, {"w": jnp.ones(())}):
        like = {name: jnp.ones(3) for name in basis}
        with pytest.raises(ValueError, match="leading axes"):
            attittud(basis, like, like)
