"""
Continue the run in a folder, or start it; each rank in its own process:

    torchrun --nproc-per-node=2 --max-restarts=1 -m tests.support.elastic_worker FOLDER STEPS [KILL]

``load`` instead of STEPS loads ``model.zip``. With KILL, rank 1 kills itself after so many steps, unless it was restarted.
Rank 0 writes its result to ``rank0.pt``, ...
"""

import os
import signal
import sys
from pathlib import Path

import torch as th

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import find_checkpoints
from tests.support.helpers import counter_envs, counter_model
from tests.support.replay import check_buffer

SETTINGS = dict(buffer_size=600, training_ratio=4)


def main(folder: Path, steps: int, kill_at: int) -> None:
    rank, path = int(os.environ["RANK"]), folder / "checkpoints"
    is_new = not find_checkpoints(path)
    model = counter_model(**SETTINGS) if is_new else DreamerV3.resume(path, counter_envs())
    resumed_at, updates_before = model.num_timesteps, model._n_updates
    rows_at_start = model.replay_buffer.counts.tolist()

    def kill(local, _):
        if (
            kill_at
            and rank == 1
            and local["self"].num_timesteps >= kill_at
            and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    kill.all_ranks = True
    callbacks = [DreamerCheckpointCallback(30, path), kill]
    model.learn(steps - resumed_at, callback=callbacks, reset_num_timesteps=is_new)
    check_buffer(model.replay_buffer)
    result = dict(resumed_at=resumed_at, steps=model.num_timesteps, updates=model._n_updates, updates_before=updates_before)
    result |= dict(rows_at_start=rows_at_start, counts=model.replay_buffer.counts.tolist())
    result["weights"] = model.policy.state_dict()
    th.save(result, folder / f"rank{rank}.pt")


def load_file(folder: Path) -> None:
    """Load the file of a seeded model on each rank, and draw."""
    model = DreamerV3.load(folder / "model.zip", env=counter_envs(), device="cpu")
    drawn = dict(torch=th.rand(2), action=int(model.action_space.sample()), seeds=list(model.env._seeds))
    th.save(drawn, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__" and sys.argv[2] == "load":
    load_file(Path(sys.argv[1]))
elif __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0]))
