"""
The time of a real run by part: environment, acting, replay, update, everything else.

    python -m benchmarks.speed.end_to_end --env CartPole-v1
    python -m benchmarks.speed.end_to_end --env sb3_dreamer/PixelCatch16-v0
    python -m benchmarks.speed.end_to_end --env ALE/Pong-v5 --steps 2600 --hyperparams "model_size:'1m'"

The model is built by RL Zoo from the preset of the environment and runs on one core. The time of a part is the wall time of
its calls. Prints one line of JSON.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from rl_zoo3.utils import StoreDict

from benchmarks.learning.harness import Run, build
from benchmarks.learning.tasks import TASKS, Task
from sb3_dreamer import DreamerPolicy, DreamerV3
from sb3_dreamer.dreamerv3.update import TrainingUpdate

PARTS = ("environment", "acting", "replay add", "replay sample", "latents", "update")


class Watch:
    """Measure the wall time of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def around(self, owner: Any, name: str, part: str) -> None:
        """Wrap a method so that its calls are timed and added to a part."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start
                self.calls[part] += 1

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hyperparams", nargs="+", action=StoreDict, default={}, help="overrides of the preset")
    args = parser.parse_args()
    TASKS["end_to_end"] = Task("", args.env, args.steps, args.steps, 1, (), {})
    model, _, _ = build(Run("end_to_end", "dreamerv3", 0, args.steps, "", args.hyperparams, Path()))
    assert isinstance(model, DreamerV3)
    th.set_num_threads(args.threads)
    watch = Watch()
    watch.around(TrainingUpdate, "__call__", "update")
    watch.around(DreamerPolicy, "step", "acting")
    env = model.get_env()
    assert env is not None
    watch.around(env, "step", "environment")
    buffer = model.replay_buffer
    watch.around(buffer, "add", "replay add")
    watch.around(buffer, "sample", "replay sample")
    watch.around(buffer, "update_latents", "latents")
    start = time.perf_counter()
    model.learn(args.steps)
    total = time.perf_counter() - start
    shares = {part: round(watch.seconds[part] / total, 4) for part in PARTS}
    line = dict(
        env=args.env,
        steps=model.num_timesteps,
        updates=model._n_updates,
        seconds=round(total, 2),
        shares={**shares, "all else": round(1 - sum(shares.values()), 4)},
        update_and_environment=round(shares["update"] + shares["environment"], 4),
        add_us_per_step=round(watch.seconds["replay add"] / model.num_timesteps * 1e6, 1),
        acting_ms_per_call=round(watch.seconds["acting"] / max(1, watch.calls["acting"]) * 1e3, 3),
        seconds_per_update=round(watch.seconds["update"] / max(1, watch.calls["update"]), 4),
    )
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
