"""Checkpoints: a resumed run is bit-equal to one without interruption."""

import numpy as np
import pytest
import torch as th
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import find_checkpoints
from sb3_dreamer.common.envs import PixelCatchEnv, TMazeEnv
from sb3_dreamer.common.workers import WorkerError
from tests.support.helpers import TINY, counter_envs, counter_model

STEPS = 120


def vectors(**kwargs):
    return counter_model(**dict(training_ratio=8, learning_rate=1e-3, lr_warmup_steps=5) | kwargs)


def one_vector(**kwargs):
    return DreamerV3("MlpPolicy", make_vec_env("sb3_dreamer/TMaze-v0", 1, seed=3), seed=3, **TINY | kwargs)


def image_env(n_envs):
    return make_vec_env(PixelCatchEnv, n_envs, seed=0, env_kwargs=dict(image_size=16))


def one_image(**kwargs):
    return DreamerV3("CnnPolicy", image_env(1), seed=1, **TINY | kwargs)


def images(**kwargs):
    return DreamerV3("CnnPolicy", image_env(3), seed=1, **TINY | kwargs)


def normalized_stacked(**kwargs):
    env = VecNormalize(VecFrameStack(make_vec_env("sb3_dreamer/TMaze-v0", 2, seed=0), 3))
    return DreamerV3("MlpPolicy", env, seed=0, **TINY | kwargs)


def continuous_dict(**kwargs):
    env = make_vec_env("sb3_dreamer/PixelReachDict-v0", 2, seed=0, env_kwargs=dict(image_size=16))
    return DreamerV3("MultiInputPolicy", env, seed=0, **TINY | kwargs)


def full_state(model):
    """Everything that must be equal, by name."""
    state = {f"policy.{name}": value.numpy() for name, value in model.policy.state_dict().items()}
    for i, moments in model.policy.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{name}": value.numpy() for name, value in moments.items()}
    buffer = model.replay_buffer
    state |= {f"replay.{name}": array for name, array in buffer._arrays().items()}
    state |= {"replay.queue": np.array(buffer._queue), "replay.counts": buffer.counts}
    state |= {"torch": th.get_rng_state().numpy(), "numpy": np.random.get_state()[1]}
    counters = "num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining"
    state |= {name: np.array(getattr(model, name)) for name in counters}
    state["returns"] = np.array([info["r"] for info in model.ep_info_buffer])
    state["owed"] = np.array(str(model._train_ratio.owed))
    return state


def stop_at(step):
    return ConvertCallback(lambda local, _: local["self"].num_timesteps < step)


def assert_equal(mine, theirs):
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not np.array_equal(mine[name], theirs[name])]
    assert not different, different


@pytest.mark.parametrize("build", [vectors, one_vector, one_image, images, normalized_stacked, continuous_dict])
@pytest.mark.parametrize("n_resumes", [1, 3])
def test_resumed_run_is_bit_equal(build, n_resumes, tmp_path):
    expected = full_state(build().learn(STEPS))
    model = build()
    for i in range(n_resumes):
        stop = STEPS // (n_resumes + 1) * (i + 1)
        callbacks = [DreamerCheckpointCallback(30, tmp_path), stop_at(stop)]
        model.learn(STEPS - model.num_timesteps, callback=callbacks, reset_num_timesteps=i == 0)
        assert stop <= model.num_timesteps < stop + 3
        env = build().env
        np.random.seed(9)
        th.manual_seed(9)
        model = DreamerV3.resume(tmp_path, env)
    model.learn(STEPS - model.num_timesteps, callback=DreamerCheckpointCallback(30, tmp_path), reset_num_timesteps=False)
    assert_equal(full_state(model), expected)


def test_resumed_in_the_middle_between_two_checkpoints(tmp_path):
    """A run that is killed continues from its last checkpoint, whatever came after it."""
    expected = full_state(vectors().learn(STEPS))
    model = vectors()
    model.learn(STEPS, callback=[DreamerCheckpointCallback(30, tmp_path, keep_last=9), stop_at(100)])
    folders = find_checkpoints(tmp_path)
    assert [int(folder.name[-9:]) for folder in folders] == [30, 60, 90, 102]
    resumed = DreamerV3.resume(folders[1], counter_envs())
    assert resumed.num_timesteps == 60
    resumed.learn(STEPS - 60, callback=DreamerCheckpointCallback(30, tmp_path), reset_num_timesteps=False)
    assert_equal(full_state(resumed), expected)
    assert len(find_checkpoints(tmp_path)) == 2 and len(list(tmp_path.glob("*.abandoned"))) == 2


def test_subprocesses_continue_in_their_episodes(tmp_path):
    """States and random generators of environments in other processes."""
    build = lambda: make_vec_env(TMazeEnv, 2, seed=0, vec_env_cls=SubprocVecEnv)  # noqa: E731
    settings = dict(seed=0, **TINY)
    whole = DreamerV3("MlpPolicy", build(), **settings).learn(120)
    model = DreamerV3("MlpPolicy", build(), **settings)
    model.learn(120, callback=[DreamerCheckpointCallback(30, tmp_path), stop_at(70)])
    model.env.close()
    resumed = DreamerV3.resume(tmp_path, build())
    resumed.learn(120 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_equal(full_state(resumed), full_state(whole))
    for env in (whole.env, resumed.env):
        env.close()


def test_environments_without_state_begin_an_episode(tmp_path):
    build = lambda: make_vec_env("CartPole-v1", 2, seed=0)  # noqa: E731
    model = DreamerV3("MlpPolicy", build(), seed=0, **TINY).learn(60, callback=DreamerCheckpointCallback(30, tmp_path))
    with pytest.warns(UserWarning, match="begin a new episode"):
        resumed = DreamerV3.resume(tmp_path, build())
    last, rows = resumed.replay_buffer.counts.copy(), resumed.replay_buffer.buffer_size
    assert (last == model.replay_buffer.counts).all()
    resumed.learn(20, reset_num_timesteps=False, log_interval=None)
    assert resumed.replay_buffer.is_first[last % rows, [0, 1]].all()
    # The generators go on, so the first episode is not replayed.
    first = model.replay_buffer.observations[0]
    assert not np.array_equal(resumed.replay_buffer.observations[last[0] % rows], first)


def test_logged_means_go_on(tmp_path):
    """Metrics and episode returns that were not logged yet are part of the checkpoint."""
    model = vectors().learn(120, log_interval=None)
    model.logger.record_mean("mine", 3.0)
    before = model._metrics.count, model._metrics._sums.clone(), list(model.ep_info_buffer)
    assert before[0] > 10
    folder = model.save_checkpoint(tmp_path)
    resumed = DreamerV3.resume(folder, counter_envs())
    assert resumed._metrics.count == before[0] and th.equal(resumed._metrics._sums, before[1])
    assert list(resumed.ep_info_buffer) == before[2]
    resumed.learn(3, reset_num_timesteps=False, log_interval=None)
    assert resumed.logger.name_to_value["mine"] == 3.0


def test_a_folder_with_another_run_is_refused(tmp_path):
    vectors().learn(30, callback=DreamerCheckpointCallback(30, tmp_path))
    model = vectors()
    with pytest.raises(ValueError, match="`path` has checkpoints of another run"):
        model.learn(30, callback=DreamerCheckpointCallback(30, tmp_path))
    assert model.num_timesteps == 0 and len(find_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("argument", ["save_freq", "keep_last"])
def test_callback_arguments(argument, tmp_path):
    with pytest.raises(ValueError, match=f"`{argument}` must be at least 1, got 0"):
        DreamerCheckpointCallback(**{"save_freq": 5, "path": tmp_path, argument: 0})


def test_functions_must_be_passed_again(tmp_path):
    model = vectors(learning_rate=lambda progress: 1e-3 * progress, policy_kwargs=dict(optimizer_class=th.optim.Adam))
    folder = model.learn(30).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not contain `learning_rate`, `policy_kwargs`, because functions and classes"):
        DreamerV3.resume(folder, counter_envs())
    passed = dict(learning_rate=lambda progress: 1e-3 * progress, policy_kwargs=dict(optimizer_class=th.optim.Adam))
    resumed = DreamerV3.resume(folder, counter_envs(), **passed)
    assert resumed.num_timesteps == 30 and resumed.training_ratio == 8


@pytest.mark.parametrize(
    ("learning_rate", "expected"),
    [
        (LinearSchedule(1e-3, 1e-4, 0.5), LinearSchedule(1e-3, 1e-4, 0.5)),
        (SimpleLinearSchedule(1e-3), LinearSchedule(1e-3, 0.0, 1.0)),
        (ConstantSchedule(1e-3), 1e-3),
        ([(0, 1e-3), (100, 1e-4)], [(0, 1e-3), (100, 1e-4)]),
    ],
    ids=["sb3", "zoo", "zoo constant", "points"],
)
def test_known_schedules_are_stored(learning_rate, expected, tmp_path):
    model = vectors(learning_rate=learning_rate).learn(30)
    model.save_checkpoint(tmp_path / "checkpoints")
    resumed = DreamerV3.resume(tmp_path, counter_envs())  # RL Zoo's folder of a run
    assert repr(resumed.learning_rate) == repr(expected)
    rates = [one.learn(30, reset_num_timesteps=False).lr_schedule(0.25) for one in (model, resumed)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_another_model_or_environment_is_refused_by_name(tmp_path):
    folder = vectors().learn(30).save_checkpoint(tmp_path)
    for changes, message in (
        (dict(policy_kwargs=dict(units=12)), "The weights of .* do not fit the model"),
        (dict(policy_kwargs=dict(deter=16)), "made with `latent_shape`"),
        (dict(replay_context=False), "made with `replay_context` True, the model has False"),
    ):
        with pytest.raises(ValueError, match=message):
            DreamerV3.resume(folder, counter_envs(), **changes)
    with pytest.raises(ValueError, match="made with `n_envs` 3, the model has 2"):
        DreamerV3.resume(folder, make_vec_env("CartPole-v1", 2))
    with pytest.raises(ValueError, match="was made without VecNormalize, `env` is with it"):
        DreamerV3.resume(folder, VecNormalize(counter_envs()))


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    model = vectors().learn(30)
    older = model.save_checkpoint(tmp_path)
    model.learn(30, reset_num_timesteps=False)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"No space left.*No checkpoint was saved in .*; the last complete one is {older}"):
        model.save_checkpoint(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [older] and model.last_checkpoint == older
    model.save_checkpoint(tmp_path)
    assert DreamerV3.resume(tmp_path, counter_envs()).num_timesteps == 60


def test_files_of_sb3_are_replaced_when_complete(tmp_path, monkeypatch):
    """``save`` and ``save_replay_buffer`` over existing files that cannot be written completely."""
    model = vectors().learn(30)
    for save, path in ((model.save, tmp_path / "model.zip"), (model.save_replay_buffer, tmp_path / "replay.pkl")):
        save(path)
        before = path.read_bytes()
        monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            save(path)
        monkeypatch.undo()
        assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.zip", "replay.pkl"]


def test_learn_from_step_0_in_the_folder_of_the_run_is_refused(tmp_path):
    """``reset_num_timesteps=False`` was forgotten: no checkpoint is touched."""
    vectors().learn(60, callback=DreamerCheckpointCallback(30, tmp_path))
    before = find_checkpoints(tmp_path)
    resumed = DreamerV3.resume(tmp_path, counter_envs())
    with pytest.raises(ValueError, match="starts at step 0, but `path` has a checkpoint of this run with 60 steps"):
        resumed.learn(60, callback=DreamerCheckpointCallback(30, tmp_path))
    assert find_checkpoints(tmp_path) == before and len(list(tmp_path.iterdir())) == len(before)
    resumed.learn(30, callback=DreamerCheckpointCallback(30, tmp_path), reset_num_timesteps=False)  # as the message says
    assert resumed.num_timesteps == 90


def test_a_checkpoint_of_another_run_is_not_replaced(tmp_path):
    folder = vectors().learn(30).save_checkpoint(tmp_path)
    other = vectors().learn(30)
    with pytest.raises(FileExistsError, match="is a checkpoint of another run"):
        other.save_checkpoint(tmp_path)
    assert other.last_checkpoint is None and folder.exists()


def test_figures_that_were_not_logged_yet_are_left_out(tmp_path):
    model = vectors().learn(30, log_interval=None)
    model.logger.record("figure", Figure(None, close=True), exclude="stdout")
    model.logger.record("number", 3.0)
    resumed = DreamerV3.resume(model.save_checkpoint(tmp_path), counter_envs())
    assert resumed._pending_log["name_to_value"]["number"] == 3.0
    assert "figure" not in resumed._pending_log["name_to_value"]


class MyDreamer(DreamerV3):
    def __init__(self, *args, mine=1, **kwargs):
        super().__init__(*args, **kwargs)


def test_subclasses(tmp_path):
    """Arguments of the base are stored. An argument that the subclass does not keep must be passed again."""
    model = MyDreamer("MlpPolicy", counter_envs(), mine=2, seed=0, **TINY).learn(30)
    folder = model.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not contain `mine`"):
        MyDreamer.resume(folder, counter_envs())
    assert MyDreamer.resume(folder, counter_envs(), mine=2).batch_length == model.batch_length


def test_the_folder_of_rows_on_disk_is_not_taken_from_a_checkpoint(tmp_path):
    rows = tmp_path / "rows"
    folder = vectors(replay_buffer_kwargs=dict(storage="disk", storage_folder=str(rows))).learn(30).save_checkpoint(tmp_path)
    rows.rmdir()
    resumed = DreamerV3.resume(folder, counter_envs())
    assert resumed.replay_buffer.storage == "disk" and not rows.exists()


def test_a_buffer_that_was_resized_and_back(tmp_path):
    model = vectors(buffer_size=69).learn(150)
    model.save_checkpoint(tmp_path)
    for rows in (40, 23):
        model.replay_buffer.resize(rows)
    model.learn(3, reset_num_timesteps=False)
    resumed = DreamerV3.resume(model.save_checkpoint(tmp_path), counter_envs())
    for name, array in model.replay_buffer._arrays().items():
        np.testing.assert_array_equal(array, resumed.replay_buffer._arrays()[name], err_msg=name)


def test_an_old_signal_does_not_hide_a_dead_worker(tmp_path):
    """The callback of an earlier ``learn`` has no say in a later one."""
    callback = DreamerCheckpointCallback(30, tmp_path)
    model = vectors().learn(30, callback=callback)
    callback.signals.received = "SIGTERM"

    def die(actions):
        raise WorkerError("Worker 0 has ended")

    model.env.step = die
    with pytest.raises(WorkerError):
        model.learn(30, reset_num_timesteps=False)
