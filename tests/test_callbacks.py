"""SB3's stock callbacks and wrappers around a training run."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import HistogramCallback
from sb3_dreamer.common.envs import CounterEnv
from tests.support.callbacks import StopAt
from tests.support.helpers import TINY, counter_model
from tests.support.replay import check_buffer


def cartpole_model(**kwargs) -> DreamerV3:
    return DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, **kwargs})


def test_checkpoints_can_be_continued(tmp_path):
    model = cartpole_model(tensorboard_log=str(tmp_path / "tb"))
    model.learn(60, callback=CheckpointCallback(20, str(tmp_path), save_replay_buffer=True))
    for n in (20, 40, 60):
        assert (tmp_path / f"rl_model_{n}_steps.zip").exists() and (
            tmp_path / f"rl_model_replay_buffer_{n}_steps.pkl"
        ).exists()
    assert list((tmp_path / "tb" / "DreamerV3_1").glob("events*"))
    loaded = DreamerV3.load(tmp_path / "rl_model_40_steps", env=make_vec_env("CartPole-v1", 1))
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps.pkl")
    assert loaded.num_timesteps == 40
    assert loaded.learn(20, reset_num_timesteps=False).num_timesteps == 60


class Count(BaseCallback):
    """Counts each of its calls, and checks the attributes that callbacks may use."""

    def __init__(self):
        super().__init__()
        self.calls = dict(training_start=0, rollout_start=0, step=0, rollout_end=0, training_end=0)

    def _on_training_start(self):
        self.calls["training_start"] += 1
        assert self.locals["total_timesteps"] == self.model._total_timesteps

    def _on_rollout_start(self):
        self.calls["rollout_start"] += 1

    def _on_step(self):
        self.calls["step"] += 1
        n_envs = self.training_env.num_envs
        for name in ("new_obs", "rewards", "dones", "infos", "actions"):
            assert len(self.locals[name]) == n_envs
        assert self.locals["self"] is self.model and self.num_timesteps == self.model.num_timesteps
        return True

    def _on_rollout_end(self):
        self.calls["rollout_end"] += 1

    def _on_training_end(self):
        self.calls["training_end"] += 1


@pytest.mark.parametrize("train_freq", [1, 4])
def test_calls(train_freq):
    count = Count()
    model = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", 2), seed=0, **{**TINY, "train_freq": train_freq})
    model.learn(80, callback=count)
    assert count.calls == dict(
        training_start=1, rollout_start=40 // train_freq, step=40, rollout_end=40 // train_freq, training_end=1
    )


def test_all_stock_callbacks_together(tmp_path):
    """In one list, together with a function. Each has an effect."""
    seen = []
    best = StopTrainingOnRewardThreshold(reward_threshold=1e9, verbose=1)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 2),
        callback_on_new_best=best,
        callback_after_eval=StopTrainingOnNoModelImprovement(100, min_evals=100),
        n_eval_episodes=2,
        eval_freq=30,
        log_path=str(tmp_path / "eval"),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    callbacks = CallbackList(
        [
            CheckpointCallback(40, str(tmp_path), name_prefix="model"),
            evaluation,
            EveryNTimesteps(25, CheckpointCallback(1, str(tmp_path / "every"), name_prefix="model")),
            LogEveryNTimesteps(50),
            StopTrainingOnMaxEpisodes(10_000),
            ProgressBarCallback(),
            Count(),
        ]
    )
    model = cartpole_model(tensorboard_log=str(tmp_path / "tb"))
    model.learn(100, callback=callbacks)
    model.learn(30, callback=lambda locals_, globals_: seen.append(locals_["num_collected_steps"]) is None)
    assert len(seen) == 30
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model_40_steps.zip", "model_80_steps.zip"]
    assert len(list((tmp_path / "every").iterdir())) == 4
    assert np.load(tmp_path / "eval" / "evaluations.npz")["timesteps"].tolist() == [30, 60, 90]
    assert (tmp_path / "best" / "best_model.zip").exists()


def test_checkpoints_of_vec_normalize(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", 1))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(40, callback=CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"rl_model_{kind}{n}_steps.{ending}"
        for n in (20, 40)
        for kind, ending in (("", "zip"), ("replay_buffer_", "pkl"), ("vecnormalize_", "pkl"))
    }
    loaded_env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_40_steps.pkl"), make_vec_env("Pendulum-v1", 1))
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, env.obs_rms.mean)
    loaded = DreamerV3.load(tmp_path / "rl_model_40_steps", env=loaded_env)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps.pkl")
    assert loaded.learn(20, reset_num_timesteps=False).num_timesteps == 60


@pytest.mark.parametrize("stop", [False, np.False_, th.tensor(False)], ids=["bool", "numpy", "tensor"])
def test_callbacks_can_cancel_runs(stop):
    class Stop(BaseCallback):
        def _on_step(self):
            return stop

    model = cartpole_model()
    model.learn(50, callback=Stop())
    assert model.num_timesteps == 1 and model._n_updates == 0
    assert model.replay_buffer.size() > 0  # the transition is kept


def test_stop_at_a_reward_and_without_improvement():
    env = make_vec_env("CartPole-v1", 2)
    reached = EvalCallback(env, callback_on_new_best=StopTrainingOnRewardThreshold(1.0), eval_freq=10, verbose=0)
    assert cartpole_model().learn(50, callback=reached).num_timesteps == 10
    stale = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0, min_evals=2)
    never_better = EvalCallback(env, callback_after_eval=stale, eval_freq=5, n_eval_episodes=2, verbose=0)
    never_better.best_mean_reward = 1000.0
    assert cartpole_model().learn(50, callback=never_better).num_timesteps == 15


def test_success_is_logged(tmp_path):
    class SuccessEnv(CounterEnv):
        def step(self, action):
            *rest, _ = super().step(action)
            return (*rest, {"is_success": self.episode % 2 == 0})

    model = DreamerV3("MlpPolicy", SuccessEnv(), seed=0, **TINY)
    evaluation = EvalCallback(Monitor(SuccessEnv()), n_eval_episodes=4, eval_freq=30, log_path=str(tmp_path), verbose=0)
    model.learn(30, callback=evaluation)
    assert np.load(tmp_path / "evaluations.npz")["successes"].mean() == 0.5


def test_early_stop_in_a_list_and_under_the_progress_bar():
    model = counter_model()
    model.learn(90, callback=[StopAt(9)], progress_bar=True)
    model.learn(60, reset_num_timesteps=False, progress_bar=True)
    assert model.num_timesteps == 27 + 60 and check_buffer(model.replay_buffer) == [[], [], []]


def test_stop_at_an_episode_counts_it():
    model = cartpole_model()
    model.learn(200, callback=StopTrainingOnMaxEpisodes(2))
    assert len(model.ep_info_buffer) == 2
    assert model.replay_buffer.dones.sum() == 2


@pytest.mark.filterwarnings("ignore:`learn` goes on:UserWarning")
def test_continue_in_the_same_environment(tmp_path):
    """``force_reset=False``: the environment continues, and the model starts a new sequence in mid-episode."""
    model = cartpole_model()
    model.learn(33)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=model.env, force_reset=False)
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 43 and loaded.replay_buffer.is_first[0, 0]
    np.testing.assert_array_equal(loaded.replay_buffer.observations[0], model._last_obs)


def test_learning_rate_zero_at_load(tmp_path):
    model = cartpole_model(learning_rate=1e-2, lr_warmup_steps=0, training_ratio=8)
    model.learn(60)
    model.save(tmp_path / "model")
    zero = dict(learning_rate=0.0, lr_schedule=lambda _: 0.0)
    loaded = DreamerV3.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 1), custom_objects=zero)
    before = [p.clone() for p in loaded.policy.trainable_parameters()]
    loaded.learn(60)
    assert loaded._n_updates > model._n_updates
    assert all((p == q).all() for p, q in zip(before, loaded.policy.trainable_parameters(), strict=True))


@pytest.mark.parametrize("n_stack", [1, 4])
def test_stacked_frames(n_stack):
    env = VecFrameStack(make_vec_env("sb3_dreamer/PixelCatch-v0", 2, env_kwargs=dict(image_size=16)), n_stack)
    model = DreamerV3("CnnPolicy", env, seed=0, **TINY)
    assert model.observation_space.shape == (3 * n_stack, 16, 16)
    assert model.learn(60)._n_updates > 0


def test_subprocesses():
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    assert model.learn(60)._n_updates > 0
    env.close()


def test_histograms(tmp_path):
    """TensorBoard's reader finds parameters and gradients, and the other outputs have no lines for them."""
    model = counter_model(tensorboard_log=str(tmp_path))
    model.learn(120, callback=HistogramCallback(every=45), log_interval=1)
    events = EventAccumulator(str(tmp_path / "DreamerV3_1"), size_guidance={"histograms": 0})
    events.Reload()
    tags = set(events.Tags()["histograms"])
    policy = model.policy
    assert {tag for tag in tags if tag.startswith("parameters/")} == {
        f"parameters/{name}" for name, _ in policy.named_parameters()
    }
    trained = {f"gradients/{name}" for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {tag for tag in tags if tag.startswith("gradients/")} <= trained and "gradients/actor.output.weight" in tags
    steps = [event.step for event in events.Histograms("parameters/actor.output.weight")]
    assert len(steps) == 2 and 45 <= steps[0] < 90 <= steps[1]
    last = events.Histograms("parameters/actor.output.weight")[-1].histogram_value
    assert last.num == policy.actor.output.weight.numel() and last.max <= policy.actor.output.weight.abs().max() * 1.5


def test_histograms_need_tensorboard():
    with pytest.raises(ValueError, match="`HistogramCallback` needs TensorBoard"):
        counter_model().learn(30, callback=HistogramCallback(every=9))
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        HistogramCallback(every=0)
