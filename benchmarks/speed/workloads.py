"""Models and batches of fixed sizes for the speed benchmarks; measurement of time, operations and memory."""

import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sb3_dreamer.common.type_aliases import SequenceBatch, SequenceIndices
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.fast.make_update import make_loss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.update import TrainingUpdate

VECTOR = spaces.Box(-10.0, 10.0, (24,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 64, 64), np.uint8)
BATCH, LENGTH, HORIZON = 16, 64, 15
SETTINGS: dict[str, Any] = dict(
    imagination_horizon=HORIZON, gamma=1 - 1 / 333, return_lambda=0.95, ent_coef=3e-4, free_nats=1.0
)


class Preset(NamedTuple):
    """A model size with its spaces."""

    model_size: str
    observation_space: spaces.Space
    action_space: spaces.Space


PRESETS = {
    "proprio_1m": Preset("1m", VECTOR, spaces.Box(-1.0, 1.0, (6,), np.float32)),
    "image_12m": Preset("12m", IMAGE, spaces.Discrete(6)),
    "image_50m": Preset("50m", IMAGE, spaces.Discrete(6)),
    "image_200m": Preset("200m", IMAGE, spaces.Discrete(6)),
    "debug": Preset("debug", VECTOR, spaces.Discrete(3)),
}


def make_policy(preset: str, device: th.device | str = "cpu", precision: str = "fp32") -> DreamerPolicy:
    """:return: a policy of the preset, initialised with a fixed seed"""
    th.manual_seed(0)
    model_size, observation_space, action_space = PRESETS[preset]
    policy = DreamerPolicy(observation_space, action_space, lambda _: 4e-5, model_size=model_size, precision=precision)
    return policy.to(device)


def make_update(
    preset: str,
    device: th.device | str = "cpu",
    precision: str = "fp32",
    fused: bool | str = "auto",
    compile_steps: bool = False,
    compile_objective: bool = False,
) -> TrainingUpdate:
    """:return: the training update of a new policy"""
    loss_module = make_loss(make_policy(preset, device, precision), fused, **SETTINGS)
    settings: dict[str, Any] = dict(compile_steps=compile_steps, compile_objective=compile_objective)
    return CompiledUpdate(loss_module, agc_clip=0.3, tau=0.02, **settings)


def make_batch(policy: DreamerPolicy, batch_size: int = BATCH, length: int = LENGTH) -> SequenceBatch:
    """:return: a batch of random data; in every fourth sequence an episode ends in the middle"""
    rng, lead, device = np.random.default_rng(0), (batch_size, length), policy.device
    space, action_space = policy.observation_space, policy.action_space
    if space.dtype == np.uint8:
        observations = rng.integers(0, 256, (*lead, *space.shape), dtype=np.uint8)  # type: ignore[misc]
    else:
        observations = rng.normal(size=(*lead, *space.shape)).astype(np.float32)  # type: ignore[misc]
    if isinstance(action_space, spaces.Discrete):
        actions: np.ndarray = rng.integers(0, action_space.n, (*lead, 1))
    else:
        actions = rng.uniform(-1, 1, (*lead, *action_space.shape)).astype(np.float32)  # type: ignore[misc]
    is_first, is_last = np.zeros(lead, bool), np.zeros(lead, bool)
    is_first[:, 0] = is_first[::4, length // 2] = is_last[::4, length // 2 - 1] = True

    def on_device(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, device=device)

    return SequenceBatch(
        observations=on_device(observations),
        prev_actions=on_device(actions),
        rewards=on_device(rng.normal(size=lead).astype(np.float32)),
        is_first=on_device(is_first),
        is_last=on_device(is_last),
        is_terminal=on_device(is_last),
        initial=policy.world_model.rssm.initial(batch_size),
        indices=SequenceIndices(np.zeros(lead, np.int64), np.zeros(batch_size, np.int64)),
    )


VIEWS = "view transpose aten.t. expand select slice unbind split detach permute alias squeeze".split()


class Operations(TorchDispatchMode):
    """Count operations except views, and the FLOP of matmuls and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.flop = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += not any(view in str(func) for view in VIEWS)
        if func.overloadpacket in flop_registry:
            self.flop += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def count_operations(function: Callable[[], Any]) -> tuple[int, float]:
    """:return: number of operations (except views) of one call, and their GFLOP"""
    with Operations() as operations:
        function()
    return operations.count, operations.flop / 1e9


def peak_rss_mb() -> float:
    """:return: peak memory of this process so far, in MB"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleave(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """
    Call the functions in turn, so that other load on the machine affects all of them equally.

    :param functions: functions by name
    :param rounds: number of calls of each function
    :return: (wall, process CPU) seconds of each call, by name
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times
