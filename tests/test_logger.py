"""Output of the logger: stdout, CSV, JSON, TensorBoard files, hyperparameters."""

import json
import time

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, LogEveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.metrics import UnstableTrainingError
from tests.support.envs import Endless
from tests.support.helpers import TINY, counter_model

LOSSES = {f"world_model/{name}_loss" for name in ("reconstruction", "reward", "continue", "dynamics", "representation")}
LOSSES |= {f"actor_critic/{name}_loss" for name in ("actor", "critic", "replay_critic")}
TRAINING = {"train/loss", "train/grad_norm", "train/learning_rate", "actor_critic/entropy", "actor_critic/return"}
TRAINING |= {"train/skipped_updates"}


def tensorboard_scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def cartpole_model(**kwargs) -> DreamerV3:
    return DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, "training_ratio": 8, **kwargs})


def test_tensorboard(tmp_path):
    model = cartpole_model(tensorboard_log=str(tmp_path))
    model.learn(150, log_interval=1)
    scalars = tensorboard_scalars(tmp_path / "DreamerV3_1")
    assert LOSSES | TRAINING | {"replay/rows", "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"} <= set(scalars)
    assert "train/n_updates" not in scalars  # excluded from TensorBoard, as in SB3
    steps = [step for step, _ in scalars["rollout/ep_rew_mean"]]
    assert steps == sorted(set(steps)) and steps[-1] <= 150
    assert [rows for _, rows in scalars["replay/rows"]] == sorted(rows for _, rows in scalars["replay/rows"])


def test_run_numbers_and_names(tmp_path):
    """A new run gets a new folder, a continued run keeps its folder, and names may contain glob characters."""
    model = cartpole_model(tensorboard_log=str(tmp_path))
    model.learn(30, log_interval=1)
    model.learn(30, log_interval=1, reset_num_timesteps=False)
    model.learn(30, log_interval=1)
    model.learn(30, log_interval=1, tb_log_name="a[1]")
    model.learn(30, log_interval=1, tb_log_name="a[1]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DreamerV3_1", "DreamerV3_2", "a[1]_1", "a[1]_2"]
    assert max(step for step, _ in tensorboard_scalars(tmp_path / "DreamerV3_1")["time/fps"]) > 30


def test_csv_json_and_stdout(tmp_path, capsys):
    model = cartpole_model()
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json"]))
    model.learn(150, log_interval=2)
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    assert LOSSES | TRAINING | {"train/n_updates", "replay/rows", "time/fps"} <= set(header) & set(last)
    assert last["train/n_updates"] <= model._n_updates and isinstance(last["train/loss"], float)
    printed = capsys.readouterr().out
    for tag in ("rollout/", "train/", "world_model/", "actor_critic/", "replay/", "time/"):
        assert f"| {tag}" in printed
    assert "reconstruction_loss" in printed and "..." not in printed  # no key is truncated


@pytest.mark.parametrize("log_interval", [None, 1, 3])
def test_log_interval_counts_episodes(log_interval, tmp_path):
    model = counter_model()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(3 * 91, log_interval=log_interval)  # 13, 8 and 7 episodes
    lines = (tmp_path / "progress.json").read_text().splitlines()
    expected = {None: 0, 1: 28, 3: 9}[log_interval]
    assert len(lines) == expected


@pytest.mark.parametrize("train_freq", [1, 50])
@pytest.mark.parametrize("log_interval", [None, 4])
def test_an_environment_that_never_ends_is_logged_by_updates(log_interval, train_freq, tmp_path):
    settings = {**TINY, "training_ratio": 32, "train_freq": train_freq, "log_every_updates": 20}
    model = DreamerV3("MlpPolicy", Endless(), seed=0, **settings)
    model.set_logger(configure(str(tmp_path), ["json", "csv"]))
    model.learn(100, log_interval=log_interval)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    if log_interval is None:
        assert lines == []
        return
    assert [line["train/n_updates"] for line in lines] == list(range(20, model._n_updates + 1, 20))
    assert len(lines) >= 2 and all(LOSSES | TRAINING <= set(line) for line in lines)
    assert all(line["replay/rows"] == line["time/total_timesteps"] + 1 for line in lines)
    assert (tmp_path / "progress.csv").read_text().count("\n") == 1 + len(lines)


@pytest.mark.parametrize("log_interval", [None, 4])
def test_a_short_run_writes_one_line_at_its_end(log_interval, tmp_path):
    """No episode ends, and 500 updates are not reached."""
    model = DreamerV3("MlpPolicy", Endless(), seed=0, **{**TINY, "training_ratio": 32})
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(60, log_interval=log_interval)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(lines) == (0 if log_interval is None else 1)
    assert all(LOSSES | TRAINING <= set(line) and line["train/n_updates"] == model._n_updates for line in lines)


def test_frequent_episodes_add_no_lines(tmp_path):
    """Updates are counted since the last line of the log."""
    lines = []
    for log_every_updates in (10**9, 8):
        model = counter_model(training_ratio=8, log_every_updates=log_every_updates)
        model.set_logger(configure(str(tmp_path), ["json"]))
        model.learn(3 * 40, log_interval=1)
        lines.append(len((tmp_path / "progress.json").read_text().splitlines()))
    assert lines[0] == lines[1] > 8


def test_an_unstable_run_ends_within_a_rollout():
    """As on CUDA, where skipped updates are only counted for a log line: the first one with ten in a row ends the run."""
    model = DreamerV3("MlpPolicy", Endless(), seed=0, **{**TINY, "training_ratio": 32, "log_every_updates": 10})
    model.learn(40)
    before = model._n_updates
    with th.no_grad():
        model.policy.actor.output.weight.fill_(th.nan)
    model._log_interval = 4
    with pytest.raises(UnstableTrainingError, match="became nan"):
        model.train(100, model.batch_size)
    assert 10 <= model._n_updates - before < 20


def test_log_before_the_first_episode_and_update(tmp_path):
    model = counter_model(learning_starts=10_000)
    model.set_logger(configure(str(tmp_path), ["json"]))
    with pytest.warns(UserWarning, match="No update will be made"):
        model.learn(12, callback=LogEveryNTimesteps(3), log_interval=None)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [line["time/total_timesteps"] for line in lines] == [3, 6, 9, 12]
    assert all("train/loss" not in line and "rollout/ep_rew_mean" not in line for line in lines)


def test_hyperparameters(tmp_path):
    """The callback of SB3's documentation: hyperparameters and metrics in TensorBoard's table."""

    class Hyperparameters(BaseCallback):
        def _on_training_start(self):
            settings = {
                "algorithm": type(self.model).__name__,
                "training_ratio": self.model.training_ratio,
                "learning rate": self.model.learning_rate,
                "gamma": self.model.gamma,
            }
            metrics = {"rollout/ep_len_mean": 0, "train/loss": 0.0}
            self.logger.record("hparams", HParam(settings, metrics), exclude=("stdout", "log", "json", "csv"))

        def _on_step(self):
            return True

    model = cartpole_model(tensorboard_log=str(tmp_path))
    model.learn(60, callback=Hyperparameters(), log_interval=1)
    events = EventAccumulator(str(tmp_path / "DreamerV3_1"))
    events.Reload()
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_set_logger_replaces_tensorboard(tmp_path):
    model = cartpole_model(tensorboard_log=str(tmp_path / "tb"))
    model.set_logger(configure(str(tmp_path / "own"), ["csv"]))
    model.learn(60, log_interval=1)
    assert (tmp_path / "own" / "progress.csv").exists() and not (tmp_path / "tb").exists()
    assert not any(isinstance(output, TensorBoardOutputFormat) for output in model.logger.output_formats)


def test_frames_per_second(monkeypatch, tmp_path):
    """No division by zero if no time has passed."""
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    model = cartpole_model()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(60, log_interval=1)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert lines and all(line["time/fps"] > 0 and line["time/time_elapsed"] < 1e-6 for line in lines)


@pytest.mark.parametrize("window", [1, 42])
def test_statistics_window(window):
    env = make_vec_env("sb3_dreamer/Counter-v0", 3)
    model = DreamerV3("MlpPolicy", env, seed=0, stats_window_size=window, **TINY)
    model.learn(3 * 40, log_interval=1)
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == window
    assert len(model.ep_info_buffer) == min(window, 3 * 5)


def test_success_rate(tmp_path):
    class Success(BaseCallback):
        def _on_step(self):
            for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
                if done:
                    info["is_success"] = self.num_timesteps > 40
            return True

    model = DreamerV3("MlpPolicy", make_vec_env("sb3_dreamer/Counter-v0", 1), seed=0, **TINY)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(84, callback=Success(), log_interval=12)  # twelve episodes of seven steps, seven of them after step 40
    assert json.loads((tmp_path / "progress.json").read_text())["rollout/success_rate"] == pytest.approx(7 / 12)
