"""Environment whose observations and rewards count steps, for tests of the replay buffer."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.envs.resumable import ResumableEnv


class CounterEnv(ResumableEnv):
    """
    The observation is ``[episode, step, last action]``, the reward on arrival is ``1000 * episode + step``. An error
    by one row, one episode or one environment therefore shows up as a wrong number.

    :param episode_length: steps of an episode
    :param truncates: end episodes by truncation instead of termination
    :param n_actions: number of actions; they only appear in the observation
    :param first_episode: number of the first episode, to distinguish environments
    :param render_mode: ``"rgb_array"`` or None
    """

    STATE = ("episode", "steps")
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        episode_length: int = 7,
        truncates: bool = False,
        n_actions: int = 4,
        first_episode: int = 0,
        render_mode: str | None = None,
    ):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(n_actions)
        self.episode_length = episode_length
        self.truncates = truncates
        self.episode = first_episode - 1
        self.steps = 0

    def _observation(self, action: int) -> np.ndarray:
        return np.array([self.episode, self.steps, action], dtype=np.float32)

    def render(self) -> np.ndarray:
        """:return: a bar that grows with the steps, 16 pixels per step"""
        cells = np.zeros((1, self.episode_length, 3), dtype=np.uint8)
        cells[:, : self.steps] = 255
        return cells.repeat(16, axis=0).repeat(16, axis=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next episode. The last action is -1."""
        super().reset(seed=seed, options=options)
        self.episode += 1
        self.steps = 0
        return self._observation(-1), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count one step."""
        self.steps += 1
        is_over = self.steps >= self.episode_length
        reward = 1000.0 * self.episode + self.steps
        return self._observation(int(action)), reward, is_over and not self.truncates, is_over and self.truncates, {}
