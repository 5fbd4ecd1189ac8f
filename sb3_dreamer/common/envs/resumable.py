"""Environments that a resumed run continues in the middle of an episode."""

from typing import Any, ClassVar

import gymnasium as gym


class ResumableEnv(gym.Env):
    """
    Saves and restores the attributes that change in an episode. The random generator is saved with them by the checkpoint.

    :cvar STATE: names of these attributes
    """

    STATE: ClassVar[tuple[str, ...]]

    def get_state(self) -> dict[str, Any]:
        """:return: numbers, strings, arrays, and lists, tuples and dicts of these"""
        return {name: getattr(self, name) for name in self.STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`get_state`"""
        vars(self).update(state)
