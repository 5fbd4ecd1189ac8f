"""
All measurements that need a CUDA device, in one command of less than ten minutes.

    python -m benchmarks.speed.gpu --output benchmarks/results/speed/gpu.json

1. the device: versions, rate of bf16 matmuls, launch time
2. the fast path equals the reference in float64 on the device; bf16 and float32 gradients have the same direction
3. one update eager, compiled, captured: time, kernels, memory; captured and eager updates agree; no recompilation, no
   synchronisation
4. time of each part of an eager update
5. acting eager and captured, 1 and 16 environments
6. replay: updates with sampling from storage in memory and on the device, compared with updates alone
7. larger models

The results of each part are written as soon as it ends. If a part fails, the error is reported, the other parts are run, and
the exit status is 1. Nothing else may use the device.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.reference import Reference
from benchmarks.speed.workloads import BATCH, LENGTH, SETTINGS, make_batch, make_policy, make_update
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.functional import clone_tensors
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.dreamerv3.fast.captured import CapturedStep, CapturedUpdate
from sb3_dreamer.dreamerv3.fast.cuda_graph import CudaGraph
from sb3_dreamer.dreamerv3.fast.make_update import make_loss

DEVICE = th.device("cuda")


def milliseconds(function: Callable[[], Any], calls: int = 20, warm_ups: int = 3) -> float:
    """:return: device time of one call in milliseconds, from CUDA events around all calls"""
    for _ in range(warm_ups):
        function()
    begin, end = (th.cuda.Event(enable_timing=True) for _ in range(2))
    th.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    th.cuda.synchronize()
    return round(begin.elapsed_time(end) / calls, 4)


def device_facts() -> dict[str, Any]:
    a = th.randn(4096, 4096, device=DEVICE, dtype=th.bfloat16)
    small = th.zeros(1, device=DEVICE)
    properties = th.cuda.get_device_properties(DEVICE)
    return dict(
        name=properties.name,
        memory_gb=round(properties.total_memory / 1e9, 1),
        torch=th.__version__,
        cuda=th.version.cuda,
        python=platform.python_version(),
        bf16_tflops=round(2 * 4096**3 / milliseconds(lambda: a @ a) / 1e9, 1),
        launch_us=round(1e3 * milliseconds(lambda: small.add_(1), calls=2000), 2),
    )


def double(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(double, value))
    return value


def equality() -> dict[str, Any]:
    facts = {}
    for preset in ("proprio_1m", "image_12m"):
        policy = make_policy(preset, DEVICE).double()
        batch, loss_module = double(make_batch(policy, 2, 8)), make_loss(policy, **SETTINGS)
        noise, parameters = double(loss_module.draw_noise(2, 8)), policy.trainable_parameters()
        ours = th.autograd.grad(loss_module(batch, noise).loss, parameters, allow_unused=True)
        policy.return_normalizer.low.zero_()
        policy.return_normalizer.high.zero_()
        loss, _ = Reference(policy, **SETTINGS).loss(batch, noise)
        theirs = th.autograd.grad(loss, parameters, allow_unused=True)
        errors = [
            float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(ours, theirs, strict=True) if b is not None
        ]
        facts[f"{preset}_float64_gradient_error"] = max(errors)
        assert max(errors) < 1e-9, (preset, max(errors))
    by_precision = []
    for precision in ("fp32", "bf16"):
        update = make_update("proprio_1m", DEVICE, precision)
        batch = make_batch(update.policy)
        th.manual_seed(0)
        noise = update.loss_module.draw_noise(BATCH, LENGTH)
        classes = update.policy.size.classes
        noise = noise._replace(posterior=(noise.posterior * classes).long())  # the same samples in both
        with update.policy.autocast():
            loss = update.loss_module(batch, noise).loss
        by_precision.append(th.autograd.grad(loss, update.policy.trainable_parameters(), allow_unused=True))
    cosines = [
        float(th.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        for a, b in zip(*by_precision, strict=True)
        if a is not None and a.norm() > 1e-6
    ]
    return facts | dict(bf16_gradient_cosine_min=min(cosines), bf16_gradient_cosine_median=float(np.median(cosines)))


def count_kernels(function: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        th.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.device_type.name == "CUDA")


def check_replay_equals_plain(preset: str) -> float:
    """:return: largest difference of the parameters after four updates of changing rate, captured and eager, same seed"""
    policies = []
    for is_captured in (False, True):
        update: Any = make_update(preset, DEVICE)
        policy, batch = update.policy, make_batch(update.policy)
        if is_captured:
            update = CapturedUpdate(update, lambda: CudaGraph(DEVICE))
        th.manual_seed(7)
        for rate in (0.0, 1e-4, 1e-5, 1e-4):
            for group in policy.optimizer.param_groups:
                group["lr"] = rate
            update(batch)
        policies.append(policy)
    pairs = zip(policies[0].parameters(), policies[1].parameters(), strict=True)
    difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
    # A step is as large as the learning rate. Non-deterministic kernels may flip the sign of single entries, whereas a
    # learning rate or noise that is frozen in the graph would change most of them.
    changed = [float(((a - b).abs() > 1e-4).float().mean()) for a, b in zip(*(p.parameters() for p in policies), strict=True)]
    assert float(np.mean(changed)) < 0.05, (preset, difference, changed)
    return difference


def update_times(preset: str, precision: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    update = make_update(preset, DEVICE, precision)
    batch = make_batch(update.policy)
    facts["eager_ms"] = milliseconds(lambda: update(batch), 10)
    facts["eager_kernels"] = count_kernels(lambda: update(batch))
    before = clone_tensors(update.policy.state_dict())
    start = time.perf_counter()
    noise = update.loss_module.draw_noise(BATCH, LENGTH)
    plain = float(update(batch, noise).metrics[-2])  # train/loss
    update = make_update(preset, DEVICE, precision, compile_steps=True, compile_objective=True)
    update.policy.load_state_dict(before)
    facts["loss_plain"], facts["loss_compiled"] = plain, float(update(batch, noise).metrics[-2])
    assert abs(plain - facts["loss_compiled"]) < 0.01 * abs(plain), facts
    th.cuda.synchronize()
    facts["compile_seconds"] = round(time.perf_counter() - start, 1)
    graphs = th._dynamo.utils.counters["stats"]["unique_graphs"]
    facts["compiled_ms"] = milliseconds(lambda: update(batch), 10)
    facts["compiled_kernels"] = count_kernels(lambda: update(batch))
    facts["recompilations"] = th._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    assert facts["recompilations"] == 0
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            update(batch)
    finally:
        th.cuda.set_sync_debug_mode("default")
    facts["waits"] = 0
    th.cuda.reset_peak_memory_stats()
    captured = CapturedUpdate(update, lambda: CudaGraph(DEVICE))
    start = time.perf_counter()
    captured(batch)
    th.cuda.synchronize()
    assert captured.capture.is_possible, "capturing failed, see the warning"
    facts["record_seconds"] = round(time.perf_counter() - start, 1)
    facts["recorded_ms"] = milliseconds(lambda: captured(batch), 50)
    facts["peak_memory_gb"] = round(th.cuda.max_memory_allocated() / 1e9, 2)
    first, second = (captured(batch).posterior.stoch.clone() for _ in range(2))
    assert not th.equal(first, second), "replays must draw new noise"
    return facts


def split(preset: str, precision: str) -> dict[str, float]:
    update = make_update(preset, DEVICE, precision)
    policy, batch = update.policy, make_batch(update.policy)
    world_model, loss_module = policy.world_model, update.loss_module
    noise = loss_module.draw_noise(BATCH, LENGTH)

    def loss() -> th.Tensor:
        with policy.autocast():
            return loss_module(batch, noise).loss

    def world_model_loss() -> None:
        world_model.loss(batch, *loss_module.observe(batch, noise.posterior), free_nats=1.0, gamma=0.997)

    with policy.autocast(), th.no_grad():
        parts = dict(
            encode=milliseconds(lambda: world_model.encode(batch.observations), 10),
            observe_with_encode=milliseconds(lambda: loss_module.observe(batch, noise.posterior), 10),
            world_model_loss=milliseconds(world_model_loss, 10),
        )
    parts["whole_loss"] = milliseconds(loss, 10)
    parts["loss_and_gradient"] = milliseconds(lambda: update.compute_gradients(loss()), 10)
    parts["optimizer"] = milliseconds(policy.optimizer.step, 10)
    return parts


def acting(preset: str) -> dict[str, float]:
    policy = make_policy(preset, DEVICE, "bf16")
    facts = {}
    for n_envs in (1, 16):
        observations = th.as_tensor(np.stack([policy.observation_space.sample() for _ in range(n_envs)])).to(DEVICE)
        starts = th.zeros(n_envs, device=DEVICE)
        for name, step in (("eager", policy.step), ("recorded", CapturedStep(policy, lambda: CudaGraph(DEVICE)))):
            state: Any = policy.initial_state(n_envs)

            def act(step: Any = step, observations: Any = observations, state: Any = state, starts: Any = starts) -> None:
                step(observations, state, starts)[0].cpu()

            facts[f"{name}_{n_envs}_ms"] = milliseconds(act, 100)
    return facts


def feed(preset: str, rows: int = 20_000) -> dict[str, float]:
    update = make_update(preset, DEVICE, "bf16", compile_steps=True, compile_objective=True)
    policy, captured = update.policy, CapturedUpdate(update, lambda: CudaGraph(DEVICE))
    batch = make_batch(policy)
    facts = dict(update_alone_ms=milliseconds(lambda: captured(batch), 50))
    space, action_space, latent_shape = policy.observation_space, policy.action_space, policy.size.latent_shape
    for storage in ("memory", "device"):
        buffer = SequenceReplayBuffer(
            rows, space, action_space, DEVICE, 1, batch_length=LENGTH, latent_shape=latent_shape, storage=storage
        )
        observation, action = space.sample()[None], np.asarray(action_space.sample()).reshape(1, -1)
        for step in range(rows):
            buffer.add(observation, observation, action, np.zeros(1), np.array([step % 500 == 499]), [{}])

        def fed_update(buffer: SequenceReplayBuffer = buffer) -> None:
            sample: SequenceBatch = buffer.sample(BATCH)
            captured(sample)

        facts[f"with_{storage}_replay_ms"] = milliseconds(fed_update, 50)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--larger", nargs="*", default=["image_50m", "image_200m"], help="models of the last part")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    failed: list[str] = []

    def part(name: str, function: Callable[[], Any]) -> None:
        start = time.perf_counter()
        try:
            results[name] = function()
        except Exception as error:
            results[name] = {"failed": repr(error)}  # without the traceback, which contains local paths
            failed.append(name)
            traceback.print_exc()
        results[f"{name} took s"] = round(time.perf_counter() - start, 1)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results[name]), flush=True)

    th.set_float32_matmul_precision("high")
    part("device", device_facts)
    part("equality", equality)
    for preset in ("proprio_1m", "image_12m"):
        part(f"replay equals plain, {preset}", lambda preset=preset: check_replay_equals_plain(preset))
        part(f"update {preset} bf16", lambda preset=preset: update_times(preset, "bf16"))
    part("split image_12m", lambda: split("image_12m", "bf16"))
    part("acting proprio_1m", lambda: acting("proprio_1m"))
    part("feed image_12m", lambda: feed("image_12m"))
    for preset in args.larger:
        part(f"update {preset} bf16", lambda preset=preset: update_times(preset, "bf16"))
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
