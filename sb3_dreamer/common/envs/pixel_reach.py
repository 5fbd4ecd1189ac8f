"""Move a point to a goal, with image observations, or with a Dict of image and vector."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.envs.resumable import ResumableEnv

OBSERVATIONS = ("image", "dict")


class PixelReachEnv(ResumableEnv):
    """
    A point in [-1, 1] x [-1, 1] moves by ``0.2 * action``. The reward is the negative distance to a goal. Point and goal are
    random. An episode is truncated after 25 steps and never terminates.

    With ``observations="image"`` the point is red and the goal green in one image. With ``"dict"`` the image shows the point
    only, and the goal is a vector next to it. Moving straight to the goal scores -2.33 on average. An agent that does
    not see the goal scores at most -19.4 (by staying in the middle).

    :param observations: ``"image"`` or ``"dict"``
    :param image_size: height and width of the image in pixels, at least 16
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: if ``observations`` or ``image_size`` is not allowed
    """

    STATE = ("point", "goal", "steps")
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    STEP, LENGTH = 0.2, 25

    def __init__(self, observations: str = "image", image_size: int = 64, render_mode: str | None = None):
        if observations not in OBSERVATIONS:
            raise ValueError(f"`observations` must be one of {OBSERVATIONS}, got {observations!r}")
        if image_size < 16:
            raise ValueError(f"`image_size` must be at least 16, got {image_size}")
        self.observations, self.image_size, self.render_mode = observations, image_size, render_mode
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        goal = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = image if observations == "image" else spaces.Dict({"image": image, "goal": goal})
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.point, self.goal, self.steps = np.zeros(2), np.zeros(2), 0

    def _draw(self, with_goal: bool) -> np.ndarray:
        image = np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
        radius = self.image_size // 16
        marks = [(self.goal, 1), (self.point, 0)] if with_goal else [(self.point, 0)]
        for position, channel in marks:
            x, y = np.rint((position + 1.0) / 2.0 * (self.image_size - 1)).astype(int)
            image[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1, channel] = 255
        return image

    def _observation(self) -> np.ndarray | dict[str, np.ndarray]:
        if self.observations == "image":
            return self._draw(with_goal=True)
        return {"image": self._draw(with_goal=False), "goal": self.goal.astype(np.float32)}

    def render(self) -> np.ndarray:
        """:return: image of point and goal"""
        return self._draw(with_goal=True)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw random positions of point and goal."""
        super().reset(seed=seed, options=options)
        self.point, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the point, then compute the distance to the goal."""
        move = self.STEP * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self.point = np.clip(self.point + move, -1.0, 1.0)
        self.steps += 1
        reward = -float(np.linalg.norm(self.point - self.goal))
        return self._observation(), reward, False, self.steps >= self.LENGTH, {}
