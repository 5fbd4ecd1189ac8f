"""
RL Zoo's commands with DreamerV3, where start-up files are switched off or forbidden:

    python -m sb3_dreamer.zoo train --algo dreamerv3 --env CartPole-v1
"""

import runpy
import sys

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


def main() -> None:
    """Run one of RL Zoo's commands; the arguments after its name are its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"Usage: python -m sb3_dreamer.zoo COMMAND ..., where COMMAND is one of {', '.join(COMMANDS)}")
    command = sys.argv.pop(1)
    register_all()
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
