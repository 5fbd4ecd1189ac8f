"""Tasks of the learning benchmark, and the scores that DreamerV3 must reach."""

from typing import Any, NamedTuple


class Bar(NamedTuple):
    """
    Score that must be reached.

    :param measure: score of a seed: ``"best"`` evaluation, ``"last"`` evaluation, or the lowest of the ``"last three"``
    :param must: lower bound for the mean over the seeds
    :param aim: desired mean over the seeds
    :param steps: only evaluations until this environment step count, default: all
    """

    measure: str
    must: float | None = None
    aim: float | None = None
    steps: int | None = None


class Task(NamedTuple):
    """
    Task of the learning benchmark.

    :param claim: capability that the task tests
    :param env: environment id, which selects the preset
    :param steps: environment steps
    :param every: environment steps between evaluations
    :param episodes: episodes per evaluation, deterministic and sampled each; 0: no evaluation, only training returns
    :param bars: scores that DreamerV3 must reach
    :param references: scores to compare with, by name
    :param eval_envs: number of parallel evaluation environments
    :param train_seconds: stop after this CPU time
    :param config: YAML file with the preset, relative to the root of the repository
    :param published: published curve that the training returns are compared with, as ``suite/task``
    :param package: module that registers the environment, or that it needs
    """

    claim: str
    env: str
    steps: int
    every: int
    episodes: int
    bars: tuple[Bar, ...]
    references: dict[str, float]
    eval_envs: int = 10
    train_seconds: float | None = None
    config: str | None = None
    published: str | None = None
    package: str | None = None


PIXELCATCH = dict(steps=6000, every=500, episodes=100, references={"random": -0.74, "blind": -0.75, "best possible": 1.0})
PIXELREACH = dict(
    steps=8000,
    every=500,
    episodes=100,
    bars=(Bar("best", must=-12, aim=-8),),
    references={"random": -26.4, "goal unseen": -19.4, "best possible": -2.33},
)
TMAZE = dict(every=500, episodes=100, references={"random": 0.0, "without memory": 0.0, "best possible": 1.0})


def dm_control(name: str) -> Task:
    """:return: a task of dm_control with vector observations, 100,000 frames with action repeat 2"""
    return Task(
        "dm_control with vector observations, the published protocol",
        f"dm_control/{'-'.join(name.rsplit('_', 1))}-v0",
        steps=50_000,
        every=5_000,
        episodes=10,
        bars=(),
        references={"best possible": 1000},
        config="hyperparams/dm_control_proprio.yml",
        published=f"dmc_proprio/dmc_{name}",
        package="shimmy",
    )


def vision(name: str) -> Task:
    """:return: a task of dm_control with images, 100,000 frames with action repeat 2"""
    return dm_control(name)._replace(
        claim="dm_control with images, the published protocol",
        episodes=0,
        eval_envs=1,
        references={},
        config="hyperparams/dm_control_vision.yml",
        published=f"dmc_vision/dmc_{name}",
    )


def atari100k(game: str) -> Task:
    """:return: a game with 400,000 frames, 4 per action"""
    return Task(
        "Atari100k, the published protocol",
        f"ALE/{game}-v5",
        steps=100_000,
        every=5_000,
        episodes=0,
        bars=(),
        references={},
        eval_envs=1,
        published=f"atari100k/atari_{game.lower()}",
        package="ale_py",
    )


DM_CONTROL = (
    "pendulum_swingup",
    "reacher_hard",
    "walker_stand",
    "cartpole_swingup",
    "ball_in_cup_catch",
    "walker_walk",
    "walker_run",
)
TASKS: dict[str, Task] = {
    "cartpole": Task(
        "vectors, discrete actions",
        "CartPole-v1",
        steps=10_000,
        every=500,
        episodes=20,
        bars=(Bar("best", must=495, steps=4000), Bar("last three", aim=450)),
        references={"random": 25, "best possible": 500},
    ),
    "cartpole_defaults": Task(
        "the untouched defaults, for an hour on one core",
        "CartPole-v1",
        steps=100_000,
        every=100,
        episodes=20,
        bars=(),
        references={"random": 25, "best possible": 500},
        train_seconds=3600,
        config="benchmarks/learning/untouched.yml",
    ),
    "pendulum": Task(
        "vectors, continuous actions",
        "Pendulum-v1",
        steps=6000,
        every=500,
        episodes=20,
        bars=(Bar("best", must=-180),),
        references={"random": -1197, "best possible": -150},
    ),
    "frozenlake": Task(
        "integer observations, sparse reward",
        "sb3_dreamer/FrozenLake4x4-v0",
        steps=6000,
        every=500,
        episodes=100,
        bars=(Bar("last", must=0.95),),
        references={"random": 0.014, "best possible": 1.0},
    ),
    "pixelcatch16": Task(
        "pixels (16x16), discrete actions",
        "sb3_dreamer/PixelCatch16-v0",
        bars=(Bar("best", must=0.6, aim=0.9),),
        **PIXELCATCH,
    ),
    "pixelcatch64": Task(
        "pixels (64x64), discrete actions",
        "sb3_dreamer/PixelCatch-v0",
        bars=(Bar("best", must=0.6, aim=0.9),),
        **PIXELCATCH,
    ),
    "pixelreach": Task("pixels, continuous actions", "sb3_dreamer/PixelReach-v0", **PIXELREACH),
    "pixelreach_dict": Task("Dict of pixels and numbers", "sb3_dreamer/PixelReachDict-v0", **PIXELREACH),
    "tmaze4": Task("memory of 4 steps", "sb3_dreamer/TMaze-v0", steps=5000, bars=(Bar("last", must=0.95),), **TMAZE),
    "tmaze10": Task("memory of 10 steps", "sb3_dreamer/TMaze10-v0", steps=20_000, bars=(Bar("last", aim=0.95),), **TMAZE),
    **{f"dmc_{name}": dm_control(name) for name in DM_CONTROL},
    **{f"vision_{name}": vision(name) for name in ("walker_stand", "walker_walk", "cartpole_swingup")},
    **{f"atari100k_{game.lower()}": atari100k(game) for game in ("Breakout", "Boxing", "Krull")},
}


def small(name: str, *bars: Bar, **changes: Any) -> Task:
    """:return: the task with the setting for all small tasks, and with its bars"""
    return TASKS[name]._replace(config="hyperparams/small.yml", bars=bars, **changes)


def small_only(claim: str, env: str, steps: int, references: dict[str, float], *bars: Bar, package: str | None = None) -> Task:
    """:return: a task for which there is no hand-tuned preset"""
    config = "hyperparams/small.yml"
    return Task(claim, env, steps, steps // 20, 20, bars, references, config=config, package=package)


TASKS |= {
    "small_cartpole": small("cartpole", Bar("best", must=500), Bar("last three", must=450)),
    "small_pendulum": small("pendulum", Bar("best", must=-180)),
    "small_frozenlake": small("frozenlake", Bar("last", must=1.0)),
    "small_pixelcatch16": small("pixelcatch16", Bar("best", must=0.9)),
    "small_pixelcatch64": small("pixelcatch64", Bar("best", must=0.9)),
    "small_pixelreach": small("pixelreach", Bar("best", must=-12)),
    "small_pixelreach_dict": small("pixelreach_dict", Bar("best", must=-12)),
    "small_tmaze4": small("tmaze4", Bar("last", must=0.95)),
    "small_tmaze10": small("tmaze10", Bar("last", must=0.9)),
    "small_acrobot": small_only("vectors, discrete actions", "Acrobot-v1", 20_000, {"random": -497}, Bar("best", must=-100)),
    "small_mountaincar": small_only(
        "vectors, a goal that is hard to find", "MountainCar-v0", 50_000, {"random": -200}, Bar("best")
    ),
    "small_lunarlander": small_only(
        "vectors, dense reward", "LunarLander-v3", 60_000, {"random": -185}, Bar("best", aim=100), package="Box2D"
    ),
    "small_repeat_previous": small_only(
        "memory, integer observations",
        "popgym-RepeatPreviousEasy-v0",
        30_000,
        {"random": -0.51, "best possible": 1.0},
        Bar("best", aim=0.5),
        package="popgym",
    ),
    "small_doorkey": small_only(
        "pixels (40x40), sparse reward",
        "MiniGrid-DoorKey-5x5-v0",
        30_000,
        {"random": 0.04, "best possible": 0.97},
        Bar("best", must=0.8),
        package="minigrid",
    ),
}
