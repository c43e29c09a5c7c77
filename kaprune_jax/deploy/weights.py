"""Tensors of a model folder: only safetensors are read, never pickles."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kaprune_jax._errors import InputError

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, one or the shards of its index.

    Raises:
      InputError: there are none; a folder with pickled weights only is told apart.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map", {})
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise InputError(f"{folder / _INDEX}: weight_map must be a JSON object of tensor and file names")
        files = [folder / name for name in sorted(set(shards.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{folder / _INDEX}: shard {file.name} is missing")
        if files:
            return files
    pickled = sorted(file.name for form in _PICKLES for file in folder.glob(form))
    if pickled:
        raise InputError(
            f"{folder}: weights only as {', '.join(pickled)}; only safetensors are read, since other formats can run "
            f"code: save the model again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: no weights; {WEIGHTS} (or shards with {_INDEX}) is needed")


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every floating-point tensor of a folder as float32; float16 and bfloat16 files are widened."""
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="flax") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if str(opened.get_slice(name).get_dtype()) in ("F32", "F16", "BF16", "F64"):
                        tensors[name] = np.asarray(opened.get_tensor(name).astype("float32"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a readable safetensors file ({error})") from None
    return tensors


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weight files, in hexadecimal."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def read_json(file: Path) -> dict:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing, not UTF-8, or holds no JSON object.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: line {error.lineno}: not JSON ({error.msg})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: a JSON object is needed, not {type(value).__name__}")
    return value
