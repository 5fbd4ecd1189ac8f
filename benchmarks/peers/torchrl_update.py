"""
TorchRL's training update with the dimensions of our 1m model (640,867 parameters), for ``compare.py``.

It uses the builders of TorchRL's recipe, and its public stepper and optimiser, eager (the default on a CPU). The settings file
of the recipe is not part of the wheel. The other values are those of its documentation.
"""

import sys
from pathlib import Path

import torch
import torchrl
from omegaconf import OmegaConf

RECIPE = Path(torchrl.__file__).parent.parent / "sota-implementations" / "dreamer_v3"
sys.path.insert(0, str(RECIPE))  # scripts that import each other and are not in a package

import train as recipe
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from benchmarks.peers.turns import take_turns

OBS_DIM, ACTION_DIM = 24, 6


class Still(EnvBase):
    """Placeholder environment (24 numbers, 6-dimensional action), because the recipe reads the shapes from one."""

    def __init__(self):
        super().__init__(batch_size=[])
        self.observation_spec = Composite(observation=Unbounded((OBS_DIM,)))
        self.action_spec = Bounded(-1.0, 1.0, (ACTION_DIM,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict=None):
        return TensorDict({"observation": torch.zeros(OBS_DIM)}, [])

    def _step(self, tensordict):
        flags = dict(done=torch.zeros(1, dtype=torch.bool), terminated=torch.zeros(1, dtype=torch.bool))
        return TensorDict({"observation": torch.zeros(OBS_DIM), "reward": torch.zeros(1), **flags}, [])

    def _set_seed(self, seed):
        torch.manual_seed(seed)


def make_env(seed=None, env_index=0, num_envs=1):
    return Still()


CONFIG = OmegaConf.create(
    dict(
        env=dict(
            backend="custom", factory="__main__:make_env", name="still", task=None, seed=0, use_seed=True,
            max_episode_steps=1000, vector_key="observation", pixels_key=None,
        ),
        collector=dict(num_envs=1),
        networks=dict(
            hidden_dim=64, rnn_hidden_dim=512, num_categoricals=32, num_classes=4, num_blocks=8, unimix=0.01, norm_eps=1e-4,
            encoder_layers=3, decoder_layers=3, dynamics_layers=1, prior_layers=2, posterior_layers=1, reward_layers=1,
            actor_layers=3, value_layers=3, num_reward_bins=255, num_value_bins=255, policy_min_std=0.1, policy_max_std=1.0,
            recurrent_model="block_gru", decoder_event_dims=None, image_depth=4, image_mults=[2, 3, 4, 4],
            image_kernel_size=5, image_decoder_blocks=8,
        ),
        optimization=dict(
            compile="auto", compile_train_step=None, compile_rssm=None, cudagraph_train_step=None,
            compile_train_step_mode="default", rssm_scan_unroll=8, mixed_precision=False, separate_policy_rng=False,
            free_bits=1.0, dynamic_loss_weight=1.0, representation_loss_weight=0.1, continuation_horizon=333,
            imagination_horizon=15, use_reinforce=True, return_normalization_rate=0.01, return_normalization_min_scale=1.0,
            gamma=1.0, lmbda=0.95, slow_critic_regularization=1.0, slow_critic_tau=0.02, replay_value_loss_weight=0.3,
            lr=4e-5, adaptive_grad_clip=0.3, optimizer_eps=1e-20, warmup_steps=1000,
        ),
        replay_buffer=dict(batch_size=16, seq_len=64),
    )
)  # fmt: skip

torch.set_num_threads(1)
torch.manual_seed(0)
device = torch.device("cpu")
learner = recipe._build_learner(CONFIG, device, OBS_DIM, ACTION_DIM)
stepper = recipe._make_learner_update(CONFIG, device, learner)
batch = recipe._fake_learner_sample(CONFIG, device, OBS_DIM, ACTION_DIM)
batch["next", "observation"].normal_()
batch["action"].uniform_(-1.0, 1.0)
batch["next", "reward"].normal_()
batch["is_init"][:, 0] = True
parameters = {id(p): p.numel() for group in learner.optimizer.param_groups for p in group["params"]}
take_turns(lambda: stepper.step(None, batch), version=torchrl.__version__, parameters=sum(parameters.values()))
