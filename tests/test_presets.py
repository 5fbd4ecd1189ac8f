"""Every preset: numbers are not strings, keys are arguments, and 200 steps run through RL Zoo."""

import argparse
import importlib
import inspect
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_dreamer import DreamerPolicy, DreamerV3, preset
from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES, SIZE_FIELDS
from sb3_dreamer.presets import hyperparams_dir
from sb3_dreamer.zoo.plugin import register_all
from sb3_dreamer.zoo.presets import find_config
from tests.support.envs import NoiseEnv
from tests.support.helpers import MIXED

FOLDER = hyperparams_dir()
FILES = sorted(FOLDER.rglob("*.yml"))
PRESETS = yaml.safe_load((FOLDER / "dreamerv3.yml").read_text())
ENVS = [name for name in PRESETS if name not in ("default", "atari") and not name.startswith(".")]
# Keys of RL Zoo.
ZOO_KEYS = {"n_envs", "n_timesteps", "env_wrapper", "policy"}
# Package of an environment, by the prefix of its id.
PACKAGES = {
    "ALE/": "ale_py",
    "dm_control/": "shimmy",
    "MiniGrid-": "minigrid",
    "FlappyBird-": "flappy_bird_gymnasium",
    "highway-": "highway_env",
    "roundabout-": "highway_env",
    "intersection-": "highway_env",
    "racetrack-": "highway_env",
    "PointMaze_": "gymnasium_robotics",
    "Adroit": "gymnasium_robotics",
    "Franka": "gymnasium_robotics",
    "popgym-": "popgym",
    "LunarLander-": "Box2D",
    "sb3_dreamer/Crafter": "crafter",
    "HalfCheetah-": "mujoco",
    "Hopper-": "mujoco",
    "Walker2d-": "mujoco",
    "Humanoid-": "mujoco",
}
MIXED_ENV = EnvSpec("Mixed-v0", entry_point=lambda **_: NoiseEnv(MIXED, spaces.Discrete(3)))
LIGHT = ("ale_py", None)
TINY = dict(
    n_envs=2,
    model_size="debug",
    policy_kwargs={},
    batch_size=2,
    batch_length=8,
    imagination_horizon=2,
    imagine_last=0,
    training_ratio=0.5,
    learning_starts=0,
    buffer_size=2000,
)


def package_of(env_id: str) -> str | None:
    return next((package for start, package in PACKAGES.items() if env_id.startswith(start)), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files(path):
    arguments = set(inspect.signature(DreamerV3).parameters)
    for name, settings in yaml.safe_load(path.read_text()).items():
        assert set(settings) <= arguments | ZOO_KEYS, name
        assert set(settings.get("policy_kwargs", {})) <= SIZE_FIELDS, name
        assert name.startswith(".") or {"n_timesteps", "policy"} <= set(settings), name
        for key, value in settings.items():
            if key not in ("policy", "env_wrapper", "model_size", "policy_kwargs") and value not in ("harmony", "auto"):
                if key == "learning_rate" and str(value).startswith("lin_"):
                    value = float(value.removeprefix("lin_"))  # RL Zoo's notation for a linear schedule to 0
                for number in value.values() if isinstance(value, dict) else [value]:
                    assert isinstance(number, (int, float)), (name, key, value)  # YAML reads 1e-4 as a string


def test_every_size_has_a_file():
    sizes = {path.stem: yaml.safe_load(path.read_text()) for path in (FOLDER / "sizes").glob("*.yml")}
    assert set(sizes) == set(MODEL_SIZES)
    for name, presets in sizes.items():  # RL Zoo uses `atari` for every ALE game, without a fallback
        assert presets == {kind: {**PRESETS[kind], "model_size": name} for kind in ("default", "atari")}


def test_the_docs_name_every_preset():
    text = (Path(__file__).parent.parent / "docs" / "presets.md").read_text()
    assert [name for name in ENVS if f"`{name}`" not in text] == []
    assert [path.name for path in FILES if path.parent == FOLDER and path.name not in text] == []


SETTINGS = """learning_starts buffer_size batch_size batch_length training_ratio gamma ent_coef free_nats agc_clip imagine_last
loss_scales lr_warmup_steps policy_kwargs model_size""".split()


@pytest.mark.parametrize(("name", "config"), [("CartPole-v1", None), ("small", "small.yml")])
def test_a_preset_in_python_is_that_of_rl_zoo(name, config, tmp_path):
    register_all()
    exp_manager = importlib.import_module("rl_zoo3.exp_manager")
    namespace = argparse.Namespace()
    manager = exp_manager.ExperimentManager(
        namespace, "dreamerv3", "CartPole-v1", str(tmp_path), device="cpu", verbose=0, config=config
    )
    theirs, _ = manager.setup_experiment()
    settings = preset(name)
    model = DreamerV3("MlpPolicy", "CartPole-v1", device="cpu", **settings)
    assert [getattr(model, key) for key in SETTINGS] == [getattr(theirs, key) for key in SETTINGS]
    assert [one.lr_schedule(0.3) for one in (model, theirs)] == pytest.approx([3e-4, 3e-4])
    assert settings.zoo == {"n_envs": 4, "n_timesteps": 10_000, "policy": "sb3_dreamer.DreamerPolicy"}


def test_every_preset_is_there_in_python():
    for name in [*PRESETS, "sizes/12m", "dm_control_proprio"]:
        if name.startswith("."):
            continue
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            settings = preset(name)
        assert set(settings) | set(settings.zoo) <= set(inspect.signature(DreamerV3).parameters) | ZOO_KEYS
        assert not set(settings) & ZOO_KEYS


def test_a_preset_for_a_wrapped_environment_says_so():
    with pytest.warns(UserWarning, match=r"preset 'atari' is for a wrapped environment.*'env_wrapper': 'sb3_dreamer"):
        assert preset("atari")["model_size"] == "200m"


@pytest.mark.parametrize(("name", "similar"), [("Cartpole-v1", "CartPole-v1"), ("smal", "small"), (".small", "small")])
def test_unknown_presets_name_similar_ones(name, similar):
    with pytest.raises(ValueError, match=f"`name` must be a preset, got '{name}'; similar ones: .*{similar}"):
        preset(name)


def test_unknown_presets_name_those_for_every_environment():
    with pytest.raises(ValueError, match="For other environments: 'small' on a CPU, or no preset"):
        preset("MyEnv-v0")
    assert f"{preset('small.yml')}" == f"{preset('small')}"


def test_find_config(tmp_path):
    assert find_config(None) == str(FOLDER / "dreamerv3.yml")
    assert find_config("sizes/XL.yml") == str(FOLDER / "sizes" / "XL.yml")
    own = tmp_path / "own.yml"
    own.write_text("default: {}")
    assert find_config(str(own)) == str(own)
    assert find_config("my_package.hyperparams") == "my_package.hyperparams"


def run_preset(env_id: str, tmp_path: Path, config: str | None = None, **overrides) -> DreamerV3:
    """Build training and evaluation environments with RL Zoo's ExperimentManager, and train for 200 steps."""
    package = package_of(env_id)
    if package is not None:
        module = pytest.importorskip(package)
        if package in ("ale_py", "shimmy", "gymnasium_robotics"):
            gym.register_envs(module)
    register_all()
    exp_manager = importlib.import_module("rl_zoo3.exp_manager")
    hyperparams = {**TINY, **overrides}
    manager = exp_manager.ExperimentManager(
        argparse.Namespace(),
        "dreamerv3",
        env_id,
        str(tmp_path),
        n_timesteps=200,
        eval_freq=-1,
        log_interval=-1,
        hyperparams=hyperparams,
        seed=1,
        verbose=0,
        device="cpu",
        config=config,
    )
    model, _ = manager.setup_experiment()
    evaluation = manager.create_envs(1, eval_env=True)
    assert evaluation.observation_space == model.observation_space and evaluation.action_space == model.action_space
    evaluation.close()
    manager.learn(model)
    assert model.num_timesteps >= 200 and model._n_updates > 0
    return model


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", *(name for name in ENVS if package_of(name) in LIGHT)])
def test_light_presets(env_id, tmp_path):
    run_preset(env_id, tmp_path)


def command(name: str, monkeypatch, *arguments: str) -> None:
    """One of RL Zoo's commands, in this process."""
    monkeypatch.setattr(sys, "argv", [name, "--algo", "dreamerv3", *arguments])
    getattr(importlib.import_module(f"rl_zoo3.{name}"), name)()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "sb3_dreamer/PixelCatch-v0", "Mixed-v0"])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_default_preset_for_all_spaces(env_id, n_envs, tmp_path, monkeypatch, capsys):
    """Vectors, integers, images and Dicts with the default preset: train, enjoy, continue with the replay buffer."""
    register_all()
    monkeypatch.setitem(gym.envs.registry, "Mixed-v0", MIXED_ENV)
    (tmp_path / "default.yml").write_text(yaml.safe_dump({"default": PRESETS["default"]}))
    small = {**TINY, "n_envs": n_envs}
    common = ("--env", env_id, "-f", str(tmp_path), "--device", "cpu")
    train = (*common, "-n", "100", "--eval-freq", "-1", "--conf-file", str(tmp_path / "default.yml"))
    train = (*train, "-params", *(f"{key}:{value!r}" for key, value in small.items()))
    command("train", monkeypatch, *train, "--save-replay-buffer")
    run = tmp_path / "dreamerv3" / f"{env_id.replace('/', '-')}_1"
    trained = DreamerV3.load(run / f"{env_id.replace('/', '-')}.zip", device="cpu")
    assert trained.num_timesteps >= 100 and trained._n_updates > 0 and trained.n_envs == n_envs
    assert isinstance(trained.policy, DreamerPolicy) and trained.model_size == "debug"
    command("enjoy", monkeypatch, *common, "--no-render", "-n", "40", "--n-envs", "1")
    command("train", monkeypatch, *train, "-i", str(run / f"{env_id.replace('/', '-')}.zip"))
    assert "Loading replay buffer" in capsys.readouterr().out
    again = DreamerV3.load(f"{str(run)[:-1]}2/{env_id.replace('/', '-')}.zip", device="cpu")
    assert again._n_updates > trained._n_updates


def test_atari_of_another_size(tmp_path):
    run_preset("ALE/Breakout-v5", tmp_path, config="sizes/debug.yml")


def test_atari_200m(tmp_path):
    model = run_preset("ALE/Breakout-v5", tmp_path, config="atari_200m.yml")
    assert model.observation_space.shape == (1, 96, 96) and model.action_space.n == 18


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [name for name in ENVS if package_of(name) not in LIGHT])
def test_heavy_presets(env_id, tmp_path):
    if env_id == "FrankaKitchen-v1":
        mujoco = pytest.importorskip("mujoco")
        if tuple(int(part) for part in mujoco.__version__.split(".")[:2]) >= (3, 17):
            pytest.skip("gymnasium-robotics 1.4 cannot make it with MuJoCo 3.17")
    run_preset(env_id, tmp_path)


@pytest.mark.slow
def test_dm_control_vision(tmp_path):
    model = run_preset("dm_control/walker-walk-v0", tmp_path, config="dm_control_vision.yml")
    assert model.observation_space.shape == (3, 64, 64)


@pytest.mark.filterwarnings("ignore:The preset")
def test_every_atari_game_has_the_preset_of_rl_zoo():
    assert preset("ALE/Pong-v5") == preset("atari") and preset("ALE/Pong-v5").zoo == preset("atari").zoo
