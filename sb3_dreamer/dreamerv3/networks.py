"""Encoder and decoder for observations of any mix of images and vectors."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.distributions import ImageMSE, MultiCategorical, SymlogMSE, VectorMSE, at_least_float32, symlog
from sb3_dreamer.common.functional import device_constant
from sb3_dreamer.common.images import ImageLayout, ObservationKeys, choose_keys
from sb3_dreamer.common.preprocessing import (
    as_rows,
    as_space_dict,
    as_tensor_dict,
    class_counts,
    class_indices,
    class_starts,
    encoded_dim,
    one_hot_groups,
)
from sb3_dreamer.common.torch_layers import (
    MLP,
    BlockLinear,
    Conv2dSame,
    HiddenLayer,
    Linear,
    RMSNorm,
    RMSNorm2d,
    UpsampledConv2d,
)
from sb3_dreamer.common.type_aliases import TensorObs
from sb3_dreamer.dreamerv3.model_sizes import ModelSize

MULTIPLIERS = (2, 3, 4, 4)
# With `cnn_multipliers="doubling"`: of the last stage; each stage before it has half, at least 1.
LAST_MULTIPLIER = 4
# Allowed height and width of the coarsest feature map, as asserted in the official encoder.
MIN_SIDE, MAX_SIDE = 3, 16
# Number of activations of one layer that are computed at a time on a CPU. Whole batches are slower: the allocator requests
# arrays above 32 MB from the system each time, page by page.
CHUNK_NUMEL = 2**22


def n_cnn_stages(height: int, width: int) -> int:
    """
    How often an image is halved. The default is four times, which must leave sides of 3 to 16 pixels. Larger images are
    halved more often until the longer side fits, smaller ones less often so that the shorter side fits. If both are
    impossible, the lower bound wins.

    :param height: of the image in pixels
    :param width: of the image in pixels
    :return: number of stages, at least one
    """

    def sides(n: int) -> tuple[int, int]:
        coarse = math.ceil(height / 2**n), math.ceil(width / 2**n)
        return min(coarse), max(coarse)

    n = 4
    while sides(n)[1] > MAX_SIDE:
        n += 1
    while n > 1 and sides(n)[0] < MIN_SIDE:
        n -= 1
    return n


class UnitPixels(nn.Module):
    """
    Scale pixels to [0, 1] by the bounds of the image space, and move channels first.

    :param space: space of the image
    :param layout: order of its axes
    """

    low: th.Tensor
    span: th.Tensor

    def __init__(self, space: spaces.Box, layout: ImageLayout):
        super().__init__()
        self.layout = layout
        self.shape = space.shape
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        is_same = np.ptp(low) == 0.0 and np.ptp(high) == 0.0  # one number for all pixels
        for name, bound in (("low", low), ("span", high - low)):
            value = th.tensor(bound.flat[0]) if is_same else layout.channels_first(th.tensor(bound[None]))[0]  # (C, h, w)
            self.register_buffer(name, value, persistent=False)

    def forward(self, image: th.Tensor) -> th.Tensor:
        """
        :param image: (N, \\*space.shape) in the dtype of the space
        :return: (N, C, h, w)
        """
        return (self.layout.channels_first(image).to(self.low.dtype) - self.low) / self.span

    def undo(self, pixels: th.Tensor) -> th.Tensor:
        """
        :param pixels: in [0, 1], (N, C, h, w)
        :return: values within the bounds of the space (N, \\*space.shape), float
        """
        return self.layout.undo(pixels * self.span + self.low, self.shape)


class ImageTower:
    """
    Keys and sizes of one stack of convolutions, shared by encoder and decoder.

    :param keys: image keys of equal height and width, sorted; their channels are concatenated
    :param image_spaces: their spaces
    :param layouts: order of their axes
    :param size: model dimensions
    """

    def __init__(self, keys: list[str], image_spaces: list[spaces.Box], layouts: list[ImageLayout], size: ModelSize):
        self.keys = keys
        self.spaces = image_spaces
        self.layouts = layouts
        self.key_channels = [layout.channels for layout in layouts]
        self.height, self.width = layouts[0].height, layouts[0].width
        n_stages = n_cnn_stages(self.height, self.width)
        if size.cnn_multipliers is None:
            multipliers = (MULTIPLIERS + MULTIPLIERS[-1:] * n_stages)[:n_stages]
        elif size.cnn_multipliers == "doubling":
            multipliers = tuple(max(1, LAST_MULTIPLIER // 2**stage) for stage in reversed(range(n_stages)))
        else:
            multipliers = size.cnn_multipliers  # type: ignore[assignment]
        self.channels = [size.depth * multiplier for multiplier in multipliers]
        stride = 2 ** len(self.channels)
        self.coarse_height, self.coarse_width = math.ceil(self.height / stride), math.ceil(self.width / stride)
        self.pad_height = self.coarse_height * stride - self.height
        self.pad_width = self.coarse_width * stride - self.width

    @property
    def features_dim(self) -> int:
        """Width of the flattened coarsest feature map."""
        return self.coarse_height * self.coarse_width * self.channels[-1]


def chunked(function: Callable[..., th.Tensor], floats_per_row: int, *arguments: th.Tensor) -> th.Tensor:
    """
    Call a function, in chunks of rows on a CPU.

    :param function: a function that processes its N rows independently
    :param floats_per_row: size of its largest layer
    :param arguments: (N, ...) each
    :return: result of the function (N, ...)
    """
    size = max(1, CHUNK_NUMEL // floats_per_row)
    if arguments[0].device.type != "cpu" or len(arguments[0]) <= size:
        return function(*arguments)
    return th.cat([function(*chunk) for chunk in zip(*(argument.split(size) for argument in arguments), strict=True)])


def split_keys(
    observation_space: spaces.Space, size: ModelSize, layouts: dict[str, ImageLayout], keys: list[str]
) -> tuple[list[ImageTower], list[str]]:
    """
    :param observation_space: space of the environment
    :param size: model dimensions
    :param layouts: layouts of the keys that are images
    :param keys: the keys to read, sorted
    :return: one tower per image size, in the order of their first keys, and the sorted keys that are not images
    """
    space_dict = as_space_dict(observation_space)
    by_size: dict[tuple[int, int], list[str]] = {}
    for key in keys:
        if key in layouts:
            by_size.setdefault((layouts[key].height, layouts[key].width), []).append(key)
    towers = [
        ImageTower(group, [space_dict[key] for key in group], [layouts[key] for key in group], size)  # type: ignore[misc]
        for group in by_size.values()
    ]
    return towers, [key for key in keys if key not in layouts]


class ConvEncoder(nn.Module):
    """
    Stages of 5x5 convolution, 2x2 max-pool, RMSNorm over channels, SiLU (pool before norm).

    :param tower: keys and sizes of the images
    """

    def __init__(self, tower: ImageTower):
        super().__init__()
        self.tower = tower
        self.to_unit = nn.ModuleList(map(UnitPixels, tower.spaces, tower.layouts))
        stages = []
        for n_in, n_out in zip([sum(tower.key_channels), *tower.channels[:-1]], tower.channels, strict=True):
            stages.append(nn.Sequential(Conv2dSame(n_in, n_out), nn.MaxPool2d(2), RMSNorm2d(n_out), nn.SiLU()))
        self.stages = nn.Sequential(*stages)

    def forward(self, by_key: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param by_key: observations, including the images of this tower (N, C, h, w)
        :return: features flattened in the order (h, w, channel), (N, tower.features_dim)
        """
        tower = self.tower
        return chunked(self._encode, tower.channels[0] * tower.height * tower.width, *(by_key[key] for key in tower.keys))

    def _encode(self, *images: th.Tensor) -> th.Tensor:
        units = [to_unit(image) for image, to_unit in zip(images, self.to_unit, strict=True)]
        x = th.cat(units, dim=1) - 0.5  # (N, C, h, w)
        if self.tower.pad_height or self.tower.pad_width:
            # Repeat the edge at bottom and right instead of resizing. The decoder crops the same pixels.
            x = F.pad(x, (0, self.tower.pad_width, 0, self.tower.pad_height), mode="replicate")
        x = self.stages(x.contiguous(memory_format=th.channels_last))  # (N, C', h', w')
        return x.permute(0, 2, 3, 1).flatten(1)  # (N, h' * w' * C')


class MultiEncoder(BaseFeaturesExtractor):
    """
    Encode all keys of an observation as one embedding: an MLP reads vectors (symlog values and one-hots), and one tower of
    convolutions reads the images of each size.

    :param observation_space: space of the environment
    :param size: model dimensions
    :param keys: keys to read and their layouts; None: all keys
    :param symlog_inputs: if False, vectors are encoded without symlog
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        size: ModelSize,
        keys: ObservationKeys | None = None,
        symlog_inputs: bool = True,
    ):
        keys = keys or choose_keys(observation_space)
        towers, vector_keys = split_keys(observation_space, size, keys.layouts, keys.encoded)
        space_dict = as_space_dict(observation_space)
        vector_dim = sum(encoded_dim(space_dict[key]) for key in vector_keys)
        features_dim = (size.units if vector_keys else 0) + sum(tower.features_dim for tower in towers)
        super().__init__(observation_space, features_dim)
        self.symlog_inputs = symlog_inputs
        self.spaces = space_dict
        self.vector_keys = vector_keys
        # Python numbers, because torch.compile would treat numpy numbers as tensors.
        self.sizes = {key: class_counts(space_dict[key]) for key in vector_keys}
        self.starts = {key: class_starts(space_dict[key]) for key in vector_keys}
        self.mlp = MLP(vector_dim, size.units, size.encoder_layers) if vector_keys else None
        self.towers = nn.ModuleList(ConvEncoder(tower) for tower in towers)

    def forward(self, observations: TensorObs) -> th.Tensor:
        """
        :param observations: (N, ...) per key in the dtype of its space
        :return: embed (N, E), vector features first
        """
        by_key = as_tensor_dict(observations)
        features = []
        if self.mlp is not None:
            vectors = th.cat([self._vector(key, by_key[key]) for key in self.vector_keys], dim=-1)  # (N, n)
            features.append(self.mlp(vectors))  # (N, U)
        for encoder in self.towers:
            features.append(encoder(by_key))  # (N, tower.features_dim)
        return th.cat(features, dim=-1) if len(features) > 1 else features[0]  # (N, E)

    def _vector(self, key: str, observation: th.Tensor) -> th.Tensor:
        sizes = self.sizes[key]
        if sizes is None:
            dtype = next(self.parameters()).dtype
            values = as_rows(observation).to(dtype)  # (N, n)
            return symlog(values) if self.symlog_inputs else values
        return one_hot_groups(class_indices(observation, self.starts[key]), sizes)  # (N, sum of classes)


class ConvDecoder(nn.Module):
    """
    Mirror of :class:`ConvEncoder`: deter and stoch are projected to the coarsest feature map, which is then upsampled by
    convolutions.

    :param tower: keys and sizes of the images
    :param size: model dimensions
    """

    def __init__(self, tower: ImageTower, size: ModelSize):
        super().__init__()
        self.tower = tower
        # If the channels are not a multiple of the GRU's blocks, use the largest number of blocks that divides both.
        self.blocks = math.gcd(size.blocks, tower.channels[-1])
        self.from_deter = BlockLinear(size.deter, tower.features_dim, self.blocks)
        self.from_stoch = nn.Sequential(
            HiddenLayer(size.stoch * size.classes, 2 * size.units), Linear(2 * size.units, tower.features_dim)
        )
        self.norm = RMSNorm(tower.channels[-1])
        channels = tower.channels[::-1]
        self.stages = nn.ModuleList(
            nn.Sequential(UpsampledConv2d(n_in, n_out), RMSNorm2d(n_out), nn.SiLU()) for n_in, n_out in pairwise(channels)
        )
        self.output = UpsampledConv2d(channels[-1], sum(tower.key_channels))

    def forward(self, deter: th.Tensor, stoch: th.Tensor) -> dict[str, ImageMSE]:
        """
        :param deter: (N, D)
        :param stoch: (N, S * K)
        :return: distribution over pixels in [0, 1] for each key
        """
        coarse = (self.tower.coarse_height, self.tower.coarse_width)
        from_deter = self.from_deter(deter).unflatten(-1, (self.blocks, *coarse, -1))  # (N, G, h', w', C'/G)
        from_deter = from_deter.permute(0, 2, 3, 1, 4).flatten(3)  # (N, h', w', C')
        from_stoch = self.from_stoch(stoch).unflatten(-1, (*coarse, -1))  # (N, h', w', C')
        x = F.silu(self.norm(from_deter + from_stoch)).permute(0, 3, 1, 2)  # (N, C', h', w')
        largest = max(self.tower.channels[0] // 4, sum(self.tower.key_channels)) * self.tower.height * self.tower.width
        pixels = chunked(self._upsample, largest, x)  # (N, C, h, w)
        parts = pixels.split(self.tower.key_channels, dim=1)
        return {key: ImageMSE(part) for key, part in zip(self.tower.keys, parts, strict=True)}

    def _upsample(self, x: th.Tensor) -> th.Tensor:
        for stage in self.stages:
            x = stage(x)  # (N, C'', 2h', 2w')
        x = self.output(x)  # (N, C, h + pad, w + pad)
        return th.sigmoid(at_least_float32(x[..., : self.tower.height, : self.tower.width]))  # (N, C, h, w)


class MultiDecoder(nn.Module):
    """
    Decode latents as a distribution over each key of the observation.

    :param observation_space: space of the environment
    :param size: model dimensions
    :param keys: keys to reconstruct and their layouts; None: all keys
    :param symlog_inputs: if False, vectors are predicted without symlog
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        size: ModelSize,
        keys: ObservationKeys | None = None,
        symlog_inputs: bool = True,
    ):
        super().__init__()
        keys = keys or choose_keys(observation_space)
        self.vector_class = SymlogMSE if symlog_inputs else VectorMSE
        towers, self.vector_keys = split_keys(observation_space, size, keys.layouts, keys.decoded)
        self.spaces = as_space_dict(observation_space)
        self.sizes = {key: class_counts(self.spaces[key]) for key in self.vector_keys}
        self.starts = {key: class_starts(self.spaces[key]) for key in self.vector_keys}
        self.towers = nn.ModuleList(ConvDecoder(tower, size) for tower in towers)
        self.image_keys = [key for tower in towers for key in tower.keys]
        self.to_unit = nn.ModuleList(to_unit for tower in towers for to_unit in map(UnitPixels, tower.spaces, tower.layouts))
        self.mlp = MLP(size.features_dim, size.units, size.decoder_layers) if self.vector_keys else None
        # A list, because users choose the keys, and a ModuleDict does not allow dots or names such as "values".
        widths = [encoded_dim(self.spaces[key]) for key in self.vector_keys]
        self.vector_outputs = nn.ModuleList(Linear(size.units, width) for width in widths)

    def forward(self, deter: th.Tensor, stoch: th.Tensor) -> dict[str, VectorMSE | MultiCategorical | ImageMSE]:
        """
        :param deter: (N, D)
        :param stoch: (N, S, K)
        :return: for each key, a distribution with ``loss(target) -> (N,)`` and ``mode()``
        """
        flat_stoch = stoch.flatten(-2)  # (N, S * K)
        distributions: dict[str, VectorMSE | MultiCategorical | ImageMSE] = {}
        for decoder in self.towers:
            distributions.update(decoder(deter, flat_stoch))
        if self.mlp is not None:
            x = self.mlp(th.cat([flat_stoch, deter], dim=-1))  # (N, U); stoch first here, unlike the heads' features
            for key, layer in zip(self.vector_keys, self.vector_outputs, strict=True):
                sizes = self.sizes[key]
                output = layer(x)  # (N, n)
                distributions[key] = self.vector_class(output) if sizes is None else MultiCategorical(output, sizes)
        return distributions

    def observations(self, deter: th.Tensor, stoch: th.Tensor) -> dict[str, np.ndarray]:
        """
        Predicted observations as the environment would return them. Pixels and integers are rounded.

        :param deter: (N, D)
        :param stoch: (N, S, K)
        :return: for each key, modes in the shape and the dtype of its space (N, \\*space.shape)
        """
        to_units = {key: cast(UnitPixels, one) for key, one in zip(self.image_keys, self.to_unit, strict=True)}
        arrays = {}
        for key, distribution in self(deter, stoch).items():
            space, mode = self.spaces[key], distribution.mode()  # (N, C, h, w), (N, n) or (N, S)
            if key in to_units:
                mode = to_units[key].undo(mode)  # (N, *space.shape)
            elif self.starts.get(key):
                mode = mode + device_constant(self.starts[key], mode.device)  # (N, S)
            array = mode.cpu().numpy().reshape(len(mode), *(space.shape or ()))
            if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
                array = np.rint(array).clip(space.low, space.high)
            arrays[key] = array.astype(space.dtype)
        return arrays

    def targets(self, observations: TensorObs) -> dict[str, th.Tensor]:
        """
        :param observations: (N, ...) per key in the dtype of its space
        :return: for each key, the target for ``loss`` of its distribution
        """
        by_key = as_tensor_dict(observations)
        targets = {}
        for key, to_unit in zip(self.image_keys, self.to_unit, strict=True):
            targets[key] = to_unit(by_key[key])  # (N, C, h, w)
        for key in self.vector_keys:
            if self.sizes[key] is None:
                targets[key] = as_rows(by_key[key])  # (N, n)
            else:
                targets[key] = class_indices(by_key[key], self.starts[key])  # (N, S)
        return targets
