"""Checks of a replay buffer whose every number is known: that of the counter worlds."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from tests.support.helpers import COUNTERS


class StopAt(BaseCallback):
    """Stops, or raises, at the n-th step."""

    def __init__(self, n: int, error: type[BaseException] | None = None):
        super().__init__()
        self.n, self.error = n, error

    def _on_step(self) -> bool:
        if self.n_calls == self.n and self.error is not None:
            raise self.error
        return self.n_calls != self.n


def stream(buffer: SequenceReplayBuffer, env: int) -> dict[str, np.ndarray]:
    """All rows of one environment, oldest first."""
    steps = np.arange(buffer.counts[env] - buffer.filled[env], buffer.counts[env])
    rows = steps % buffer.buffer_size
    names = ("observations", "actions", "rewards", "is_first", "dones", "timeouts", "has_latent", "deter", "stoch")
    return {name: getattr(buffer, name)[rows, env] for name in names}


def check_rows(rows: dict[str, np.ndarray], env: int) -> list[int]:
    """
    Check every row of a stretch of one environment's stream.

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
            starts_anew = step[i + 1] == 0 and episode[i + 1] > episode[i]
            assert starts_anew if is_end else follows or starts_anew
            if starts_anew and not is_end:
                abandoned.append(i)
        if is_end:
            assert rows["dones"][i] and rows["timeouts"][i] == truncates
        elif i in abandoned:
            assert rows["dones"][i] and rows["timeouts"][i]  # cut like a truncated episode
        else:
            assert not rows["dones"][i] and not rows["timeouts"][i]
    return abandoned


def check_buffer(buffer: SequenceReplayBuffer) -> list[list[int]]:
    return [check_rows(stream(buffer, env), env) for env in range(buffer.n_envs)]


def check_windows(buffer: SequenceReplayBuffer, n: int = 64) -> None:
    """Check sampled windows row by row, and where they start from."""
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
            assert rows["dones"][-1] and rows["timeouts"][-1]  # abandoned just behind the window
            rows["dones"][-1] = rows["timeouts"][-1] = False
        check_rows(rows, env)
        before = (steps[i, 0] - 1) % buffer.buffer_size
        assert steps[i, 0] - 1 >= buffer.counts[env] - buffer.filled[env]  # the context row is alive
        known = float(buffer.has_latent[before, env])
        np.testing.assert_array_equal(batch.initial.deter[i], buffer.deter[before, env].astype(np.float32) * known)
        np.testing.assert_array_equal(batch.initial.stoch[i].sum(-1), np.full(2, known))
        np.testing.assert_array_equal(batch.initial.stoch[i].argmax(-1) * known, buffer.stoch[before, env] * known)


def plain_buffer(**kwargs) -> SequenceReplayBuffer:
    """Thirty rows of one number for each of two environments."""
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(5)
    defaults = dict(observation_space=observation_space, action_space=action_space, device="cpu", latent_shape=(8, 2, 4))
    return SequenceReplayBuffer(**{**defaults, "buffer_size": 60, "n_envs": 2, "batch_length": 4, **kwargs})


def fill(buffer: SequenceReplayBuffer, n_steps: int, start: int = 0) -> None:
    """One endless episode per environment, whose observation and reward are the step's number."""
    for t in range(start, start + n_steps):
        now, then = (np.full((buffer.n_envs, 1), value, np.float32) for value in (t, t + 1))
        buffer.add(now, then, np.full(buffer.n_envs, t % 5), then[:, 0], np.zeros(buffer.n_envs), [{}] * buffer.n_envs)
