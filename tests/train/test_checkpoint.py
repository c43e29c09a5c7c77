import errno
import os
import resource

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


def lose(file):
    file.unlink()


def shorten(file):
    os.truncate(file, file.stat().st_size // 2)


def alter(file):
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


@pytest.mark.parametrize("spoil", [lose, shorten, alter])
def test_a_spoiled_checkpoint_is_said_in_one_line(checkpoints, spoil):
    checkpoints.save(state_of(4), {})
    largest = max((checkpoints.folder / "0").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)
    spoil(largest)
    with pytest.raises(InputError) as caught:
        checkpoints.restore(state_of(4))
    assert str(caught.value).endswith("ckpt: step 0 cannot be read (a file in it was altered or lost)")


def test_a_checkpoint_without_its_digest_is_read(checkpoints):
    checkpoints.save(state_of(4), {"a": 1})
    (checkpoints.folder / "0.sha256").unlink()
    assert checkpoints.restore(state_of(4))[1] == {"a": 1}


def test_a_digest_is_whole_or_not_there(checkpoints, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        checkpoints.save(state_of(4, 1), {"a": 1})
    monkeypatch.undo()
    assert checkpoints.restore(state_of(4))[1] == {"a": 1}


def test_files_of_others_are_left_alone(checkpoints):
    (checkpoints.folder / "notes.sha256").write_text("mine")
    checkpoints.save(state_of(4, 1), {})
    assert (checkpoints.folder / "notes.sha256").read_text() == "mine"


def test_digests_go_with_their_checkpoints(checkpoints):
    for step in range(3):
        checkpoints.save(state_of(4, step), {})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["2", "2.sha256"]


def test_nothing_to_go_on_from(checkpoints):
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore(state_of(4))


def test_a_full_disk_is_seen_before_anything_is_written(checkpoints, monkeypatch):
    checkpoints.save(state_of(4, 1), {})

    def full(file, start, size):
        assert (start, size) == (0, 4 * (3 * 6 + 2) + 8)  # parameters and two moments; two counts; the key
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match=r"step 2 cannot be written \(0\.0 MB: Disk quota exceeded\)"):
        checkpoints.save(state_of(4, 2), {})
    assert checkpoints.latest == 1
    assert sorted(file.name for file in checkpoints.folder.iterdir()) == ["1", "1.sha256"]


def test_a_file_system_that_cannot_reserve_room_is_written_to(checkpoints, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.posix_fallocate", cannot)
    checkpoints.save(state_of(4, 1), {})
    assert checkpoints.latest == 1


def test_a_limit_on_the_size_of_files_is_seen_before_anything_is_written(checkpoints):
    checkpoints.save(state_of(4, 1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        with pytest.raises(InputError, match="File too large"):
            checkpoints.save(state_of(4, 2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest == 1
