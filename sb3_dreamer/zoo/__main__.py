"""
RL Zoo's commands with DreamerV3, where start-up files are switched off or forbidden:

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
    Start one of RL Zoo's commands from another one, as ``record_training`` does, with DreamerV3 in it.

    :param call: ``subprocess.call``
    :param command: as RL Zoo writes it, ``python -m rl_zoo3.record_video ...``
    :return: its exit status
    """
    for name, module in COMMANDS.items():
        if command[:3] == ["python", "-m", module]:
            command = [sys.executable, "-m", "sb3_dreamer.zoo", name, *command[3:]]
    return call(command, **kwargs)


def main() -> None:
    """Run one of RL Zoo's commands; the arguments after its name are its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"Usage: python -m sb3_dreamer.zoo COMMAND ..., where COMMAND is one of {', '.join(COMMANDS)}")
    command = sys.argv.pop(1)
    register_all()
    subprocess.call = functools.partial(call_with_us, subprocess.call)
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
