import errno
import os
import resource
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kaprune_jax._errors import InputError
from kaprune_jax.train.checkpoint import Checkpoints, _drop_late_answers
from kaprune_jax.train.seals import digest, sealed_steps
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


def test_a_state_that_another_version_nested_differently_is_said_to_be_that(checkpoints):
    ours = state_of(4)
    checkpoints.save(ours._replace(opt_state=(*ours.opt_state, optax.EmptyState())), {})
    with pytest.raises(InputError, match=r"ckpt: step 0 cannot be read \(another version of this program nested"):
        checkpoints.restore(ours)


def save_and_wait(checkpoints, state):
    checkpoints.save(state, {})
    checkpoints.wait()


def lose(file):
    file.unlink()


def shorten(file):
    os.truncate(file, file.stat().st_size // 2)


def alter(file):
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def empty(file):
    file.write_bytes(b"")


def largest_file(checkpoints, step):
    files = [path for path in (checkpoints.folder / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("spoil", [lose, shorten, alter])
def test_a_spoiled_checkpoint_is_said_in_one_line(checkpoints, spoil):
    checkpoints.save(state_of(4), {})
    checkpoints.wait()
    spoil(largest_file(checkpoints, 0))
    with pytest.raises(InputError) as caught:
        checkpoints.restore(state_of(4))
    assert str(caught.value).endswith("ckpt: step 0 cannot be read (a file in it was altered or lost)")


@pytest.mark.parametrize("spoil", [lose, shorten, alter])
def test_a_spoiled_checkpoint_is_passed_over_and_then_replaced(checkpoints, spoil):
    for step in (4, 8):
        checkpoints.save(state_of(4, step), {"at": step})
    checkpoints.wait()
    spoil(largest_file(checkpoints, 8))
    again, said = Checkpoints(checkpoints.folder), []
    state, extra = again.restore(state_of(4), say=said.append)
    assert (int(state.step), extra) == (4, {"at": 4})
    place = checkpoints.folder
    assert said == [f"note: {place}: step 8 is damaged (a file in it was altered or lost); going on from step 4"]
    again.save(state_of(4, 8), {"at": 8, "anew": True})
    again.close()
    again, said = Checkpoints(checkpoints.folder), []
    assert again.restore(state_of(4), say=said.append)[1] == {"at": 8, "anew": True}
    again.close()
    assert said == []
    assert sealed_steps(place) == [4, 8]


def test_a_checkpoint_between_the_good_one_and_the_damaged_one_drops_the_damaged(checkpoints):
    for step in (4, 8):
        checkpoints.save(state_of(4, step), {})
    checkpoints.wait()
    alter(largest_file(checkpoints, 8))
    checkpoints.restore(state_of(4))
    checkpoints.save(state_of(4, 6), {})
    assert checkpoints.latest == 6
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["4", "4.sha256", "6", "6.sha256"]


def test_what_is_sealed_but_cannot_be_read_is_passed_over(checkpoints):
    for step in (4, 8):
        checkpoints.save(state_of(4, step), {})
    checkpoints.wait()
    empty(checkpoints.folder / "8" / "state" / "_METADATA")
    (checkpoints.folder / "8.sha256").write_text(digest(checkpoints.folder / "8"))
    said = []
    assert int(checkpoints.restore(state_of(4), say=said.append)[0].step) == 4
    assert len(said) == 1
    assert "step 8 is damaged (" in said[0]


def test_where_none_is_good_all_are_named(checkpoints):
    for step in (4, 8):
        checkpoints.save(state_of(4, step), {})
    checkpoints.wait()
    alter(largest_file(checkpoints, 4))
    (checkpoints.folder / "8.sha256").unlink()
    with pytest.raises(InputError) as caught:
        checkpoints.restore(state_of(4))
    assert str(caught.value).endswith(
        "ckpt: step 8 cannot be read (its writing was interrupted), "
        "step 4 cannot be read (a file in it was altered or lost)"
    )


def test_a_checkpoint_without_its_digest_is_not_gone_on_from(checkpoints):
    """Its writing was interrupted: the digest comes last."""
    for step in (1, 2):
        checkpoints.save(state_of(4, step), {"a": step})
    checkpoints.wait()
    (checkpoints.folder / "2.sha256").unlink()
    assert (checkpoints.latest, checkpoints.interrupted) == (1, [2])
    assert checkpoints.restore(state_of(4))[1] == {"a": 1}
    (checkpoints.folder / "1.sha256").unlink()
    assert (checkpoints.latest, checkpoints.interrupted) == (None, [1, 2])
    with pytest.raises(InputError, match="its writing was interrupted"):
        checkpoints.restore(state_of(4))


def test_a_digest_is_whole_or_not_there(checkpoints, monkeypatch):
    checkpoints.save(state_of(4, 1), {"a": 1})
    checkpoints.wait()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    checkpoints.save(state_of(4, 2), {"a": 2})
    with pytest.raises(InputError, match=r"ckpt: step 2 cannot be written \(No space left\)"):
        checkpoints.wait()
    monkeypatch.undo()
    assert checkpoints.restore(state_of(4))[1] == {"a": 1}


def test_an_error_while_files_are_written_is_said_by_the_next_save_or_at_the_close(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for late in ("save", "close"):
        checkpoints = Checkpoints(tmp_path / late)
        checkpoints.save(state_of(4, 1), {})
        checkpoints.wait()
        monkeypatch.setattr("kaprune_jax.train.seals.digest", full)
        checkpoints.save(state_of(4, 2), {})
        with pytest.raises(InputError, match=r"step 2 cannot be written \(Input/output error\)"):
            checkpoints.save(state_of(4, 3), {}) if late == "save" else checkpoints.close()
        monkeypatch.undo()
        assert sealed_steps(tmp_path / late) == [1]
        checkpoints.close()


def moving(start):
    params = {f"w{number}": jnp.full((256, 1024), start + number) for number in range(8)}
    return init_state(params, optax.identity(), jax.random.key(0))


def test_what_is_saved_is_the_state_of_the_step_though_the_next_ones_run(checkpoints):
    """The step gives its input's memory away, and what is beside the state goes on growing."""

    def step(state):
        return state._replace(step=state.step + 1, params=jax.tree.map(lambda leaf: leaf + 1, state.params))

    jitted, state, rates = jax.jit(step, donate_argnums=0), moving(0.0), []
    for number in (0, 20, 40):
        checkpoints.save(state, {"rates": rates})
        for _ in range(20):
            state = jitted(state)
            rates.append(1.0)
        found, extra = checkpoints.restore(moving(0.0))
        assert (int(found.step), len(extra["rates"])) == (number, number)
        for name, expected in moving(float(number)).params.items():
            np.testing.assert_array_equal(found.params[name], expected)


def test_what_an_interrupted_writing_left_is_removed(tmp_path):
    left = tmp_path / "ckpt" / "7.orbax-checkpoint-tmp-123"
    left.mkdir(parents=True)
    (left / "part").write_text("half")
    (tmp_path / "ckpt" / ".7.sha256").write_text("half")
    Checkpoints(tmp_path / "ckpt").close()
    assert list((tmp_path / "ckpt").iterdir()) == []


def test_files_of_others_are_left_alone(checkpoints):
    (checkpoints.folder / "notes.sha256").write_text("mine")
    checkpoints.save(state_of(4, 1), {})
    checkpoints.wait()
    assert (checkpoints.folder / "notes.sha256").read_text() == "mine"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_with_their_digests(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "ckpt", keep=keep)
    for step in (2, 8, 9, 10):
        checkpoints.save(state_of(4, step), {})
    checkpoints.close()
    kept = [2, 8, 9, 10][-keep:]
    assert sealed_steps(tmp_path / "ckpt") == kept
    assert {path.name for path in (tmp_path / "ckpt").iterdir()} == {
        f"{step}{end}" for step in kept for end in ("", ".sha256")
    }


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
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        with pytest.raises(InputError, match="File too large"):
            checkpoints.save(state_of(4, 2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest == 1


def test_a_disk_that_fills_up_in_spite_of_the_room_that_was_there(checkpoints, monkeypatch, capfd):
    checkpoints.save(state_of(4, 1), {})
    checkpoints.wait()
    monkeypatch.setattr("kaprune_jax.train.checkpoint._reserve", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        with pytest.raises(InputError, match=r"step 2 cannot be written \(File too large\)"):
            save_and_wait(checkpoints, state_of(4, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest == 1
    checkpoints.close()
    again = Checkpoints(checkpoints.folder)
    save_and_wait(again, state_of(4, 2))
    again.close()
    assert sealed_steps(again.folder) == [1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("message", "shown"), [("Event loop is closed", 0), ("of another kind", 1)])
def test_files_that_report_to_nobody_after_a_failure_print_nothing(tmp_path, monkeypatch, message, shown):
    seen = []
    monkeypatch.setattr("sys.unraisablehook", seen.append)
    _drop_late_answers.__wrapped__()
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))
    assert len(seen) == shown


def test_what_is_not_sealed_is_no_checkpoint(tmp_path):
    for name in ("3", "5", "7.orbax-checkpoint-tmp", "notes"):
        (tmp_path / name).mkdir()
    for name in ("3.sha256", "9.sha256", "7.orbax-checkpoint-tmp.sha256"):
        (tmp_path / name).touch()
    assert sealed_steps(tmp_path) == [3]
    assert sealed_steps(tmp_path / "nowhere") == []
