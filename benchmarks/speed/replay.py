"""
Time of the replay buffer: ``add`` per environment step, ``sample`` of a batch of windows, write-back of latents.

    python -m benchmarks.speed.replay --preset image_12m

Prints one line of JSON: process CPU time, minimum over rounds.
"""

import argparse
import json

import numpy as np

from benchmarks.speed.policy_latency import milliseconds
from benchmarks.speed.workloads import BATCH, LENGTH, PRESETS, make_policy
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.type_aliases import LatentState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="proprio_1m")
    parser.add_argument("--iterations", type=int, default=5, help="rounds")
    parser.add_argument("--envs", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20_000)
    args = parser.parse_args()
    policy, n_envs = make_policy(args.preset), args.envs
    space, action_space = policy.observation_space, policy.action_space
    latent_shape = policy.size.latent_shape
    buffer = SequenceReplayBuffer(
        args.rows, space, action_space, "cpu", n_envs, batch_length=LENGTH, latent_shape=latent_shape
    )
    observations = np.stack([space.sample() for _ in range(n_envs)])
    actions = np.stack([action_space.sample() for _ in range(n_envs)]).reshape(n_envs, -1)
    rewards, steps = np.zeros(n_envs, np.float32), iter(range(10**9))

    def add() -> None:
        done = np.full(n_envs, next(steps) % 500 == 499)
        buffer.add(observations, observations, actions, rewards, done, [{} for _ in range(n_envs)])

    latent = policy.initial_state(n_envs)
    acting = LatentState(latent.deter.unsqueeze(1), latent.stoch.unsqueeze(1))

    def write_acting() -> None:
        buffer.update_latents(buffer.acting_indices, acting)

    for _ in range(max(200, args.rows // n_envs)):
        add()
    batch = buffer.sample(BATCH)
    full = policy.world_model.rssm.initial(BATCH * LENGTH)
    posterior = LatentState(*(part.unflatten(0, (BATCH, LENGTH)) for part in full))
    line = dict(
        preset=args.preset,
        envs=n_envs,
        add_us_per_step=round(milliseconds(add, args.iterations) * 1e3 / n_envs, 1),
        acting_latent_us_per_step=round(milliseconds(write_acting, args.iterations) * 1e3 / n_envs, 1),
        sample_ms=round(milliseconds(lambda: buffer.sample(BATCH), args.iterations, calls=10), 3),
        write_back_ms=round(
            milliseconds(lambda: buffer.update_latents(batch.indices, posterior), args.iterations, calls=10), 3
        ),
        bytes_per_row=buffer.nbytes // buffer.buffer_size // n_envs,
    )
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
