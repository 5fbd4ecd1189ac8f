"""What belongs to a run: settings, counters, observations, recurrent state. As plain data, and put back into a model."""

import inspect
import warnings
from collections import deque
from typing import Any, ClassVar, Protocol

import torch as th
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.distributed.algorithm import DistributedOffPolicyAlgorithm
from sb3_dreamer.common.env_state import set_states
from sb3_dreamer.common.plain_data import is_plain
from sb3_dreamer.common.schedules import without_function
from sb3_dreamer.common.type_aliases import PolicyState

# Counters and observations of a run. The attributes of the training ratio and of the metrics follow below; `run_state` adds
# the sums of the clock.
OF_RUN = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
    "_n_updates",
    "_episode_num",
    "ep_info_buffer",
    "ep_success_buffer",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
)
OF_RATIO = ("owed", "is_open", "steps_per_update")
OF_METRICS = ("_names", "_sums", "_n_made", "_n_in_a_row", "count")
# Arguments of the constructor that belong to the process, not to the run, and those that are handled separately.
NOT_STORED = {"self", "env", "device", "verbose", "tensorboard_log", "_init_setup_model", "policy", "replay_buffer_class"}
STORED_AS = {"stats_window_size": "_stats_window_size"}


class Run(Protocol):
    """The attributes of :class:`~sb3_dreamer.dreamerv3.resume.ResumableAlgorithm` that are used here, next to ``OF_RUN``."""

    device: Any
    env: Any
    ep_info_buffer: Any
    policy_aliases: ClassVar[Any]
    policy_class: Any
    replay_buffer_class: Any
    replay_buffer_kwargs: Any
    train_freq: Any
    _last_obs: Any
    _last_state: Any
    _clock: Any
    _logger: Any
    _metrics: Any
    _pending_log: Any
    _ranks: Any
    _train_ratio: Any


# ---- arguments of the constructor ----


def stored_settings(model: Run) -> dict[str, Any]:
    """
    :return: arguments of the constructor. Those that are not plain data, such as functions (other than linear and
        constant schedules) and classes, are named in ``"missing"``.
    """
    names = [name for name in constructor_arguments(type(model)) if name not in NOT_STORED]
    unset = object()  # of a subclass that does not keep its argument
    values = {name: getattr(model, STORED_AS.get(name, name), unset) for name in names}
    values["learning_rate"] = without_function(values["learning_rate"])
    if isinstance(model.train_freq, TrainFreq):  # SB3 has converted it
        values["train_freq"] = (model.train_freq.frequency, model.train_freq.unit.value)
    # A folder of another machine is no place to write to.
    buffer_kwargs = model.replay_buffer_kwargs.items()
    values["replay_buffer_kwargs"] = {name: value for name, value in buffer_kwargs if name != "storage_folder"}
    aliases = [name for name, kind in model.policy_aliases.items() if kind is model.policy_class]
    values["policy"] = aliases[-1] if aliases else unset  # the last one accepts all spaces
    if model.replay_buffer_class is not SequenceReplayBuffer:
        values["replay_buffer_class"] = unset
    missing = [name for name, value in values.items() if not is_plain(value)]
    return dict(values={name: value for name, value in values.items() if name not in missing}, missing=missing)


def constructor_arguments(cls: type) -> list[str]:
    """:return: names of the arguments of a class; subclasses may take those of their base by ``*args`` and ``**kwargs``"""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if base is DistributedOffPolicyAlgorithm:
            break
        parameters = inspect.signature(base).parameters.values()
        names |= {one.name: None for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    return list(names)


def settings_from(stored: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    :param stored: from :func:`stored_settings`
    :param kwargs: arguments that replace those of the checkpoint
    :return: arguments of the constructor
    :raises ValueError: if an argument is neither in the checkpoint nor in ``kwargs``
    """
    missing = [name for name in stored["missing"] if name not in kwargs]
    if missing:
        raise ValueError(
            f"The checkpoint does not contain {', '.join(f'`{name}`' for name in missing)}, because functions and "
            f"classes are not stored. Pass the same as before: DreamerV3.resume(path, env, {missing[0]}=...)"
        )
    return {**stored["values"], **kwargs}


# ---- counters, observations, recurrent state ----


def run_state(model: Run) -> dict[str, Any]:
    """:return: counters, observations and the recurrent state of the run"""
    state: dict[str, Any] = {name: getattr(model, name) for name in OF_RUN}
    state["training_ratio"] = {name: getattr(model._train_ratio, name) for name in OF_RATIO}
    state["metrics"] = {name: getattr(model._metrics, name) for name in OF_METRICS}
    state["windows"] = dict(model._clock.windows)
    state["last_state"] = None if model._last_state is None else tuple(model._last_state)
    if getattr(model, "_logger", None) is not None:  # SB3 sets it in `learn`
        names = "name_to_value", "name_to_count"
        state["logger"] = {name: plain_entries(getattr(model._logger, name)) for name in names}
    if model.ep_info_buffer is not None:
        episodes = (plain_entries(info) for info in model.ep_info_buffer)
        state["ep_info_buffer"] = deque(episodes, maxlen=model.ep_info_buffer.maxlen)
    return state


def plain_entries(values: dict[str, Any]) -> dict[str, Any]:
    """:return: the entries that a checkpoint can hold; figures and videos for the logger are left out"""
    return {name: value for name, value in values.items() if is_plain(value)}


def restore_run(model: Run, run: dict[str, Any]) -> None:
    """:param run: from :func:`run_state`"""
    for name in OF_RUN:
        setattr(model, name, run[name])
    vars(model._train_ratio).update(run["training_ratio"])
    metrics = run["metrics"].items()
    vars(model._metrics).update(
        {name: value.to(model.device) if isinstance(value, th.Tensor) else value for name, value in metrics}
    )
    model._clock.windows.update(run.get("windows", {}))  # files of older versions do not have it
    model._pending_log = run.get("logger", {})


def restore_env(model: Run, part: dict[str, Any]) -> None:
    """Continue in the middle of the episodes if the environments can, otherwise begin new ones."""
    env, last_state = model.env, part["run"]["last_state"]
    assert isinstance(env, VecEnv)
    if part["envs"] is not None and set_states(env, part["envs"]):
        model._last_state = None if last_state is None else PolicyState(*(part.to(model.device) for part in last_state))
        return
    model._last_obs, model._last_state = None, None  # SB3 then resets the environments, and the next row is a first row
    if model._ranks.is_main:
        warnings.warn(
            "The state of the environments was not saved (they have no `get_state` and `set_state`, or were interrupted), so "
            "they begin a new episode. Everything else continues where it was saved"
        )
