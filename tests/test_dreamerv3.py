"""The algorithm: construction, acting, explicit calls of train, pending updates after a stop."""

import warnings

import numpy as np
import torch as th

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from tests.support.helpers import TINY, counter_envs, counter_model


def test_critic_target_follows():
    model = counter_model(training_ratio=8, learning_rate=1e-2, lr_warmup_steps=0)
    start = [p.clone() for p in model.policy.critic_target.parameters()]
    model.learn(30)
    targets, critics = [], []
    right = model.policy.update_target

    def update_target(tau):
        targets.append([p.clone() for p in model.policy.critic_target.parameters()])
        critics.append([p.clone() for p in model.policy.critic.parameters()])
        right(tau)

    model.policy.update_target = update_target
    model.train(1, 4)
    for before, critic, after in zip(targets[0], critics[0], model.policy.critic_target.parameters(), strict=True):
        assert th.allclose(after, 0.98 * before + 0.02 * critic)  # after the step, with the new critic
    assert any(not th.equal(p, q) for p, q in zip(start, model.policy.critic_target.parameters(), strict=True))


def test_explicit_calls_of_train(monkeypatch):
    """The batch size is optional. The default is the current batch size of the model."""
    model = counter_model().learn(60)
    updates, sizes, sample = model._n_updates, [], model.replay_buffer.sample
    monkeypatch.setattr(model.replay_buffer, "sample", lambda n, env=None: sizes.append(n) or sample(n, env=env))
    model.train(gradient_steps=2)
    model.train(1, 3)
    model.batch_size = 5
    model.train(gradient_steps=1)
    assert sizes == [4, 4, 3, 5] and model._n_updates == updates + 4


def test_optimizer_class_and_dimensions():
    kwargs = dict(optimizer_class=th.optim.Adam, optimizer_kwargs=dict(eps=1e-5), deter=16, units=12, actor_unimix=0.01)
    model = counter_model(policy_kwargs=kwargs)
    assert isinstance(model.policy.optimizer, th.optim.Adam) and model.policy.optimizer.param_groups[0]["eps"] == 1e-5
    assert model.policy.size.deter == 16 and model.policy.actor.mlp[0][0].out_features == 12
    assert model.policy_kwargs is kwargs and "model_size" not in kwargs
    assert model.learn(60)._n_updates > 0


def test_construction_is_silent_and_light(recwarn):
    model = DreamerV3("MlpPolicy", "CartPole-v1", model_size="debug", device="cpu")
    assert model.replay_buffer.observations.size == 0 and not recwarn.list
    assert isinstance(model.replay_buffer, SequenceReplayBuffer)
    assert (model.batch_size, model.batch_length, model.training_ratio, model.learning_starts) == (16, 64, 512, 1024)
    auto = DreamerV3("MlpPolicy", "CartPole-v1", device="cpu")
    assert auto.policy.size.deter == 512


def test_pending_updates_are_made_without_a_warning():
    """A learn() before ``learning_starts`` makes the updates that were pending after a stop, and does not warn."""
    model = DreamerV3("MlpPolicy", counter_envs(), seed=0, **{**TINY, "learning_starts": 0, "training_ratio": 64})
    model.learn(60, callback=lambda local, _: local["self"].num_timesteps < 48)
    assert model._train_ratio.owed >= 1
    n_updates, model.learning_starts = model._n_updates, 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(6)
    assert model._n_updates > n_updates


def test_pending_updates_use_the_learning_rate_of_their_steps():
    rates = [(40, 1e-3), (60, 1e-5)]
    arguments = {**TINY, "learning_starts": 0, "training_ratio": 64, "learning_rate": rates, "lr_warmup_steps": 0}
    model = DreamerV3("MlpPolicy", counter_envs(), seed=0, **arguments)
    model.learn(90, callback=lambda local, _: local["self"].num_timesteps < 75)  # ends at step 75
    assert model._train_ratio.owed >= 1
    used, update = [], model._update_learning_rate
    model._update_learning_rate = lambda optimizer: (update(optimizer), used.append(optimizer.param_groups[0]["lr"]))
    owed = int(model._train_ratio.owed)
    model.learn(6)  # begins at step 0, where the rate is 1e-3
    assert used[:owed] == [1e-5] * owed and used[owed:] == [1e-3] * (len(used) - owed) and model.num_timesteps == 6


def test_acting_in_training_equals_predict():
    """``_sample_action`` equals ``predict`` with the carried state."""
    model = counter_model(learning_starts=0)
    model._setup_learn(30)
    state, starts, obs = None, np.ones(3, bool), model._last_obs
    for _ in range(20):
        rng = th.get_rng_state()
        actions, buffer_actions = model._sample_action(0, None, 3)
        th.set_rng_state(rng)
        expected, state = model.predict(obs, state, starts)
        np.testing.assert_array_equal(actions, expected)
        for ours, theirs in zip(model._last_state, state, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        obs, rewards, dones, infos = model.env.step(actions)
        model._store_transition(model.replay_buffer, buffer_actions, obs, rewards, dones, infos)
        starts = dones


def test_warm_up_actions_enter_the_state():
    model = counter_model(learning_starts=1000)
    model._setup_learn(1100)
    drawn = []
    for _ in range(5):
        actions, _ = model._sample_action(1000, None, 3)
        np.testing.assert_array_equal(model._last_state.prev_action.argmax(-1), actions)
        drawn.append(actions)
    assert len(np.unique(drawn)) > 1
