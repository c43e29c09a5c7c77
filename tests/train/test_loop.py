import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kaprune_jax as kp
from kaprune_jax.train.checkpoint import Checkpoints
from kaprune_jax.train.loop import Diverged, Hooks, Interrupted, fit
from kaprune_jax.train.step import StepMetrics, TrainState, init_state


class Numbers:
    """Batch n is the number n."""

    batch_size = 4

    def __getitem__(self, step):
        return {"x": np.float32(step)}


def pieces():
    tx = optax.chain(optax.adam(0.1), kp.magnitude_pruning(kp.cubic(0.5, end=8), every=1, prunable="w"))
    params = {"w": jnp.arange(1.0, 9.0), "b": jnp.ones(2)}

    def step(state, _, batch):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (8,))
        grads = {"w": noise + batch["x"], "b": jnp.ones(2)}
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = batch["x"]
        return TrainState(state.step + 1, params, opt_state, state.key), StepMetrics(loss, {"x": loss}, loss, loss)

    return jax.jit(step), init_state(params, tx, jax.random.key(0))


def hooks(logs, evals, **more):
    return Hooks(logs.append, lambda state: evals.append(int(state.step)), **more)


def test_logs_means_and_evaluates_at_the_end():
    step, state = pieces()
    logs, evals = [], []
    state = fit(step, state, Numbers(), steps=10, hooks=hooks(logs, evals), log_every=4, eval_every=5)
    assert [record.step for record in logs] == [4, 5, 8, 10]
    assert [record.loss for record in logs] == [1.5, 4.0, 6.0, 8.5]
    assert evals == [5, 10]
    assert int(state.step) == 10
    assert logs[0].remaining > 0 == logs[-1].remaining


def test_a_state_is_kept_after_a_log_when_it_is_due_but_not_where_an_evaluation_follows():
    step, state = pieces()
    logs, evals, kept = [], [], []
    due = iter([False, True, True, False])
    own = hooks(logs, evals, is_due=lambda: next(due), on_keep=lambda state: kept.append(int(state.step)))
    fit(step, state, Numbers(), steps=12, hooks=own, log_every=2, eval_every=6)
    assert [record.step for record in logs] == [2, 4, 6, 8, 10, 12]
    assert evals == [6, 12]
    assert kept == [4, 8]
    assert next(due, None) is None


def test_a_state_that_is_not_finite_is_not_kept():
    step, state = pieces()

    def breaks(state, teacher, batch):
        state, metrics = step(state, teacher, batch)
        return state._replace(params=state.params | {"b": jnp.array([1.0, jnp.nan])}), metrics

    kept = []
    own = hooks([], [], is_due=lambda: True, on_keep=kept.append)
    with pytest.raises(Diverged, match="step 2"):
        fit(breaks, state, Numbers(), steps=12, hooks=own, log_every=2, eval_every=6)
    assert kept == []


def test_what_is_left_does_not_count_the_seconds_of_compiling(monkeypatch):
    step, state = pieces()
    now, compiled = [0.0], [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def slow_first(state, teacher, batch):
        now[0] += 1.0
        if not compiled[0]:
            now[0] += 60.0
            compiled[0] += 60.0
        return step(state, teacher, batch)

    logs, evals = [], []
    own = hooks(logs, evals, aside=lambda: compiled[0])
    fit(slow_first, state, Numbers(), steps=10, hooks=own, log_every=4, eval_every=5)
    assert [(record.remaining, record.examples_per_second) for record in logs] == [(6, 4), (5, 4), (2, 4), (0, 4)]


def test_only_a_few_steps_wait_for_the_device():
    state = pieces()[1]
    done, ahead = [], []

    class Late:
        """A loss that is there once somebody waits for it."""

        def __init__(self, number):
            self.number = number

        def block_until_ready(self):
            done.append(self.number)
            return self

        def __array__(self, *_, **__):
            return np.asarray(self.block_until_ready().number, np.float32)

    def step(state, _, batch):
        ahead.append(int(batch["x"]) - max(done, default=0))
        return state, StepMetrics(Late(int(batch["x"]) + 1), {}, 0.0, 0.0)

    fit(step, state, Numbers(), steps=20, hooks=hooks([], []), log_every=10, eval_every=20)
    assert ahead == [0, 1, 2, 3] + [3] * 6 + [0, 1, 2, 3] + [3] * 6


def test_stops_at_the_first_loss_that_is_not_finite_without_an_evaluation():
    step, state = pieces()

    class Bad(Numbers):
        def __getitem__(self, number):
            return {"x": np.float32(np.nan if number == 6 else 1)}

    logs, evals = [], []
    with pytest.raises(Diverged, match="loss is nan at step 7"):
        fit(step, state, Bad(), steps=10, hooks=hooks(logs, evals), log_every=4, eval_every=8)
    assert evals == []


def test_a_gradient_whose_squares_overflow_is_seen_though_the_loss_is_finite():
    """Clipped by an infinite norm it would be zero, and the step would pass for a good one."""
    step, state = pieces()

    def overflows(state, teacher, batch):
        state, metrics = step(state, teacher, batch)
        return state, metrics._replace(grad_square=jnp.where(state.step == 3, jnp.inf, 1.0))

    logs, evals = [], []
    with pytest.raises(Diverged, match="the squared norm of the gradient is inf at step 3"):
        fit(overflows, state, Numbers(), steps=10, hooks=hooks(logs, evals), log_every=4, eval_every=5)
    assert (logs, evals) == ([], [])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_a_parameter_that_is_not_finite_is_never_evaluated(name, value):
    """A loss tells only of the parameters before its own update."""
    step, state = pieces()

    def breaks(state, teacher, batch):
        state, metrics = step(state, teacher, batch)
        broken = state.params | {name: state.params[name].at[1].set(jnp.where(state.step == 5, value, 1.0))}
        return state._replace(params=broken), metrics

    logs, evals = [], []
    with pytest.raises(Diverged, match="step 5"):
        fit(breaks, state, Numbers(), steps=10, hooks=hooks(logs, evals), log_every=50, eval_every=5)
    assert (logs, evals) == ([], [])


def test_killed_and_resumed_is_bit_identical(tmp_path):
    step, state = pieces()
    whole = fit(step, state, Numbers(), steps=10, hooks=hooks([], []))
    saved = Checkpoints(tmp_path / "ckpt")
    asked = iter([False] * 4 + [True])
    pausing = hooks([], [], on_keep=lambda s: saved.save(s, {"best": {}}), should_stop=lambda: next(asked))
    with pytest.raises(Interrupted, match="step 5 of 10"):
        fit(step, pieces()[1], Numbers(), steps=10, hooks=pausing)
    saved.close()
    again = Checkpoints(tmp_path / "ckpt")
    restored, extra = again.restore(pieces()[1])
    again.close()
    assert extra == {"best": {}}
    assert int(restored.step) == 5
    resumed = fit(step, restored, Numbers(), steps=10, hooks=hooks([], []))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_the_newest_checkpoints_are_kept(tmp_path):
    _, state = pieces()
    saved = Checkpoints(tmp_path / "ckpt")
    for number in (1, 2, 3, 3):
        saved.save(state._replace(step=jnp.int32(number)), {})
    assert saved.latest == 3
    saved.close()
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir() if path.name.isdigit()) == ["2", "3"]


def test_a_checkpoint_that_is_missing_or_does_not_fit_is_said(tmp_path):
    from kaprune_jax._errors import InputError

    _, state = pieces()
    saved = Checkpoints(tmp_path / "ckpt")
    with pytest.raises(InputError, match="no checkpoint"):
        saved.restore(state)
    saved.save(state, {})
    with pytest.raises(InputError, match="does not fit this run"):
        saved.restore(state._replace(params={"w": jnp.zeros(3)}))
    saved.close()
