import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.train.checkpoint import Checkpoints
from kaprune_jax.train.step import init_state


def state_of(width, step=0):
    params = {"w": jnp.arange(float(width)), "b": jnp.zeros(2)}
    return init_state(params, optax.adam(0.1), jax.random.key(3))._replace(step=jnp.int32(step))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "ckpt")
    yield made
    made.close()


def test_gives_back_the_newest_state_and_what_was_beside_it(checkpoints):
    for step in (0, 5):
        checkpoints.save(state_of(4, step), {"best": {"score": 0.5, "step": step}})
    assert checkpoints.latest == 5
    state, extra = checkpoints.restore(state_of(4))
    assert extra == {"best": {"score": 0.5, "step": 5}}
    assert int(state.step) == 5
    np.testing.assert_array_equal(state.params["w"], np.arange(4.0))
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(3)))


def test_a_state_of_another_shape_is_not_taken_for_this_one(checkpoints):
    checkpoints.save(state_of(4), {})
    with pytest.raises(
        InputError, match=r"ckpt: step 0 does not fit this run: params/w is float32\[4\], this run's float32\[5\]"
    ):
        checkpoints.restore(state_of(5))


def test_a_checkpoint_with_a_lost_file_is_said_in_one_line(checkpoints):
    checkpoints.save(state_of(4), {})
    for file in (checkpoints.folder / "0").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.unlink()
    with pytest.raises(InputError, match="step 0 cannot be read") as caught:
        checkpoints.restore(state_of(4))
    assert "\n" not in str(caught.value)


def test_nothing_to_go_on_from(checkpoints):
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore(state_of(4))


def test_a_full_disk_is_seen_before_anything_is_written(checkpoints, monkeypatch):
    checkpoints.save(state_of(4, 1), {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 20}))
    with pytest.raises(InputError, match=r"step 2 cannot be written \(0\.0 MB are needed, 0\.0 MB free\)"):
        checkpoints.save(state_of(4, 2), {})
    assert checkpoints.latest == 1
