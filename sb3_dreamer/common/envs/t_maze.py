"""Memory task: remember a cue until the end of a corridor."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.envs.resumable import ResumableEnv


class TMazeEnv(ResumableEnv):
    """
    The observation is ``[cue, at the junction, 1]``. The cue, +1 or -1, is shown at the first step only. After ``length``
    steps, regardless of the actions, the agent is at the junction. There, action 1 is correct for cue +1 and action 0 for cue
    -1. The reward is +1 for the correct action, otherwise -1, and the episode terminates. All other rewards are 0.

    The best return is 1. An agent without memory scores exactly 0 on average.

    :param length: N, steps between the cue and the junction
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: if ``length`` is below 1
    """

    STATE = ("cue", "steps")
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, length: int = 4, render_mode: str | None = None):
        if length < 1:
            raise ValueError(f"`length` must be at least 1, got {length}")
        self.length, self.render_mode = length, render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.cue, self.steps = 1, 0

    def _observation(self) -> np.ndarray:
        return np.array([self.cue if self.steps == 0 else 0, self.steps == self.length, 1], dtype=np.float32)

    def render(self) -> np.ndarray:
        """:return: image of the corridor, with the agent in white and the correct turn in green, 16 pixels per cell"""
        cells = np.full((3, self.length + 1, 3), 40, dtype=np.uint8)
        cells[[0, 2], :-1] = 0  # the corridor leads to the junction on the right
        cells[0 if self.cue > 0 else 2, -1] = (0, 160, 0)
        cells[1, self.steps] = 255
        return cells.repeat(16, axis=0).repeat(16, axis=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a random cue and show it."""
        super().reset(seed=seed, options=options)
        self.cue, self.steps = 2 * int(self.np_random.integers(2)) - 1, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move one step in the corridor, or choose at the junction."""
        if self.steps < self.length:
            self.steps += 1
            return self._observation(), 0.0, False, False, {}
        is_right = int(action) == (self.cue + 1) // 2
        return self._observation(), 1.0 if is_right else -1.0, True, False, {}
