"""RL Zoo's commands find DreamerV3 through the start-up files of the wheel. Uninstalling removes everything."""

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import optuna
import pytest

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.metrics import UnstableTrainingError
from sb3_dreamer.zoo import plugin
from sb3_dreamer.zoo.__main__ import call_with_us
from sb3_dreamer.zoo.sampler import convert_dreamerv3_params, sample_dreamerv3_params
from tests.support.helpers import counter_model

ROOT = Path(__file__).parent.parent
STARTUP = ROOT / "sb3_dreamer" / "zoo" / "startup"


def python(code: str, *, path: Path | str = STARTUP, **environment: str) -> str:
    """Run code in a new interpreter with this folder and no other packages. Output on stderr is a failure."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        cwd="/",
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout


INSTALL = "import sys, _sb3_dreamer_zoo_hook as hook; hook.install(); "


def test_the_hook_imports_nothing():
    code = "import sys, os; before = set(sys.modules); import _sb3_dreamer_zoo_hook as h; h.install();"
    assert python(code + "print(sorted(set(sys.modules) - before))") == "['_sb3_dreamer_zoo_hook']\n"


def test_the_hook_is_installed_once_and_can_be_switched_off():
    count = INSTALL + "hook.install(); print(sum(f is hook.PostImportFinder for f in sys.meta_path))"
    assert python(count) == "1\n"
    assert python(count, SB3_DREAMER_ZOO="0") == "0\n"


def test_without_rl_zoo_nothing_happens():
    """Other imports are unchanged, and importing RL Zoo fails as usual."""
    code = INSTALL + (
        "import json, importlib.util\n"
        "try:\n import rl_zoo3.utils\nexcept ModuleNotFoundError as e: print(e.name)\n"
        "print(hook.PostImportFinder.find_spec('json'), hook.PostImportFinder.find_spec('rl_zoo3.utils'))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(STARTUP)}
    )
    assert result.stdout == "rl_zoo3\nNone None\n" and not result.stderr


def test_a_broken_plugin_only_warns(tmp_path):
    """RL Zoo still works. A stand-in package replaces RL Zoo, and sb3_dreamer is missing."""
    (tmp_path / "rl_zoo3").mkdir()
    (tmp_path / "rl_zoo3" / "__init__.py").write_text("")
    (tmp_path / "rl_zoo3" / "utils.py").write_text("ALGOS = {'ppo': 1}")
    shutil.copy(STARTUP / "_sb3_dreamer_zoo_hook.py", tmp_path)
    code = INSTALL + "import rl_zoo3.utils; print(rl_zoo3.utils.ALGOS)"
    result = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert result.stdout == "{'ppo': 1}\n"
    assert "RL Zoo continues without DreamerV3: ModuleNotFoundError" in result.stderr


def test_unusual_loaders_are_not_changed(tmp_path):
    """A zip archive, which has one loader for all modules; and a loader that cannot be changed."""
    archive = tmp_path / "zoo.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("__init__", "utils", "other"):
            file.writestr(f"rl_zoo3/{name}.py", "ALGOS = {}")
    code = INSTALL + "import rl_zoo3.utils, rl_zoo3.other"
    path = f"{STARTUP}{os.pathsep}{archive}"
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert (
        result.returncode == 0 and result.stderr.count("RL Zoo continues without DreamerV3") == 1
    ), result.stderr  # ours is missing
    fixed = (
        "from importlib.machinery import ModuleSpec\n"
        "class Fixed:\n"
        "  __slots__ = ()\n"
        "  def create_module(self, spec): return None\n"
        "  def exec_module(self, module): module.ALGOS = {}\n"
        "  def find_spec(self, name, path=None, target=None):\n"
        "    return ModuleSpec(name, Fixed(), is_package=name == 'rl_zoo3') if name.startswith('rl_zoo3') else None\n"
    )
    assert python(fixed + INSTALL + "sys.meta_path.append(Fixed())\nimport rl_zoo3.utils as u; print(u.ALGOS)") == "{}\n"


def test_the_start_up_line_works_without_the_hook():
    line = (STARTUP / "sb3_dreamer_zoo.pth").read_text()
    assert line.startswith("import ") and len(line.splitlines()) == 1
    assert python(line, path=ROOT / "docs") == ""


def test_commands_that_start_commands():
    """Commands of RL Zoo are redirected, all others are unchanged."""
    started = []
    for command in (["python", "-m", "rl_zoo3.record_video", "--algo", "dreamerv3"], ["python", "enjoy.py"], ["ls", "-l"]):
        assert call_with_us(lambda command, **kwargs: started.append((command, kwargs)) or 3, command, cwd="/") == 3
    ours = [sys.executable, "-m", "sb3_dreamer.zoo", "record_video", "--algo", "dreamerv3"]
    assert started == [(ours, {"cwd": "/"}), (["python", "enjoy.py"], {"cwd": "/"}), (["ls", "-l"], {"cwd": "/"})]


def test_registration_adds_and_replaces_nothing():
    own = object()
    utils, opt = ModuleType("utils"), ModuleType("opt")
    utils.ALGOS, opt.HYPERPARAMS_SAMPLER, opt.HYPERPARAMS_CONVERTER = {"ppo": 1}, {}, {"dreamerv3": own}
    plugin.register_algorithm(utils)
    plugin.register_sampler(opt)
    assert utils.ALGOS == {"ppo": 1, "dreamerv3": DreamerV3}
    assert opt.HYPERPARAMS_SAMPLER == {"dreamerv3": sample_dreamerv3_params}
    assert opt.HYPERPARAMS_CONVERTER == {"dreamerv3": own}


def test_presets_are_found_for_our_algorithm_only():
    seen = []

    class Manager:
        def __init__(self, args, algo, env_id, config=None):
            seen.append((algo, config))

        _load_pretrained_agent = learn = create_callbacks = read_hyperparameters = None

    module = SimpleNamespace(ExperimentManager=Manager)
    plugin.register_presets(module)
    plugin.register_presets(module)  # may be called twice
    Manager(None, "ppo", "CartPole-v1")
    Manager(None, "dreamerv3", "CartPole-v1")
    Manager(None, "dreamerv3", "CartPole-v1", config="sizes/S.yml")
    Manager(None, "ppo", "CartPole-v1", config="sizes/S.yml")
    folder = str(ROOT / "hyperparams")
    assert seen == [
        ("ppo", None),
        ("dreamerv3", f"{folder}/dreamerv3.yml"),
        ("dreamerv3", f"{folder}/sizes/S.yml"),
        ("ppo", "sizes/S.yml"),
    ]


def test_sampler_draws_models_that_can_be_built():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        params = sample_dreamerv3_params(trial, 0, 1, {})
        assert convert_dreamerv3_params(trial.params) == params
        assert {"model_size", "training_ratio", "learning_rate", "ent_coef", "batch_length", "imagination_horizon"} < set(
            params
        )
        assert 32 <= params["training_ratio"] <= 1024 and 8 <= params["batch_length"] <= 64
        DreamerV3("MlpPolicy", "CartPole-v1", device="cpu", **params)
        study.tell(trial, 0.0)


def test_unstable_training_is_pruned_not_crashed():
    """RL Zoo prunes a trial at a ValueError."""
    model = counter_model(training_ratio=8, learning_rate=1e30, lr_warmup_steps=0)
    with pytest.raises(UnstableTrainingError, match=r"became (nan|inf): lower `learning_rate`") as error:
        model.learn(300)
    assert isinstance(error.value, ValueError)
    model.set_parameters(counter_model().get_parameters())
    model.learning_rate = 1e-4
    model._setup_lr_schedule()
    assert model.learn(60)._n_updates > 0  # continues after the fix


@pytest.fixture
def installed(tmp_path) -> SimpleNamespace:
    """The wheel in a separate environment that sees all other packages of this one, but not the repository."""
    folder = tmp_path
    build = folder / "source"
    shutil.copytree(ROOT, build, ignore=shutil.ignore_patterns(".git", ".venv", "logs", "build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(build)], check=True)
    home = folder / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(folder.glob("sb3_dreamer-*.whl"))
    executable = home / "bin" / "python"
    subprocess.run([*pip, "--python", str(executable), "install", "--no-deps", str(wheel)], check=True)
    # RL Zoo's console script, as pip would write it for this environment.
    script = Path(sys.executable).parent / "rl_zoo3"
    own_script = home / "bin" / "rl_zoo3"
    own_script.write_text(f"#!{executable}\n" + script.read_text().split("\n", 1)[1])
    own_script.chmod(0o755)
    return SimpleNamespace(folder=folder, python=str(executable), rl_zoo3=str(own_script), site=site_packages, pip=pip)


def run(installed: SimpleNamespace, *command: str, code: int = 0, **environment: str) -> str:
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=installed.folder,
        env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


# A small model, two updates in ten steps.
QUICK = "batch_size:2 batch_length:8 training_ratio:3 imagine_last:0 buffer_size:2000".split()
CARTPOLE = ("--algo", "dreamerv3", "--env", "CartPole-v1", "-f", "logs")


def test_unmodified_commands(installed):
    """As a user: train, enjoy, continue, optimise, plot; then without start-up files."""
    zoo, logs = installed.rl_zoo3, installed.folder / "logs" / "dreamerv3"
    train = (zoo, "train", *CARTPOLE, "-n", "100", "--seed", "1", "--eval-freq", "50", "--eval-episodes", "2")
    output = run(installed, *train, "--save-replay-buffer", "-params", *QUICK)
    presets = installed.site / "sb3_dreamer" / "hyperparams" / "dreamerv3.yml"
    assert f"Loading hyperparameters from: {presets}" in output
    model = DreamerV3.load(logs / "CartPole-v1_1" / "CartPole-v1.zip", device="cpu")
    assert (model.num_timesteps, model.batch_size, model.seed) == (100, 2, 1)
    assert len(np.load(logs / "CartPole-v1_1" / "evaluations.npz")["timesteps"]) == 2

    assert "Mean reward" in run(installed, zoo, "enjoy", *CARTPOLE, "--no-render", "-n", "60")
    trained = str(logs / "CartPole-v1_1" / "CartPole-v1.zip")
    output = run(installed, zoo, "train", *CARTPOLE, "-n", "60", "-i", trained, "-params", *QUICK)
    assert "Loading replay buffer" in output
    continued = DreamerV3.load(logs / "CartPole-v1_2" / "CartPole-v1.zip", device="cpu")
    assert continued._n_updates > model._n_updates

    search = ("-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots")
    output = run(installed, zoo, "train", *CARTPOLE, "-n", "60", *search, "-params", "batch_size:2", "buffer_size:2000")
    assert "Number of finished trials:  2" in output and len(list(logs.glob("report_*.csv"))) == 1
    run(installed, zoo, "plot_train", "-a", "dreamerv3", "-e", "CartPole-v1", "-f", "logs")
    shutil.rmtree(logs / "CartPole-v1_3", ignore_errors=True)  # of the search, contains no model
    record = (installed.python, "-m", "rl_zoo3.record_video", *CARTPOLE, "--exp-id", "1", "-n", "20")
    run(installed, *record)
    assert list((logs / "CartPole-v1_1").rglob("*.mp4"))
    shutil.rmtree(logs / "CartPole-v1_2")  # too short for an evaluation
    run(installed, zoo, "all_plots", "-a", "dreamerv3", "-e", "CartPole-v1", "-f", "logs/", "-o", "all")
    assert (installed.folder / "all.pkl").exists()

    run(installed, zoo, "train", *CARTPOLE, "-n", "60", code=2, SB3_DREAMER_ZOO="0")  # rejected by argparse
    explicit = (installed.python, "-m", "sb3_dreamer.zoo", "train", *CARTPOLE, "-n", "60", "--conf-file", "sizes/debug.yml")
    assert "sizes/debug.yml" in run(installed, *explicit, SB3_DREAMER_ZOO="0")
    film = (installed.python, "-m", "sb3_dreamer.zoo", "record_training", *CARTPOLE, "-n", "20")
    ffmpeg = installed.folder / "ffmpeg"  # stand-in for ffmpeg, which RL Zoo uses to join videos
    ffmpeg.write_text('#!/bin/sh\nfor part in "$@"; do case "$part" in *.mp4) touch "$part";; esac; done\n')
    ffmpeg.chmod(0o755)
    path = f"{installed.folder}{os.pathsep}{os.environ['PATH']}"
    run(installed, *film, SB3_DREAMER_ZOO="0", PATH=path)  # starts `record_video` with DreamerV3
    assert list(logs.glob("CartPole-v1_2/videos/final-model-dreamerv3-*.mp4"))


def test_uninstall_leaves_nothing(installed):
    """All files are removed, and RL Zoo works without DreamerV3."""
    ours = [path for path in installed.site.iterdir() if "dreamer" in path.name]
    assert {path.name for path in ours} >= {"sb3_dreamer", "sb3_dreamer_zoo.pth", "_sb3_dreamer_zoo_hook.py"}
    subprocess.run([*installed.pip, "--python", installed.python, "uninstall", "-y", "sb3_dreamer"], check=True)
    assert not [path.name for path in installed.site.rglob("*dreamer*")]
    assert "invalid choice: 'dreamerv3'" in run(installed, installed.rl_zoo3, "train", *CARTPOLE, code=2)


def test_normalize_leaves_the_images_to_the_encoder(tmp_path):
    """`normalize:` with the keys of the vectors, on a Dict with a channels-last image; evaluation included."""
    settings = ["model_size:'debug'", "policy_kwargs:dict()", "batch_size:4", "batch_length:8", "training_ratio:4", "n_envs:2"]
    command = (
        "train --algo dreamerv3 --env sb3_dreamer/PixelReachDict-v0 -n 120 --eval-freq 40 --eval-episodes 2 --n-eval-envs 2"
    )
    where = ["--num-threads", "1", "--log-folder", str(tmp_path)]
    settings = ["-params", "normalize:dict(norm_obs_keys=['goal'])", *settings]
    zoo = [sys.executable, "-m", "sb3_dreamer.zoo"]
    subprocess.run([*zoo, *command.split(), *where, *settings], cwd=ROOT, check=True, capture_output=True)
    (folder,) = (tmp_path / "dreamerv3").iterdir()
    (statistics,) = folder.rglob("vecnormalize.pkl")
    with statistics.open("rb") as file:
        assert set(pickle.load(file).obs_rms) == {"goal"}
    model = DreamerV3.load(folder / "best_model.zip")
    assert model._n_updates > 0 and model.observation_space["image"].shape == (3, 64, 64)
    assert np.isfinite(np.load(folder / "evaluations.npz")["results"]).all()
