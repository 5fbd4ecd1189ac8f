"""Remember a cue until it matters."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class TMazeEnv(gym.Env):
    """
    The observation is ``[cue, at the junction, 1]``. The cue, +1 or -1, is shown at the first step only. After ``length``
    steps, whatever the actions, the agent stands at the junction, where action 1 is right for cue +1 and action 0 for cue
    -1: reward +1 if right, else -1, and the episode terminates. All other rewards are 0.

    The best return is 1; an agent without memory scores exactly 0 on average.

    :param length: N, steps between the cue and the junction
    :raises ValueError: if ``length`` is below 1
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 4):
        if length < 1:
            raise ValueError(f"`length` must be at least 1, got {length}")
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.cue, self.steps = 1, 0

    def _observation(self) -> np.ndarray:
        return np.array([self.cue if self.steps == 0 else 0, self.steps == self.length, 1], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a cue and show it."""
        super().reset(seed=seed, options=options)
        self.cue, self.steps = 2 * int(self.np_random.integers(2)) - 1, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk on, or choose at the junction."""
        if self.steps < self.length:
            self.steps += 1
            return self._observation(), 0.0, False, False, {}
        is_right = int(action) == (self.cue + 1) // 2
        return self._observation(), 1.0 if is_right else -1.0, True, False, {}
