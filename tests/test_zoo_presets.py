"""Files and keys of presets that RL Zoo cannot use are refused before it starts."""

import subprocess
import sys

import pytest
import yaml

from sb3_dreamer.zoo.presets import check_keys, find_config

PRESET = dict(n_timesteps=100, policy="sb3_dreamer.DreamerPolicy", model_size="debug")


def test_a_missing_file_names_similar_presets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got 'smal.yml'. Similar presets: small.yml"):
        find_config("smal.yml")
    with pytest.raises(FileNotFoundError, match=r"The presets: .*dreamerv3.yml.*sizes/12m.yml"):
        find_config(str(tmp_path / "qqqqqqqqqqqqqqq.yaml"))
    assert find_config("my_package.presets") == "my_package.presets"  # a module, which RL Zoo imports


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(env_wraper="A"), r"key `env_wraper` of the preset in file.yml is not known. Did you mean `env_wrapper`\?"),
        (dict(training_ration=1), r"key `training_ration` .* Did you mean `training_ratio`\?"),
        (dict(xyzzy=1), r"key `xyzzy` .* DreamerV3 and RL Zoo have policy, n_envs, .*, device$"),
        (dict(n_timesteps=None), r"preset in file.yml needs the key `n_timesteps`"),
    ],
)
def test_keys(changes, message):
    preset = {key: value for key, value in {**PRESET, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        check_keys(preset, "file.yml")


def test_keys_of_other_algorithms_are_left_to_the_model():
    check_keys(PRESET | dict(gradient_steps=1, callback="a.B"), "file.yml")


def test_the_command_line_names_the_key(tmp_path):
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"CartPole-v1": PRESET}))
    command = [sys.executable, "-m", "sb3_dreamer.zoo", "train", "--algo", "dreamerv3", "--env", "CartPole-v1"]
    command += ["--conf-file", "mine.yml", "-params", "frame_stak:4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last == (
        "ValueError: The key `frame_stak` of the preset in mine.yml (with --hyperparams) is not known. "
        "Did you mean `frame_stack`?"
    )
