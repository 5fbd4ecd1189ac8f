"""
Time of one training update, without replay and environment.

    python -m benchmarks.speed.update_time                             # proprio_1m: fast, plain path, reference
    python -m benchmarks.speed.update_time --preset image_12m --variants fast reference --iterations 2
    python -m benchmarks.speed.update_time --variants fast compiled

Variants take turns within one process. Prints one line of JSON for each. Compare only CPU seconds of one run, because a shared
machine varies by a third from one process to the next.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from benchmarks.speed.reference import Reference
from benchmarks.speed.workloads import PRESETS, SETTINGS, count_operations, interleave, make_batch, make_update, peak_rss_mb
from sb3_dreamer.common.optimizers import clip_grad_agc_
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.dreamerv3.update import TrainingUpdate

VARIANTS = ("fast", "compiled", "plain", "reference")


def use_reference(update: TrainingUpdate, batch: SequenceBatch) -> Callable[[], Any]:
    """:return: the update with the loss of the reference implementation"""
    policy, reference = update.policy, Reference(update.policy, **SETTINGS)

    def step() -> None:
        loss, _ = reference.loss(batch, update.loss_module.draw_noise(*batch.rewards.shape))
        update.compute_gradients(loss)
        clip_grad_agc_(policy.parameters(), update.agc_clip)
        policy.optimizer.step()
        policy.update_target(update.tau)

    return step


def make_variant(name: str, preset: str) -> tuple[Callable[[], Any], TrainingUpdate]:
    update = make_update(preset, fused=False if name == "plain" else "auto", compile_steps=name == "compiled")
    batch = make_batch(update.policy)
    if name == "reference":
        return use_reference(update, batch), update
    return lambda: update(batch), update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="proprio_1m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["fast", "plain", "reference"])
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    functions, compile_seconds, facts = {}, {}, {}
    for name in args.variants:
        functions[name], update = make_variant(name, args.preset)
        start = time.perf_counter()
        functions[name]()  # warm-up, including compilation
        compile_seconds[name] = time.perf_counter() - start if name == "compiled" else 0.0
        # Operations of compiled steps cannot be counted, because they do not pass through the dispatcher.
        n_operations, gflop = (None, None) if name == "compiled" else count_operations(functions[name])
        facts[name] = dict(
            parameters=sum(p.numel() for p in update.policy.trainable_parameters()),
            gflop=gflop if gflop is None else round(gflop, 2),
            dispatched_ops=n_operations,
        )
    for name, times in interleave(functions, args.iterations).items():
        wall, cpu = np.array(times).T
        line = dict(
            preset=args.preset,
            variant=name,
            threads=args.threads,
            iterations=args.iterations,
            seconds_per_update=round(float(np.median(wall)), 4),
            cpu_seconds_per_update=round(float(np.median(cpu)), 4),
            min_cpu_seconds=round(float(cpu.min()), 4),
            compile_seconds=round(compile_seconds[name], 1),
            **facts[name],
            peak_rss_mb=round(peak_rss_mb()),
        )
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
