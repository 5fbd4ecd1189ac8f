"""
RL Zoo's commands with DreamerV3, for Python installations that do not run ``.pth`` files:

    python -m sb3_dreamer.zoo train --algo dreamerv3 --env CartPole-v1
"""

import functools
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from sb3_dreamer.zoo.plugin import register_all

COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "plot_train": "rl_zoo3.plots.plot_train",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "all_plots": "rl_zoo3.plots.all_plots",
    "push_to_hub": "rl_zoo3.push_to_hub",
    "load_from_hub": "rl_zoo3.load_from_hub",
}


def call_with_us(call: Callable[..., int], command: list[str], **kwargs: Any) -> int:
    """
    Run a command of RL Zoo as a subprocess of another one, as ``record_training`` does, with DreamerV3 registered.

    :param call: ``subprocess.call``
    :param command: command of RL Zoo, ``python -m rl_zoo3.record_video ...``
    :return: exit status of the command
    """
    for name, module in COMMANDS.items():
        if command[:3] == ["python", "-m", module]:
            command = [sys.executable, "-m", "sb3_dreamer.zoo", name, *command[3:]]
    return call(command, **kwargs)


def main() -> None:
    """Run a command of RL Zoo with the arguments after its name."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"Usage: python -m sb3_dreamer.zoo COMMAND ..., where COMMAND is one of {', '.join(COMMANDS)}")
    command = sys.argv.pop(1)
    register_all()
    subprocess.call = functools.partial(call_with_us, subprocess.call)
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
