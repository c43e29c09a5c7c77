"""What a training step costs each device of a mesh, from the compiled program: bytes held, bytes sent by collectives.

    python benchmarks/mesh_cost.py --shapes bert-base,bert-large,1b --devices 8,64,256 --for tpu
    python benchmarks/mesh_cost.py --shapes minilm,bert-base,bert-large --devices 1 --for cpu

Student and teacher of the same sizes, SparseBERT's loss (Xu et al., 2021, arXiv:2104.08682), AdamW, magnitude masks at
95 %, dropout, float32 masters, by default bfloat16 activations. Nothing is run and no device is needed: "tpu" compiles
for v5e chips with the libtpu package (`pip install libtpu`), "cpu" for devices that this machine simulates. Each row
of the table is printed as soon as it is there.
"""

import argparse
import os
from typing import Any

TOPOLOGIES = {8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
MESHES = {
    1: ("data=1",),
    8: ("data=8", "fsdp=8"),
    64: ("fsdp=64",),
    256: ("fsdp=256", "data=32,fsdp=8"),
}
HEADER = "| encoder | parameters | devices | mesh | held | temporaries | peak | all-gather | all-reduce | others |"


def devices_of(kind: str, count: int) -> list[Any]:
    """So many devices to compile for."""
    import jax

    if kind == "cpu":
        return jax.devices()[:count]
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(TOPOLOGIES[count], platform="tpu").devices)


def compile_step(shape: str, mesh_text: str, devices: list[Any], *, rows: int, length: int, dtype: str) -> Any:
    """The cost of a step of so many rows per device, and the number of parameters of the student."""
    import jax
    import jax.numpy as jnp
    import optax

    import kaprune_jax as kp
    from kaprune_jax.models.bert import init_params, make_apply
    from kaprune_jax.train.optimizer import adamw
    from kaprune_jax.train.program import CompiledStep
    from kaprune_jax.train.sharding import make_mesh, on_mesh, row_devices
    from kaprune_jax.train.step import init_state, make_train_step
    from shapes import LEARNING_RATE, SHAPES, SPARSITY, make_config

    config, mesh = make_config(SHAPES[shape]), make_mesh(mesh_text, devices)
    apply = on_mesh(make_apply(config, dtype=dtype), mesh)
    pruning = kp.magnitude_pruning(kp.one_shot(SPARSITY, at=1), updates=1, prunable=r"encoder/.*/kernel")
    tx = optax.chain(adamw(LEARNING_RATE), pruning)
    step = make_train_step(apply, tx, kp.sparsebert_loss(), teacher=apply)
    teacher = jax.eval_shape(lambda: init_params(config, jax.random.key(1)))
    state = jax.eval_shape(lambda: init_state(init_params(config, jax.random.key(0)), tx, jax.random.key(2)))
    total = rows * row_devices(mesh)
    tokens = jax.ShapeDtypeStruct((total, length), jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
    batch["labels"] = jax.ShapeDtypeStruct((total,), jnp.int32)
    program = CompiledStep(step, mesh)
    program.compile(state, teacher, batch)
    return program.costs[-1], sum(leaf.size for leaf in jax.tree.leaves(teacher))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shapes", default="bert-base,bert-large,1b", help="encoders, comma-separated")
    parser.add_argument("--devices", default="8,64,256", help="comma-separated; on a CPU also 1")
    parser.add_argument("--for", dest="kind", choices=("tpu", "cpu"), default="tpu", help="what to compile for")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch per device that divides rows")
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of activations")
    given = parser.parse_args()
    counts = [int(count) for count in given.devices.split(",")]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(max(counts))}  # products are as on so many
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_ID": "0"}
    os.environ.update(environment | {"TPU_WORKER_HOSTNAMES": "localhost"})
    what = "v5e chips" if given.kind == "tpu" else "simulated CPU devices"
    print(f"MB per device, compiled for {what}; {given.rows} rows of {given.length} tokens each, {given.dtype}\n")
    print(HEADER + "\n" + "| --- " * HEADER.count(" | ") + "| --- |", flush=True)
    for shape in given.shapes.split(","):
        for count in counts:
            for mesh in MESHES[count]:
                devices = devices_of(given.kind, count)
                try:
                    cost, size = compile_step(
                        shape, mesh, devices, rows=given.rows, length=given.length, dtype=given.dtype
                    )
                except Exception as error:  # what does not fit the memory of a chip is refused by the compiler
                    print(f"| {shape} | | {count} | {mesh} | {str(error).splitlines()[0][:200]} |", flush=True)
                    continue
                sent = dict(cost.collectives)
                parts = [cost.arguments, cost.temporaries, cost.peak, sent.pop("all-gather", 0)]
                parts += [sent.pop("all-reduce", 0), sum(sent.values())]
                figures = " | ".join(f"{part / 1e6:,.0f}" for part in parts)
                print(f"| {shape} | {size / 1e6:,.0f} M | {count} | {mesh} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
