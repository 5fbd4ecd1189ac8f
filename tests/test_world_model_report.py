"""Callbacks that show predictions: their files, TensorBoard's events, and their numbers."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamCallback, WorldModelReportCallback
from sb3_dreamer.common.distributions import ImageMSE
from sb3_dreamer.dreamerv3.predictions import OpenLoop
from sb3_dreamer.world_model_audit import observation_errors, relative_error
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, counter_envs, make_policy

SPACE = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        "kind": spaces.Discrete(4),
        "speed": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    }
)


def events(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulators.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_relative_error():
    truth = np.random.default_rng(0).normal(size=(4000, 3, 2))
    is_valid = np.ones((4000, 3), dtype=bool)
    assert relative_error(truth, truth, 1, is_valid).tolist() == [0.0, 0.0]
    wrong = relative_error(truth, np.zeros_like(truth), 1, is_valid)
    assert wrong == pytest.approx([1.0, 1.0], abs=0.05)
    half = relative_error(truth, truth / 2, 1, is_valid)
    assert half == pytest.approx([0.5, 0.5], abs=0.03)
    is_valid[:, 2] = False
    is_valid[:2000, 1] = False
    predicted = truth / 2
    predicted[:2000, 1] = 1e6  # not looked at
    values = relative_error(truth, predicted, 1, is_valid)
    assert values[0] == pytest.approx(0.5, abs=0.05) and np.isnan(values[1])
    assert np.isnan(relative_error(np.ones((2, 2, 1)), np.ones((2, 2, 1)), 1, np.ones((2, 2), bool))).all()


def test_errors_by_step():
    policy = make_policy(SPACE, spaces.Discrete(2))
    rng = np.random.default_rng(0)
    truth = {
        "camera": rng.integers(0, 256, (2, 4, *policy.observation_space["camera"].shape), dtype=np.uint8),
        "kind": np.array([[0, 1, 2, 3]] * 2)[..., None],
        "speed": rng.normal(size=(2, 4, 3)).astype(np.float32),
    }
    truth["kind"] = truth["kind"][..., 0]
    predicted = {**truth, "kind": np.array([[0, 1, 2, 0], [0, 1, 1, 0]])}
    rewards = np.array([[0.0, 0.0, 1.0, 2.0]] * 2)
    is_valid = np.array([[True] * 4, [True] * 3 + [False]])
    result = OpenLoop(
        observations=truth,
        predicted=predicted,
        rewards=rewards + np.array([[0, 0, 0.5, 1.0], [0, 0, 0, 9.0]]),
        continues=np.full((2, 4), 0.9),
        values=rewards,
        true_rewards=rewards,
        true_continues=np.array([[1.0, 1.0, 1.0, 0.0]] * 2),
        is_valid=is_valid,
        latents=None,
        burn_in=2,
    )
    errors = observation_errors(policy, result)
    assert errors["obs/camera"].tolist() == errors["obs/speed"].tolist() == [0.0, 0.0]
    assert errors["obs/kind"].tolist() == [0.5, 1.0]  # in the last row, only the first sequence counts


def test_files_and_events_of_a_run(tmp_path):
    model = DreamerV3("MultiInputPolicy", NoiseEnv(SPACE, spaces.Discrete(2)), seed=0, tensorboard_log=tmp_path, **TINY)
    report = WorldModelReportCallback(every=60, n_sequences=3, burn_in=2, horizon=4)
    dream = DreamCallback(every=60, n_trajectories=2, horizon=3)
    model.learn(150, callback=CallbackList([report, dream]), log_interval=1)
    folder = tmp_path / "DreamerV3_1" / "world_model"
    # The last is made at the end of `learn`.
    kinds = [
        "audit_{}.png",
        "audit_{}.txt",
        "errors_{}.png",
        "imagination_{}.gif",
        "open_loop_camera_{}.gif",
        "traces_kind_{}.png",
        "traces_speed_{}.png",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        kind.format(step) for kind in kinds for step in (60, 120, 150)
    )
    with Image.open(folder / "open_loop_camera_120.gif") as gif:
        assert gif.n_frames == 6 and gif.size == (3 * (64 + 8), 3 * (64 + 4))
    with Image.open(folder / "imagination_120.gif") as gif:
        assert gif.n_frames == 4
    found = events(tmp_path / "DreamerV3_1").Tags()
    assert {"open_loop/video/camera", "imagination/video", "open_loop/traces/speed", "open_loop/errors"} <= set(
        found["images"]
    )
    expected = {
        f"open_loop/{key}{end}"
        for key in ("obs/camera", "obs/speed", "obs/kind", "reward")
        for end in ("", "_step_1", "_step_2", "_step_3", "_step_4")
    }
    assert expected <= set(found["scalars"])
    assert {"open_loop/audit", "open_loop/errors"} <= set(found["images"])
    assert "open_loop/verdict/text_summary" in found["tensors"] and "open_loop/n_faults" in found["scalars"]
    verdict = (folder / "audit_120.txt").read_text()
    assert len(verdict.splitlines()) == 11 and "obs/camera" in verdict  # three observations, eight further lines
    written = events(tmp_path / "DreamerV3_1")
    assert verdict.strip() in written.Tensors("open_loop/verdict/text_summary")[1].tensor_proto.string_val[0].decode()
    assert [scalar.step for scalar in written.Scalars("open_loop/reward")] == [60, 120, 150]
    assert [image.step for image in written.Images("imagination/video")] == [60, 120, 150]


class CameraDecoder(nn.Module):
    """A decoder of a user, for one image."""

    def __init__(self, observation_space, deter, stoch, classes):
        super().__init__()
        self.shape = observation_space["camera"].shape
        self.net = nn.Linear(deter + stoch * classes, int(np.prod(self.shape)))

    def forward(self, deter, stoch):
        pixels = self.net(th.cat([deter, stoch.flatten(1)], dim=-1)).unflatten(-1, self.shape)
        return {"camera": ImageMSE(255 * th.sigmoid(pixels))}


def test_images_of_other_decoders_are_videos(tmp_path):
    model = DreamerV3(
        "MultiInputPolicy",
        NoiseEnv(SPACE, spaces.Discrete(2)),
        **TINY,
        policy_kwargs=dict(decoder_class=CameraDecoder),
    )
    model.learn(40)
    WorldModelReportCallback(n_sequences=3, burn_in=2, horizon=4, folder=tmp_path).report_on(model)
    DreamCallback(n_trajectories=2, horizon=3, folder=tmp_path).report_on(model)
    assert {path.name for path in tmp_path.glob("*.gif")} == {"open_loop_camera_40.gif", "imagination_40.gif"}
    assert not list(tmp_path.glob("traces_camera*"))


def test_all_images_of_a_dict_are_side_by_side(tmp_path):
    cameras = {name: spaces.Box(0, 255, (16, width, 3), np.uint8) for name, width in (("left", 16), ("right", 32))}
    model = DreamerV3("MultiInputPolicy", NoiseEnv(spaces.Dict(cameras), spaces.Discrete(2)), **TINY)
    model.learn(40)
    callback = DreamCallback(n_trajectories=2, horizon=3, folder=tmp_path)
    shown = []
    callback._log_video = lambda key, name, frames: shown.append(frames)
    callback.report_on(model)
    (frames,) = shown
    one = DreamCallback(
        n_trajectories=2, horizon=3, picture=lambda obs: np.zeros((64, 64 + 128, 3), np.uint8), folder=tmp_path
    )
    one._log_video = callback._log_video
    one.report_on(model)
    assert frames.shape == shown[1].shape  # both images are enlarged to a height of 64


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
def test_vectors_are_drawn_for_their_environment(name, tmp_path):
    model = DreamerV3("MlpPolicy", name, seed=0, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without a logger's folder nothing is said about videos
        model.learn(60, callback=DreamCallback(every=50, n_trajectories=1, horizon=2, burn_in=1, folder=tmp_path))
    with Image.open(tmp_path / "imagination_50.gif") as gif:
        expected = {"CartPole-v1": (144, 96), "FrozenLake-v1": (100, 96), "Pendulum-v1": (144, 96)}[name]
        assert gif.n_frames == 3 and gif.size == (expected[0] + 8, expected[1] + 62)


def test_a_picture_gets_observations_as_the_environment_returns_them(tmp_path):
    seen = []

    def picture(observation):
        seen.append(observation)
        return np.zeros((70, 70, 3), np.uint8)

    env = VecNormalize(counter_envs(offset=1000))  # observations of a thousand, normalised to about 1
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(90, callback=DreamCallback(every=60, n_trajectories=2, horizon=2, picture=picture, folder=tmp_path))
    assert len(seen) == 2 * 2 * 3 and seen[0].shape == (3,)
    assert np.abs(seen).max() > 500


def test_a_picture_is_not_worth_a_run(tmp_path):
    """Only two of CartPole's numbers, a Dict with statistics of keys that are not reconstructed, one number without a map."""
    env = gym.make("CartPole-v1")
    half = gym.wrappers.TransformObservation(env, lambda x: x[[0, 2]], spaces.Box(-np.inf, np.inf, (2,), np.float32))
    callback = DreamCallback(every=30, n_trajectories=1, horizon=1, burn_in=1, folder=tmp_path)
    DreamerV3("MlpPolicy", half, seed=0, **TINY).learn(40, callback=callback)
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,))})
    normalized = VecNormalize(DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(2))]))
    model = DreamerV3("MultiInputPolicy", normalized, seed=0, **TINY | {"policy_kwargs": {"decoder_keys": ["a"]}})
    model.learn(40, callback=callback)
    one_number = spaces.Discrete(5)
    DreamerV3("MlpPolicy", NoiseEnv(one_number, spaces.Discrete(2)), seed=0, **TINY).learn(40, callback=callback)
    with pytest.raises(ValueError, match="the model reconstructs none, see `decoder_keys`"):
        model = DreamerV3(
            "MultiInputPolicy", NoiseEnv(space, spaces.Discrete(2)), **TINY | {"policy_kwargs": {"decoder_keys": []}}
        )
        model.learn(40, callback=callback)


def test_no_files_without_a_log(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **TINY)
    with pytest.warns(UserWarning, match="`WorldModelReportCallback` writes no pictures: give it a `folder`, or the model a"):
        model.learn(40, callback=WorldModelReportCallback(every=30, burn_in=1, horizon=3))
    assert not list(tmp_path.rglob("*.png"))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`fps` must be a positive number, got 0"):
        DreamCallback(fps=0)
    for callback, argument in ((WorldModelReportCallback, "n_sequences"), (DreamCallback, "n_trajectories")):
        for name in ("every", "burn_in", "horizon", argument):
            with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
                callback(**{name: 0})
    with pytest.raises(ValueError, match="`WorldModelReportCallback` shows a DreamerV3, got PPO"):
        PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8).learn(8, callback=WorldModelReportCallback())


def test_too_few_rows_are_waited_for(tmp_path):
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, "learning_starts": 9})
    model.learn(12, callback=WorldModelReportCallback(every=4, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_report_on_a_loaded_model(tmp_path):
    model = DreamerV3("MultiInputPolicy", NoiseEnv(SPACE, spaces.Discrete(2)), seed=0, **TINY).learn(60)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = DreamerV3.load(tmp_path / "model.zip", device="cpu")
    dream = DreamCallback(horizon=3, n_trajectories=2, folder=tmp_path / "dreams")
    with pytest.raises(ValueError, match="The replay buffer must have more than 6 rows of an environment, got 0"):
        dream.report_on(loaded)
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    weights = {name: value.clone() for name, value in loaded.policy.state_dict().items()}
    dream.report_on(loaded)
    WorldModelReportCallback(n_sequences=2, burn_in=2, horizon=3, folder=tmp_path / "dreams").report_on(loaded)
    names = {path.name for path in (tmp_path / "dreams").iterdir()}
    assert {"imagination_60.gif", "open_loop_camera_60.gif", "audit_60.txt"} <= names
    assert all(weights[name].equal(value) for name, value in loaded.policy.state_dict().items())
    assert "_logger" not in vars(loaded)
    with pytest.raises(ValueError, match="`folder` must be given for a report on a model that is not learning, got None"):
        DreamCallback().report_on(loaded)
