"""State of environments: saved and restored, so that a resumed run continues in the middle of an episode."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_dreamer.common.plain_data import to_plain

# Attributes of gymnasium's and SB3's wrappers that change in an episode (TimeLimit; OrderEnforcing; Monitor).
OF_WRAPPERS = ("_elapsed_steps", "_has_reset", "rewards", "needs_reset", "current_reset_info", "total_steps")
OF_VEC_WRAPPERS: dict[type[VecEnv], tuple[str, ...]] = {
    VecNormalize: ("returns", "old_obs", "old_reward"),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
}
BIT_GENERATORS = np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64
GENERATORS = {kind.__name__: kind for kind in BIT_GENERATORS}
STATISTICS = ("mean", "var", "count")


def layers_of(env: VecEnv) -> list[VecEnv]:
    """:return: the wrappers of a VecEnv from the outside in, and the VecEnv itself"""
    layers = [env]
    while (inner := getattr(layers[-1], "venv", None)) is not None:
        layers.append(inner)
    return layers


def has_states(env: VecEnv) -> bool:
    """:return: whether all environments have the methods ``get_state`` and ``set_state``"""
    return all(env.has_attr(name) for name in ("get_state", "set_state"))


def check_states(env: VecEnv) -> None:
    """
    :param env: environments, after a reset
    :raises TypeError: if a ``get_state`` returns something that a checkpoint cannot hold
    """
    for state in env.env_method("get_state") if has_states(env) else ():
        to_plain(state, [], "get_state()")


# ---- what a run needs to continue in the middle of an episode ----


def get_states(env: VecEnv) -> dict[str, Any]:
    """
    :param env: environments
    :return: random generators of the environments, and if they have the method ``get_state``, their states and those of the
        wrappers
    """
    states: dict[str, Any] = dict(generators=generator_states(env))
    if has_states(env):
        states["envs"] = env.env_method("get_state")
        states["wrappers"] = {name: _get(env, name) for name in OF_WRAPPERS if env.has_attr(name)}
        states["layers"] = [(type(layer).__name__, _layer_state(layer)) for layer in layers_of(env)]
    return states


def set_states(env: VecEnv, states: dict[str, Any]) -> bool:
    """
    Continue where :func:`get_states` was called. The environments are reset first.

    :param env: environments
    :param states: from :func:`get_states`
    :return: whether they continue in the middle of their episodes; otherwise only the random generators are restored
    :raises ValueError: if there are other vectorized wrappers than before
    """
    goes_on = "envs" in states and has_states(env)
    if goes_on:
        theirs, mine = [name for name, _ in states["layers"]], [type(layer).__name__ for layer in layers_of(env)]
        if theirs[:-1] != mine[:-1]:  # the last one is the VecEnv itself, with or without subprocesses
            raise ValueError(f"The checkpoint was made with `env` in these wrappers: {theirs}, now it is in {mine}")
    env.reset()  # wrappers may need it, and seeds of the constructor must not be used later
    if goes_on:
        for i, state in enumerate(states["envs"]):
            env.env_method("set_state", state, indices=i)
        for name, values in states["wrappers"].items():
            _set(env, name, values)
        for layer, (_, state) in zip(layers_of(env), states["layers"], strict=True):
            _set_layer_state(layer, state)
    if states["generators"]:
        _set(env, "np_random", [generator_from(state) for state in states["generators"]])
    return goes_on


def _get(env: VecEnv, name: str) -> list[Any]:
    return env.env_method("get_wrapper_attr", name)


def _set(env: VecEnv, name: str, values: list[Any]) -> None:
    """Set an attribute of the wrapper that has it. SB3's ``set_attr`` would set it on the outermost one."""
    for i, value in enumerate(values):
        env.env_method("set_wrapper_attr", name, value, indices=i)


def _layer_state(layer: VecEnv) -> dict[str, Any]:
    names = next((names for kind, names in OF_VEC_WRAPPERS.items() if isinstance(layer, kind)), ())
    state = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    return state | {"frames": [stack.stacked_obs for stack in _frame_stacks(layer)]}


def _set_layer_state(layer: VecEnv, state: dict[str, Any]) -> None:
    for stack, frames in zip(_frame_stacks(layer), state.pop("frames"), strict=True):
        stack.stacked_obs = frames
    vars(layer).update(state)


def _frame_stacks(layer: VecEnv) -> list[Any]:
    """:return: the stacks of frames, one for each key of a Dict"""
    if not isinstance(layer, VecFrameStack):
        return []
    stack = layer.stacked_obs
    return list(getattr(stack, "sub_stacked_observations", {"": stack}).values())


# ---- random generators ----


def generator_states(env: VecEnv) -> list[dict[str, Any]]:
    """:return: states of the random generators of the environments, empty if they have none that can be restored"""
    try:
        generators = _get(env, "np_random")
    except (AttributeError, NotImplementedError):  # a VecEnv of another library
        return []
    names = [type(getattr(generator, "bit_generator", None)).__name__ for generator in generators]
    return [generator_state(generator) for generator in generators] if set(names) <= set(GENERATORS) else []


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """:return: state of a generator, plain data"""
    return dict(generator.bit_generator.state)


def generator_from(state: dict[str, Any]) -> np.random.Generator:
    """:return: a generator in this state"""
    bit_generator: Any = GENERATORS[state["bit_generator"]]()
    bit_generator.state = state
    return np.random.Generator(bit_generator)


# ---- statistics of VecNormalize ----


def _by_key(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """:return: statistics of the observations by key, ``""`` for observations that are no Dict"""
    of_obs = vec_normalize.obs_rms if vec_normalize.norm_obs else {}
    return of_obs if isinstance(of_obs, dict) else {"": of_obs}


def get_statistics(vec_normalize: VecNormalize | None) -> dict[str, Any] | None:
    """:return: running statistics of observations and returns"""
    if vec_normalize is None:
        return None
    return {
        "obs": {key: {name: getattr(rms, name) for name in STATISTICS} for key, rms in _by_key(vec_normalize).items()},
        "returns": {name: getattr(vec_normalize.ret_rms, name) for name in STATISTICS},
    }


def set_statistics(vec_normalize: VecNormalize | None, statistics: dict[str, Any] | None) -> None:
    """
    :param vec_normalize: that of the environment
    :param statistics: from :func:`get_statistics`
    :raises ValueError: as :func:`check_statistics`
    """
    check_statistics(vec_normalize, statistics)
    if vec_normalize is None or statistics is None:
        return
    for key, values in statistics["obs"].items():
        vars(_by_key(vec_normalize)[key]).update(values)
    vars(vec_normalize.ret_rms).update(statistics["returns"])


def check_statistics(vec_normalize: VecNormalize | None, statistics: dict[str, Any] | None) -> None:
    """
    :param vec_normalize: that of the environment
    :param statistics: from :func:`get_statistics`
    :raises ValueError: if only one of them is None, or the keys of the observations differ
    """
    if (vec_normalize is None) != (statistics is None):
        theirs, mine = ("with", "without") if statistics else ("without", "with")
        raise ValueError(f"The checkpoint was made {theirs} VecNormalize, `env` is {mine} it")
    now = get_statistics(vec_normalize)
    if now is not None and statistics is not None and now["obs"].keys() != statistics["obs"].keys():
        raise ValueError(
            f"VecNormalize of the checkpoint normalizes the observations {sorted(statistics['obs'])}, that of `env` "
            f"{sorted(now['obs'])}"
        )
