"""
Cost of communication between ranks: a training update without communication, with all-reduced gradients, on one and two ranks.

    python -m benchmarks.speed.scaling                             # proprio_1m, 1 and 2 ranks, one thread each
    python -m benchmarks.speed.scaling --preset image_12m --iterations 3
    python -m benchmarks.speed.scaling --device cuda --ranks 1 8 --iterations 50
    python -m benchmarks.speed.scaling --bytes                     # only the bytes per update, for all model sizes

Each number of ranks is one launch of torchrun. Four variants take turns: the update without communication, the update with one
all-reduce of all gradients, the update with torch's DDP, and the all-reduce alone. Prints one line of JSON per number of
ranks. Each rank trains on a full batch, so two ranks do twice the work.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from benchmarks.speed.workloads import BATCH, HORIZON, IMAGE, LENGTH, PRESETS, interleave, make_batch, make_update
from sb3_dreamer.common.distributed.launch import is_launched, join_ranks
from sb3_dreamer.dreamerv3.fast.ddp import ParallelUpdate
from sb3_dreamer.dreamerv3.fast.make_update import make_update as make_fastest
from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES
from sb3_dreamer.dreamerv3.policies import DreamerPolicy


def reduced_bytes(policy: DreamerPolicy, batch_size: int = BATCH) -> dict[str, int]:
    """:return: bytes that one update communicates: gradients (all-reduce) and imagined returns (all-gather), float32"""
    gradients = 4 * sum(parameter.numel() for parameter in policy.trainable_parameters())
    return dict(gradient_bytes=gradients, return_bytes=4 * batch_size * LENGTH * HORIZON)


def print_bytes() -> None:
    for name in MODEL_SIZES:
        with th.device("meta"):
            policy = DreamerPolicy(IMAGE, PRESETS["image_12m"].action_space, lambda _: 0.0, model_size=name)
        print(json.dumps(dict(model_size=name, **reduced_bytes(policy))), flush=True)


def reduction(n_bytes: int, device: th.device) -> Callable[[], None]:
    """:return: a function that all-reduces ``n_bytes`` over the ranks"""
    buffer = th.ones(n_bytes // 4, device=device)
    return lambda: th.distributed.all_reduce(buffer)


def synchronized(function: Callable[[], Any], device: th.device) -> Callable[[], None]:
    """:return: the function, followed by a device synchronisation"""

    def call() -> None:
        function()
        if device.type == "cuda":
            th.cuda.synchronize()

    return call


def work(args: argparse.Namespace) -> None:
    """Run the benchmark on one rank."""
    th.set_num_threads(args.threads)
    ranks = join_ranks()
    device = th.device(ranks.device(args.device))
    alone = make_update(args.preset, device, args.precision)
    losses = [make_update(args.preset, device, args.precision).loss_module for _ in range(2)]
    together = make_fastest(losses[0], 0.3, 0.02, "auto", ranks=ranks)
    through_ddp = ParallelUpdate(losses[1], ranks, agc_clip=0.3, tau=0.02)
    batch = make_batch(alone.policy)
    sizes = reduced_bytes(alone.policy)
    functions = {
        "alone": synchronized(lambda: alone(batch), device),
        "together": synchronized(lambda: together(batch), device),
        "ddp": synchronized(lambda: through_ddp(batch), device),
        "reduction": synchronized(reduction(sizes["gradient_bytes"], device), device),
    }
    for function in functions.values():
        for _ in range(2):  # DDP builds its buckets in the first call
            function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(args.iterations):
        for name, function in functions.items():
            th.distributed.barrier()
            times[name] += interleave({name: function}, 1)[name]
    if ranks.is_main:
        wall = {name: float(np.median(np.array(values)[:, 0])) for name, values in times.items()}
        cpu = {f"{name}_cpu": round(float(np.median(np.array(values)[:, 1])), 5) for name, values in times.items()}
        line = dict(preset=args.preset, ranks=ranks.size, device=str(device), precision=args.precision, threads=args.threads)
        line |= dict(iterations=args.iterations, **{name: round(seconds, 5) for name, seconds in wall.items()}, **cpu, **sizes)
        line |= dict(communication_share=round(wall["reduction"] / wall["together"], 4))
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="proprio_1m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--bytes", action="store_true")
    args = parser.parse_args()
    if args.bytes:
        print_bytes()
    elif is_launched():
        work(args)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        for n_ranks in args.ranks:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
            subprocess.run([*launcher, "-m", "benchmarks.speed.scaling", *sys.argv[1:]], env=environment, check=True)


if __name__ == "__main__":
    main()
