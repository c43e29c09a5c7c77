"""Files without zeros read as what was written, and only as that."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import kaprune_jax as kp
from kaprune_jax._errors import InputError
from kaprune_jax.deploy.zeros import leave_out, put_back
from kaprune_jax.models.bert import init_params
from kaprune_jax.models.config import BertConfig

SMALL = BertConfig(60, 32, 2, 4, 64, 40, labels=("no", "yes"), head="classification")


@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99), st.sampled_from(["f2", "f4"]))
def test_what_is_left_out_is_put_back(rows, columns, density, seed, dtype):
    random = np.random.default_rng(seed)
    matrix = (random.normal(size=(rows, columns)) * (random.random((rows, columns)) < density)).astype(dtype)
    tensors, shapes = leave_out({"m": matrix, "bias": matrix[0]})
    assert sum(tensor.nbytes for tensor in tensors.values()) <= matrix.nbytes + matrix[0].nbytes
    np.testing.assert_array_equal(tensors["bias"], matrix[0])
    found = tensors["m"] if "m" in tensors else put_back(tensors["m.values"], tensors["m.bits"], shapes["m"], "f")
    assert found.dtype == matrix.dtype
    np.testing.assert_array_equal(found, matrix)


def test_at_95_percent_a_matrix_takes_a_twelfth():
    matrix = np.zeros((384, 1536), np.float32)
    matrix.reshape(-1)[::20] = 1.5
    tensors, _ = leave_out({"m": matrix})
    assert matrix.nbytes / sum(tensor.nbytes for tensor in tensors.values()) == pytest.approx(12.3, abs=0.05)


def write(folder, getkey, change):
    """A folder without zeros with something changed in its file."""
    params = init_params(SMALL, getkey())
    kernel = params["encoder"]["layers"][0]["ffn"]["up"]["kernel"]
    params["encoder"]["layers"][0]["ffn"]["up"]["kernel"] = kernel.at[1:].set(0)
    kp.save(folder, params, SMALL, zeros=False)
    file = folder / "model.safetensors"
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors, shapes = load_file(file), {name: "64x32"}
    change(tensors, shapes, name)
    save_file(tensors, file, metadata={"format": "kaprune"} | shapes)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, s, n: t.update({n + ".values": t[n + ".values"][1:]}), "has 64 set bits, but values of shape [63]"),
        (lambda t, s, n: t.update({n + ".bits": t[n + ".bits"][1:]}), "has shape 64x32, which its bits, uint8 [63, 4]"),
        (lambda t, s, n: t.update({n + ".bits": t[n + ".bits"].astype("f4")}), "its bits, float32 [64, 4]"),
        (lambda t, s, n: s.update({n: "9999999999x9999999999"}), "has shape 9999999999x9999999999, which its bits"),
        (lambda t, s, n: s.pop(n), "has shape 'none'; ROWSxCOLUMNS"),
        (lambda t, s, n: t.pop(n + ".bits"), "tensor encoder.layer.0.intermediate.dense.weight is missing"),
        (lambda t, s, n: t.update({n: np.zeros((64, 32), "f4")}), "is there twice"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, getkey, change, words):
    with pytest.raises(InputError, match="model|tensor") as error:
        kp.load(write(tmp_path / "m", getkey, change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_beyond_float16_are_refused(tmp_path, getkey):
    params = init_params(SMALL, getkey())
    params["head"]["bias"] = params["head"]["bias"] + 1e5
    with pytest.raises(InputError, match=r"classifier.bias: values up to 1e\+05, beyond those of float16"):
        kp.save(tmp_path / "m", params, SMALL, dtype="float16", zeros=False)
    assert not any(tmp_path.iterdir())
