"""Detect whether a launcher such as torchrun, or RL Zoo, started this process."""

import os
import sys
from pathlib import Path

from sb3_dreamer.common.distributed.ranks import Ranks

# Environment variables that torchrun, or any launcher for torch's "env://", sets for each process.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

IS_ZOO = "SB3_DREAMER_IS_ZOO"


def is_launched() -> bool:
    """:return: whether a launcher started this process as one of several"""
    return all(name in os.environ for name in VARIABLES)


def is_zoo() -> bool:
    """:return: whether this process runs a command of RL Zoo, or is a worker of such a process"""
    # Not `sys.argv`, which is not set yet while `python -m` imports the package of its module.
    command = sys.orig_argv[1:]
    first = next((i for i, part in enumerate(command) if part == "-m" or not part.startswith("-")), len(command))
    program = command[first + 1] if command[first : first + 1] == ["-m"] else Path("".join(command[first : first + 1])).name
    if program.split(".")[0] == "rl_zoo3" or program == "sb3_dreamer.zoo":
        os.environ[IS_ZOO] = "1"  # for worker processes
    return IS_ZOO in os.environ


def join_ranks() -> Ranks:
    """:return: the ranks of the launcher, after all of them have joined; without a launcher a single process"""
    if not is_launched():
        return Ranks()
    from sb3_dreamer.common.distributed.torchrun import ManyRanks

    return ManyRanks()
