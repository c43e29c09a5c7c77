"""Where the arrays of a training step lie on a mesh of devices.

Three axes: "data" and "fsdp" divide the rows of a batch; "fsdp" divides the parameters too, and all that is kept
beside them (ZeRO stage 3: Rajbhandari et al., 2020, arXiv:1910.02054); "model" divides the matrices of a layer, the
first of a pair on its outputs and the second on its inputs (Megatron-LM: Shoeybi et al., 2019, arXiv:1909.08053).
What an axis does not divide stays whole on each of its devices. No result depends on the mesh but for rounding:
dropout and gates are drawn by position in the whole batch or model.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kaprune_jax._errors import InputError
from kaprune_jax._tree import path_string
from kaprune_jax._typing import Params
from kaprune_jax.train.loop import Batches

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")
"""The axes that divide the rows of a batch."""


class Rule(NamedTuple):
    """How arrays whose path ends like this are divided; the first rule that fits counts.

    Attributes:
      ending: regular expression of the end of a path, whole names.
      model: dimensions for "model" to divide, the first that it can; none where it leaves the array whole.
      fsdp: whether "fsdp" divides what remains.
    """

    ending: str
    model: tuple[int, ...] = ()
    fsdp: bool = True


RULES = (
    Rule(r"(gates|duals|projection)/\w+", fsdp=False),
    Rule(r"(query|key|value|up)/kernel", (1,)),
    Rule(r"(query|key|value|up)/bias", (0,)),
    Rule(r"(attention/output|ffn/down)/kernel", (0,)),
    Rule(r"word/embedding", (0, 1)),
)
"""A mask, a moment or another companion of a parameter has the end of its path, and so its sharding."""


def parse_mesh(text: str) -> dict[str, int]:
    """Reads "data=4,model=2" into devices by axis; an axis that is absent has one.

    Raises:
      InputError: an unknown axis, one named twice, or no whole number >= 1.

    Example:
      >>> parse_mesh("data=4,model=2")
      {'data': 4, 'fsdp': 1, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in AXES or name in sizes or not re.fullmatch(r"0*[1-9]\d*", number, re.ASCII):
            raise InputError(
                f"mesh {text!r}: {part!r} is not AXIS=NUMBER with an axis of {', '.join(AXES)}, each at most once, and "
                "a whole number >= 1"
            )
        sizes[name] = int(number)
    return {name: sizes.get(name, 1) for name in AXES}


def mesh_text(sizes: Mapping[str, int]) -> str:
    """What `parse_mesh` reads: the axes of more than one device, "data=1" where there are none."""
    return ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "data=1"


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a text over the first devices there are; with several processes over all of them.

    Args:
      text: as `parse_mesh` reads it.
      devices: others than `jax.devices()`, such as those of a `jax.experimental.topologies` description.

    Raises:
      InputError: it is malformed, or has more devices than there are, or leaves out some of another process.
    """
    sizes = parse_mesh(text)
    count, devices = math.prod(sizes.values()), jax.devices() if devices is None else devices
    if count > len(devices):
        kind = devices[0].platform
        raise InputError(
            f"mesh {text!r} has {count} devices; allowed are at most the {len(devices)} there are ({kind})"
        )
    if jax.process_count() > 1 and count < len(devices):
        raise InputError(
            f"mesh {text!r} has {count} devices; of {jax.process_count()} processes all {len(devices)} are needed"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices[:count])


def default_mesh(batch_size: int) -> str:
    """All accelerators on "data", as many of them as divide the rows; of CPUs one, since they are one in truth.

    With several processes all devices, whatever they are.
    """
    if jax.process_count() > 1:
        return f"data={jax.device_count()}"
    if jax.default_backend() == "cpu":
        return "data=1"
    return f"data={max(count for count in range(1, jax.device_count() + 1) if batch_size % count == 0)}"


def row_devices(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[name] for name in ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _partition(path: str, shape: tuple[int, ...], mesh: Mesh, *, gathered: bool = False) -> PartitionSpec:
    """Which axis divides which dimension of an array; `gathered`: as computed with, without "fsdp"."""
    rule = next((rule for rule in RULES if re.search(rf"(^|/)({rule.ending})$", path)), Rule(""))
    axes: list[str | None] = [None] * len(shape)
    wishes = {"model": [place for place in rule.model if place < len(shape)]}
    if rule.fsdp and not gathered and len(shape) > 1:  # vectors are too small to be worth a gather each
        wishes["fsdp"] = sorted(range(len(shape)), key=lambda place: -shape[place])
    for name, dimensions in wishes.items():
        size = mesh.shape[name]
        fitting = [place for place in dimensions if axes[place] is None and shape[place] % size == 0]
        if size > 1 and fitting:
            axes[fitting[0]] = name
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: Mesh, *, gathered: bool = False) -> Any:
    """The sharding of every array of a train state, of parameters, or of anything with their paths in its own.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s; scalars and random keys stay whole.
      mesh: of `make_mesh`.
      gathered: as the forward pass has them, not divided by "fsdp".
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _partition(path_string(path), np.shape(leaf), mesh, gathered=gathered))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def on_mesh(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A forward pass whose parameters are gathered over "fsdp" where they are used, and whose rows stay divided.

    Args:
      apply: of `kaprune_jax.models.bert.make_apply`, or of its kind.
      mesh: of `make_mesh`; of one device, nothing is to be done.
    """
    if mesh.size == 1:
        return apply

    def keep_rows(array: Any) -> Any:
        if array.shape[0] % row_devices(mesh):
            return array
        free = (PartitionSpec.UNCONSTRAINED,) * (array.ndim - 1)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(ROWS, *free)))

    def applied(params: Params, *inputs: Any, **options: Any) -> Any:
        whole = jax.lax.with_sharding_constraint(params, shardings(params, mesh, gathered=True))
        return jax.tree.map(keep_rows, apply(whole, *inputs, **options))

    return applied


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a batch, or of several: its rows divided, or whole where they cannot be."""

    def sharding(leaf: Any) -> NamedSharding:
        divides = len(leaf.shape) > 0 and leaf.shape[0] % row_devices(mesh) == 0
        return NamedSharding(mesh, PartitionSpec(ROWS)) if divides else replicated(mesh)

    return jax.tree.map(sharding, batch)


def place(tree: Any, mesh: Mesh) -> Any:
    """A train state or parameters on the devices of a mesh; every process has the whole of it before."""
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """The arrays of a batch, or of several, with their rows divided; whole, where their number does not allow it.

    Every process has the batch, and puts on its own devices the rows that are theirs.
    """

    return jax.tree.map(_put, batch, batch_shardings(batch, mesh))


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def fetch(tree: Any) -> Any:
    """The whole of every array on the host of every process; all of them have to call it."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            assert isinstance(leaf.sharding, NamedSharding)
            leaf = jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


class MeshBatches:
    """Batches by step number, on the devices of a mesh."""

    def __init__(self, batches: Batches, mesh: Mesh):
        self.batches, self.mesh, self.batch_size = batches, mesh, batches.batch_size

    def __getitem__(self, step: int) -> Mapping[str, Any]:
        """The batch of a step, counted from 0."""
        return place_batch(self.batches[step], self.mesh)
