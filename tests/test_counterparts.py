"""Arguments of SB3 and sb3-contrib that DreamerV3 does not have are rejected, and the error names the counterpart."""

import inspect
import re

import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dreamer import DreamerPolicy, DreamerV3
from sb3_dreamer.dreamerv3.counterparts import ARGUMENTS, OTHER_IMPLEMENTATIONS, POLICIES, POLICY_KWARGS
from sb3_dreamer.dreamerv3.model_sizes import SIZE_FIELDS
from tests.support.helpers import TINY, counter_envs, counter_model

THEIRS = [
    cls
    for package in (stable_baselines3, sb3_contrib)
    for cls in (getattr(package, name) for name in package.__all__)
    if inspect.isclass(cls) and issubclass(cls, BaseAlgorithm)
]


def parameters(cls: type) -> set[str]:
    """Named parameters of a constructor and, if it passes on keyword arguments, of its base classes."""
    found = set()
    for base in cls.__mro__:
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("stable_baselines3", "sb3_contrib", "sb3_dreamer"):
            signature = inspect.signature(base.__init__).parameters.values()
            found |= {p.name for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return found - {"self"}


def test_the_algorithms_are_all_there():
    assert {
        "A2C",
        "DDPG",
        "DQN",
        "PPO",
        "SAC",
        "TD3",
        "ARS",
        "QRDQN",
        "TQC",
        "TRPO",
        "CrossQ",
        "MaskablePPO",
        "RecurrentPPO",
    } <= {cls.__name__ for cls in THEIRS}


def test_arguments():
    ours = set(inspect.signature(DreamerV3.__init__).parameters)
    theirs = set().union(*(inspect.signature(cls.__init__).parameters for cls in THEIRS))
    assert theirs - ours == set(ARGUMENTS) - {"net_arch"}  # which users give to constructors as well


def test_policy_names():
    theirs = set().union(*(cls.policy_aliases for cls in THEIRS))
    assert theirs - set(DreamerV3.policy_aliases) == set(POLICIES)


def test_policy_kwargs():
    given_by_algorithm = {"observation_space", "action_space", "lr_schedule"}
    theirs = set().union(*(parameters(policy) for cls in THEIRS for policy in cls.policy_aliases.values()))
    ours = set(inspect.signature(DreamerPolicy.__init__).parameters) | SIZE_FIELDS
    assert theirs - ours - given_by_algorithm == set(POLICY_KWARGS)


@pytest.mark.parametrize("name", {**ARGUMENTS, **POLICY_KWARGS})
def test_each_argument_is_rejected(name):
    counterpart = ARGUMENTS.get(name, POLICY_KWARGS.get(name))
    with pytest.raises(TypeError) as error:
        counter_model(**{name: 1})
    assert str(error.value) == f"`{name}` is no argument of DreamerV3, got {name}=1; its counterpart: {counterpart}"


@pytest.mark.parametrize("name", POLICY_KWARGS)
def test_each_policy_kwarg_is_rejected(name):
    with pytest.raises(TypeError) as error:
        counter_model(policy_kwargs={name: 1})
    assert f"has no {name}. The counterpart of `{name}`: {POLICY_KWARGS[name]}. " in str(error.value)


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_is_rejected(name):
    for arguments in (dict(), dict(policy=name)):
        with pytest.raises(ValueError) as error:
            DreamerV3(*([] if arguments else [name]), env=counter_envs(), **arguments, **TINY)
        assert str(error.value) == f"`{name}` is no policy of DreamerV3, its counterpart: {POLICIES[name]}"


def test_what_is_named_exists():
    """Each word in backticks is an argument, a dimension, a key or a policy of this package."""
    known = parameters(DreamerV3) | parameters(DreamerPolicy) | SIZE_FIELDS | set(DreamerV3.policy_aliases)
    known |= {"critic", "replay_critic"}
    for counterpart in [*ARGUMENTS.values(), *POLICY_KWARGS.values(), *POLICIES.values()]:
        assert set(counterpart.split("`")[1::2]) <= known, counterpart


@pytest.mark.parametrize("cls", THEIRS, ids=lambda cls: cls.__name__)
def test_policy_classes_of_others(cls):
    for policy in set(cls.policy_aliases.values()):
        with pytest.raises(ValueError, match=rf"subclass of DreamerPolicy, got .*{policy.__name__}: .* another algorithm"):
            DreamerV3(policy, counter_envs(), **TINY)


@pytest.mark.parametrize("cls, env_id", [(SAC, "Pendulum-v1"), (PPO, "CartPole-v1"), (DQN, "CartPole-v1")])
def test_files_of_others(cls, env_id, tmp_path):
    settings = {} if cls is PPO else dict(buffer_size=10)
    other = cls("MlpPolicy", env_id, policy_kwargs=dict(net_arch=[4]), device="cpu", **settings)
    other.save(tmp_path / "model")
    for env in (None, other.env):
        with pytest.raises(ValueError, match="the file that it was loaded from, belongs to another algorithm"):
            DreamerV3.load(tmp_path / "model", env=env)
    model = counter_model()
    with pytest.raises(RuntimeError, match="parameters belong to another algorithm"):
        model.set_parameters(tmp_path / "model")
    assert model.learn(40)._n_updates > 0


def test_arguments_of_others_at_load(tmp_path):
    """SB3 accepts any attribute there and ignores those that are not used."""
    counter_model().save(tmp_path / "model")
    for arguments in (dict(gradient_steps=4), dict(optimize_memory_usage=True), dict(net_arch=[4])):
        with pytest.raises(TypeError, match=f"`{next(iter(arguments))}` is no argument of DreamerV3"):
            DreamerV3.load(tmp_path / "model", **arguments)
    assert DreamerV3.load(tmp_path / "model", batch_size=3).batch_size == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train_ratio", "`train_ratio` is no argument of DreamerV3, got train_ratio=3; its counterpart: `training_ratio`"),
        ("batch_length_T", "its counterpart: `batch_length`"),
        ("actor_lr", "its counterpart: `learning_rate`"),
        ("trainng_ratio", "`trainng_ratio` is no argument of DreamerV3. Did you mean `training_ratio`?"),
        ("free_nat", "Did you mean `free_nats`?"),
        ("xyz", "`xyz` is no argument of DreamerV3. The arguments are policy, env, learning_rate"),
    ],
)
def test_unknown_arguments(name, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        counter_model(**{name: 3})


def test_names_of_other_implementations_are_not_ours():
    ours = set(inspect.signature(DreamerV3.__init__).parameters) | set(SIZE_FIELDS)
    assert not ours & set(OTHER_IMPLEMENTATIONS) and not set(ARGUMENTS) & set(OTHER_IMPLEMENTATIONS)
