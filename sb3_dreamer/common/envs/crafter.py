"""Crafter with the gymnasium API."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CrafterEnv(gym.Env):
    """
    Crafter (Hafner 2021) with the gymnasium API. An episode terminates when the player dies (Crafter then returns a discount
    of 0) and is truncated after 10,000 steps.

    :param size: height and width in pixels
    :param render_mode: ``"rgb_array"`` or None
    :param seed: of the first world; later worlds follow from it
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, size: int = 64, render_mode: str | None = None, seed: int | None = None):
        self.size, self.render_mode = size, render_mode
        self._make(seed)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(int(self.crafter.action_space.n))

    def _make(self, seed: int | None) -> None:
        import crafter  # optional, and slow to import

        self.crafter = crafter.Env(size=(self.size, self.size), seed=seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in a new world. With a seed, it is the first world of that seed."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._make(seed)
        return self.crafter.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step. Alive at the step limit: truncated, not terminated."""
        observation, reward, is_over, info = self.crafter.step(int(action))
        is_dead = info["discount"] == 0
        return observation, float(reward), bool(is_dead), bool(is_over and not is_dead), info

    def render(self) -> np.ndarray:
        """:return: the image that the agent sees"""
        return self.crafter.render((self.size, self.size))
