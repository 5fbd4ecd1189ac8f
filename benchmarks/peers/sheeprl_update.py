"""
sheeprl's training update (``dreamer_v3_5``, the algorithm of 2025) with its model of 1M parameters, for ``compare.py``.

It calls the functions of its training loop, ``train`` and ``update_target_critic``, eager (the default), with its own
configuration. Metrics are off.
"""

import gymnasium as gym
import hydra
import numpy as np
import sheeprl
import torch
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.algos.dreamer_v3_5.utils import Moments
from sheeprl.utils.utils import dotdict

from benchmarks.peers.turns import take_turns

OBS_DIM, ACTION_DIM, BATCH, LENGTH = 24, 6, 16, 64

torch.set_num_threads(1)
torch.manual_seed(0)
with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
    overrides = ["exp=dreamer_v3_5", "algo=dreamer_v3_5_1M", "env=gym", "algo.cnn_keys.encoder=[]"]
    cfg = hydra.compose("config", [*overrides, "algo.mlp_keys.encoder=[vector]", "metric.log_level=0"])
cfg = dotdict(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
fabric = Fabric(accelerator="cpu", devices=1)
space = gym.spaces.Dict(vector=gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32))
world_model, actor, critic, target_critic, _ = build_agent(fabric, (ACTION_DIM,), True, cfg, space)
parameters = [*world_model.parameters(), *actor.parameters(), *critic.parameters()]
optimizer = fabric.setup_optimizers(hydra.utils.instantiate(cfg.algo.optimizer, params=parameters, _convert_="all"))
percentile = cfg.algo.actor.moments.percentile
moments = Moments(cfg.algo.actor.moments.decay, cfg.algo.actor.moments.max, percentile.low, percentile.high)

rows = LENGTH + cfg.algo.replay_context
flags = torch.zeros(rows, BATCH, 1)
is_first = flags.clone()
is_first[0] = 1.0
size = cfg.algo.world_model
data = dict(
    vector=torch.randn(rows, BATCH, OBS_DIM),
    actions=torch.rand(rows, BATCH, ACTION_DIM) * 2 - 1,
    rewards=torch.randn(rows, BATCH, 1),
    is_first=is_first,
    terminated=flags,
    truncated=flags,
    deter=torch.zeros(rows, BATCH, size.recurrent_model.recurrent_state_size),
    stoch=torch.zeros(rows, BATCH, size.stochastic_size, dtype=torch.uint8),
)


def update() -> None:
    """One update as in sheeprl's training loop."""
    networks = world_model, actor, critic, target_critic
    train(fabric, cfg, *networks, optimizer, moments, dict(data), None, (ACTION_DIM,))
    update_target_critic(critic, target_critic, cfg.algo.critic.tau)


take_turns(update, version=sheeprl.__version__, parameters=sum(parameter.numel() for parameter in parameters))
