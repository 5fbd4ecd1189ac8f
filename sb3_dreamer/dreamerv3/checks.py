"""Checks of arguments and settings: one clear exception each, before anything is built."""

import inspect
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Protocol, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.functional import tensors_of
from sb3_dreamer.common.images import image_layout
from sb3_dreamer.common.preprocessing import as_space_dict
from sb3_dreamer.common.schedules import SCALINGS, TrainRatio, lr_scaling_factor
from sb3_dreamer.dreamerv3.counterparts import refuse_arguments
from sb3_dreamer.dreamerv3.losses import AUTO, HARMONY, LOSS_SCALES, LossScales
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

# name: (smallest, largest, whole number?)
RANGES: dict[str, tuple[float, float, bool]] = {
    "buffer_size": (1, float("inf"), True),
    "learning_starts": (0, float("inf"), True),
    "batch_size": (1, float("inf"), True),
    "batch_length": (2, float("inf"), True),
    "imagination_horizon": (1, float("inf"), True),
    "lr_warmup_steps": (0, float("inf"), True),
    "log_every_updates": (1, float("inf"), True),
    "imagine_last": (0, float("inf"), True),
    "gamma": (0.0, 1.0, False),
    "return_lambda": (0.0, 1.0, False),
    "tau": (0.0, 1.0, False),
    "ent_coef": (0.0, float("inf"), False),
    "free_nats": (0.0, float("inf"), False),
}
POSITIVE = ("training_ratio", "agc_clip")
REDUCE_DTYPES = ("fp32", "bf16")
# Further attributes that must be the same on all ranks.
SAME_ON_ALL_RANKS = (
    "num_timesteps _n_updates train_freq precision compile fused loss_scales replay_context online_queue".split()
)
SAME_ON_ALL_RANKS += ["distributed_scaling", "reduce_dtype"]
# Settings that cannot change after the constructor, and why.
BUILT = "the networks are built with it, make a new model"
MADE = "the replay buffer is made with it, save the model and load it with the new value"
FIXED = {
    "model_size": BUILT,
    "policy_kwargs": BUILT,
    "buffer_size": MADE,
    "replay_context": MADE,
    "replay_buffer_class": MADE,
    "replay_buffer_kwargs": MADE,
}
# Settings that may change: of the loss, of the update (which is created again when one changes), and of the training loop.
SETTINGS_OF_LOSS = ("imagination_horizon", "gamma", "return_lambda", "ent_coef", "free_nats", "imagine_last", "loss_scales")
SETTINGS_OF_UPDATE = (
    *SETTINGS_OF_LOSS,
    *("agc_clip", "tau", "precision", "compile", "batch_size", "batch_length", "fused", "reduce_dtype"),
)
SETTINGS_OF_LOOP = (
    "learning_rate",
    "lr_warmup_steps",
    "learning_starts",
    "training_ratio",
    "train_freq",
    "online_queue",
    "distributed_scaling",
    "log_every_updates",
)
SETTINGS = (*SETTINGS_OF_UPDATE, *SETTINGS_OF_LOOP, *FIXED)
# Arguments that `load` takes from the file.
NOT_TO_LOAD = {"self", "policy", "_init_setup_model"}


class Model(Protocol):
    """The attributes of :class:`~sb3_dreamer.dreamerv3.dreamerv3.DreamerV3` that are read here."""

    policy_class: Any
    policy_kwargs: dict[str, Any]
    replay_buffer_class: Any
    replay_buffer_kwargs: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    policy: DreamerPolicy
    replay_buffer: SequenceReplayBuffer
    device: th.device
    n_envs: int
    num_timesteps: int
    verbose: int
    learning_rate: Any
    buffer_size: int
    learning_starts: int
    batch_size: int
    batch_length: int
    training_ratio: float
    train_freq: Any
    imagine_last: int
    ent_coef: float | str
    loss_scales: LossScales | None
    replay_context: bool
    compile: bool | str
    fused: bool | str
    distributed_scaling: str | None
    reduce_dtype: str
    _update: Any
    _ranks: Ranks
    _train_ratio: TrainRatio
    _vec_normalize_env: VecNormalize | None


def check_load_arguments(kwargs: dict[str, Any], classes: list[type]) -> None:
    """
    :param kwargs: keyword arguments of ``load``
    :param classes: the algorithm's class, and its base classes that have our arguments
    :raises TypeError: as the constructor would; SB3 would set any attribute
    """
    constructors = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)]
    parameters = [one for constructor in constructors for one in inspect.signature(constructor).parameters.values()]
    known = {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    unknown = {name: value for name, value in kwargs.items() if name not in known - NOT_TO_LOAD}
    refuse_arguments(unknown)
    if unknown:
        raise TypeError(f"DreamerV3.load() got an unexpected keyword argument {next(iter(unknown))!r}")


def check_arguments(model: Model) -> None:
    """
    :param model: an algorithm whose arguments are stored; numpy scalars are converted to Python's
    :raises ValueError: names the first argument that is out of its range, its value and what is allowed
    """
    check_policy(model.policy_class)
    if getattr(model, "observation_space", None) is None:
        raise ValueError("`env` must be an environment or the id of one, got None")
    for name, value in vars(model).items():
        if isinstance(value, np.generic):  # SB3, `deque` and JSON need Python's scalars
            setattr(model, name, value.item())
    for name, (low, high, is_whole) in RANGES.items():
        if name == "ent_coef" and isinstance(model.ent_coef, str):
            if model.ent_coef != AUTO:
                raise ValueError(f"`ent_coef` must be a number of at least 0.0 or 'auto', got {model.ent_coef!r}")
            continue
        check_number(name, getattr(model, name), low, high, is_whole)
    for name in POSITIVE:
        value = getattr(model, name)
        if not is_number(value) or not 0 < value < float("inf"):
            raise ValueError(f"`{name}` must be a positive number, got {value!r}")
    if model.imagine_last == 1 or model.imagine_last > model.batch_length:
        raise ValueError(
            f"`imagine_last` must be 0 (imagine from every row) or between 2 and `batch_length`={model.batch_length}, "
            f"got {model.imagine_last}"
        )
    if model.compile not in (True, False, "auto"):
        raise ValueError(f"`compile` must be True, False or 'auto', got {model.compile!r}")
    if model.fused not in (False, "auto"):
        raise ValueError(f"`fused` must be 'auto' or False, got {model.fused!r}")
    if model.distributed_scaling not in SCALINGS:
        raise ValueError(f"`distributed_scaling` must be one of {SCALINGS}, got {model.distributed_scaling!r}")
    if model.reduce_dtype not in REDUCE_DTYPES:
        raise ValueError(f"`reduce_dtype` must be one of {REDUCE_DTYPES}, got {model.reduce_dtype!r}")
    convert_train_freq(model)
    check_loss_scales(model.loss_scales, list(as_space_dict(model.observation_space)))
    check_kwargs(model)
    check_spaces(model)


def check_unchanged(model: Model, settings: dict[str, Any]) -> None:
    """
    :param model: an algorithm
    :param settings: those it was built with, empty while it is being built
    :raises ValueError: if a setting has changed that cannot change any more
    """
    for name, reason in FIXED.items():
        if name in settings and getattr(model, name) != settings[name]:
            came = f"got {getattr(model, name)!r} in place of {settings[name]!r}"
            raise ValueError(f"`{name}` cannot change any more, {came}: {reason}")


def check_policy(policy_class: Any) -> None:
    """:raises ValueError: if it is not a policy of this package"""
    if not isinstance(policy_class, type) or not issubclass(policy_class, DreamerPolicy):
        name = getattr(policy_class, "__qualname__", type(policy_class).__name__)
        raise ValueError(
            "`policy` must be 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of DreamerPolicy, got "
            f"{policy_class.__module__}.{name}: it, or the file that it was loaded from, belongs to another algorithm"
        )


def is_number(value: Any) -> bool:
    """:return: whether it is a real number, of Python or numpy, and not a bool"""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, low: float, high: float, is_whole: bool) -> None:
    """:raises ValueError: if ``value`` is not a number (or not a whole one) between ``low`` and ``high``"""
    if not is_number(value) or not low <= value <= high or (is_whole and not isinstance(value, Integral)):
        kind = "a whole number" if is_whole else "a number"
        limits = f"of at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise ValueError(f"`{name}` must be {kind} {limits}, got {value!r}")


def convert_train_freq(model: Model) -> None:
    """
    SB3's conversion, here also for numpy's integers and for a value that is set between two runs.

    :param model: its ``train_freq`` becomes a ``TrainFreq``
    :raises ValueError: if it is not a frequency, or if it is in episodes with several environments, whose episodes end at
        different steps
    """
    train_freq: Any = model.train_freq
    frequency, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    unit = getattr(unit, "value", unit)
    if not is_number(frequency) or not isinstance(frequency, Integral) or frequency < 1 or unit not in ("step", "episode"):
        raise ValueError(
            "`train_freq` must be a whole number of steps of at least 1, (n, 'step') or (n, 'episode'), " f"got {train_freq!r}"
        )
    if unit == "episode" and (model.n_envs or 1) > 1:
        raise ValueError(f"`train_freq` in episodes needs one environment, got {model.n_envs}: use (n, 'step')")
    if unit == "episode" and model._ranks.size > 1:
        raise ValueError(f"`train_freq` in episodes needs one rank, got {model._ranks.size}: use (n, 'step')")
    model.train_freq = TrainFreq(int(frequency), TrainFrequencyUnit(unit))


def check_loss_scales(loss_scales: LossScales | None, keys: list[str]) -> None:
    """:raises ValueError: if a name is not a loss, a weight is negative, or a weight names an unknown observation key"""
    if isinstance(loss_scales, str):
        if loss_scales != HARMONY:
            raise ValueError(f"`loss_scales` must be a dict of weights or {HARMONY!r}, got {loss_scales!r}")
        return
    for name, scale in (loss_scales or {}).items():
        if name not in LOSS_SCALES:
            raise ValueError(f"`loss_scales` has no key {name!r}, its keys are {', '.join(LOSS_SCALES)}")
        if name == "reconstruction" and isinstance(scale, Mapping):
            unknown = [key for key in scale if key not in keys]
            if unknown or not scale:
                raise ValueError(f"`loss_scales['reconstruction']` must name keys of the observation, {keys}, got {scale}")
            for key, key_scale in scale.items():
                check_number(f"loss_scales['reconstruction'][{key!r}]", key_scale, 0.0, float("inf"), False)
            continue
        check_number(f"loss_scales[{name!r}]", scale, 0.0, float("inf"), False)


def check_kwargs(model: Model) -> None:
    """:raises ValueError: if an argument is in the wrong dict, or the replay buffer has the wrong class"""
    for name in ("model_size", "precision"):
        if name in model.policy_kwargs:
            raise ValueError(f"`{name}` is an argument of DreamerV3, not of `policy_kwargs`")
    for name in ("batch_length", "replay_context", "online_queue"):
        if name in model.replay_buffer_kwargs:
            raise ValueError(f"`{name}` is an argument of DreamerV3, not of `replay_buffer_kwargs`")
    if "optimize_memory_usage" in model.replay_buffer_kwargs:
        raise ValueError("`replay_buffer_kwargs` has no `optimize_memory_usage`: every observation is stored only once anyway")
    buffer_class = model.replay_buffer_class
    if buffer_class is not None and not issubclass(buffer_class, SequenceReplayBuffer):
        raise ValueError(
            "`replay_buffer_class` must be a subclass of SequenceReplayBuffer (single transitions, as HerReplayBuffer "
            f"relabels them, make no sequences), got {buffer_class.__name__}"
        )


def check_spaces(model: Model) -> None:
    """:raises ValueError: if a space is not supported, or if VecNormalize normalises an image"""
    action_space = model.action_space
    observed = as_space_dict(model.observation_space)
    if not observed:
        raise ValueError("A Dict of observations must have at least one key, got none")
    for key, space in [*observed.items(), ("action", action_space)]:
        if 0 in (space.shape or ()):
            raise ValueError(f"Spaces must hold at least one number, `{key}` is {space}")
        if isinstance(space, spaces.MultiDiscrete) and len(space.shape) != 1:
            raise ValueError(f"MultiDiscrete spaces must have one axis, `{key}` has shape {space.shape}: flatten it")
    if np.any(getattr(action_space, "start", 0)):
        raise ValueError(
            f"Discrete actions must have `start=0`, got {action_space}: wrap the environment, for instance by "
            "gymnasium.wrappers.TransformAction"
        )
    if isinstance(action_space, spaces.Box) and not np.all(action_space.low < action_space.high):
        raise ValueError(f"Every dimension of a Box of actions needs `low` below `high`, got {action_space}")
    if model._vec_normalize_env is not None:
        check_vec_normalize(model._vec_normalize_env, model)


def check_vec_normalize(vec_normalize: VecNormalize, model: Model) -> None:
    """:raises ValueError: if it normalises an image, or if its observations have other shapes than the model's"""
    theirs = as_space_dict(vec_normalize.observation_space)
    for key, space in as_space_dict(model.observation_space).items():
        # A transposed image is fine: the buffer gets the transposed one.
        if key in theirs and sorted(theirs[key].shape or ()) != sorted(space.shape or ()):
            raise ValueError(
                "VecNormalize must stand outside of the wrappers that change shapes, as VecNormalize(VecFrameStack(env, 4)): "
                f"its `{key}` has shape {theirs[key].shape}, the model's {space.shape}"
            )
    if not vec_normalize.norm_obs:
        return
    normalize_images = model.policy_kwargs.get("normalize_images", True)
    normalised = as_space_dict(vec_normalize.venv.observation_space)
    for key in vec_normalize.norm_obs_keys or list(normalised):
        # In a Dict, VecNormalize has replaced the space of a uint8 image, in the environment that it wraps, too.
        clip, shape = vec_normalize.clip_obs, normalised[key].shape or ()
        was_image = vec_normalize.norm_obs_keys is not None and normalised[key] == spaces.Box(-clip, clip, shape, np.float32)
        says = {name: model.policy_kwargs.get(name) or () for name in ("image_keys", "vector_keys")}
        looks_like_one = (len(shape) == 3 and was_image) or image_layout(normalised[key], normalize_images) is not None
        if key in says["image_keys"] or (looks_like_one and key not in says["vector_keys"]):
            raise ValueError(
                f"VecNormalize must leave images alone (`{key}` is one): name the other keys in `norm_obs_keys`, "
                "or use `norm_obs=False`"
            )


def check_loaded_buffer(loaded: Any, model: Model) -> None:
    """
    :param loaded: a buffer from a file
    :param model: the model that loads it
    :raises ValueError: if it does not fit the model
    """
    if not isinstance(loaded, SequenceReplayBuffer):
        raise ValueError(f"The replay buffer must be a SequenceReplayBuffer, got {type(loaded).__name__}")
    loaded.check_fits(
        n_envs=model.n_envs,
        observation_space=model.observation_space,
        action_space=model.action_space,
        latent_shape=model.policy.size.latent_shape,
        replay_context=model.replay_context,
    )


def rank_invariants(model: Model, total_timesteps: int) -> dict[str, Any]:
    """:return: by name what must be the same on all ranks; if it differed, ranks would wait for each other forever"""
    facts = {name: getattr(model, name) for name in (*RANGES, *POSITIVE, *SAME_ON_ALL_RANKS) if name != "buffer_size"}
    rate = model.learning_rate
    facts["learning_rate"] = [float(rate(progress)) for progress in (1.0, 0.5, 0.0)] if callable(rate) else rate
    facts["updates owed"] = model._train_ratio.owed
    parameters = {name: tuple(parameter.shape) for name, parameter in model.policy.named_parameters()}
    environments = f"{model.n_envs} of {model.observation_space}, {model.action_space}"
    facts |= {"total_timesteps": total_timesteps, "env": environments, "policy": parameters}
    facts["optimizer"] = len(tensors_of(dict(model.policy.optimizer.state)))
    return {**facts, "VecNormalize": model._vec_normalize_env is not None}


def warn_if_short(model: Model, total_timesteps: int, reset_num_timesteps: bool) -> None:
    """
    Warn if a ``learn`` ends before training starts.

    :param model: whose ``learn`` has just been called
    :param total_timesteps: as for ``learn``
    :param reset_num_timesteps: as for ``learn``
    """
    if model._train_ratio.owed >= 1:
        return  # updates that were due before are made first
    before = 0 if reset_num_timesteps else model.num_timesteps
    # The last rollout is completed. The length of an episode is not known.
    train_freq = cast(TrainFreq, model.train_freq)
    is_in_steps = train_freq.unit == TrainFrequencyUnit.STEP
    rollout = model.n_envs * model._ranks.size * (train_freq.frequency if is_in_steps else 1)
    end = before + -(-total_timesteps // rollout) * rollout
    if before < end <= model.learning_starts and model._ranks.is_main:
        warnings.warn(
            f"No update will be made: this learn() ends at step {end}, and training starts after `learning_starts`="
            f"{model.learning_starts} steps, counted from 0 again wherever `reset_num_timesteps` is True (its default)"
        )


def warn_if_no_window(model: Model) -> None:
    """After a ``learn`` without an update: warn if the reason was that the replay buffer holds no window."""
    buffer = model.replay_buffer
    is_large = buffer.buffer_size >= buffer.window_length  # otherwise there was a warning at the start
    if is_large and model.num_timesteps > model.learning_starts and not buffer.can_sample() and model._ranks.is_main:
        warnings.warn(
            f"No update was made: {model.num_timesteps} steps gave each of {model.n_envs} environments {buffer.size()} rows, "
            f"a window needs {buffer.window_length} (`batch_length`={model.batch_length}, and the row before it): learn longer"
        )


def log_run_setup(model: Model, total_timesteps: int, reset_num_timesteps: bool) -> None:
    """Before a run: warn if nothing will be learnt, and print what the arguments mean for several ranks."""
    if not model.replay_buffer.warn_if_small():
        warn_if_short(model, total_timesteps, reset_num_timesteps)
    log_scaling(model)


def log_scaling(model: Model) -> None:
    """Print batch, environments, learning rate and update interval over all ranks."""
    ranks, size = model._ranks, model._ranks.size
    if not ranks.is_launched or model.verbose < 1:
        return
    steps = size * model.batch_size * model.batch_length / model.training_ratio
    factor = lr_scaling_factor(model.distributed_scaling, size, 1.0)
    print(
        f"{size} ranks, distributed_scaling={model.distributed_scaling!r}: windows per update {model.batch_size} -> "
        f"{size * model.batch_size}, environments {model.n_envs} -> {size * model.n_envs}, learning rate times "
        f"{factor:.4g}, an update per {steps:.4g} environment steps of all ranks, {model._update.summary}."
    )
