"""Which observations are images, and which of their axes are channels, height and width."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from sb3_dreamer.common.preprocessing import as_space_dict, class_counts

CHANNELS = (1, 3, 4)
MIN_SIDE = 8
# Bounds that are further apart do not define a scale.
MAX_SPAN = 2.0**32


class ImageLayout(NamedTuple):
    """
    How to convert an observation to an image (C, h, w).

    ``axes`` are the axes of the observation in the order channels, height, width. There may be no channel axis, or several of
    a frame stack.
    """

    axes: tuple[int, ...]
    channels: int
    height: int
    width: int

    def channels_first(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: (N, \\*space.shape)
        :return: (N, C, h, w)
        """
        moved = images.permute(0, *(axis + 1 for axis in self.axes))
        return moved.reshape(len(images), self.channels, self.height, self.width)

    def undo(self, images: th.Tensor, shape: tuple[int, ...]) -> th.Tensor:
        """
        Inverse of :meth:`channels_first`.

        :param images: (N, C, h, w)
        :param shape: of the space
        :return: (N, \\*shape)
        """
        moved = images.reshape(len(images), *(shape[axis] for axis in self.axes))
        return moved.permute(0, *(1 + self.axes.index(axis) for axis in range(len(self.axes))))


def make_layout(shape: tuple[int, ...], height_axis: int) -> ImageLayout:
    """:return: the layout with height at ``height_axis``, width at the next axis, and all other axes as channels"""
    others = [axis for axis in range(len(shape)) if axis not in (height_axis, height_axis + 1)]
    channels = math.prod(shape[axis] for axis in others)
    return ImageLayout((*others, height_axis, height_axis + 1), channels, shape[height_axis], shape[height_axis + 1])


def has_scale(space: spaces.Box) -> bool:
    """:return: whether the bounds can be used to scale the values to [0, 1]"""
    if not space.is_bounded("both"):
        return False
    span = space.high.astype(np.float64) - space.low.astype(np.float64)
    return bool((span > 0).all() and (span <= MAX_SPAN).all())


def plain_layout(space: spaces.Box) -> ImageLayout | None:
    """
    :param space: a Box
    :return: the layout of a bounded Box with three or four axes, if it is unambiguous: height and width are adjacent axes of
        length 8 or more, the other axes (two for a frame stack) are shorter, and one of these has length 1, 3 or 4. None if
        it is not.
    """
    shape = space.shape
    if len(shape) not in (3, 4) or not has_scale(space):
        return None
    large = [axis for axis, length in enumerate(shape) if length >= MIN_SIDE]
    small = [length for length in shape if length < MIN_SIDE]
    if len(large) != 2 or large[1] != large[0] + 1 or not set(small) & set(CHANNELS):
        return None
    return make_layout(shape, large[0])


def sb3_layout(space: spaces.Box) -> ImageLayout:
    """:return: the layout of a Box with three axes, with SB3's rule: channels are first if that axis is the shortest"""
    return make_layout(space.shape, 1 if is_image_space_channels_first(space) else 0)


def named_layout(space: spaces.Box) -> ImageLayout | None:
    """:return: the layout of a Box that the user has declared to be an image; None if its shape is not that of an image"""
    shape = space.shape
    if len(shape) == 2:
        return make_layout(shape, 0)
    if len(shape) == 3:
        is_between = shape[1] < min(shape[0], shape[2])  # channels between height and width
        return None if is_between else sb3_layout(space)
    return plain_layout(space)


def image_layout(space: spaces.Space, normalize_images: bool = True) -> ImageLayout | None:
    """
    :param space: space of one key, as seen by the model (SB3 transposes uint8 images with bounds 0 and 255)
    :param normalize_images: as in SB3; if False, every Box with three axes is an image
    :return: the layout of the image, or None if the space is not an image
    """
    if not isinstance(space, spaces.Box):
        return None
    if is_image_space(space):
        return sb3_layout(space)
    plain = plain_layout(space)
    if plain is None and not normalize_images and is_image_space(space, normalized_image=True):
        return sb3_layout(space)
    return plain


class ObservationKeys(NamedTuple):
    """Keys to encode and to reconstruct, and the layouts of images among them. Keys without a layout are vectors."""

    layouts: dict[str, ImageLayout]
    encoded: list[str]
    decoded: list[str]


def choose_keys(
    observation_space: spaces.Space,
    normalize_images: bool = True,
    image_keys: Sequence[str] | None = None,
    vector_keys: Sequence[str] | None = None,
    decoder_keys: Sequence[str] | None = None,
) -> ObservationKeys:
    """
    :param observation_space: space of the environment; the key of a space that is not a Dict is ``"obs"``
    :param normalize_images: see :func:`image_layout`
    :param image_keys: keys to treat as images, regardless of their space
    :param vector_keys: keys to treat as vectors, regardless of their space; if ``image_keys`` is given as well, the model
        only reads the keys of these two lists
    :param decoder_keys: keys to reconstruct; None: those that the model reads
    :return: the keys in sorted order
    :raises ValueError: if a key is unknown, in both lists, or declared as an image but has another shape, or if no key is left
    """
    space_dict = as_space_dict(observation_space)
    images, vectors = check_keys("image_keys", image_keys, space_dict), check_keys("vector_keys", vector_keys, space_dict)
    decoded = check_keys("decoder_keys", decoder_keys, space_dict)
    if set(images) & set(vectors):
        raise ValueError(f"`image_keys` and `vector_keys` must not share keys, got {sorted(set(images) & set(vectors))}")
    layouts = {}
    for key, space in space_dict.items():
        layout = None if key in vectors else image_layout(space, normalize_images)
        if key in images:
            layout = named_layout(space) if isinstance(space, spaces.Box) else None
            if layout is None:
                raise ValueError(
                    "`image_keys` must be Boxes of two axes, of three with the channels first or last, or frame stacks of "
                    f"four; `{key}` is {space}"
                )
        if layout is None:
            class_counts(space)  # raises on an unsupported space
        else:
            check_scale(key, space)
            layouts[key] = layout
    only_listed = image_keys is not None and vector_keys is not None
    encoded = [key for key in space_dict if not only_listed or key in (*images, *vectors)]
    if not encoded:
        raise ValueError(f"`image_keys` and `vector_keys` are empty: the model would see none of {sorted(space_dict)}")
    return ObservationKeys(layouts, encoded, encoded if decoder_keys is None else decoded)


def check_keys(name: str, keys: Sequence[str] | None, space_dict: dict[str, spaces.Space]) -> list[str]:
    """
    :return: the keys in sorted order
    :raises ValueError: if ``keys`` is not a list of keys of the observation space
    """
    if keys is None:
        return []
    unknown = [key for key in keys if key not in space_dict] if isinstance(keys, (list, tuple)) else [keys]
    if unknown:
        raise ValueError(f"`{name}` must be a list of keys among {sorted(space_dict)}, got {keys!r}")
    return sorted(set(keys))


def check_scale(key: str, space: spaces.Space) -> None:
    """:raises ValueError: if the bounds of an image cannot be used to scale it"""
    assert isinstance(space, spaces.Box)
    if not has_scale(space):
        bounds = f"low={space.low.min()} high={space.high.max()}"
        raise ValueError(f"The bounds of the image `{key}` must be finite and apart, got {bounds}")


def warn_if_flattened(observation_space: spaces.Space, keys: ObservationKeys, named: Sequence[str] | None) -> None:
    """
    Warn about each Box with three axes or more that is read as a vector, unless the user has listed it in ``vector_keys``.

    :param observation_space: space of the environment
    :param keys: the chosen keys
    :param named: ``vector_keys`` of the user
    """
    for key, space in as_space_dict(observation_space).items():
        shape = space.shape or ()
        if isinstance(space, spaces.Box) and len(shape) >= 3 and key not in keys.layouts and key not in (named or ()):
            works = named_layout(space) is not None and has_scale(space)
            named_image = f"policy_kwargs=dict(image_keys=[{key!r}])"
            if_image = f"say `{named_image}`" if works else "give its space, by a wrapper, such bounds and such a shape"
            warnings.warn(
                f"`{key}` of shape {shape} and dtype {space.dtype} is read as {math.prod(shape):,} numbers, not as an image: "
                f"images have finite bounds, height and width of at least {MIN_SIDE} and 1, 3 or 4 channels. If it is one, "
                f"{if_image}; if it is none, `policy_kwargs=dict(vector_keys=[{key!r}])`"
            )
