"""VecNormalize inside VecTransposeImage, the order in which SB3 and RL Zoo wrap an environment."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.preprocessing import SINGLE_KEY, as_space_dict
from sb3_dreamer.common.type_aliases import NumpyObs


class TransposedOriginals:
    """
    A VecNormalize whose original observations have the layout of the model. SB3 stores the original observations, which
    otherwise hold images as they are before VecTransposeImage. All other attributes are those of the VecNormalize.

    :param vec_normalize: normalises all keys except the images
    :param observation_space: observation space of the model
    """

    def __init__(self, vec_normalize: VecNormalize, observation_space: spaces.Space):
        self.vec_normalize = vec_normalize
        self.space_dict = as_space_dict(observation_space)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vec_normalize, name)

    def get_original_obs(self) -> NumpyObs:
        """:return: observations without normalisation, images channels first"""
        originals = self.vec_normalize.get_original_obs()
        if not isinstance(originals, dict):
            return maybe_transpose(originals, self.space_dict[SINGLE_KEY])
        return {key: maybe_transpose(array, self.space_dict[key]) for key, array in originals.items()}


def in_model_layout(vec_normalize: VecNormalize | None, observation_space: spaces.Space) -> Any:
    """
    :param vec_normalize: VecNormalize of the environment
    :param observation_space: observation space of the model
    :return: the same object, wrapped in :class:`TransposedOriginals` if images are transposed outside of it
    """
    if vec_normalize is None:
        return vec_normalize
    theirs = as_space_dict(vec_normalize.observation_space)
    is_same = all(theirs[key].shape == space.shape for key, space in as_space_dict(observation_space).items())
    return vec_normalize if is_same else TransposedOriginals(vec_normalize, observation_space)
