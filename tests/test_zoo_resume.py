"""``rl_zoo3 train -i``: counters, schedules and the TensorBoard log go on."""

import os
import subprocess
import sys

import pytest
from stable_baselines3.common.env_util import make_vec_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import find_checkpoints
from sb3_dreamer.zoo.resume import accept_folder, find_folder, stand_ins
from tests.support.helpers import TINY, counter_envs, counter_model
from tests.support.package import ROOT

QUICK = "n_envs:2 batch_size:2 batch_length:8 training_ratio:2 learning_rate:'lin_1e-3' buffer_size:2000".split()


def train(folder, *options, params=()):
    command = [sys.executable, "-m", "sb3_dreamer.zoo", "train", "--algo", "dreamerv3", "--env", "CartPole-v1", "-f", "logs"]
    command += ["-n", "400", "-tb", "tb", "--eval-freq", "-1", "--log-interval", "1", *options, "-params", *QUICK, *params]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tensorboard_steps(folder, tag):
    (run,) = (folder / "tb" / "CartPole-v1").iterdir()  # one folder
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_three_times_400_steps(kind, tmp_path):
    """Counter 400, 800, 1200, and one line in TensorBoard."""
    save = ("--save-freq", "150") if kind == "folder" else ("--save-replay-buffer",)
    train(tmp_path, *save)
    logs, updates = tmp_path / "logs" / "dreamerv3", []
    for run in (1, 2, 3):
        folder = logs / f"CartPole-v1_{run}"
        if kind == "folder":
            assert [path.name for path in find_checkpoints(folder / "checkpoints")][-1] == f"checkpoint_{400 * run:09d}"
        model = DreamerV3.load(folder / "CartPole-v1.zip", device="cpu")
        assert model.num_timesteps == 400 * run
        updates.append(model._n_updates)
        steps = tensorboard_steps(tmp_path, "rollout/ep_rew_mean")
        assert steps == sorted(steps) and 400 * run - 60 < steps[-1] <= 400 * run
        if run < 3:
            output = train(tmp_path, *save, "-i", f"{folder}" if kind == "folder" else f"{folder}/CartPole-v1.zip")
            assert ("Continuing from" if kind == "folder" else "Loading replay buffer") in output
    # No new warm-up: an update for each 8 steps from the first run on.
    assert updates[1] - updates[0] == updates[2] - updates[1] == 400 * 2 // 16


def test_networks_come_from_the_checkpoint(tmp_path):
    """As with a .zip, ``-params`` of the networks need not be repeated."""
    train(tmp_path, "--save-freq", "150", params=["policy_kwargs:dict(deter=32,hidden=24,stoch=4,classes=4,units=24)"])
    logs = tmp_path / "logs" / "dreamerv3"
    assert "with the networks of that run" in train(tmp_path, "-i", f"{logs / 'CartPole-v1_1'}")
    model = DreamerV3.load(logs / "CartPole-v1_2" / "CartPole-v1.zip", device="cpu")
    assert model.num_timesteps == 800 and (model.policy.size.deter, model.policy.size.units) == (32, 24)


def test_folders_that_are_accepted(tmp_path):
    model = counter_model().learn(30, callback=DreamerCheckpointCallback(30, tmp_path / "run" / "checkpoints"))
    assert model.num_timesteps == 30
    checkpoints = tmp_path / "run" / "checkpoints"
    assert find_folder(f"{tmp_path / 'run'}") == find_folder(f"{checkpoints}") == checkpoints
    assert find_folder(f"{checkpoints / 'checkpoint_000000030'}") == checkpoints / "checkpoint_000000030"
    assert find_folder(f"{tmp_path}") is None and find_folder("no folder") is None
    for form in (["-i", f"{checkpoints}"], ["--trained-agent", f"{checkpoints}"], [f"--trained-agent={checkpoints}"]):
        arguments = ["train", *form, "-n", "5"]
        accept_folder(arguments)
        file = arguments[-3].rpartition("=")[2]
        assert file.endswith(".zip") and os.path.isfile(file) and stand_ins[file] == checkpoints
        assert arguments[0] == "train" and arguments[-2:] == ["-n", "5"]
    for unchanged in (["train", "-i", "model.zip"], ["train", "-i"], ["-n", f"{checkpoints}"]):
        arguments = list(unchanged)
        accept_folder(arguments)
        assert arguments == unchanged


def test_linear_schedule_goes_on(tmp_path):
    """A resumed run has the learning rate of the whole run."""
    rates = []
    model = counter_model(learning_rate=lambda left: 1e-3 * left, lr_warmup_steps=0)
    model.learn(90, callback=[DreamerCheckpointCallback(45, tmp_path, keep_last=3)])
    rates.append(model.policy.optimizer.param_groups[0]["lr"])
    half = find_checkpoints(tmp_path)[0]
    resumed = DreamerV3.resume(half, counter_envs(), learning_rate=lambda left: 1e-3 * left)
    assert resumed.num_timesteps == 45
    resumed.learn(45, reset_num_timesteps=False)
    rates.append(resumed.policy.optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] == pytest.approx(1e-3 / 6)


def test_zip_of_a_seeded_model_continues_the_random_numbers(tmp_path):
    """Two continuations of one file collect the same data, but not that of the first run."""
    build = lambda: make_vec_env("CartPole-v1", 2, seed=4)  # noqa: E731
    model = DreamerV3("MlpPolicy", build(), seed=4, **TINY).learn(40)
    model.save(tmp_path / "model")
    first_rows = model.replay_buffer.observations[:10].copy()
    collected = []
    for _ in range(2):
        loaded = DreamerV3.load(tmp_path / "model", env=build(), device="cpu")
        with pytest.warns(UserWarning, match="goes on after 40 steps with an empty replay buffer"):
            loaded.learn(20, reset_num_timesteps=False)
        collected.append(loaded.replay_buffer.observations[:10].copy())
    assert (collected[0] == collected[1]).all() and (collected[0] != first_rows).any(axis=-1).all()


def test_what_is_missing_is_named(tmp_path):
    from stable_baselines3.common.vec_env import VecNormalize

    build = lambda: make_vec_env("CartPole-v1", 2, seed=0)  # noqa: E731
    model = DreamerV3("MlpPolicy", VecNormalize(build()), seed=0, **TINY).learn(40)
    model.save_replay_buffer(tmp_path / "replay")
    model.learn(20, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=build(), device="cpu")
    with pytest.warns(UserWarning, match="has made 60 steps, this replay buffer was saved after 40"):
        loaded.load_replay_buffer(tmp_path / "replay")
    with pytest.warns(UserWarning, match="was trained with VecNormalize, but `env` is without it"):
        loaded.learn(10, reset_num_timesteps=False)


@pytest.mark.slow  # where the machine is busy, wandb may miss the event file
def test_a_tracked_run_has_our_metrics(tmp_path, monkeypatch):
    """Weights & Biases without a network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, "--track")
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = run.read_bytes()
    for name in ("actor_critic/entropy", "world_model/reward_loss", "rollout/ep_rew_mean", "training_ratio"):
        assert name.encode() in written, name
