"""Programs in turn, where devices that are one CPU in truth could otherwise wait for each other for ever."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def in_turn(program: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A program that is waited for, where the devices of a mesh share a CPU's threads; elsewhere the program itself.

    There each device that waits for others holds a thread. Two programs in flight neither of which needs what the other
    gives can each hold threads that the other's devices lack.
    """
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return program
    return lambda *arguments: jax.block_until_ready(program(*arguments))


def jit_whole(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """A jitted function whose result lies whole on every device of a mesh; its calls need not depend on one another."""
    if mesh is None:
        return jax.jit(function)
    return in_turn(jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec())), mesh)
