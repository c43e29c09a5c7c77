"""Tensors of a model folder: only safetensors are read, never pickles."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kaprune_jax._errors import InputError
from kaprune_jax._reading import inside, read_json
from kaprune_jax.deploy.zeros import BITS, VALUES, put_back

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, one or the shards of its index.

    A shard is a file of the folder itself: its name has no folders in it, and links are followed as `inside` allows.

    Raises:
      InputError: there are none, or they lie elsewhere; a folder with pickled weights only is told apart.
    """
    if (whole := inside(folder, WEIGHTS)).is_file():
        return [whole]
    if (index := inside(folder, _INDEX)).is_file():
        shards = read_json(index).get("weight_map", {})
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise InputError(f"{index}: weight_map must be a JSON object of tensor and file names")
        files = [_shard(folder, name) for name in sorted(set(shards.values()))]
        if files:
            return files
    pickled = sorted(file.name for form in _PICKLES for file in folder.glob(form))
    if pickled:
        raise InputError(
            f"{folder}: weights only as {', '.join(pickled)}; only safetensors are read, since other formats can run "
            f"code: save the model again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: no weights; {WEIGHTS} (or shards with {_INDEX}) is needed")


def _shard(folder: Path, name: str) -> Path:
    index = folder / _INDEX
    if not name.endswith(".safetensors") or set(name) & set("/\\\0") or len(name.encode()) > 255:
        raise InputError(f"{index}: shard {name!r}; the name of a .safetensors file in the same folder is needed")
    if not (file := inside(folder, name)).is_file():
        raise InputError(f"{index}: shard {name} is missing")
    return file


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every floating-point tensor of a folder as float32: float16 and bfloat16 widened, zeros left out put back.

    Raises:
      InputError: a file is no safetensors file or has values beyond float32, or two have a tensor in common.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="flax") as opened, np.errstate(over="raise"):
                names = set(opened.keys())
                for stored in sorted(names):
                    if str(opened.get_slice(stored).get_dtype()) not in ("F32", "F16", "BF16", "F64"):
                        continue
                    name, tensor = stored, np.asarray(opened.get_tensor(stored).astype("float32"))
                    if stored.endswith(VALUES) and stored.removesuffix(VALUES) + BITS in names:
                        name = stored.removesuffix(VALUES)
                        bits, shapes = np.asarray(opened.get_tensor(name + BITS)), opened.metadata() or {}
                        tensor = put_back(tensor, bits, shapes.get(name, "none"), f"{file}: tensor {name!r}")
                    if name != stored and name in names:
                        raise InputError(f"{file}: tensor {name} is there twice, with its zeros and without")
                    if name in tensors:
                        raise InputError(f"{file}: tensor {name} is in another file of the folder too")
                    tensors[name] = tensor
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a readable safetensors file ({error})") from None
        except FloatingPointError:
            raise InputError(f"{file}: has float64 values beyond the range of float32") from None
    return tensors


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weight files, in hexadecimal."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
