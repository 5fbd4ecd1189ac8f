"""
Every invalid argument raises one clear exception. ``docs/errors.md`` lists all of them. Messages of this package are compared
word for word. For errors of SB3, gymnasium or torch only the type is compared, because their messages may change:

    python -m tests.test_errors > docs/errors.md
"""

import io
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.envs import CounterEnv
from sb3_dreamer.common.metrics import UnstableTrainingError
from sb3_dreamer.zoo.presets import check_keys, find_config
from tests.support.envs import NoiseEnv
from tests.support.helpers import ACTION_SPACES, IMAGE, MIXED, TINY, VECTOR, counter_envs, counter_model

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "errors.md"
PACKAGE = ROOT / "sb3_dreamer"
DISCRETE = ACTION_SPACES["discrete"]

# Left: the argument as it is written in a call of the constructor.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "batch_size=0": dict(batch_size=0),
    "batch_length=1": dict(batch_length=1),
    "batch_length=8.0": dict(batch_length=8.0),
    "buffer_size=1e6": dict(buffer_size=1e6),
    "buffer_size=0": dict(buffer_size=0),
    "reduce_dtype='fp16'": dict(reduce_dtype="fp16"),
    "training_ratio=0": dict(training_ratio=0),
    "training_ratio='high'": dict(training_ratio="high"),
    "learning_starts=-1": dict(learning_starts=-1),
    "imagination_horizon=0": dict(imagination_horizon=0),
    "imagine_last=1": dict(imagine_last=1),
    "imagine_last=9": dict(imagine_last=9),
    "gamma=1.5": dict(gamma=1.5),
    "return_lambda=-0.1": dict(return_lambda=-0.1),
    "tau=2": dict(tau=2),
    "ent_coef='auto_0.1'": dict(ent_coef="auto_0.1"),
    "ent_coef=float('nan')": dict(ent_coef=float("nan")),
    "free_nats=-1.0": dict(free_nats=-1.0),
    "agc_clip=0.0": dict(agc_clip=0.0),
    "lr_warmup_steps=-5": dict(lr_warmup_steps=-5),
    "learning_rate='lin_1e-3'": dict(learning_rate="lin_1e-3"),
    "learning_rate=True": dict(learning_rate=True),
    "learning_rate=-1e-3": dict(learning_rate=-1e-3),
    "learning_rate=[(0, 1e-3), (0, 1e-4)]": dict(learning_rate=[(0, 1e-3), (0, 1e-4)]),
    "loss_scales=dict(rewards=1.0)": dict(loss_scales=dict(rewards=1.0)),
    "loss_scales=dict(reward=-1.0)": dict(loss_scales=dict(reward=-1.0)),
    "loss_scales=dict(reconstruction=dict(camera=1.0))": dict(loss_scales=dict(reconstruction=dict(camera=1.0))),
    "loss_scales=dict(reconstruction=dict(obs=-1.0))": dict(loss_scales=dict(reconstruction=dict(obs=-1.0))),
    "precision='fp16'": dict(precision="fp16"),
    "compile='yes'": dict(compile="yes"),
    "fused=True": dict(fused=True),
    "distributed_scaling='square'": dict(distributed_scaling="square"),
    "model_size='huge'": dict(model_size="huge"),
    "train_freq=('1', 'step')": dict(train_freq=("1", "step")),
    "train_freq=0": dict(train_freq=0),
    "train_freq=(1, 'epoch')": dict(train_freq=(1, "epoch")),
    "train_freq=(1, 'episode'), 3 environments": dict(train_freq=(1, "episode")),
    "replay_buffer_class=ReplayBuffer": dict(replay_buffer_class=ReplayBuffer),
    "replay_buffer_class=HerReplayBuffer": dict(replay_buffer_class=HerReplayBuffer),
    "replay_buffer_kwargs=dict(optimize_memory_usage=True)": dict(replay_buffer_kwargs=dict(optimize_memory_usage=True)),
    "replay_buffer_kwargs=dict(storage='tape')": dict(replay_buffer_kwargs=dict(storage="tape")),
    "replay_buffer_kwargs=dict(batch_length=3)": dict(replay_buffer_kwargs=dict(batch_length=3)),
    "log_every_updates=0": dict(log_every_updates=0),
    "policy_kwargs=dict(model_size='1m')": dict(policy_kwargs=dict(model_size="1m")),
    "policy_kwargs=dict(deter=30, blocks=4)": dict(policy_kwargs=dict(deter=30, blocks=4)),
    "policy_kwargs=dict(detre=8)": dict(policy_kwargs=dict(detre=8)),
    "policy_kwargs=dict(net_arch=[64])": dict(policy_kwargs=dict(net_arch=[64])),
    "policy_kwargs=dict(lstm_hidden_size=64)": dict(policy_kwargs=dict(lstm_hidden_size=64)),
    "policy_kwargs=dict(features_extractor_class=MyExtractor)": dict(
        policy_kwargs=dict(features_extractor_class=th.nn.Identity)
    ),
    "policy_kwargs=dict(optimizer_kwargs=dict(lr_scale=dict(encoder=1.0)))": dict(
        policy_kwargs=dict(optimizer_kwargs=dict(lr_scale=dict(encoder=1.0)))
    ),
    "policy_kwargs=dict(symlog_inputs='auto')": dict(policy_kwargs=dict(symlog_inputs="auto")),
    "policy_kwargs=dict(return_normalizer_decay=1.0)": dict(policy_kwargs=dict(return_normalizer_decay=1.0)),
    "policy_kwargs=dict(return_percentiles=(5, 95))": dict(policy_kwargs=dict(return_percentiles=(5, 95))),
    "gradient_steps=1": dict(gradient_steps=1),
    "n_steps=3": dict(n_steps=3),
    "action_noise=NormalActionNoise(...)": dict(action_noise=NormalActionNoise(np.zeros(1), np.ones(1))),
    "use_sde=True": dict(use_sde=True),
    "optimize_memory_usage=True": dict(optimize_memory_usage=True),
    "exploration_fraction=0.1": dict(exploration_fraction=0.1),
    "target_entropy='auto'": dict(target_entropy="auto"),
    "lstm_hidden_size=64": dict(lstm_hidden_size=64),
    "net_arch=[64]": dict(net_arch=[64]),
    "training_ration=64": dict(training_ration=64),
}


def construct(observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, policy: str = "MlpPolicy"):
    """:return: a function that builds a model on an environment with these spaces"""
    return lambda: DreamerV3(policy, NoiseEnv(observation_space, action_space), **TINY)


SPACES: dict[str, Callable[[], Any]] = {
    "actions: Discrete(3, start=1)": construct(action_space=spaces.Discrete(3, start=1)),
    "actions: Box with an infinite bound": construct(action_space=spaces.Box(-np.inf, 1.0, (2,))),
    "actions: Box with low above high": construct(
        action_space=spaces.Box(np.zeros(2, np.float32), np.array([1, 0], np.float32))
    ),
    "actions: Tuple": construct(action_space=spaces.Tuple([spaces.Discrete(2)])),
    "actions: MultiDiscrete of two axes": construct(action_space=spaces.MultiDiscrete([[2, 3], [4, 2]])),
    "actions: MultiBinary of two axes": construct(action_space=spaces.MultiBinary([2, 3])),
    "observations: MultiDiscrete of two axes": construct(spaces.MultiDiscrete([[2, 3], [4, 2]])),
    "observations: Dict in a Dict": construct(
        spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), policy="MultiInputPolicy"
    ),
    "observations: Text": construct(spaces.Text(5)),
    "observations: Tuple": construct(spaces.Tuple([VECTOR, VECTOR])),
    "observations: Text in a Dict": construct(spaces.Dict({"a": VECTOR, "b": spaces.Text(5)}), policy="MultiInputPolicy"),
    "observations: Text in a Dict, make_vec_env": lambda: make_vec_env(
        lambda: NoiseEnv(spaces.Dict({"a": VECTOR, "b": spaces.Text(5)}), DISCRETE), 2
    ),
    "MlpPolicy on a Dict": construct(MIXED),
    "CnnPolicy on a vector": construct(policy="CnnPolicy"),
    "LstmPolicy": construct(policy="LstmPolicy"),
    "MlpLstmPolicy": construct(policy="MlpLstmPolicy"),
    "SAC's policy class": lambda: DreamerV3(SACPolicy, NoiseEnv(VECTOR, DISCRETE), **TINY),
    "VecNormalize over an image": lambda: DreamerV3(
        "CnnPolicy", VecNormalize(DummyVecEnv([lambda: NoiseEnv(IMAGE, DISCRETE)])), **TINY
    ),
}


CAMERA = spaces.Dict({"camera": spaces.Box(0, 255, (3, 16, 20), np.uint8), "joints": VECTOR})
SPACES |= {
    "VecFrameStack around VecNormalize": lambda: DreamerV3(
        "MultiInputPolicy",
        VecFrameStack(VecNormalize(DummyVecEnv([lambda: NoiseEnv(CAMERA, DISCRETE)]), norm_obs_keys=["joints"]), 2),
        **TINY,
    ),
    "CnnPolicy on an image of two axes": construct(spaces.Box(0, 255, (64, 64), np.uint8), policy="CnnPolicy"),
    "observations: a Box of size 0": construct(spaces.Box(0.0, 1.0, (0,), np.float32)),
    "observations: a Dict without keys": construct(spaces.Dict({}), policy="MultiInputPolicy"),
    "observations: (64, 64, 6) floats (a warning)": construct(spaces.Box(0.0, 1.0, (64, 64, 6), np.float32)),
}


def keys(**policy_kwargs: Any):
    return lambda: DreamerV3("MultiInputPolicy", NoiseEnv(CAMERA, DISCRETE), **TINY, policy_kwargs=policy_kwargs)


SPACES |= {
    "`policy_kwargs=dict(image_keys=['camrea'])`": keys(image_keys=["camrea"]),
    "`policy_kwargs=dict(image_keys=['joints'])`": keys(image_keys=["joints"]),
    "`policy_kwargs=dict(image_keys=['camera'], vector_keys=['camera'])`": keys(image_keys=["camera"], vector_keys=["camera"]),
    "`policy_kwargs=dict(image_keys=[], vector_keys=[])`": keys(image_keys=[], vector_keys=[]),
}


class BrokenEnv(NoiseEnv):
    """From the third step on, one number is invalid."""

    def __init__(self, bad_obs: float = 0.0, bad_reward: float = 0.0):
        super().__init__(VECTOR, DISCRETE)
        self.bad_obs, self.bad_reward = np.float32(bad_obs), bad_reward

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return (obs + self.bad_obs, reward + self.bad_reward, *rest) if self.t == 3 else (obs, reward, *rest)


def learn_with(n_steps: int = 20, **bad: float):
    return lambda: DreamerV3(
        "MlpPolicy", DummyVecEnv([lambda: NoiseEnv(VECTOR, DISCRETE), lambda: BrokenEnv(**bad)]), **TINY
    ).learn(n_steps)


def add(obs=1, next_obs=2, action=0, reward=0.0, infos=None, space=spaces.Discrete(5), actions=DISCRETE):  # noqa: B008
    """:return: a function that adds one step of one environment to an empty buffer"""
    buffer = SequenceReplayBuffer(60, space, actions, "cpu", 1, batch_length=2, latent_shape=(2, 2, 2))
    done = np.zeros(1, dtype=bool)
    arrays = [np.array([part]) for part in (obs, next_obs, action, reward)]
    return lambda: buffer.add(*arrays, done, [{}] if infos is None else infos)


def look_at_codes():
    """Add a thousand rows of codes to a buffer for images."""
    space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer = SequenceReplayBuffer(2000, space, DISCRETE, "cpu", 1, batch_length=2, latent_shape=(2, 2, 2))
    image, zero = np.full((1, 3, 8, 8), 7, np.uint8), np.zeros(1)
    for _ in range(1000):
        buffer.add(image, image, np.array([0]), zero, zero, [{}])


def fill_disk():
    """Add a row to a buffer on a disk with a free gigabyte."""
    with patch("shutil.disk_usage", lambda _: SimpleNamespace(free=1e9)):
        buffer = SequenceReplayBuffer(10**8, VECTOR, DISCRETE, "cpu", 1, storage="disk", storage_folder="/tmp")
        buffer.add(np.zeros(5), np.zeros(5), np.array([0]), np.zeros(1), np.zeros(1), [{}])


def predict_with(observation: Any = None, state: Any = None, episode_start: Any = None):
    obs = np.zeros((2, 3), np.float32)
    return lambda: counter_model().predict(obs if observation is None else observation, state, episode_start)


def broken_model(part: str):
    """:return: a model of continuous actions that has trained, then got NaN in the weights of a part"""
    model = DreamerV3("MlpPolicy", NoiseEnv(VECTOR, ACTION_SPACES["box"]), **TINY).learn(30)
    with th.no_grad():
        model.policy.get_submodule(part).weight.fill_(th.nan)
    return model


def train_broken(part: str):
    try:
        broken_model(part).train(10)
    except UnstableTrainingError as error:  # the folder differs
        raise UnstableTrainingError(re.sub(r"\S*(skipped_batch_)\S*(\.npz)", r"FOLDER/\1...\2", str(error))) from None


def load_buffer(saved: dict[str, Any], model: dict[str, Any], envs: Any = counter_envs):
    """:return: a function that loads the replay buffer of one model into another"""

    def load():
        file = io.BytesIO()
        counter_model(**saved).learn(30).save_replay_buffer(file)
        file.seek(0)
        DreamerV3("MlpPolicy", envs(), **{**TINY, **model}).load_replay_buffer(file)

    return load


def load_model(then: Callable[[DreamerV3], Any] = lambda model: None, **kwargs: Any):
    """:return: a function that loads a model with these arguments and uses it"""

    def load():
        with tempfile.TemporaryDirectory() as folder:
            counter_model().save(f"{folder}/model")
            then(DreamerV3.load(f"{folder}/model", **kwargs))

    return load


def set_and_learn(name: str, value: Any):
    """:return: a function that sets an attribute of an existing model and trains it"""

    def act():
        model = counter_model()
        setattr(model, name, value)
        model.learn(30)

    return act


def load_sac():
    with tempfile.TemporaryDirectory() as folder:
        SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save(f"{folder}/model")
        DreamerV3.load(f"{folder}/model")


def resume(envs=counter_envs, keep_folder=True, **changes: Any):
    """:return: a function that resumes from a checkpoint, without the name of its temporary folder in the message"""

    def act():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = counter_model().learn(6).save_checkpoint(folder)
            if not keep_folder:
                (checkpoint / "weights.pth").write_bytes(b"")
            try:
                DreamerV3.resume(checkpoint, envs(), **changes)
            except Exception as error:
                error.args = (str(error).replace(str(checkpoint), "CHECKPOINT"),)
                raise

    return act


def save_with(callback_path: str = "checkpoints", env=counter_envs, **kwargs: Any):
    """:return: a function that trains with a checkpoint callback"""

    def act():
        with tempfile.TemporaryDirectory() as folder:
            callback = DreamerCheckpointCallback(**{"save_freq": 30, "path": f"{folder}/{callback_path}", **kwargs})
            DreamerV3("MlpPolicy", env(), **TINY).learn(30, callback=callback)

    return act


class OpenFileCounter(CounterEnv):
    def get_state(self):
        return {"log": print}


OBS = np.zeros((2, 3), np.float32)
USES: dict[str, Callable[[], Any]] = {
    "an observation holds NaN": learn_with(bad_obs=np.nan),
    "an observation holds infinity": learn_with(bad_obs=np.inf),
    "a reward is NaN": learn_with(bad_reward=np.nan),
    "an observation holds np.finfo(np.float64).max": add(0.0, np.finfo(np.float64).max, space=spaces.Box(-9, 9, ())),
    "a reward of 1e300": add(reward=1e300),
    "a reward of 1e9 (a warning)": learn_with(80, bad_reward=1e9),
    "an observation of 5 in Discrete(5)": add(next_obs=5),
    "an observation of 1.5 in Discrete(5)": add(next_obs=1.5),
    "an observation of 2 in MultiBinary(2)": add([0, 1], [1, 2], space=spaces.MultiBinary(2)),
    "an observation of shape (3,) in Box(2,)": add([0, 1], [1, 2, 3], space=spaces.Box(-9, 9, (2,))),
    "a value of 12 in an image of 0 to 10": add(
        np.zeros((8, 8, 3)), np.full((8, 8, 3), 12), space=spaces.Box(0, 10, (8, 8, 3), np.uint8)
    ),
    "add: action 3 in Discrete(3)": add(action=3),
    "add: an action of Box(-2, 2) that is not scaled": add(action=[1.7], actions=spaces.Box(-2, 2, (1,))),
    "add: an action is NaN": add(action=[np.nan], actions=spaces.Box(-2, 2, (1,))),
    "add: two infos for one environment": add(infos=[{}, {}]),
    "an image holds codes up to 7 (a warning)": look_at_codes,
    "predict(an observation with NaN)": lambda: counter_model().predict(np.array([[1.0, np.nan, 0.0]])),
    "predict(a Dict with other keys)": lambda: DreamerV3("MultiInputPolicy", NoiseEnv(CAMERA, DISCRETE), **TINY).predict(
        {"joints": np.zeros(5)}
    ),
    "storage='disk', a buffer larger than the disk": fill_disk,
    "storage='disk', a file as storage_folder": lambda: counter_model(
        replay_buffer_kwargs=dict(storage="disk", storage_folder="/dev/null")
    ).learn(30),
    "buffer_size=5: no window fits (a warning)": lambda: counter_model(buffer_size=5).learn(30),
    "predict((obs, info))": predict_with((np.zeros((2, 3), np.float32), {})),
    "predict(obs, state of another batch)": predict_with(state=(np.zeros((3, 8)), np.zeros((3, 2, 4)), np.zeros((3, 4)))),
    "predict(obs, episode_start of another batch)": predict_with(episode_start=np.zeros(3)),
    "predict(obs, state with NaN)": predict_with(state=(np.full((2, 8), np.nan), np.zeros((2, 2, 4)), np.zeros((2, 4)))),
    "predict(obs, episode_start=[0.5, 1])": predict_with(episode_start=np.array([0.5, 1.0])),
    "predict(obs of another shape)": predict_with(np.zeros((2, 7), np.float32)),
    "predict, NaN in the actor": lambda: broken_model("actor.output").predict(np.zeros(5)),
    "learn, NaN in the actor": lambda: broken_model("actor.output").learn(30, reset_num_timesteps=False),
    "learn, NaN in the recurrent model": lambda: broken_model("world_model.rssm.core.gates").learn(
        30, reset_num_timesteps=False
    ),
    "train, NaN in the reward head": lambda: train_broken("world_model.reward_head.output"),
    "no environment": lambda: DreamerV3("MlpPolicy", None),
    "env=CartPoleEnv, the class": lambda: DreamerV3("MlpPolicy", CartPoleEnv),
    "env=gymnasium.spec('CartPole-v1')": lambda: DreamerV3("MlpPolicy", gym.spec("CartPole-v1")),
    "env=[CartPoleEnv(), CartPoleEnv()]": lambda: DreamerV3("MlpPolicy", [CartPoleEnv(), CartPoleEnv()]),
    "env=gymnasium.make_vec(...)": lambda: DreamerV3("MlpPolicy", gym.make_vec("CartPole-v1", 2)),
    "learn after a load without an environment": load_model(then=lambda model: model.learn(10)),
    "set_env with another number of environments": lambda: counter_model().set_env(make_vec_env("CartPole-v1", 2)),
    "learn(9), learning_starts=0, batch_length=64 (a warning)": lambda: counter_model(
        learning_starts=0, batch_length=64
    ).learn(9),
    "learn(20), learning_starts=24 (a warning)": lambda: counter_model().learn(20),
    "predict(obs) again and again (a warning)": lambda: [(model := counter_model()), model.predict(OBS), model.predict(OBS)],
    "model.gamma = 2, then learn": set_and_learn("gamma", 2),
    "model.replay_context = False, then learn": set_and_learn("replay_context", False),
    "model.buffer_size = 300, then learn": set_and_learn("buffer_size", 300),
    "model.model_size = 'nano', then learn": set_and_learn("model_size", "nano"),
    "model.policy_kwargs = dict(deter=16), then learn": set_and_learn("policy_kwargs", dict(deter=16)),
    "load with gradient_steps=4": load_model(gradient_steps=4),
    "load with trainin_ratio=4": load_model(trainin_ratio=4),
    "RL Zoo, --conf-file smal.yml": lambda: find_config("smal.yml"),
    "RL Zoo, a preset with env_wraper": lambda: check_keys(dict(policy="MlpPolicy", env_wraper="A"), "mine.yml"),
    "RL Zoo, a preset without n_timesteps": lambda: check_keys(dict(policy="MlpPolicy"), "mine.yml"),
    "load with other policy_kwargs": load_model(policy_kwargs=dict(deter=16)),
    "load the file of SAC": load_sac,
    "load with another model_size": load_model(model_size="nano"),
    "set_parameters of another size": lambda: counter_model().set_parameters(
        counter_model(policy_kwargs=dict(deter=16)).get_parameters()
    ),
    "load into an environment of other spaces": lambda: load_model(env=make_vec_env("CartPole-v1", 3))(),
    "resume('/nowhere', env)": lambda: DreamerV3.resume("/nowhere", counter_envs()),
    "resume, a damaged checkpoint": resume(keep_folder=False),
    "resume with another number of environments": resume(envs=lambda: make_vec_env("CartPole-v1", 2)),
    "resume with another model_size": resume(model_size="nano"),
    "resume with VecNormalize, without before": resume(envs=lambda: VecNormalize(counter_envs())),
    "DreamerCheckpointCallback(save_freq=0)": save_with(save_freq=0),
    "DreamerCheckpointCallback, `get_state` returns a function": save_with(env=OpenFileCounter),
    "replay buffer of another model_size": load_buffer({}, dict(policy_kwargs=dict(deter=16))),
    "replay buffer of another replay_context": load_buffer({}, dict(replay_context=False)),
    "replay buffer of another number of environments": load_buffer({}, {}, lambda: make_vec_env("CartPole-v1", 1)),
    "replay buffer of other observations": load_buffer({}, {}, lambda: make_vec_env("CartPole-v1", 3)),
}
CASES = {
    **{f"`{name}`": lambda kwargs=kwargs: counter_model(**kwargs) for name, kwargs in ARGUMENTS.items()},
    **SPACES,
    **USES,
}


class Outcome(NamedTuple):
    """Type of the exception or warning, its message, and whether it is raised by this package."""

    kind: str
    message: str
    is_ours: bool


def outcome(case: Callable[[], Any]) -> Outcome:
    """:return: outcome of the exception or of the single warning"""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            case()
        except Exception as error:
            raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            return Outcome(type(error).__name__, " ".join(str(error).split()), raised_in.is_relative_to(PACKAGE))
    ours = [str(w.message) for w in warned if w.category is UserWarning]
    assert len(ours) == 1, ours
    return Outcome("UserWarning", " ".join(ours[0].split()), True)


def row(name: str, kind: str, message: str) -> str:
    return f"| {name} | {kind}: {message} |".replace("||", r"\|\|")


@pytest.mark.parametrize("name", CASES)
def test_error(name):
    kind, message, is_ours = outcome(CASES[name])
    rows = DOCUMENT.read_text().splitlines()
    if is_ours:
        assert row(name, kind, message) in rows
    else:
        assert any(line.startswith(row(name, kind, "").removesuffix(" |")) for line in rows), kind


def test_origin_of_a_message():
    assert outcome(CASES["`batch_size=0`"]).is_ours
    assert not outcome(CASES["MlpPolicy on a Dict"]).is_ours  # SB3's


def test_the_document_lists_exactly_these_cases():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == list(CASES)


if __name__ == "__main__":
    print("# Invalid arguments and their error messages\n")
    print("Each error is raised before training starts, before the row is stored, before the environment is stepped, or after")
    print("updates that were skipped; collected data and trained weights are kept. This file is written and checked by")
    print("`tests/test_errors.py`. A few messages are those of SB3.\n")
    print("| input | error |\n|---|---|")
    for name, case in CASES.items():
        kind, message, _ = outcome(case)
        print(row(name, kind, message))
