"""Masks: their shapes are those of their bits, and of their model."""

import numpy as np
import pytest
import readers
from safetensors.numpy import save_file

import kaprune_jax as kp
from kaprune_jax.deploy.expand import expand


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        ("60000x60000", np.zeros(4, np.uint8)),
        ("100000000x100000000", np.zeros(4, np.uint8)),
        ("axb", np.zeros(4, np.uint8)),
        ("-1x-8", np.zeros(4, np.uint8)),
        ("-4x-8", np.zeros(4, np.uint8)),
        ("0x5", np.zeros(0, np.uint8)),
        ("32", np.zeros(4, np.uint8)),
        ("4x4x2", np.zeros(4, np.uint8)),
        ("4x9", np.zeros(4, np.uint8)),
        ("4x4", np.zeros(4, np.uint8)),
        ("4x8", np.zeros((2, 2), np.uint8)),
        ("4x8", np.zeros(4, np.float32)),
        ("4x8", np.zeros(4, np.int8)),
        ("٤x٨", np.zeros(4, np.uint8)),
        ("9" * 5000 + "x1", np.zeros(4, np.uint8)),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else str(value.dtype),
)
def test_masks_whose_shape_is_not_that_of_their_bits(tmp_path, refused, shape, bits):
    readers.write_mask(tmp_path, shape, bits)
    said = refused(readers.read_all_masks, tmp_path)
    assert f"{tmp_path / 'masks.safetensors'}: mask 'encoder/x/kernel' has shape " in said


def test_a_mask_without_a_shape(tmp_path, refused):
    save_file({"k": np.zeros(4, np.uint8)}, tmp_path / "masks.safetensors")
    assert "mask 'k' has shape 'none'" in refused(readers.read_all_masks, tmp_path)


def test_masks_of_another_model(tmp_path, refused):
    folder = readers.model(tmp_path)
    readers.masks(tmp_path)
    shape = {"heads": [0, 1, 2, 3], "ffn": 64}
    readers.change_json(folder / "config.json", kaprune={"head_size": 8, "layers": [shape] * 3})
    said = refused(lambda: expand(kp.load(folder)), seconds=60, mebibytes=256)
    assert "masks.safetensors: keeps 16 hidden dimensions" in said
