"""Whether a launcher such as torchrun started this process, and what follows."""

import os
import sys
from pathlib import Path

from sb3_dreamer.common.ranks import Ranks

# What torchrun, like any launcher for torch's "env://", tells each process.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_launched() -> bool:
    """:return: whether a launcher started this process as one of several"""
    return all(name in os.environ for name in VARIABLES)


def is_zoo() -> bool:
    """:return: whether this process runs one of RL Zoo's commands"""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return Path(sys.argv[0]).name == "rl_zoo3" or (spec is not None and spec.name.startswith("rl_zoo3."))


def join_ranks() -> Ranks:
    """:return: the ranks of the launcher, once all of them have come; without one this process alone"""
    if not is_launched():
        return Ranks()
    from sb3_dreamer.common.distributed import ManyRanks

    return ManyRanks()
