"""Programs on devices that share the threads of one CPU are waited for."""

import jax
import numpy as np

from kaprune_jax.train.sharding import make_mesh, place
from kaprune_jax.train.turns import in_turn, jit_whole


class Result:
    """What a program gives; knows whether anybody has waited for it."""

    def __init__(self):
        self.waited = False

    def block_until_ready(self):
        self.waited = True
        return self


def test_on_several_devices_of_a_cpu_a_program_is_waited_for():
    assert in_turn(Result, make_mesh("data=2"))().waited


def test_elsewhere_a_program_stays_as_it_is():
    assert in_turn(Result, make_mesh("data=1")) is Result


def test_what_comes_out_is_whole_on_every_device():
    mesh = make_mesh("fsdp=4")
    given = place({"kernel": np.arange(32, dtype=np.float32).reshape(8, 4)}, mesh)
    assert not given["kernel"].sharding.is_fully_replicated
    result = jit_whole(lambda params: params["kernel"] * 2, mesh)(given)
    assert result.sharding.is_fully_replicated
    assert len(result.sharding.device_set) == 4
    np.testing.assert_array_equal(result, 2 * np.asarray(given["kernel"]))
    assert isinstance(jit_whole(lambda x: x, None)(1.0), jax.Array)
