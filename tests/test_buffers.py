"""Replay rows in an environment where every number is known."""

import pickle

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.callbacks import StopAt
from tests.support.helpers import counter_envs, counter_model
from tests.support.replay import check_buffer, check_windows, fill, plain_buffer, stream


def test_rows_and_windows_across_wrap_around():
    model = counter_model(buffer_size=3 * 40)
    model.learn(3 * 25)
    buffer = model.replay_buffer
    assert not buffer.full and (buffer.counts == [25 + 4, 25 + 3, 25 + 2]).all()
    assert buffer.pos == 29 and buffer.size() == 27
    check_windows(buffer)
    model.learn(3 * 75, reset_num_timesteps=False)
    # 100 steps make 100 rows, plus one first row per episode: 15, 10 and 8 episodes.
    assert (buffer.counts == [115, 110, 108]).all()
    assert buffer.full and buffer.size() == 40 and buffer.observations.shape == (40, 3, 3)
    assert check_buffer(buffer) == [[], [], []]
    check_windows(buffer)


def test_second_learn_and_set_env_abandon_episodes():
    model = counter_model()
    model.learn(3 * 10)
    model.learn(3 * 10)  # resets the environments
    buffer = model.replay_buffer
    # Rows of the first ten steps: 10 + 2, 10 + 1, 10 + 1. The last one of each is cut.
    assert check_buffer(buffer) == [[11], [10], [10]]
    model.set_env(counter_envs(offset=50))
    model.learn(3 * 10, reset_num_timesteps=False)
    assert [cuts[0] for cuts in check_buffer(buffer)] == [11, 10, 10]
    assert [len(cuts) for cuts in check_buffer(buffer)] == [2, 2, 2]
    assert stream(buffer, 0)["observations"][-1, 0] >= 50
    check_windows(buffer)


def test_early_stop_loses_nothing():
    model = counter_model()
    model.learn(3 * 30, callback=StopAt(9))
    assert model.num_timesteps == 27
    buffer = model.replay_buffer
    assert (buffer.counts == [9 + 2, 9 + 1, 9 + 1]).all()  # the transition at which the callback stopped is there
    model.learn(3 * 21, reset_num_timesteps=False)
    assert check_buffer(buffer) == [[], [], []]  # no gap, no abandoned episode
    assert stream(buffer, 2)["observations"][10:12, 1].tolist() == [10, 11]
    check_windows(buffer)


@pytest.mark.parametrize("where", ["callback", "env", "train"])
def test_interrupt_then_learn(where, monkeypatch):
    model = counter_model()
    model.learn(3 * 15)
    before = model.replay_buffer.counts.copy()
    if where == "callback":
        with pytest.raises(KeyboardInterrupt):
            model.learn(3 * 15, callback=StopAt(5, KeyboardInterrupt), reset_num_timesteps=False)
    else:
        with monkeypatch.context() as patch:
            calls = []
            target, name = (model.env.envs[1].unwrapped, "step") if where == "env" else (DreamerLoss, "draw_noise")
            right = getattr(target, name)

            def interrupted(*args):
                calls.append(args)
                if len(calls) == 5:
                    raise KeyboardInterrupt
                return right(*args)

            patch.setattr(target, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.learn(3 * 1500, reset_num_timesteps=False)
    assert (model.replay_buffer.counts >= before).all()
    model.learn(3 * 15, reset_num_timesteps=False)
    cuts = check_buffer(model.replay_buffer)
    if where == "train":
        assert cuts == [[], [], []]  # the environments are in the state of the newest rows
    else:
        assert all(len(cut) <= 1 for cut in cuts) and any(cuts)
    check_windows(model.replay_buffer)


@pytest.mark.filterwarnings("ignore:The model has made:UserWarning")
def test_loading_a_buffer_opens_an_episode(tmp_path):
    """The environments do not continue the episodes of the loaded rows."""
    model = counter_model()
    model.learn(3 * 15)
    model.save_replay_buffer(tmp_path / "buffer")
    model.learn(3 * 16, reset_num_timesteps=False)
    model.load_replay_buffer(tmp_path / "buffer")
    counts = model.replay_buffer.counts.copy()
    model.learn(3 * 2, reset_num_timesteps=False)
    for env in range(3):
        rows = stream(model.replay_buffer, env)
        assert rows["is_first"][counts[env]] and (rows["dones"] & ~rows["is_first"])[counts[env] - 1]
        # Not the environment's first observation, but the first that the model sees.
        episode, step, _ = rows["observations"][counts[env] :].astype(int).T
        assert (rows["rewards"][counts[env] + 1 :] == (1000 * episode + step)[1:] * (step[1:] > 0)).all()


def replayed_latents(model, env: int, noise: list[np.ndarray]) -> LatentState:
    """Run ``observe`` over all rows of one environment with the noise used for acting."""
    rows, policy = stream(model.replay_buffer, env), model.policy
    n = len(rows["rewards"])
    used = np.zeros((n, policy.size.stoch), np.float32)
    acted = np.flatnonzero(~rows["dones"] & (np.arange(n) < n - 1))
    used[acted] = [step[env] for step in noise]
    actions = encode_actions(th.as_tensor(rows["actions"])[None], policy.action_space)
    observations = th.as_tensor(rows["observations"])[None]
    with th.no_grad():
        embed = policy.world_model.encode(observations)
        initial = policy.world_model.rssm.initial(1)
        is_first = th.as_tensor(rows["is_first"])[None]
        states, _ = policy.world_model.rssm.observe(embed, actions, is_first, initial, th.as_tensor(used)[None])
    return LatentState(states.deter[0], states.stoch[0])


def check_latents(model, noise) -> None:
    for env in range(3):
        rows, states = stream(model.replay_buffer, env), replayed_latents(model, env, noise)
        known = rows["has_latent"]
        assert (known == ~rows["dones"])[:-1].all()  # every row from which an action was taken
        np.testing.assert_allclose(rows["deter"][known], states.deter.numpy()[known], atol=1e-3)
        np.testing.assert_array_equal(rows["stoch"][known], states.stoch.argmax(-1).numpy()[known])


def test_stored_latents_are_those_of_observe(monkeypatch):
    noise = []
    right = DreamerPolicy.step

    def step(self, observations, state, episode_start, deterministic=False, noise_=None):
        noise.append(np.random.default_rng(len(noise)).random((3, self.size.stoch), np.float32))
        return right(self, observations, state, episode_start, deterministic, th.as_tensor(noise[-1]))

    monkeypatch.setattr(DreamerPolicy, "step", step)
    model = counter_model(learning_starts=60)  # random actions at first, then the policy's
    monkeypatch.setattr(model, "train", lambda **kwargs: None)  # no update, nothing written back
    model.learn(3 * 40, callback=StopAt(30))
    model.learn(3 * 15, reset_num_timesteps=False)
    check_latents(model, noise)
    buffer = model.replay_buffer
    buffer.deter, buffer.stoch = np.roll(buffer.deter, 1, axis=0), np.roll(buffer.stoch, 1, axis=0)
    with pytest.raises(AssertionError):
        check_latents(model, noise)


def test_latents_are_written_back():
    model = counter_model(training_ratio=32)
    written = []
    right = model.replay_buffer.update_latents
    model.replay_buffer.update_latents = lambda indices, latents: (written.append((indices, latents)), right(indices, latents))
    model.learn(3 * 20)
    indices, latents = next(item for item in reversed(written) if item[0].steps.shape == (4, 8))
    del model.replay_buffer.update_latents
    buffer = model.replay_buffer
    where = indices.steps % buffer.buffer_size, indices.envs[:, None]
    # Windows of a batch may overlap and the last write wins, so compare only rows that occur once.
    flat = indices.steps * 3 + indices.envs[:, None]
    once = np.isin(flat, [value for value, count in zip(*np.unique(flat, return_counts=True), strict=True) if count == 1])
    assert once.any() and latents.deter.std() > 1e-3
    np.testing.assert_allclose(buffer.deter[where][once], latents.deter.detach().numpy()[once], atol=1e-3)
    np.testing.assert_array_equal(buffer.stoch[where][once], latents.stoch.argmax(-1).numpy()[once])


def test_evicted_rows_get_no_latents():
    buffer = plain_buffer(buffer_size=20)
    fill(buffer, 9)  # ten rows each
    indices = buffer.sample(6).indices
    fill(buffer, 3, start=9)  # overwrites the first three rows
    ones = LatentState(th.ones(6, 4, 8), th.nn.functional.one_hot(th.full((6, 4, 2), 3), 4).float())
    buffer.update_latents(indices, ones)
    for env in range(2):
        steps = set(indices.steps[indices.envs == env].ravel())
        for row in range(10):
            step = row + 10 if row < 3 else row
            assert buffer.has_latent[row, env] == (step in steps and step >= 3)


def test_online_queue_serves_each_new_window_once():
    np.random.seed(0)
    buffer = plain_buffer(buffer_size=400)
    fill(buffer, 34)  # 35 rows each: 7 windows of 5 rows
    first_rows = [buffer.sample(4).indices for _ in range(5)]
    served = [(int(e), int(s) - 1) for i in first_rows for e, s in zip(i.envs, i.steps[:, 0], strict=True)]
    expected = [(env, 5 * k) for k in range(7) for env in range(2)]
    assert served[:14] == expected  # in order, context rows included, none twice
    assert not buffer._queue
    fill(buffer, 1, start=34)
    assert not buffer._queue
    off = plain_buffer(buffer_size=400, online_queue=False)
    fill(off, 34)
    assert not off._queue


def test_stale_queue_entries_are_dropped():
    buffer = plain_buffer(buffer_size=40)  # 20 rows each
    fill(buffer, 49)
    assert len(buffer._queue) <= 8
    for _ in range(10):
        batch = buffer.sample(4)
        oldest = buffer.counts[0] - 20
        assert (batch.indices.steps[:, 0] - 1 >= oldest).all()
        np.testing.assert_array_equal(batch.observations[..., 0], batch.indices.steps)  # row s holds observation s


def test_uniform_over_all_windows():
    np.random.seed(0)
    buffer = plain_buffer(buffer_size=40, online_queue=False)
    fill(buffer, 29)
    indices = buffer.sample(16_000).indices
    counts = np.zeros((2, 16))  # 20 rows, windows of 5: 16 starts
    np.add.at(counts, (indices.envs, indices.steps[:, 0] - 1 - 10), 1)
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, standard deviation 22


def test_no_context_starts_as_a_new_episode():
    buffer = plain_buffer(replay_context=False)
    fill(buffer, 20)
    batch = buffer.sample(8)
    assert batch.is_first[:, 0].all() and not batch.is_first[:, 1:].any()
    assert not batch.initial.deter.any() and not batch.initial.stoch.any()
    assert buffer.n_windows.tolist() == [18, 18]  # 21 rows, windows of 4
    assert buffer.deter.size == 0  # nothing unused is stored


def test_rows_without_latent_start_from_zeros():
    buffer = plain_buffer()
    fill(buffer, 20)
    assert not buffer.has_latent.any()
    buffer.stoch[:] = 2
    batch = buffer.sample(8)
    assert not batch.initial.stoch.any()  # class 0 or 2 would be something else


def test_only_finite_numbers_are_stored():
    buffer = plain_buffer()
    fill(buffer, 3)
    good = np.zeros((2, 1), np.float32)
    for value, key in ((np.nan, "obs"), (np.inf, "reward")):
        obs, reward = good.copy(), np.zeros(2)
        (obs if key == "obs" else reward)[1] = value
        with pytest.raises(ValueError, match=f"`{key}` of environment 1 is {value}: all values must be finite"):
            buffer.add(good, obs, np.zeros(2), reward, np.zeros(2), [{}, {}])
    assert (buffer.counts == 4).all() and np.isfinite(buffer.observations).all()
    fresh, bad = plain_buffer(), np.full((2, 1), np.nan, np.float32)
    with pytest.raises(ValueError, match="`obs` of environment 0 is nan"):
        fresh.add(bad, good, np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])  # the first observation of an episode
    assert not fresh.counts.any()


def test_extend_reset_and_errors():
    buffer = plain_buffer()
    with pytest.raises(ValueError, match=r"No window of 5 rows is complete .*: no environment has more than 0 rows"):
        buffer.sample(2)
    one = np.zeros((3, 2, 1), np.float32)
    buffer.extend(one, one, np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2)), [[{}, {}]] * 3)
    assert buffer.size() == 4 and not buffer.can_sample()
    buffer.reset()
    assert buffer.size() == 0 and buffer.pos == 0
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        plain_buffer(optimize_memory_usage=True)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0.0, False, False)] * 6, False),
        ([(0.0, False, False), (0.0, True, False), (0.0, False, False)], False),  # an end changes no return
        ([(-1.0, False, False), (-1.0, True, True), (-1.0, False, False)], False),  # truncated
        ([(-1.0, False, False), (-1.0, True, False)], True),
        ([(0.0, False, False), (1.0, False, False)], True),
    ],
)
def test_returns_differ(steps, expected):
    buffer = plain_buffer(n_envs=1)
    assert not buffer.returns_differ
    for i, (reward, done, is_cut) in enumerate(steps):
        row = np.full((1, *buffer.obs_shape), float(i), dtype=np.float32)
        infos = [{"TimeLimit.truncated": is_cut}]
        buffer.add(row, row + 1, np.zeros((1, buffer.action_dim)), np.array([reward]), np.array([done]), infos)
    assert buffer.returns_differ == expected
    state = buffer.__getstate__()
    del state["_outcomes"]  # as in files of older versions
    old = SequenceReplayBuffer.__new__(SequenceReplayBuffer)
    old.__setstate__(state)
    assert old.returns_differ == expected
    buffer.rewards[:], buffer.dones[:] = buffer.rewards[1], False  # as if the rows had been overwritten
    assert pickle.loads(pickle.dumps(buffer)).returns_differ == expected
    buffer.reset()
    assert not buffer.returns_differ
