"""The distributed base class with other algorithms: DQN and SAC on this base train exactly as in SB3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_dreamer.common.distributed.algorithm import DistributedOffPolicyAlgorithm
from tests.support.callbacks import CallAt, StopAt

SMALL = dict(learning_starts=20, batch_size=8, buffer_size=500, seed=0, device="cpu")


class RankedDQN(DistributedOffPolicyAlgorithm, DQN):
    """DQN that records the calls of the hooks."""

    def __init__(self, *args, **kwargs):
        self.counted, self.n_applied, self.n_ends = [], 0, 0
        super().__init__(*args, **kwargs)

    def _count_steps(self, n_steps, can_sample):
        self.counted.append(n_steps)

    def _apply_new_settings(self):
        self.n_applied += 1
        self._remember_settings(self._settings)

    def _on_learn_end(self):
        self.n_ends += 1


class RankedSAC(DistributedOffPolicyAlgorithm, SAC):
    """SAC on the distributed base class."""


def dqn(cls=RankedDQN, n_envs=1, **kwargs):
    settings = {**SMALL, "train_freq": 4, "policy_kwargs": dict(net_arch=[8]), **kwargs}
    return cls("MlpPolicy", make_vec_env("CartPole-v1", n_envs), **settings)


def sac(cls=RankedSAC):
    return cls("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SMALL, policy_kwargs=dict(net_arch=[8]))


@pytest.mark.parametrize(("make", "ours", "theirs"), [(dqn, RankedDQN, DQN), (sac, RankedSAC, SAC)], ids=["DQN", "SAC"])
def test_one_process_learns_as_sb3_does(make, ours, theirs):
    models = [make(cls).learn(60).learn(40, reset_num_timesteps=False) for cls in (ours, theirs)]
    before = list(make(ours).policy.state_dict().values())
    assert models[0].num_timesteps == models[1].num_timesteps >= 100 and models[0]._n_updates == models[1]._n_updates > 10
    parameters = [model.policy.state_dict() for model in models]
    for name, value in parameters[0].items():
        assert th.equal(value, parameters[1][name]), name
    assert not all(map(th.equal, before, parameters[0].values()))
    for name in ("observations", "actions", "rewards", "dones"):
        np.testing.assert_array_equal(*(getattr(model.replay_buffer, name) for model in models))
    assert models[0].n_ranks == 1


def test_a_transition_at_a_stop_is_stored():
    """SB3 drops it. The rows of two runs have no gap, and an episode that ended there is counted."""
    ours, theirs = (dqn(cls).learn(100, callback=StopAt(30)) for cls in (RankedDQN, DQN))
    assert (theirs.num_timesteps, theirs.replay_buffer.pos) == (30, 29)
    assert (ours.num_timesteps, ours.replay_buffer.pos) == (30, 30)
    ours.learn(20, reset_num_timesteps=False)
    buffer = ours.replay_buffer
    assert buffer.pos == 50
    for row in range(49):
        if not buffer.dones[row]:
            np.testing.assert_array_equal(buffer.next_observations[row], buffer.observations[row + 1])
    end = buffer.dones[:30, 0].argmax()
    ended = dqn(learning_starts=1000).learn(100, callback=StopAt(int(end) + 1))
    assert ended.replay_buffer.dones[end] and [info["l"] for info in ended.ep_info_buffer] == [end + 1]


def test_after_an_exception_the_steps_count_and_the_environments_are_reset():
    model = dqn(train_freq=8)
    with pytest.raises(KeyError):
        model.learn(100, callback=StopAt(13, KeyError))
    assert model.counted == [8, 5] and model.num_timesteps == 13 and model._last_obs is None and model.n_ends == 0
    model.learn(8, reset_num_timesteps=False)
    assert model.num_timesteps == 21 and model.counted == [8, 5, 8] and model.n_ends == 1
    lengths = np.diff(np.flatnonzero(model.replay_buffer.dones[:20]))
    assert (model.replay_buffer.observations[12, 0] != model.replay_buffer.next_observations[11, 0]).any()  # a new start
    assert (lengths > 0).all()


def test_the_steps_of_all_environments_are_counted():
    model = dqn(n_envs=3, train_freq=2, target_update_interval=6).learn(40)
    assert model.counted == [6] * 7 and model.num_timesteps == 42 and model.n_ends == 1


def test_changes_in_place_are_seen():
    model = dqn()
    model.scales = {"a": [1.0, {"b": 2.0}], "c": (3, 4)}
    model.points = [(0, 1.0)]
    assert model._changed_settings() == []
    model._remember_settings(["scales", "points", "gamma"])
    assert model._changed_settings() == []
    model.scales["a"][1]["b"] = 5.0
    assert model._changed_settings() == ["scales"]
    model.points.append((10, 0.5))
    model.gamma = 0.5
    assert model._changed_settings() == ["scales", "points", "gamma"]
    model._remember_settings(["scales", "points", "gamma"])
    assert model._changed_settings() == []
    model.scales = {"a": [1.0, {"b": 5.0}], "c": (3, 4)}  # another one with the same values
    assert model._changed_settings() == []


def test_what_a_callback_changes_applies_after_the_rollout():
    model = dqn(train_freq=4)
    model._remember_settings(["gamma"])
    model.learn(20)
    assert model.n_applied == 0
    seen = []
    model.learn(20, callback=CallAt(step_6=lambda model: (setattr(model, "gamma", 0.5), seen.append(model.n_applied))))
    assert seen == [0] and model.n_applied == 1 and model._settings == {"gamma": 0.5}


def test_files_hold_no_ranks(tmp_path):
    model = dqn().learn(40)
    model._remember_settings(["gamma"])
    model.save(tmp_path / "model")
    data, parameters, _ = load_from_zip_file(tmp_path / "model")
    assert not {"_ranks", "_settings"} & data.keys() and data["num_timesteps"] == 40
    assert set(parameters) == {"policy", "policy.optimizer"}
    loaded = RankedDQN.load(tmp_path / "model", env=gym.make("CartPole-v1"))
    assert loaded.n_ranks == 1 and loaded._settings == {}
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, loaded)))
    model.save_replay_buffer(tmp_path / "replay")
    loaded.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)
    assert loaded.learn(20).num_timesteps == 20
