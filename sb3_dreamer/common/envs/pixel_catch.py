"""Catch a falling ball, with image observations."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.envs.resumable import ResumableEnv


class PixelCatchEnv(ResumableEnv):
    """
    A red ball falls one row per step from a random column; a green paddle in the bottom row, which starts in the middle,
    moves left, stays or moves right. After ``grid - 1`` steps the episode terminates with reward +1 if the paddle is
    under the ball, otherwise -1. All other rewards are 0.

    The best return is 1. An agent that does not use the observation scores at most -0.75 on average (grid of 8).

    :param image_size: height and width of the image in pixels, a multiple of ``grid``
    :param grid: number of rows and columns
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: if ``image_size`` is not a multiple of ``grid``
    """

    STATE = ("ball_row", "ball_column", "paddle")
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, image_size: int = 64, grid: int = 8, render_mode: str | None = None):
        if image_size % grid:
            raise ValueError(f"`image_size` must be a multiple of `grid`={grid}, got {image_size}")
        self.cell = image_size // grid
        self.grid = grid
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.ball_row, self.ball_column, self.paddle = 0, 0, grid // 2

    def _observation(self) -> np.ndarray:
        cells = np.zeros((self.grid, self.grid, 3), dtype=np.uint8)
        cells[self.grid - 1, self.paddle, 1] = 255
        cells[self.ball_row, self.ball_column, 0] = 255
        return cells.repeat(self.cell, axis=0).repeat(self.cell, axis=1)

    def render(self) -> np.ndarray:
        """:return: the image that the agent sees"""
        return self._observation()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the ball in a random column of the top row."""
        super().reset(seed=seed, options=options)
        self.ball_row, self.paddle = 0, self.grid // 2
        self.ball_column = int(self.np_random.integers(self.grid))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the paddle, then let the ball fall one row."""
        self.paddle = int(np.clip(self.paddle + int(action) - 1, 0, self.grid - 1))
        self.ball_row += 1
        is_over = self.ball_row == self.grid - 1
        reward = (1.0 if self.paddle == self.ball_column else -1.0) if is_over else 0.0
        return self._observation(), reward, is_over, False, {}
