"""Whether a launcher such as torchrun started this process, and what follows."""

import os
import sys
from pathlib import Path

from sb3_dreamer.common.distributed.ranks import Ranks

# What torchrun, like any launcher for torch's "env://", tells each process.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

IS_ZOO = "SB3_DREAMER_IS_ZOO"


def is_launched() -> bool:
    """:return: whether a launcher started this process as one of several"""
    return all(name in os.environ for name in VARIABLES)


def is_zoo() -> bool:
    """:return: whether this process runs one of RL Zoo's commands, or is a worker of one that does"""
    # Not `sys.argv`, which says nothing yet while `python -m` imports the package of its module.
    command = sys.orig_argv[1:]
    first = next((i for i, part in enumerate(command) if part == "-m" or not part.startswith("-")), len(command))
    program = command[first + 1] if command[first : first + 1] == ["-m"] else Path("".join(command[first : first + 1])).name
    if program.split(".")[0] == "rl_zoo3" or program == "sb3_dreamer.zoo":
        os.environ[IS_ZOO] = "1"  # for the workers
    return IS_ZOO in os.environ


def join_ranks() -> Ranks:
    """:return: the ranks of the launcher, once all of them have come; without one this process alone"""
    if not is_launched():
        return Ranks()
    from sb3_dreamer.common.distributed.torchrun import ManyRanks

    return ManyRanks()
