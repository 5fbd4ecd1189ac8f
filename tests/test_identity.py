"""DreamerV3 learns to repeat the observation in every kind of action space."""

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV3

SETTINGS = dict(
    learning_rate=3e-3,
    lr_warmup_steps=50,
    learning_starts=0,
    batch_size=16,
    batch_length=8,
    training_ratio=64,
    imagination_horizon=5,
    imagine_last=4,
    gamma=0.9,
    ent_coef=3e-2,
    policy_kwargs=dict(deter=32, hidden=32, stoch=4, classes=4, units=32, blocks=4),
    device="cpu",
)
ENVS = {
    "discrete": lambda: IdentityEnv(3, ep_length=20),
    "multi_discrete": lambda: IdentityEnvMultiDiscrete(2, ep_length=20),
    "multi_binary": lambda: IdentityEnvMultiBinary(2, ep_length=20),
    "box": lambda: IdentityEnvBox(eps=0.5, ep_length=20),
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["discrete", *(pytest.param(name, marks=SLOW) for name in list(ENVS)[1:])])
def test_identity(name):
    """At most 20 points. By chance: 6.7 of three actions, 5 of four combinations, 9 in the Box."""
    th.set_num_threads(1)
    model = DreamerV3("MlpPolicy", make_vec_env(ENVS[name], 4, seed=0), seed=0, **SETTINGS)
    untrained, _ = evaluate_policy(model, make_vec_env(ENVS[name], 4, seed=1), n_eval_episodes=20)
    model.learn(800 if name == "discrete" else 1600)
    trained, _ = evaluate_policy(model, make_vec_env(ENVS[name], 4, seed=1), n_eval_episodes=20)
    print(name, untrained, trained)
    assert untrained < 15 and trained >= 19.0
