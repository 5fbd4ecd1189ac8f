"""Replay buffers with known contents, and checks of the buffer of the counter environments."""

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from tests.support.helpers import COUNTERS


def stream(buffer: SequenceReplayBuffer, env: int) -> dict[str, np.ndarray]:
    """All rows of one environment, oldest first."""
    steps = np.arange(buffer.counts[env] - buffer.filled[env], buffer.counts[env])
    rows = steps % buffer.buffer_size
    names = ("observations", "actions", "rewards", "is_first", "dones", "timeouts", "has_latent", "deter", "stoch")
    return {name: getattr(buffer, name)[rows, env] for name in names}


def check_rows(rows: dict[str, np.ndarray], env: int) -> list[int]:
    """
    Check consecutive rows of one environment.

    :return: indices of the rows at which an episode was abandoned (a reset without done)
    """
    length, truncates, _ = COUNTERS[env]
    episode, step, last_action = rows["observations"].astype(int).T
    abandoned = []
    for i in range(len(step)):
        is_start, is_end = step[i] == 0, step[i] == length
        assert rows["is_first"][i] == is_start
        assert rows["rewards"][i] == (0 if is_start else 1000 * episode[i] + step[i])
        assert rows["actions"][i, 0] == (0 if is_start else last_action[i])
        if i + 1 < len(step):
            follows = (episode[i + 1], step[i + 1]) == (episode[i], step[i] + 1)
            is_new_episode = step[i + 1] == 0 and episode[i + 1] > episode[i]
            assert is_new_episode if is_end else follows or is_new_episode
            if is_new_episode and not is_end:
                abandoned.append(i)
        if is_end:
            assert rows["dones"][i] and rows["timeouts"][i] == truncates
        elif i in abandoned:
            assert rows["dones"][i] and rows["timeouts"][i]  # stored like a truncated episode
        else:
            assert not rows["dones"][i] and not rows["timeouts"][i]
    return abandoned


def check_buffer(buffer: SequenceReplayBuffer) -> list[list[int]]:
    return [check_rows(stream(buffer, env), env) for env in range(buffer.n_envs)]


def check_windows(buffer: SequenceReplayBuffer, n: int = 64) -> None:
    """Check sampled windows row by row, and their initial latents."""
    batch = buffer.sample(n)
    steps, envs = batch.indices
    assert steps.shape == (n, buffer.batch_length)
    for i in range(n):
        env = envs[i]
        rows = {
            "observations": batch.observations[i].numpy(),
            "actions": batch.prev_actions[i].numpy(),
            "rewards": batch.rewards[i].numpy(),
            "is_first": batch.is_first[i].numpy(),
            "dones": batch.is_last[i].numpy(),
            "timeouts": (batch.is_last[i] & ~batch.is_terminal[i]).numpy(),
        }
        next_row = (steps[i, -1] + 1) % buffer.buffer_size
        is_newest = steps[i, -1] + 1 == buffer.counts[env]
        if not is_newest and buffer.is_first[next_row, env] and rows["observations"][-1, 1] != COUNTERS[env][0]:
            assert rows["dones"][-1] and rows["timeouts"][-1]  # abandoned right after the window
            rows["dones"][-1] = rows["timeouts"][-1] = False
        check_rows(rows, env)
        before = (steps[i, 0] - 1) % buffer.buffer_size
        assert steps[i, 0] - 1 >= buffer.counts[env] - buffer.filled[env]  # the context row has not been overwritten
        known = float(buffer.has_latent[before, env])
        np.testing.assert_array_equal(batch.initial.deter[i], buffer.deter[before, env].astype(np.float32) * known)
        np.testing.assert_array_equal(batch.initial.stoch[i].sum(-1), np.full(2, known))
        np.testing.assert_array_equal(batch.initial.stoch[i].argmax(-1) * known, buffer.stoch[before, env] * known)


def plain_buffer(**kwargs) -> SequenceReplayBuffer:
    """A buffer of scalar observations: thirty rows for each of two environments."""
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(5)
    defaults = dict(observation_space=observation_space, action_space=action_space, device="cpu", latent_shape=(8, 2, 4))
    return SequenceReplayBuffer(**{**defaults, "buffer_size": 60, "n_envs": 2, "batch_length": 4, **kwargs})


def fill(buffer: SequenceReplayBuffer, n_steps: int, start: int = 0) -> None:
    """Add one endless episode per environment. Observation and reward are the number of the step."""
    for t in range(start, start + n_steps):
        now, then = (np.full((buffer.n_envs, 1), value, np.float32) for value in (t, t + 1))
        buffer.add(now, then, np.full(buffer.n_envs, t % 5), then[:, 0], np.zeros(buffer.n_envs), [{}] * buffer.n_envs)
