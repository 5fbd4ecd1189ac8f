"""
Scenarios of ``test_distributed.py``. Each rank runs in its own process:

    torchrun --nproc-per-node=2 -m tests.support.rank_worker SCENARIO FOLDER

Rank 0 writes its result to ``rank0.pt`` in the folder, and so on. The test also calls ``updates()`` itself, as a single rank.
"""

import functools
import hashlib
import os
import signal
import sys
import time
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import torch.distributed as dist
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.distributed import torchrun as distributed
from sb3_dreamer.common.distributed.launch import join_ranks
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.type_aliases import ImaginationNoise, SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3 import update as update_module
from sb3_dreamer.dreamerv3.fast.make_update import make_update
from tests.support.helpers import MIXED, TINY, double, make_loss, make_policy, random_batch, randomize_outputs
from tests.support.rank_pieces import captured, leave

N_UPDATES, BATCH, LENGTH = 5, 8, 6


# ---- the same update on one and on several ranks ----


def share_of(tree: Any, rank: int, size: int) -> Any:
    """The part of one rank of every tensor and array, along the first axis."""
    if isinstance(tree, th.Tensor | np.ndarray):
        n = len(tree) // size
        return tree[rank * n : (rank + 1) * n]
    if isinstance(tree, dict):
        return {key: share_of(part, rank, size) for key, part in tree.items()}
    return type(tree)(*(share_of(part, rank, size) for part in tree))


def updates(ranks: Ranks, kind: str = "pieces") -> dict[str, Any]:
    """
    Five updates in float64 without warm-up. Each rank uses its share of batch and noise.

    :param kind: "pieces"; "ddp"; "bf16": gradients are sent in 16 bits; "unreduced": pieces without their reduction
    """
    policy = make_policy(MIXED, spaces.Box(-1.0, 1.0, (2,), np.float32))
    randomize_outputs(policy)
    policy.double()
    for group in policy.optimizer.param_groups:
        group["lr"] = 1e-3
    loss_module = make_loss(policy)
    update = make_update(loss_module, 0.3, 0.02, kind != "ddp" and "auto", 0, ranks, "bf16" if kind == "bf16" else "fp32")
    if ranks.is_launched:
        assert type(update).__name__ == ("ParallelUpdate" if kind == "ddp" else "PiecewiseUpdate")
    if kind == "unreduced":
        update.reduce = lambda _: None
    before = {name: tensor.clone() for name, tensor in policy.named_parameters()}
    gradients: list[dict[str, th.Tensor]] = []
    clip = update_module.clip_grad_agc_

    def keep_gradients(parameters, limit):
        named = policy.named_parameters()
        gradients.append({name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None})
        return clip(parameters, limit)

    update_module.clip_grad_agc_ = keep_gradients
    metrics = []
    for seed in range(N_UPDATES):
        batch: SequenceBatch = double(random_batch(policy, BATCH, LENGTH, seed))
        th.manual_seed(seed)
        whole = double(loss_module.draw_noise(BATCH, LENGTH))
        noise = UpdateNoise(*(share_of(part, ranks.rank, ranks.size) for part in whole))
        assert isinstance(noise.imagination, ImaginationNoise)
        metrics.append(update(share_of(batch, ranks.rank, ranks.size), noise).metrics)
    update_module.clip_grad_agc_ = clip
    return {
        "gradients": gradients,
        "before": before,
        "parameters": dict(policy.named_parameters()),
        "trained": [name for name, tensor in policy.named_parameters() if tensor.requires_grad],
        "normalizer": th.stack([policy.return_normalizer.low, policy.return_normalizer.high]),
        "metrics": dict(zip(update.metric_names, th.stack(metrics).T, strict=True)),
    }


def skips(ranks: Ranks) -> list[dict[str, Any]]:
    """
    Updates of which rank 1 has a NaN reward in the second one, and in the fourth only a loss that is not finite, while all
    gradients are.

    :return: for each update whether it was made, and parameters, buffers and the optimizer's state after it
    """
    policy = make_policy(MIXED, spaces.Box(-1.0, 1.0, (2,), np.float32))
    randomize_outputs(policy)
    update = make_update(make_loss(policy, loss_scales="harmony"), 0.3, 0.02, "auto", 0, ranks)
    evaluate, results = update.evaluate, []
    for seed in range(5):
        is_here = ranks.rank == 1
        batch: SequenceBatch = random_batch(policy, seed=10 * seed + ranks.rank)
        if is_here and seed == 1:
            batch.rewards[0, 2] = th.nan

        def with_bad_loss(*args: Any, is_bad: bool = is_here and seed == 3) -> Any:
            output = evaluate(*args)
            return output._replace(metrics={**output.metrics, "train/loss": output.loss * (th.inf if is_bad else 1.0)})

        update.evaluate = with_bad_loss
        is_made = bool(update(batch).is_finite)
        moments = [tensor for state in policy.optimizer.state.values() for tensor in state.values()]
        tensors = [*policy.parameters(), *policy.buffers(), *moments]
        results.append({"is_made": is_made, "state": [tensor.detach().clone() for tensor in tensors]})
    return results


# ---- a real run ----


class SleepAndStop(BaseCallback):
    """Requests a stop after so many steps, and sleeps once before that."""

    def __init__(self, steps: int, seconds: float):
        super().__init__()
        self.steps, self.seconds = steps, seconds

    def _on_step(self) -> bool:
        if self.seconds and self.num_timesteps > self.steps // 2:
            time.sleep(self.seconds)
            self.seconds = 0.0
        return self.num_timesteps < self.steps


class CountSteps(BaseCallback):
    """Counts its calls on every rank."""

    all_ranks = True

    def _on_step(self) -> bool:
        return True


class SetAt(BaseCallback):
    """Changes settings after so many steps."""

    def __init__(self, steps: int, all_ranks: bool, **settings: Any):
        super().__init__()
        self.steps, self.all_ranks, self.settings = steps, all_ranks, settings

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps:
            for name, value in self.settings.items():
                setattr(self.model, name, value)
        return True


def fingerprint(model: DreamerV3) -> str:
    """Hash of all parameters, buffers and the optimiser state."""
    tensors = [*model.policy.state_dict().values()]
    for state in model.policy.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, th.Tensor)]
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def learn(folder: Path) -> dict[str, Any]:
    """CartPole: a run without updates, then one with evaluation, checkpoints, VecNormalize and a stop within a rollout."""
    # The evaluation must take longer than the timeout of the gradients' process group.
    dist.init_process_group = functools.partial(dist.init_process_group, timeout=timedelta(seconds=4))
    venv = make_vec_env("CartPole-v1", 2, monitor_dir=str(folder / "monitor"), vec_env_cls=SubprocVecEnv)
    env = VecNormalize(venv, norm_reward=False)
    settings: dict[str, Any] = {**TINY, "learning_starts": 64, "training_ratio": 16, "train_freq": 3}
    model = DreamerV3("MlpPolicy", env, **settings, tensorboard_log=str(folder / "board"), learning_rate=1e-3, verbose=1)
    seen: list[np.ndarray] = []
    update = env.obs_rms.update
    env.obs_rms.update = lambda observations: (seen.append(observations.copy()), update(observations))
    model.learn(12)  # before the first update
    at_start = fingerprint(model)
    eval_env = VecNormalize(make_vec_env("CartPole-v1", 1, seed=1), training=False, norm_reward=False)
    stop, count = SleepAndStop(896, seconds=6.0), CountSteps()
    checkpoints = CheckpointCallback(100, str(folder / "checkpoints"), save_replay_buffer=True)
    evaluation = EvalCallback(eval_env, eval_freq=50, n_eval_episodes=2, log_path=str(folder / "eval"), verbose=0)
    start = time.perf_counter()
    model.learn(100_000, callback=[evaluation, checkpoints, stop, count], progress_bar=True)
    seconds = time.perf_counter() - start
    rate = model.policy.optimizer.param_groups[0]["lr"]
    distributed.SAVE_TIMEOUT = timedelta(seconds=2)
    model.save(folder / f"model_of_{model._ranks.rank}.zip")
    result = {
        "fingerprint": fingerprint(model),
        "n_updates": model._n_updates,
        "rate": rate,
        "num_timesteps": model.num_timesteps,
        "rows": int(model.replay_buffer.filled.sum()),
        "first_rows": np.asarray(model.replay_buffer.observations)[:20].copy(),
        "seen": np.concatenate(seen),
        "statistics": (env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count),
        "calls": (stop.n_calls, count.n_calls),
        "writers": [type(one).__name__ for one in model.logger.output_formats],
        "verbose": model.verbose,
        "seconds": seconds,
    }
    model.save_replay_buffer(folder / "replay.pkl")
    expected = th.rand(3), np.random.rand(3)
    model.load_replay_buffer(folder / "replay.pkl")
    result["random_goes_on"] = bool((th.rand(3) == expected[0]).all() and (np.random.rand(3) == expected[1]).all())
    result["own_rows"] = bool((np.asarray(model.replay_buffer.observations)[:20] == result["first_rows"]).all())
    model.learn(100, callback=lambda *_: True, reset_num_timesteps=False)
    again = DreamerV3.load(folder / "model_of_0.zip", env=env)
    again.learn(100)
    # A second run through DDP: the wrapper of the first run must be deleted, or both would reduce the gradients.
    plain = DreamerV3.load(folder / "model_of_0.zip", env=env, compile=False)
    plain.learn(100)
    wrapper = weakref.ref(plain._update.parallel)
    plain.learn(100)
    result["wrapper_is_gone"] = wrapper() is None and plain._update.parallel is not None
    return {
        **result,
        "fingerprint_at_start": at_start,
        "fingerprint_later": fingerprint(model),
        "fingerprint_loaded": fingerprint(again),
        "fingerprint_ddp": fingerprint(plain),
    }


# ---- failures on one rank ----


class Accident(gym.Wrapper):
    """Fails on rank 1 after 60 steps."""

    def __init__(self, env: gym.Env, kind: str):
        super().__init__(env)
        self.kind, self.n_steps = kind, 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        if self.n_steps == 60 and self.kind == "interrupt":
            (Path(sys.argv[2]) / f"ready{os.environ['RANK']}").touch()
        if self.n_steps == 60 and os.environ["RANK"] == "1":
            (Path(sys.argv[2]) / "accident").write_text(str(time.time()))
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.kind == "error":
                raise FileNotFoundError("the environment of rank 1 is gone")
        return super().step(action)


def compiled(folder: Path) -> dict[str, Any]:
    """Train with compiled steps on several ranks, then save and load without a pause."""
    model = DreamerV3("MlpPolicy", "CartPole-v1", **{**TINY, "training_ratio": 16}, compile=True, verbose=1)
    model.learn(60)
    for _ in range(5):
        model.save(folder / "again")
        loaded = DreamerV3.load(folder / "again")
    is_compiled = model.loss_module.is_compiled
    return {"fingerprint": fingerprint(model), "loaded": fingerprint(loaded), "is_compiled": is_compiled}


def accident(kind: str) -> None:
    env = Accident(gym.make("CartPole-v1"), kind)
    model = DreamerV3("MlpPolicy", env, **{**TINY, "training_ratio": 32}, seed=0)
    if kind == "script" and os.environ["RANK"] == "1":
        (Path(sys.argv[2]) / "accident").write_text(str(time.time()))
        raise FileNotFoundError("the script of rank 1 failed")
    model.learn(1_000_000)


def differ() -> dict[str, Any]:
    """Synchronise ranks that disagree; collect the errors for arguments and settings that differ between ranks."""
    ranks = join_ranks()
    messages: dict[str, Any] = {
        "steps": ranks.sync_rollout(3 + ranks.rank, goes_on=True, can_sample=True),
        "stop": ranks.sync_rollout(1, goes_on=ranks.rank != 0, can_sample=True),
        "short buffer": ranks.sync_rollout(1, goes_on=True, can_sample=ranks.rank != 1),
        "seeds": [ranks.seed(7), ranks.seed(None)],
    }
    for name, kwargs in {"batch_size": {"batch_size": 4 + ranks.rank}, "train_freq": {"train_freq": (1, "episode")}}.items():
        try:
            model = DreamerV3("MlpPolicy", "CartPole-v1", **{**TINY, **kwargs})
            model.learn(50)
        except ValueError as error:
            messages[name] = str(error)
    model = DreamerV3("MlpPolicy", "CartPole-v1", **{**TINY, "training_ratio": 32})
    changes: dict[str, Any] = dict(
        ent_coef=0.1, batch_size=8, batch_length=6, training_ratio=64, train_freq=2, learning_rate=1e-3
    )
    model.learn(90, callback=SetAt(60, True, **changes))
    messages["set on all"] = model.loss_module.ent_coef, model._n_updates, fingerprint(model)
    for name, value in {"ent_coef": 0.2, "training_ratio": 16, "learning_rate": 1e-2}.items():
        right = getattr(model, name)
        try:
            model.learn(60, callback=SetAt(40, False, **{name: value}))
        except ValueError as error:
            messages[f"set on one: {name}"] = str(error)
        setattr(model, name, right)
    model.learn(60)
    return {**messages, "after that": (model._n_updates, fingerprint(model))}


def main() -> None:
    th.set_num_threads(1)
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    if scenario in ("kill", "terminate", "error", "script", "interrupt"):
        accident(scenario)
        return
    if scenario in ("pieces", "ddp", "bf16", "unreduced"):
        result: Any = updates(join_ranks(), scenario)
    elif scenario in ("captured", "uncaptured"):
        result = captured(join_ranks(), scenario == "captured")
    elif scenario == "leave":
        result = leave(join_ranks())
    elif scenario == "skips":
        result = skips(join_ranks())
    else:
        result = {"learn": learn, "compiled": compiled, "differ": lambda _: differ()}[scenario](folder)
    th.save(result, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
