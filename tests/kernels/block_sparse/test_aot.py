"""The kernels compiled for hardware that is not here, by the compilers in `libtpu` and JAX's CUDA 13 plugin.

Opt-in, `python -m pytest -m aot`; each is skipped where its wheels are missing: `libtpu` of the version that `jax[tpu]`
names; `jax-cuda13-plugin`, `jax-cuda13-pjrt`, `nvidia-cuda-nvcc` and `nvidia-cuda-runtime`, with ptxas on PATH. Each
runs in a process of its own, since a process has one set of compilers.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

COMMON = """
import functools, os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
import kaprune_jax as kp
from kaprune_jax.kernels.block_sparse import api

def compile_all(device, backend):
    api._missing = lambda *_, **__: None
    place = SingleDeviceSharding(device)
    like = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
    random = np.random.default_rng(0)
    for bk in (16, 32, 64):
        for density in (0.05, 0.2):
            grid = random.random((768 // bk, 24)) < density
            mask = np.repeat(np.repeat(grid, bk, 0), 128, 1)
            up = kp.pack(mask.astype(np.float32), mask, block=(bk, 128), dtype=jnp.bfloat16)
            down = kp.pack(np.ascontiguousarray(mask.T).astype(np.float32), block=(bk, 128), dtype=jnp.bfloat16)
            x = jnp.zeros((768, 1024), jnp.bfloat16)
            for activation in (None, "gelu", "gelu_tanh", "relu"):
                single = functools.partial(api.matmul_features_major, activation=activation, backend=backend)
                jax.jit(single).lower(like(x), like(up), like(jnp.zeros(3072))).compile()
            both = functools.partial(api.ffn_features_major, backend=backend)
            weights = like((up, down, jnp.zeros(3072), jnp.zeros(768)))
            jax.jit(both).lower(like(x), *weights, like(x)).compile()
            print("compiled", backend, device.device_kind, bk, density, flush=True)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(code)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.aot
@pytest.mark.parametrize(("topology", "kind"), [("v5e:2x2", "v5litepod-4"), ("v6e:2x2", "v6e-4")])
def test_tpu(topology, kind):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    out = run(
        f"compile_all(topologies.get_topology_desc({topology!r}, platform='tpu').devices[0], 'tpu')",
        TPU_ACCELERATOR_TYPE=kind,
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
    )
    print(out)
    assert out.count("compiled") == 6


@pytest.mark.aot
def test_hopper():
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("the CUDA 13 plugin of JAX is not installed")
    out = run(
        """
        config = '''gpu_device_info {
          threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
          shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
          core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
          block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
          device_memory_size: 150000000000 registers_per_core_limit: 65536 registers_per_block_limit: 65536
          cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
        } platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200"'''
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h", topology="1x1x1", target_config=config
        )
        compile_all(topology.devices[0], "mosaic_gpu")
        """
    )
    print(out)
    assert out.count("compiled") == 6
